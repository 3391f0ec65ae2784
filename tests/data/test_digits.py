"""The embedded sets are the same everywhere, balanced, and keep their test digits to themselves."""

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


# cluttered-digits


@pytest.fixture(scope="module")
def cluttered() -> Dataset:
    """The first 100 test images of cluttered-digits."""
    return load_data("cluttered-digits", limit=100)


# Recorded numbers, made by content_hash on 28 November (numpy 2.4, scikit-learn 1.9), as those above.
@pytest.mark.parametrize(
    "split, content",
    [
        ("test", "f92a6bb32d8ab0c2de19d5cd388b9a063f8506f3f9b940d920fc86d10e2df920"),
        ("train", "f26b2531f7c611af3ef18e8033cc6d881d4651009f8629c2d49b763c59f0dd9d"),
    ],
)
def test_cluttered_digits_begin_with_the_pinned_content(split: str, content: str) -> None:
    assert content_hash(load_data("cluttered-digits", split=split, limit=50)) == content


def test_cluttered_digits_are_one_channel_given_three_times(cluttered: Dataset) -> None:
    assert (cluttered.images.dtype, cluttered.images.shape) == (np.uint8, (100, 3, 112, 112))
    assert np.array_equal(cluttered.images[:, 0], cluttered.images[:, 1])
    assert np.array_equal(cluttered.images[:, 0], cluttered.images[:, 2])
    assert (cluttered.classes, cluttered.size_px, cluttered.total) == (tuple("0123456789"), 112, 1000)
    assert np.bincount(cluttered.labels).tolist() == [10] * 10


def test_a_cluttered_digit_is_white_on_black_and_small(cluttered: Dataset) -> None:
    grey = cluttered.images[:, 0]
    assert ((grey == 0).mean((1, 2)) > 0.8).all()
    assert (grey.max((1, 2)) > 200).all()


def test_a_digit_lies_anywhere_and_pieces_come_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[tuple[int, tuple[int, int]]] = []
    brighten = module._brighten_

    def watched(canvas: Any, u: Any, patch: Any) -> None:
        before = canvas.copy()
        brighten(canvas, u, patch)
        assert (canvas >= before).all(), "the brighter one stays"
        rows, columns = np.nonzero(canvas > before)
        if len(patch) == 28:
            put.append((len(patch), (int(rows.mean()), int(columns.mean()))))
        else:
            put.append((len(patch), (-1, -1)))

    monkeypatch.setattr(module, "_brighten_", watched)
    module.draw_cluttered("train", limit=100)
    assert [side for side, _ in put] == ([8] * 8 + [28]) * 100
    centres = np.array([centre for side, centre in put if side == 28])
    assert (centres.min(0) < 20).all()
    assert (centres.max(0) > 92).all()


def test_cluttered_digits_of_one_split_are_no_others(cluttered: Dataset) -> None:
    train = load_data("cluttered-digits", split="train", limit=100)
    seen = {image.tobytes() for data in (cluttered, train) for image in data.images}
    assert len(seen) == 200
    other, labels = module.draw_cluttered("test", limit=8, seed=1)
    assert np.array_equal(labels, cluttered.labels[:8])
    assert not any(np.array_equal(a, b) for a, b in zip(other, cluttered.images, strict=False))
    with pytest.raises(UserError, match="cluttered-digits has the splits train, test, not 'val'"):
        load_data("cluttered-digits", split="val")
