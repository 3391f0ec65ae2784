"""glimpse-digits is the same set everywhere, balanced, and keeps its test digits to itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from robustglimpse.data import Dataset, load_data
from robustglimpse.data import digits as module
from robustglimpse.records import UserError


@pytest.fixture(scope="module")
def test_split() -> Dataset:
    """The whole test split."""
    return load_data("glimpse-digits")


@pytest.fixture(scope="module")
def train_start() -> Dataset:
    """The first 200 train images."""
    return load_data("glimpse-digits", split="train", limit=200)


def content_hash(data: Dataset) -> str:
    """Return the SHA-256 of the pixels."""
    return hashlib.sha256(np.ascontiguousarray(data.images).tobytes()).hexdigest()


# Recorded numbers, made by content_hash on 22 November (numpy 2.4, scikit-learn 1.9): every
# published result on this set depends on them, so a change of one is a new data set.
def test_the_test_split_has_the_pinned_content(test_split: Dataset) -> None:
    assert content_hash(test_split) == "50a30d088a579149f72421e8a8db6a8816676648c139c08b320482b1df62f829"


def test_the_train_split_begins_with_the_pinned_content(train_start: Dataset) -> None:
    assert content_hash(train_start) == "86f48aa384f34142e3547c24055761a90f994298278e8377517cd60003863678"


def test_the_splits_have_the_stated_sizes(test_split: Dataset, train_start: Dataset) -> None:
    assert (len(test_split.images), len(test_split.labels), test_split.total) == (1000, 1000, 1000)
    assert (len(train_start.labels), train_start.total) == (200, 10_000)


def test_images_are_bytes_of_64_px_in_three_channels(test_split: Dataset, train_start: Dataset) -> None:
    for data in test_split, train_start:
        assert data.images.dtype == np.uint8
        assert data.images.shape[1:] == (3, 64, 64)
        assert data.labels.dtype == np.int64
        assert data.classes == tuple("0123456789")


def test_every_prefix_is_balanced(test_split: Dataset) -> None:
    assert np.bincount(test_split.labels).tolist() == [100] * 10
    for count in range(1, 1001):
        per_class = np.bincount(test_split.labels[:count], minlength=10)
        assert per_class.max() - per_class.min() <= 1


def test_a_limit_takes_the_first_images(test_split: Dataset, digits: Dataset) -> None:
    assert np.array_equal(digits.images, test_split.images[:64])
    assert np.array_equal(digits.labels, test_split.labels[:64])
    assert digits.fingerprint != test_split.fingerprint


def test_another_seed_draws_other_images(digits: Dataset) -> None:
    images, labels = module.draw("test", limit=8, seed=1)
    assert np.array_equal(labels, digits.labels[:8])
    assert all((a != b).mean() > 0.5 for a, b in zip(images, digits.images, strict=False))


def test_no_image_comes_twice(test_split: Dataset, train_start: Dataset) -> None:
    seen = [image.tobytes() for data in (test_split, train_start) for image in data.images]
    assert len(set(seen)) == 1200


def pasted_by(split: str, monkeypatch: pytest.MonkeyPatch) -> set[bytes]:
    """Return every 8 x 8 digit image that 100 images of the split paste, whole or in part."""
    pasted: set[bytes] = set()

    def watch(paste: Callable[..., None]) -> Callable[..., None]:
        def watched(canvas: Any, u: Any, digit: Any) -> None:
            pasted.add(digit.tobytes())
            paste(canvas, u, digit)

        return watched

    with monkeypatch.context() as patch:
        for name in "_paste_digit_", "_paste_fragment_":
            patch.setattr(module, name, watch(getattr(module, name)))
        module.draw(split, limit=100)
    return pasted


def test_train_and_test_share_no_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {split: {digit.tobytes() for digit in module._digits(split)[0]} for split in ("train", "test")}
    assert min(map(len, splits.values())) > 300
    assert splits["train"].isdisjoint(splits["test"])
    for split, owned in splits.items():
        pasted = pasted_by(split, monkeypatch)
        assert len(pasted) > 200
        assert pasted <= owned


def test_the_digit_stands_out_from_its_background(digits: Dataset) -> None:
    # Black or white with a rim of the other: both ends of the scale are in every image.
    assert (digits.images.min((1, 2, 3)) <= 31).all()
    assert (digits.images.max((1, 2, 3)) >= 224).all()


def test_an_unknown_split_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match="train, test, not 'val'"):
        load_data("glimpse-digits", split="val")


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_of_nothing_is_refused(limit: int) -> None:
    with pytest.raises(UserError, match="limit must be at least 1"):
        load_data("glimpse-digits", limit=limit)
