"""Spatter has no reference pictures: its parts by hand, and the whole against the OpenCV it came from."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from robustglimpse.corruptions import SEVERITIES
from robustglimpse.corruptions.spatter import (
    FAR_PX,
    MUD,
    SPATTER,
    WATER,
    _distance,
    _edges,
    _equalised,
    spatter,
)
from robustglimpse.data import Dataset
from robustglimpse.rng import LegacyDraws

WATER_SEVERITIES, MUD_SEVERITIES = (1, 2, 3), (4, 5)
PRESETS = (32, 64, 224)


def pouring(normal: float) -> Any:
    """Draws for one image whose normal numbers are all the same one."""
    return SimpleNamespace(normal=lambda label, shape: torch.full((1, *shape), normal))


@pytest.fixture
def photo(digits: Dataset) -> Tensor:
    """One digit, u8 [1,64,64,3]."""
    return torch.from_numpy(digits.images[:1].copy()).permute(0, 2, 3, 1)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_without_a_drop_the_image_stays(photo: Tensor, severity: int, preset: int) -> None:
    assert torch.equal(spatter(photo, severity, preset, pouring(-5.0)), photo)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("severity", MUD_SEVERITIES)
def test_under_nothing_but_mud_all_is_brown(photo: Tensor, severity: int, preset: int) -> None:
    found = spatter(photo, severity, preset, pouring(5.0))
    assert found.flatten(0, 2).unique(dim=0).tolist() == [[63, 42, 20]]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("severity", WATER_SEVERITIES)
def test_under_nothing_but_water_all_shines_alike(severity: int, preset: int) -> None:
    # A sheet of water has no edge, so its relief is flat, and the embossing kernel adds up to 1.
    grey = torch.full((1, 8, 8, 3), 51, dtype=torch.uint8)
    amount = SPATTER[preset][severity - 1][4]
    expected = [int(min(255, 51 + 255 * amount * tint)) for tint in WATER]
    found = spatter(grey, severity, preset, pouring(0.9))
    assert found.flatten(0, 2).unique(dim=0).tolist() == [expected]


@pytest.mark.parametrize("preset", PRESETS)
def test_water_brightens_and_mud_darkens_a_bright_image(preset: int) -> None:
    bright = torch.full((4, 64, 64, 3), 128, dtype=torch.uint8)
    for severity in SEVERITIES:
        found = spatter(bright, severity, preset, LegacyDraws(range(4)))
        wet = found != bright
        assert wet.any()
        assert not wet.all()
        assert ((found < bright) == (wet & (severity in MUD_SEVERITIES))).all()


def test_mud_covers_where_four_fifths_of_a_blurred_splash_do(monkeypatch: pytest.MonkeyPatch) -> None:
    # A splash over a quarter-plane, blurred by sigma 1.5: along a side .63, .85 and .95 of it are left in
    # the first three pixels.  In the corner these are multiplied: .85 * .85 is too little, .85 * .95 is not.
    monkeypatch.setitem(SPATTER, 64, ((0.0, 1.0, 0.1, 0.5, 1.5, True),))
    splash = torch.zeros(40, 40)
    splash[20:, 20:] = 1
    draws: Any = SimpleNamespace(normal=lambda label, shape: splash[None].clone())
    white = torch.full((1, 40, 40, 3), 255, dtype=torch.uint8)
    muddy = (spatter(white, 1, 64, draws) != white).any(3)[0]
    assert torch.arange(40)[muddy[35]].min() == 21
    assert torch.arange(40)[muddy[:, 35]].min() == 21
    assert muddy[20:24, 20:24].int().tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]]


@pytest.mark.parametrize("height, is_edge", [(37, False), (38, True)])
def test_an_edge_is_one_pixel_wide_and_four_times_its_height_strong(height: int, is_edge: bool) -> None:
    plane = torch.zeros(1, 5, 9, dtype=torch.int32)
    plane[:, :, 5:] = height  # 4 * 37 is below 150, and 4 * 38 above
    assert _edges(plane)[0].int().tolist() == [[0, 0, 0, 0, int(is_edge), 0, 0, 0, 0]] * 5


def test_an_edge_goes_on_while_it_is_weak_and_ends_where_it_is_weaker() -> None:
    # A step that falls from 60 to 1: strong to row 23, 4 * 37 + 6 there, and above 50 to row 48, 4 * 12 + 6.
    plane = torch.zeros(1, 60, 9, dtype=torch.int32)
    plane[:, :, 5:] = torch.arange(60, 0, -1)[:, None]
    assert _edges(plane)[0, :, 5].tolist() == [True] * 49 + [False] * 11
    assert not _edges(plane[:, 25:]).any(), "a weak edge alone is none"


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_slanting_edge_lies_on_both_its_sides(turns: int) -> None:
    y, x = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    plane = ((x + y >= 11) * 100).int().rot90(turns)
    expected = ((x + y == 10) | (x + y == 11)).rot90(turns)
    assert torch.equal(_edges(plane[None].contiguous())[0, 1:-1, 1:-1], expected[1:-1, 1:-1])


def steps(dy: int, dx: int) -> int:
    """Return the shortest way by king's and knight's moves, in 65536ths of a pixel (1, 1.4 and 2.1969)."""
    short, long = sorted((abs(dy), abs(dx)))
    if 2 * short <= long:
        return 143976 * short + 65536 * (long - 2 * short)
    return 143976 * (long - short) + 91750 * (2 * short - long)


@pytest.mark.parametrize("count", [1, 3, 12])
def test_distance_is_the_shortest_way_to_a_source(count: int) -> None:
    height, width = 9, 13
    for seed in range(20):
        at = np.random.default_rng(seed).choice(height * width, count, replace=False)
        sources = [divmod(int(k), width) for k in at]
        plane = torch.zeros(1, height, width, dtype=torch.bool)
        for y, x in sources:
            plane[0, y, x] = True
        expected = [
            min(steps(y - of_y, x - of_x) for of_y, of_x in sources)
            for y in range(height)
            for x in range(width)
        ]
        assert _distance(plane).flatten().tolist() == (np.float32(expected) / np.float32(65536)).tolist()


def test_distance_counts_every_image_for_itself() -> None:
    planes = torch.zeros(2, 5, 7, dtype=torch.bool)
    planes[0, 2, 3] = True
    found = _distance(planes)
    assert found[0, 2].tolist() == [3, 2, 1, 0, 1, 2, 3]
    assert float(found[1].min()) > FAR_PX, "no source: farther than the farthest that counts"


def test_equalising_spreads_levels_by_how_many_lie_below() -> None:
    two = torch.tensor([[[7, 7, 7, 9]]], dtype=torch.uint8)
    assert _equalised(two).tolist() == [[[0, 0, 0, 255]]]
    # Of the three pixels above the lowest level two lie at the middle one: 255 * 2 / 3.
    three = torch.tensor([[[3, 4, 4, 200]]], dtype=torch.uint8)
    assert _equalised(three).tolist() == [[[0, 170, 170, 255]]]


def test_equalising_leaves_a_single_level_alone() -> None:
    planes = torch.tensor([[[20, 20]], [[20, 21]]], dtype=torch.uint8)
    assert _equalised(planes).tolist() == [[[20, 20]], [[0, 255]]]


@pytest.fixture(scope="module")
def cv2() -> ModuleType:
    return pytest.importorskip("cv2", reason="compares with OpenCV: not installed")


def with_opencv(cv2: ModuleType, pixels: NDArray[Any], severity: int, preset: int, seed: int) -> NDArray[Any]:
    """Return u8 [H,W,3] spattered as the reference does it, drawn from numpy's global stream."""
    mean, deviation, sigma, threshold, amount, is_mud = SPATTER[preset][severity - 1]
    x = pixels.astype(np.float32) / 255
    liquid = np.random.RandomState(seed).normal(mean, deviation, x.shape[:2])
    liquid = gaussian_filter(liquid, sigma, mode="nearest")
    liquid[liquid < threshold] = 0
    if is_mud:
        cover = gaussian_filter((liquid > threshold).astype(np.float32), amount, mode="nearest")
        cover[cover < 0.8] = 0
        mixed = x * (1 - cover[..., None]) + cover[..., None] * np.array(MUD)
        return (np.clip(mixed, 0, 1) * 255).astype(np.uint8)
    drops = (liquid * 255).astype(np.int64).astype(np.uint8)
    distance = cv2.distanceTransform(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, 5)
    distance = cv2.threshold(distance, 20, 20, cv2.THRESH_TRUNC)[1]
    relief = cv2.equalizeHist(cv2.blur(distance, (3, 3)).astype(np.uint8))
    kernel = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], np.float32)
    shading = cv2.blur(cv2.filter2D(relief, cv2.CV_8U, kernel), (3, 3)).astype(np.float32)
    shine = drops * shading
    shine *= amount / shine.max()
    return (np.clip(x + shine[..., None] * np.array(WATER), 0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize("size", PRESETS)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_agrees_with_opencv(cv2: ModuleType, digits: Dataset, severity: int, size: int) -> None:
    images = torch.from_numpy(digits.images[:4].copy()).float()
    photos = F.interpolate(images, size=(size, size), mode="nearest").byte().permute(0, 2, 3, 1)
    found = spatter(photos, severity, size, LegacyDraws(range(4))).int()
    theirs = [with_opencv(cv2, photo, severity, size, k) for k, photo in enumerate(photos.numpy())]
    apart = (found - torch.from_numpy(np.stack(theirs)).int()).abs()
    assert int(apart.max()) <= 1
    assert (apart > 0).double().mean().item() <= 3e-4  # 8e-5 measured
    assert (found != photos).double().mean().item() > 1e-2, "hardly a drop fell: nothing was compared"
