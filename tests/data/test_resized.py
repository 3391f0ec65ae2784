"""A set of one size at another: resized whole, as images of folders are, and still the same set to pair."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from robustglimpse.data import Dataset, load_data, resized
from robustglimpse.records import UserError


def test_images_are_resized_as_torchvision_resizes_a_picture(digits: Dataset) -> None:
    from torchvision.transforms import v2

    small = resized(digits.first(3), 48)
    assert small.images.shape == (3, 3, 48, 48)
    for ours, theirs in zip(small.images, digits.images, strict=False):
        picture = v2.functional.resize(Image.fromarray(theirs.transpose(1, 2, 0)), [48])
        assert np.array_equal(ours, np.asarray(picture).transpose(2, 0, 1))


def test_nothing_is_cut_away(digits: Dataset) -> None:
    images = np.zeros((1, 3, 64, 64), np.uint8)
    images[:, :, :2] = 255  # a frame of 2 px at the top is one of 1 px at half the size
    framed = replace(digits.first(1), images=images)
    assert (resized(framed, 32).images[0, 0, 0] > 200).all()


def test_a_resized_set_says_so_and_is_paired_with_the_first(digits: Dataset) -> None:
    small = resized(digits, 32)
    assert small.notes == (f"{digits.name}: images of 64 px are resized to 32 px",)
    assert small.preparation == "resize 32 crop 32"
    assert small.fingerprint != digits.fingerprint
    assert small.identity == digits.fingerprint
    assert np.array_equal(small.labels, digits.labels)
    assert resized(digits, 64) is digits


def test_images_that_are_no_squares_are_refused(digits: Dataset) -> None:
    flat = replace(digits, images=digits.images[:, :, :32])
    with pytest.raises(UserError, match="expected square images and a size from 1 up, got 64 x 32 px and 16"):
        resized(flat, 16)
    with pytest.raises(UserError, match="and 0; leave size_px out"):
        resized(digits, 0)


def test_cluttered_digits_can_be_resized_too() -> None:
    small = resized(load_data("cluttered-digits", limit=2), 56)
    assert torch.from_numpy(small.images.copy()).shape == (2, 3, 56, 56)
