"""The embedded data sets: real handwritten digits, hidden in real photographs or among pieces, from a seed.

glimpse-digits is a small cousin of the cluttered-digit sets that glimpse models grew up on (Mnih et al.
2014; Jaderberg et al. 2015): find the digit, then read it.  The digits are scikit-learn's copy of the UCI set
(8 x 8, 1 797 images, Alpaydin & Kaynak 1998), the backgrounds its two sample photographs.

cluttered-digits is the toy set of that literature itself, from the same digits: the "translated cluttered
MNIST" of Mnih et al. 2014, a digit of 28 px anywhere on black with pieces of 8 px of other digits.  They have
4 pieces at 60 px and 8 at 100 px; here are 8 at 112 px, the side of the toy images of MGNet's authors (theirs
are translated MNIST without clutter, with Gaussian noise if asked for).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SIZE_PX = 64
CLASSES = tuple("0123456789")
COUNTS = {"train": 10_000, "test": 1_000}
DEFAULT_SEED = 2021
DIGIT_PX = (24, 40)
FRAGMENTS = (2, 6)
RIM_PX = 1.6
CLUTTERED_PX = 112
CLUTTERED_DIGIT_PX = 28
PIECES, PIECE_PX = 8, 8
# Digit images are dealt to the splits before anything is drawn: every fifth of a class is a test digit.
TEST_SHARE = 5


def draw(split: str, *, limit: int | None = None, seed: int = DEFAULT_SEED) -> tuple[Array, Array]:
    """Return one split, or its first limit: images u8 [N,3,64,64] and labels i64 [N] in [0,10).

    split: "train" (10 000 images) or "test" (1 000, a hundred of each class).  The two share no digit
    image; both take their backgrounds from the same two photographs.
    The same seed gives the same bytes on every machine: each image has a generator of its own, and
    only elementwise arithmetic touches its pixels.  Raises KeyError for another split name.
    """
    digits, digit_labels = _digits(split)
    photographs = _photographs()
    by_class = [digits[digit_labels == k] for k in range(10)]

    def image(u: _Uniforms, label: int) -> Array:
        return _image(u, by_class, label, digits, photographs)

    stream = {"train": 0, "test": 1}[split]
    return _drawn(image, SIZE_PX, min(COUNTS[split], limit or COUNTS[split]), (seed, stream), numbers=128)


def draw_cluttered(split: str, *, limit: int | None = None, seed: int = DEFAULT_SEED) -> tuple[Array, Array]:
    """Return one split of cluttered-digits, or its first limit: u8 [N,3,112,112] and i64 [N] in [0,10).

    Of one channel, which comes three times: networks here take three.  Splits, their digits, the order of
    classes and what a seed promises are those of `draw`.
    """
    digits, digit_labels = _digits(split)
    large = _resize(digits, CLUTTERED_DIGIT_PX)
    by_class = [large[digit_labels == k] for k in range(10)]

    def image(u: _Uniforms, label: int) -> Array:
        return _cluttered(u, by_class[label], large)

    stream = {"train": 2, "test": 3}[split]
    return _drawn(image, CLUTTERED_PX, min(COUNTS[split], limit or COUNTS[split]), (seed, stream), numbers=64)


def _drawn(
    image: Callable[[_Uniforms, int], Array], size_px: int, count: int, key: tuple[int, int], *, numbers: int
) -> tuple[Array, Array]:
    """Return images u8 [N,3,S,S] and their labels i64 [N], the classes in turn.

    image: makes one of a label from so many uniform numbers.  key: the seed and the stream of all of them.
    """
    images = np.empty((count, 3, size_px, size_px), np.uint8)
    labels = np.arange(count, dtype=np.int64) % 10
    seed, stream = key
    for i in range(count):
        u = np.random.Generator(np.random.Philox(key=[seed, (stream << 32) + i])).random(numbers)
        images[i] = image(_Uniforms(u), int(labels[i]))
    return images, labels


def _cluttered(u: _Uniforms, same: Array, digits: Array) -> Array:
    """Return one image u8 [112,112]: pieces of any digits, then the digit; where they meet the brighter."""
    canvas = np.zeros((CLUTTERED_PX, CLUTTERED_PX))
    for _ in range(PIECES):
        digit = digits[u.integer(0, len(digits))]
        top, left = (u.integer(0, CLUTTERED_DIGIT_PX - PIECE_PX + 1) for _ in range(2))
        _brighten_(canvas, u, digit[top : top + PIECE_PX, left : left + PIECE_PX])
    _brighten_(canvas, u, same[u.integer(0, len(same))])
    return np.floor(canvas * 255 + 0.5).astype(np.uint8)


def _brighten_(canvas: Array, u: _Uniforms, patch: Array) -> None:
    """Put a square patch somewhere on the canvas, where it is the brighter one."""
    side = len(patch)
    y, x = (u.integer(0, len(canvas) - side + 1) for _ in range(2))
    place = canvas[y : y + side, x : x + side]
    np.maximum(place, patch, out=place)


class _Uniforms:
    """Uniform numbers in [0,1) taken one after the other from a fixed row."""

    def __init__(self, row: Array) -> None:
        self._row, self._used = row, 0

    def between(self, low: float, high: float) -> float:
        self._used += 1
        return low + (high - low) * float(self._row[self._used - 1])

    def integer(self, low: int, stop: int) -> int:
        return int(self.between(low, stop))


def _image(
    u: _Uniforms, by_class: list[Array], label: int, digits: Array, photographs: tuple[Array, ...]
) -> Array:
    """Return one image u8 [3,64,64]: background, fragments, then the digit on top."""
    canvas = _background(u, photographs[u.integer(0, len(photographs))])
    for _ in range(u.integer(FRAGMENTS[0], FRAGMENTS[1] + 1)):
        _paste_fragment_(canvas, u, digits[u.integer(0, len(digits))])
    same = by_class[label]
    _paste_digit_(canvas, u, same[u.integer(0, len(same))])
    return np.floor(np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)


def _background(u: _Uniforms, photograph: Array) -> Array:
    """Return a random crop of the photograph, 64 to 160 px wide there, as f64 [3,64,64] in [0,1]."""
    height, width = photograph.shape[1:]
    side = u.integer(SIZE_PX, min(161, height, width))
    top, left = u.integer(0, height - side + 1), u.integer(0, width - side + 1)
    crop = photograph[:, top : top + side, left : left + side]
    if u.between(0, 1) < 0.5:
        crop = crop[:, :, ::-1]
    return _resize(crop, SIZE_PX)


def _paste_fragment_(canvas: Array, u: _Uniforms, digit: Array) -> None:
    """Paste a 3 x 3 piece of a digit's bitmap, 6 to 10 px wide, in a random colour."""
    top, left = u.integer(0, 6), u.integer(0, 6)
    side = u.integer(6, 11)
    mask = _resize(digit[None, top : top + 3, left : left + 3], side)[0]
    y, x = u.integer(0, SIZE_PX - side + 1), u.integer(0, SIZE_PX - side + 1)
    colour = np.array([u.between(0, 1) for _ in range(3)])[:, None, None]
    _blend_(canvas, mask, colour, y, x)


