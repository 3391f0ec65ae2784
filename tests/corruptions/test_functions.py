"""What the corruptions and their filters do, where it can be worked out by hand or by a slower plain way."""

from __future__ import annotations

import colorsys
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from robustglimpse.corruptions import blur, digital, filters, noise, weather
from robustglimpse.records import UserError
from robustglimpse.rng import KeyedDraws, LegacyDraws

NONE: Any = None  # draws of a corruption that takes none


@dataclass(frozen=True)
class Given:
    """Draws for one image that are what a test says, by label, and 0 where it says nothing."""

    numbers: dict[str, Any] = field(default_factory=dict)

    def uniform(self, label: str, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.as_tensor(self.numbers.get(label, 0.0)).double().expand(1, *shape).contiguous()

    def normal(self, label: str, shape: tuple[int, ...]) -> Tensor:
        return self.uniform(label, shape)


def random_pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def grey(level: int, *shape: int) -> Tensor:
    return torch.full((*shape, 3), level, dtype=torch.uint8)


def white_pixel(size: int) -> Tensor:
    """Return a black image [1,size,size,3] with one white pixel in the middle."""
    x = grey(0, 1, size, size)
    x[0, size // 2, size // 2] = 255
    return x


# --- noise


def test_shot_noise_has_one_level_for_each_photon() -> None:
    draws = KeyedDraws(0, torch.arange(4))
    found = noise.shot_noise(random_pixels(4, 32, 32), 5, 224, draws)
    assert found.unique().tolist() == [0, 85, 170, 255]  # 3 photons


def test_black_stays_black_in_few_photons() -> None:
    assert not noise.shot_noise(grey(0, 1, 32, 32), 5, 224, KeyedDraws(0, torch.arange(1))).any()


def test_impulses_are_black_or_white_and_leave_the_rest_alone() -> None:
    x = random_pixels(4, 64, 64).clamp(1, 254)
    found = noise.impulse_noise(x, 5, 224, KeyedDraws(0, torch.arange(4)))
    hit = found != x
    assert found[hit].unique().tolist() == [0, 255]
    # 49 152 values, p = .27: the standard error of the share is .002, that of the salt's .0044
    assert hit.double().mean().item() == pytest.approx(0.27, abs=0.009)
    assert (found[hit] == 255).double().mean().item() == pytest.approx(0.5, abs=0.018)
    assert not torch.equal(hit[..., 0], hit[..., 1]), "specks are coloured: a channel is hit by itself"


def test_gaussian_noise_is_as_wide_as_its_sigma_and_half_a_level_dark() -> None:
    found = noise.gaussian_noise(grey(128, 16, 64, 64), 1, 224, KeyedDraws(0, torch.arange(16))).double()
    # sigma .08 * 255 = 20.4; 196 608 values: standard errors .046 and .033
    assert found.mean().item() == pytest.approx(127.5, abs=0.2)
    assert found.std().item() == pytest.approx(20.4, abs=0.15)


def test_speckle_noise_grows_with_the_value() -> None:
    x = torch.cat([grey(0, 8, 64, 64), grey(60, 8, 64, 64), grey(120, 8, 64, 64)])
    dark, mid, bright = noise.speckle_noise(x, 1, 224, KeyedDraws(0, torch.arange(24))).double().split(8)
    assert not dark.any()
    assert mid.std().item() == pytest.approx(60 * 0.15, rel=0.02)
    assert bright.std().item() == pytest.approx(120 * 0.15, rel=0.02)


# --- blur


def test_defocus_spreads_a_pixel_evenly_over_a_disk() -> None:
    found = blur.defocus_blur(white_pixel(33), 1, 224, NONE)[0, ..., 0]
    y, x = np.ogrid[-16:17, -16:17]
    disk = y * y + x * x <= 9  # radius 3: 29 pixels
    assert np.array_equal(found.numpy(), np.where(disk, 255 // 29, 0))


@pytest.mark.parametrize("height, width", [(12, 12), (14, 11)])
@pytest.mark.parametrize("reach, rounds", [(1, 1), (1, 2), (2, 1), (2, 3), (3, 2), (4, 2)])
def test_glass_scatters_as_the_references_loop_does(
    monkeypatch: pytest.MonkeyPatch, reach: int, rounds: int, height: int, width: int
) -> None:
    monkeypatch.setitem(blur.GLASS, 64, ((0.1, reach, rounds),))  # a sigma of .1 blurs nothing
    images = random_pixels(5, height, width)
    found = blur.glass_blur(images, 1, 64, LegacyDraws(range(5)))
    for seed, (image, ours) in enumerate(zip(images.numpy(), found.numpy(), strict=True)):
        assert np.array_equal(scattered_by_loop(image.copy(), seed, reach, rounds), ours)


def scattered_by_loop(x: NDArray[Any], seed: int, reach: int, rounds: int) -> NDArray[Any]:
    """Return x scattered by the reference's own statement, which is no swap: both sides are views."""
    stream = np.random.RandomState(seed)
    for _ in range(rounds):
        for h in range(x.shape[0] - reach, reach, -1):
            for w in range(x.shape[1] - reach, reach, -1):
                dx, dy = stream.randint(-reach, reach, size=(2,))
                x[h, w], x[h + dy, w + dx] = x[h + dy, w + dx], x[h, w]
    return x


RADIUS, SIGMA = 5, 2.0
HALF_GAUSSIAN = np.exp(-(np.arange(2 * RADIUS + 1) ** 2) / (2 * SIGMA**2))
HALF_GAUSSIAN /= HALF_GAUSSIAN.sum()


@pytest.mark.parametrize(
    "angle, down, right",
    [
        (0, lambda i: 0, lambda i: i),
        (90, lambda i: i, lambda i: 0),
        (-90, lambda i: -i, lambda i: 0),
        # Whole pixels: of the places 0, .7, 1.4, 2.1 and so on the second and the third are both 1.
        (45, lambda i: math.ceil(i / 2**0.5 - 0.5), lambda i: math.ceil(i / 2**0.5 - 0.5)),
    ],
)
def test_motion_smears_a_pixel_along_the_line_by_a_half_gaussian(
    angle: float, down: Callable[[int], int], right: Callable[[int], int]
) -> None:
    expected = np.zeros((33, 33))
    for i, weight in enumerate(HALF_GAUSSIAN):  # a pixel shows what lies along the line from it
        expected[16 - down(i), 16 - right(i)] += 255 * weight
    found = filters.motion_blur(white_pixel(33).float(), RADIUS, SIGMA, np.array([float(angle)]))
    assert np.array_equal(found[0, ..., 0].numpy(), np.floor(expected + 1 / 514))


def test_every_image_moves_along_its_own_angle() -> None:
    pair = torch.cat([white_pixel(33)] * 2).float()
    found = filters.motion_blur(pair, RADIUS, SIGMA, np.array([0.0, 90.0]))
    assert torch.equal(found[0], found[1].transpose(0, 1))
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("factor", [1.0, 1.01, 1.06, 1.25, 1.75, 2.0, 3.0, 4.5])
@pytest.mark.parametrize("height, width", [(64, 64), (33, 47)])
def test_clipped_zoom_is_scipys_zoom_of_the_centre(height: int, width: int, factor: float) -> None:
    v = torch.rand(height, width, filters.LANES, generator=torch.Generator().manual_seed(0))
    ch, cw = math.ceil(height / factor), math.ceil(width / factor)
    top, left = (height - ch) // 2, (width - cw) // 2
    centre = v.numpy()[top : top + ch, left : left + cw].astype(np.float64)
    large = ndimage.zoom(centre, (factor, factor, 1), order=1, mode="nearest")
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    expected = large[top : top + height, left : left + width]
    np.testing.assert_allclose(filters.clipped_zoom(v, factor).numpy(), expected, atol=2e-5, rtol=0)


def test_zoom_blur_counts_the_image_itself_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blur.ZOOM, 64, ((2.5, 1.0),))  # factors 1 and 2
    x = random_pixels(1, 16, 16)
    twice = filters.clipped_zoom(filters.side_by_side(x.double()), 2.0)[..., :3]
    expected = ((2 * x[0].double() + twice) / 3 + 1e-4).floor()
    assert torch.equal(blur.zoom_blur(x, 1, 64, NONE)[0].double(), expected)


@pytest.mark.parametrize("sigma", [0.05, 0.4, 0.7, 1.0, 1.5, 6.0])
@pytest.mark.parametrize("height, width", [(33, 47), (3, 2)])
def test_gaussian_filter_is_scipys(height: int, width: int, sigma: float) -> None:
    v = torch.rand(2, height, width, 3, generator=torch.Generator().manual_seed(0))
    expected = ndimage.gaussian_filter(v.double().numpy(), (0, sigma, sigma, 0), mode="nearest", truncate=4.0)
    np.testing.assert_allclose(filters.gaussian_blur(v, sigma).numpy(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("sigma", [0.6, 3.0, 45.0])
@pytest.mark.parametrize("size", [3, 33])
def test_reflecting_gaussian_is_scipys_whatever_its_width(size: int, sigma: float) -> None:
    v = np.random.default_rng(0).random((size, 4))
    expected = ndimage.gaussian_filter1d(v, sigma, axis=0, mode="reflect", truncate=3.0)
    matrix = filters.reflecting_gaussian(size, sigma, 3.0).numpy()
    np.testing.assert_allclose(matrix @ v, expected, atol=1e-12, rtol=0)


# --- weather


def clouds_by_loop(jitter: NDArray[Any], side: int, decay: float) -> NDArray[Any]:
    """Return one height map, point by point: middles of squares, then of their upper and left edges."""
    numbers = iter(jitter.tolist())
    cloud = np.zeros((side, side))
    step, spread = side, 100.0

    def at(y: int, x: int) -> float:
        return float(cloud[y % side, x % side])

    while step >= 2:
        half = step // 2
        starts = [(y, x) for y in range(0, side, step) for x in range(0, side, step)]
        for y, x in starts:
            mean = (at(y, x) + at(y + step, x) + at(y, x + step) + at(y + step, x + step)) / 4
            cloud[y + half, x + half] = mean + spread**2 * next(numbers)
        for dy, dx in ((0, half), (half, 0)):
            for y, x in starts:
                here = y + dy, x + dx
                around = ((half, 0), (-half, 0), (0, half), (0, -half))
                mean = sum(at(here[0] + oy, here[1] + ox) for oy, ox in around) / 4
                cloud[here] = mean + spread**2 * next(numbers)
        step, spread = half, spread / decay
    assert next(numbers, None) is None
    return (cloud - cloud.min()) / (cloud.max() - cloud.min())


@pytest.mark.parametrize("longest, side", [(2, 2), (9, 16), (64, 64)])
@pytest.mark.parametrize("decay", [3.0, 1.4])
def test_clouds_are_a_diamond_square_map(longest: int, side: int, decay: float) -> None:
    draws = KeyedDraws(0, torch.arange(3))
    found = weather._clouds(draws, longest, decay)
    jitter = draws.uniform("jitter", (side * side - 1,), -1, 1)
    expected = [clouds_by_loop(row, side, decay) for row in jitter.numpy()]
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-6, rtol=0)


def test_fog_leaves_black_black_and_never_outshines_the_image() -> None:
    draws = KeyedDraws(0, torch.arange(2))
    x = torch.cat([grey(0, 1, 16, 16), random_pixels(1, 16, 16).clamp(max=100)])
    black, dim = weather.fog(x, 5, 64, draws)
    assert not black.any()
    assert 90 <= int(dim.max()) <= int(x.max())


def test_without_flakes_snow_is_a_paler_image() -> None:
    # .8 of grey .2 and .2 of max(.2, 1.5 * .2 + .5) make .32; levels are cut, not rounded: 81.6 to 81.
    found = weather.snow(grey(51, 1, 32, 32), 1, 64, Given({"flakes": -9.0, "angle": -90.0}))
    assert found.unique().tolist() == [81]


def test_snow_falls_on_an_image_and_turned_half_round_on_it_again() -> None:
    found = weather.snow(grey(0, 3, 32, 32), 4, 64, KeyedDraws(0, torch.arange(3)))
    assert torch.equal(found, found.flip(1, 2))
    # On black there is .35 * .5 of grey, 44 levels, and whatever fell.
    assert int(found.min()) == 44
    assert len(found.unique()) > 20


def plain_textures(folder: Path, shade: int) -> Path:
    """Return the folder with five textures of a colour each."""
    folder.mkdir()
    for k, name in enumerate(weather.FROST_FILES, 1):
        colour = (k * shade, 2 * k * shade, 4 * k * shade)
        Image.new("RGB", (80, 72), colour).save(folder / name, quality=100, subsampling=0)
    return folder


def test_the_source_of_frost_tells_folders_apart(tmp_path: Path) -> None:
    one, copy, other = (
        plain_textures(tmp_path / name, shade) for name, shade in (("a", 9), ("b", 9), ("c", 8))
    )
    assert weather.frost_source(one).startswith("dir:")
    assert weather.frost_source(one) == weather.frost_source(copy) != weather.frost_source(other)
    assert weather.frost_source(weather.PROCEDURAL) == "procedural"


def test_frost_adds_one_of_five_textures(tmp_path: Path) -> None:
    folder = plain_textures(tmp_path / "frost", 10)
    draws = KeyedDraws(0, torch.arange(64))
    found = weather.frost(grey(100, 64, 16, 16), 5, 64, draws, frost_dir=folder)
    colours = found.flatten(1, 2).float()
    assert torch.equal(colours.amax(1), colours.amin(1)), "one texture for an image"
    # .7 of 100, and .55 of 10, 20 or 40 per number of the texture
    expected = [[int(70 + 5.5 * k), 70 + 11 * k, 70 + 22 * k] for k in range(1, 6)]
    far = (colours[:, 0, None] - torch.tensor(expected)).abs().amax(2).amin(0)
    assert float(far.max()) <= 1, "all five appear; JPEG may move a colour by a level"


def test_frost_is_cut_out_of_a_random_place(tmp_path: Path) -> None:
    ramp = np.stack([*np.mgrid[0:200, 0:200], np.zeros((200, 200))], -1).astype(np.uint8)
    for name in weather.FROST_FILES:
        Image.fromarray(ramp).save(tmp_path / name, "PNG")
    found = weather.frost(grey(0, 64, 60, 60), 4, 224, KeyedDraws(0, torch.arange(64)), frost_dir=tmp_path)
    top, left = found[:, 0, 0, :2].T.float() / 0.7  # the texture's share
    for start in (top, left):
        assert float(start.min()) < 15
        assert 125 < float(start.max()) <= 140
    assert len({*zip(top.tolist(), left.tolist(), strict=True)}) > 60


def test_a_missing_texture_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"frost1\.png: no such texture.*frost5\.jpg") as caught:
        weather.frost(grey(0, 1, 8, 8), 1, 64, KeyedDraws(0, torch.arange(1)), frost_dir=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", range(5))
def test_our_own_frost_is_the_same_every_time_and_has_a_pattern(number: int) -> None:
    make = inspect.unwrap(weather._procedural_texture)  # past its cache
    texture = make(number)
    assert np.array_equal(texture, make(number))
    assert texture.dtype == np.uint8
    assert texture.ndim == 3
    assert texture.std() > 20
    assert texture.max() > 200


def hsv_of_every_sort() -> Tensor:
    """Return colours u8 [N,3]: random ones, greys, and those of few levels, where ratios are extreme."""
    stream = np.random.default_rng(0)
    some = stream.integers(0, 256, (1500, 3))
    dark = stream.integers(0, 6, (300, 3))
    greys = np.repeat(np.arange(256)[:, None], 3, 1)
    return torch.from_numpy(np.concatenate([some, dark, greys]).astype(np.uint8))


def through_hsv(x: Tensor, change: Callable[[float, float, float], tuple[float, float, float]]) -> Tensor:
    """Return colours changed in HSV by the standard library, in levels f64 before truncation."""
    colours = [
        colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*(level / 255 for level in pixel))))
        for pixel in x.tolist()
    ]
    return torch.tensor(colours, dtype=torch.float64) * 255


@pytest.mark.parametrize("severity, raised", [(1, 0.1), (3, 0.3), (5, 0.5)])
def test_brightness_raises_the_value_of_hsv(severity: int, raised: float) -> None:
    x = hsv_of_every_sort()
    expected = through_hsv(x, lambda h, s, v: (h, s, min(v + raised, 1)))
    found = weather.brightness(x[None, None], severity, 224, NONE)[0, 0]
    assert torch.equal(found.double(), (expected + 1e-6).floor())


@pytest.mark.parametrize("severity, factor, shift", [(1, 0.3, 0), (3, 2, 0), (4, 5, 0.1), (5, 20, 0.2)])
def test_saturate_changes_the_saturation_of_hsv(severity: int, factor: float, shift: float) -> None:
    x = hsv_of_every_sort()
    expected = through_hsv(x, lambda h, s, v: (h, min(s * factor + shift, 1), v))
    found = digital.saturate(x[None, None], severity, 224, NONE)[0, 0]
    assert torch.equal(found.double(), (expected + 1e-4).floor())


def test_saturated_grey_is_red() -> None:
    found = digital.saturate(grey(100, 1, 1, 1), 5, 224, NONE)
    assert found.flatten().tolist() == [100, 80, 80]


# --- digital


def test_contrast_draws_each_channel_towards_its_mean() -> None:
    x = torch.tensor([[0, 50, 100], [200, 250, 100]], dtype=torch.uint8).view(1, 1, 2, 3)
    # means 100, 150, 100; at severity 1 .4 of the way stays
    assert digital.contrast(x, 1, 224, NONE)[0, 0].tolist() == [[60, 110, 100], [140, 190, 100]]


def assert_within_a_level(found: Tensor, expected: Tensor) -> None:
    """Assert equality but for the level that truncation takes where f32 places miss a pixel by a hair."""
    assert (found.int() - expected.int()).abs().max() <= 1


def test_without_jitter_elastic_moves_nothing() -> None:
    x = random_pixels(1, 24, 17)
    assert_within_a_level(digital.elastic_transform(x, 3, 64, Given()), x)


def test_elastic_moves_with_its_three_points_mirrored_about_the_outer_pixels() -> None:
    x = random_pixels(1, 24, 24)
    found = digital.elastic_transform(x, 3, 64, Given({"points": [3.0, -2.0]}))  # right, up
    expected = x[:, [2 + k if k < 22 else 44 - k for k in range(24)]]
    assert_within_a_level(found, expected[:, :, [abs(k - 3) for k in range(24)]])


def test_elastic_turns_with_its_points() -> None:
    # About the centre (12, 12), reach 8: (20,20), (20,4), (4,4) go to (4,20), (20,20), (20,4).
    x = random_pixels(1, 25, 25)
    moved = torch.tensor([[-16.0, 0.0], [0.0, 16.0], [16.0, 0.0]])
    found = digital.elastic_transform(x, 3, 64, Given({"points": moved}))
    assert_within_a_level(found, x.rot90(-1, (1, 2)))


# At severity 5 a field of 1, which no blur changes, is .16 of the side, and .12 with ImageNet's constants.
@pytest.mark.parametrize("side, preset, move", [(25, 64, 4), (50, 224, 6)])
@pytest.mark.parametrize("axis, dim", [("right", 2), ("down", 1)])
def test_elastic_takes_a_pixel_from_where_its_field_points(
    axis: str, dim: int, side: int, preset: int, move: int
) -> None:
    x = random_pixels(1, side, side)
    found = digital.elastic_transform(x, 5, preset, Given({axis: 1.0}))
    kept = side - move
    assert_within_a_level(found.narrow(dim, 0, kept), x.narrow(dim, move, kept))


@pytest.mark.parametrize("height, width", [(64, 64), (96, 96), (97, 130), (50, 33)])
@pytest.mark.parametrize("preset", digital.PIXELATE)
def test_pixelate_is_pillows_box_both_ways(height: int, width: int, preset: int) -> None:
    x = random_pixels(2, height, width)
    for severity, factor in enumerate(digital.PIXELATE[preset], 1):
        small = int(width * factor), int(height * factor)
        found = digital.pixelate(x, severity, preset, NONE)
        assert torch.equal(found, digital._pixelate_in_batch(x, small[1], small[0])), "as on other devices"
        for ours, pixels in zip(found.numpy(), x.numpy(), strict=True):
            shrunk = Image.fromarray(pixels).resize(small, Image.Resampling.BOX)
            theirs = shrunk.resize((width, height), Image.Resampling.BOX)
            assert np.array_equal(ours, np.array(theirs)), f"{height} x {width} at {factor}"
