"""What corrupt() promises for every row of its table: per-sample bits, kept shapes, one-line errors."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from robustglimpse.corruptions import CORRUPTIONS, FAMILIES, SEVERITIES, corrupt, names, preset_for
from robustglimpse.data import Dataset, load_data
from robustglimpse.records import UserError
from robustglimpse.registry import resolve
from robustglimpse.rng import KeyedDraws

ALL = names(extras=True)
every_row = pytest.mark.parametrize("name", ALL)


@pytest.fixture(scope="module")
def small(digits: Dataset) -> Tensor:
    """Sixteen digits, u8 [16,3,64,64]."""
    return torch.from_numpy(digits.images[:16].copy())


@pytest.fixture(scope="module")
def large(request: pytest.FixtureRequest, small: Tensor) -> Tensor:
    """Six photographs, u8 [6,3,224,224]; enlarged digits where there is no reference folder."""
    try:
        folder = request.getfixturevalue("shared") / "data" / "imagenet-samples" / "val"
    except pytest.skip.Exception:
        folder = Path("absent")
    if not folder.is_dir():
        enlarged = F.interpolate(small[:6].float(), size=(224, 224), mode="bicubic")
        return enlarged.clamp(0, 255).byte()
    return torch.from_numpy(np.array(load_data(f"imagefolder:{folder}", size_px=224, limit=6).images))


def noise_images(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def draws_for(index: Tensor, seed: int = 3) -> KeyedDraws:
    return KeyedDraws(seed, index)


def assert_same_in_any_batch(images: Tensor, name: str, severity: int, **options: Any) -> None:
    """Assert that images get the same bits in one batch, one by one, and shuffled in batches of 5."""
    index = torch.arange(100, 100 + len(images))
    whole = corrupt(images, name, severity, draws=draws_for(index), **options)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    for some in (*torch.arange(len(images)).split(1), *order.split(5)):
        part = corrupt(images[some], name, severity, draws=draws_for(index[some]), **options)
        assert torch.equal(part, whole[some])


@pytest.mark.parametrize("severity", [1, 3, 5])
@every_row
def test_an_image_is_corrupted_alike_in_any_batch_and_order(small: Tensor, name: str, severity: int) -> None:
    assert_same_in_any_batch(small, name, severity)


@pytest.mark.parametrize("severity", [2, 5])
@every_row
def test_so_it_is_at_224_px(large: Tensor, name: str, severity: int) -> None:
    assert_same_in_any_batch(large, name, severity)


@pytest.mark.parametrize("height, width", [(33, 47), (96, 96), (128, 96), (3, 3), (2, 2), (1, 1)])
@every_row
def test_so_it_is_at_odd_sizes(name: str, height: int, width: int) -> None:
    images = noise_images(7, height, width)
    least = CORRUPTIONS[name].least_px
    if min(height, width) < least:
        words = f"{name} needs images of at least {least} x {least} px, got {height} x {width}; leave it out"
        with pytest.raises(UserError, match=words):
            corrupt(images, name, 1, draws=draws_for(torch.arange(7)))
        return
    for severity in SEVERITIES:
        assert_same_in_any_batch(images, name, severity)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("preset", [32, 64, 224])
@every_row
def test_images_keep_shape_and_type_and_what_is_given_is_not_written_to(
    small: Tensor, name: str, severity: int, preset: int
) -> None:
    images, kept = small[:4].clone(), small[:4]
    found = corrupt(images, name, severity, draws=draws_for(torch.arange(4)), preset=preset)
    assert found.shape == images.shape
    assert found.dtype == torch.uint8
    assert found.device == images.device
    assert torch.equal(images, kept)
    assert found.data_ptr() != images.data_ptr()
    changed = (found != images).flatten(1).any(1)
    # CIFAR's and Tiny ImageNet's lightest lenses are a single pixel wide.
    assert changed.all() or (name == "defocus_blur" and preset < 224 and severity <= 2)


@every_row
def test_a_row_says_whether_it_draws_numbers(small: Tensor, name: str) -> None:
    one, other = (corrupt(small, name, 3, draws=draws_for(torch.arange(16), seed)) for seed in (0, 1))
    assert torch.equal(one, other) is not CORRUPTIONS[name].is_random


def test_a_severity_draws_numbers_of_its_own() -> None:
    images, draws = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8), draws_for(torch.arange(1))
    light, strong = (
        corrupt(images, "gaussian_noise", severity, draws=draws).double().flatten() - 127.5
        for severity in (1, 5)
    )
    # 12 288 values: the standard error of a correlation is .009
    assert abs(torch.corrcoef(torch.stack([light, strong]))[0, 1].item()) < 0.05


def test_the_table_has_the_papers_fifteen_in_its_order_and_four_extras() -> None:
    assert names() == (
        "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
        "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
        "jpeg_compression",
    )  # fmt: skip
    assert set(ALL) - set(names()) >= {"speckle_noise", "gaussian_blur", "spatter", "saturate"}
    for row in CORRUPTIONS.values():
        assert callable(resolve(row))
        assert row.family in FAMILIES
        assert row.summary


@every_row
def test_an_empty_batch_stays_empty(name: str) -> None:
    empty = torch.empty(0, 3, 64, 64, dtype=torch.uint8)
    assert corrupt(empty, name, 1, draws=draws_for(torch.arange(0))).shape == (0, 3, 64, 64)


FLAT = (
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "gaussian_blur",
    "contrast",
    "elastic_transform",
)


@pytest.mark.parametrize("preset", [32, 64, 224])
@pytest.mark.parametrize("name", FLAT)
def test_a_flat_image_stays_flat_to_a_level(name: str, preset: int) -> None:
    images = torch.tensor([0, 1, 100, 254, 255], dtype=torch.uint8)[:, None, None, None]
    images = images.expand(5, 3, 64, 64).contiguous()
    for severity in SEVERITIES:
        found = corrupt(images, name, severity, draws=draws_for(torch.arange(5)), preset=preset)
        assert (found.int() - images.int()).abs().max() <= 1


@pytest.mark.parametrize("name", ["pixelate", "gaussian_blur", "zoom_blur", "contrast"])
def test_a_flat_image_stays_exactly_flat(name: str) -> None:
    images = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(256, 3, 16, 16).contiguous()
    for severity in SEVERITIES:
        found = corrupt(images, name, severity, draws=draws_for(torch.arange(256)))
        assert torch.equal(found, images)


@pytest.mark.parametrize(
    "side, preset",
    [
        (1, 32), (32, 32), (33, 32), (45, 32), (46, 64), (48, 64), (64, 64), (96, 64), (119, 64),
        (120, 224), (128, 224), (224, 224), (299, 224), (500, 224),
    ],
)  # fmt: skip
def test_a_size_takes_the_constants_nearest_in_octaves(side: int, preset: int) -> None:
    assert preset_for(side, side) == preset
    assert preset_for(side, 9 * side) == preset_for(9 * side, side) == preset, "the shorter side counts"


def test_a_preset_may_be_chosen(small: Tensor) -> None:
    draws = draws_for(torch.arange(16))
    chosen = corrupt(small, "contrast", 5, draws=draws, preset=32)
    assert torch.equal(
        corrupt(small, "contrast", 5, draws=draws, preset=64), corrupt(small, "contrast", 5, draws=draws)
    )
    # .15 of the way to the mean stays instead of .05: about three times the spread
    weak = corrupt(small, "contrast", 5, draws=draws)
    assert chosen.double().std((2, 3)).mean() > 2 * weak.double().std((2, 3)).mean()


@pytest.mark.parametrize("name", ["gaussian_noise", "brightness", "jpeg_compression"])
def test_the_published_sets_store_went_through_jpeg(small: Tensor, name: str) -> None:
    draws = draws_for(torch.arange(16))
    exact = corrupt(small, name, 2, draws=draws)
    stored = corrupt(small, name, 2, draws=draws, store="jpeg85")
    assert not torch.equal(stored, exact)
    for ours, pixels in zip(stored, exact.permute(0, 2, 3, 1).numpy(), strict=True):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=85, subsampling=2)
        assert np.array_equal(ours.permute(1, 2, 0).numpy(), np.array(Image.open(file)))


IMAGES = noise_images(2, 8, 8)


@pytest.mark.parametrize(
    "images, options, message",
    [
        (IMAGES, {"corruption": "gausian_noise"}, "'gausian_noise'; did you mean 'gaussian_noise'"),
        (IMAGES, {"severity": 0}, "severity must be 1, 2, 3, 4 or 5, got 0"),
        (IMAGES, {"severity": 6}, "severity must be 1, 2, 3, 4 or 5, got 6"),
        (IMAGES, {"preset": 96}, "preset must be 32, 64 or 224, got 96"),
        (IMAGES, {"store": "png"}, "store must be exact or jpeg85, got 'png'"),
        (IMAGES[:, :1], {}, r"u8 \[B,3,H,W\], got uint8 \[2, 1, 8, 8\]; repeat the channel of a grey image"),
        (IMAGES.float() / 255, {}, r"u8 \[B,3,H,W\], got float32 \[2, 3, 8, 8\]"),
        (IMAGES[0], {}, r"u8 \[B,3,H,W\], got uint8 \[3, 8, 8\]"),
        (IMAGES[:, :, :0], {}, r"u8 \[B,3,H,W\], got uint8 \[2, 3, 0, 8\]"),
        (IMAGES[:, :, :, :0], {}, r"u8 \[B,3,H,W\], got uint8 \[2, 3, 8, 0\]"),
        (IMAGES, {"draws": draws_for(torch.arange(3))}, "draws are for 3 images, got 2"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_cannot_be_corrupted_is_refused_in_one_line(
    images: Tensor, options: dict[str, Any], message: str
) -> None:
    wanted = {"corruption": "fog", "severity": 1, "draws": draws_for(torch.arange(2))} | options
    with pytest.raises(UserError, match=message) as caught:
        corrupt(images, **wanted)
    assert "\n" not in str(caught.value)