def _paste_digit_(canvas: Array, u: _Uniforms, digit: Array) -> None:
    """Paste the labelled digit, black or white, inside a thin rim of the other polarity."""
    side = u.integer(DIGIT_PX[0], DIGIT_PX[1] + 1)
    pad = 3
    ink = np.zeros((side + 2 * pad, side + 2 * pad))
    ink[pad:-pad, pad:-pad] = _resize(digit[None], side)[0]
    ink = np.clip((ink - 0.33) / 0.3, 0, 1)
    rim = _dilate(ink, RIM_PX)
    shade = u.between(0.0, 0.12)
    fill, edge = (shade, 1 - shade) if u.between(0, 1) < 0.5 else (1 - shade, shade)
    # The padding may leave the image, the digit itself may not.
    y, x = u.integer(0, SIZE_PX - side + 1) - pad, u.integer(0, SIZE_PX - side + 1) - pad
    _blend_(canvas, rim, np.full((3, 1, 1), edge), y, x)
    _blend_(canvas, ink, np.full((3, 1, 1), fill), y, x)


def _blend_(canvas: Array, mask: Array, colour: Array, y: int, x: int) -> None:
    """Blend colour [3,1,1] into canvas [3,H,W] where mask [h,w] is set, its corner at (y, x)."""
    h, w = mask.shape
    top, left, bottom, right = max(y, 0), max(x, 0), min(y + h, SIZE_PX), min(x + w, SIZE_PX)
    part = mask[top - y : bottom - y, left - x : right - x]
    canvas[:, top:bottom, left:right] += part * (colour - canvas[:, top:bottom, left:right])


def _resize(image: Array, side: int) -> Array:
    """Return image [C,h,w] at [C,side,side]: bilinear, and box-averaged where it shrinks."""
    return _resample(_resample(image, side, axis=1), side, axis=2)


def _resample(image: Array, size: int, axis: int) -> Array:
    """Resample one axis with a triangle filter, tap by tap: matrix products differ between machines."""
    old = image.shape[axis]
    scale = max(1.0, old / size)
    centres = (np.arange(size) + 0.5) * old / size - 0.5
    first = np.ceil(centres - scale).astype(int)
    shape = [1] * image.ndim
    shape[axis] = size
    total = np.zeros([size if a == axis else n for a, n in enumerate(image.shape)])
    weight_sum = np.zeros(size)
    for tap in range(int(2 * scale) + 1):
        at = first + tap
        weight = np.maximum(0.0, 1.0 - np.abs(at - centres) / scale)
        total += weight.reshape(shape) * np.take(image, np.clip(at, 0, old - 1), axis=axis)
        weight_sum += weight
    return total / weight_sum.reshape(shape)


def _dilate(mask: Array, radius_px: float) -> Array:
    """Return the largest value within radius_px of each pixel."""
    reach = int(radius_px)
    out = mask
    padded = np.pad(mask, reach)
    h, w = mask.shape
    for dy in range(2 * reach + 1):
        for dx in range(2 * reach + 1):
            if (dy - reach) ** 2 + (dx - reach) ** 2 <= radius_px**2:
                out = np.maximum(out, padded[dy : dy + h, dx : dx + w])
    return out


def _digits(split: str) -> tuple[Array, Array]:
    """Return the split's digit images f64 [N,8,8] in [0,1] and labels i64 [N]."""
    images, labels = _all_digits()
    rank = np.zeros(len(labels), int)
    for k in range(10):
        rank[labels == k] = np.arange((labels == k).sum())
    is_test = rank % TEST_SHARE == TEST_SHARE - 1
    chosen = is_test if split == "test" else ~is_test
    return images[chosen], labels[chosen]


@cache
def _all_digits() -> tuple[Array, Array]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images / 16.0, bunch.target.astype(np.int64)


@cache
def _photographs() -> tuple[Array, ...]:
    from sklearn.datasets import load_sample_images

    return tuple(image.transpose(2, 0, 1) / 255.0 for image in load_sample_images().images)
