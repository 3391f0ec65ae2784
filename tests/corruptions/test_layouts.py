"""Images come back from a corruption in the form in which they came, with the same levels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from robustglimpse import KeyedDraws, UserError, corrupt, corruptions
from robustglimpse.corruptions.layouts import as_batch

BATCH = torch.randint(0, 256, (2, 3, 8, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LAST = BATCH.permute(0, 2, 3, 1)
PICTURES = [Image.fromarray(each) for each in LAST.numpy()]


def fogged(images: Any, count: int = 2) -> Any:
    return corrupt(images, "fog", 3, draws=KeyedDraws(0, range(count)))


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("images", "as_first"),
    [
        (BATCH, lambda out: out),
        (BATCH.numpy(), torch.from_numpy),
        (LAST, lambda out: out.permute(0, 3, 1, 2)),
        (LAST.numpy(), lambda out: torch.from_numpy(out).permute(0, 3, 1, 2)),
        (PICTURES, lambda out: torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2)),
        (tuple(PICTURES), lambda out: torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2)),
    ],
    ids=["tensor", "array", "tensor, channels last", "array, channels last", "pictures", "a tuple of them"],
)
def test_a_batch_comes_back_as_it_came(images: Any, as_first: Callable[[Any], Tensor]) -> None:
    out = fogged(images)
    assert isinstance(out, list if isinstance(images, tuple) else type(images))
    assert torch.equal(as_first(out), fogged(BATCH))


def test_one_image_is_a_batch_of_one() -> None:
    expected = fogged(BATCH[:1], 1)[0].numpy()
    assert np.array_equal(fogged(BATCH[0].numpy(), 1), expected)
    assert np.array_equal(fogged(LAST[0].numpy(), 1), expected.transpose(1, 2, 0))
    picture = fogged(PICTURES[0], 1)
    assert isinstance(picture, Image.Image)
    assert np.array_equal(np.asarray(picture), expected.transpose(1, 2, 0))


def test_what_is_given_is_not_written_to() -> None:
    for strange in (LAST.numpy()[::-1], LAST.numpy()[:, ::2]):  # strides of every kind
        kept = strange.copy()
        strange.flags.writeable = False
        fogged(strange)
        assert np.array_equal(strange, kept)
    assert as_batch(LAST.numpy()[::-1])[0].tolist() == BATCH.flip(0).tolist()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            torch.zeros(2, 3, 8, 3, dtype=torch.uint8).numpy(),
            "[2, 3, 8, 3], whose channels may be first or last",
        ),
        (np.zeros((3, 8, 3), np.uint8), "whose channels may be first or last"),
        (BATCH[0], "got uint8 [3, 8, 9]; images[None] is a batch of one"),
        (BATCH.float() / 255, "got float32 [2, 3, 8, 9]; give (images * 255).round() of floats in [0,1]"),
        (BATCH.numpy() / 255, "got float64 [2, 3, 8, 9]"),
        (BATCH.int(), "got int32 [2, 3, 8, 9]; give levels from 0 to 255 as uint8"),
        (BATCH.numpy()[:, :1], "repeat the channel of a grey image three times"),
        (BATCH.numpy()[0, 0], "got uint8 [8, 9]"),
        (np.zeros((2, 8, 9, 4), np.uint8), "got uint8 [2, 8, 9, 4]"),
        (np.zeros((0, 9, 3), np.uint8), "got uint8 [0, 9, 3]"),
        (np.array([None, "x"]), "got object [2]"),
        (list(BATCH), "got a list; stack them into one tensor or array"),
        ([], "got []"),
        (None, "got None"),
        ("photo.png", "got 'photo.png'; give a tensor, or an image of Pillow"),
        (Image.new("L", (8, 9)), "images must be RGB, got L; image.convert('RGB') makes them so"),
        ([PICTURES[0], Image.new("RGBA", (9, 8))], "got RGB, RGBA"),
        ([PICTURES[0], Image.new("RGB", (8, 8))], "images must have one size, got [(8, 8), (9, 8)]"),
    ],
)
def test_other_forms_are_refused(images: Any, message: str) -> None:
    assert message in refusal(lambda: fogged(images))


def test_a_tensor_with_three_at_both_ends_has_its_channels_first() -> None:
    images = BATCH[:, :, :, :3].contiguous()
    assert torch.equal(as_batch(images)[0], images)


def test_a_seed_is_for_the_first_images_of_a_set(capsys: pytest.CaptureFixture[str]) -> None:
    corruptions._tell_of_places.cache_clear()
    assert torch.equal(
        corrupt(BATCH, "fog", 3, draws=5), corrupt(BATCH, "fog", 3, draws=KeyedDraws(5, range(2)))
    )
    assert torch.equal(corrupt(BATCH, "fog", 3, draws=np.int64(0)), corrupt(BATCH, "fog", 3))
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "of a seed alone, images are taken for the first of their set" in told
    for wrong in (np.random.default_rng(0), None, 1.5):
        assert "draws must be KeyedDraws(seed, index), LegacyDraws(seeds) or a seed, got" in refusal(
            lambda wrong=wrong: corrupt(BATCH, "fog", 3, draws=wrong)
        )
    assert "draws must be from 0" in refusal(lambda: corrupt(BATCH, "fog", 3, draws=-1))
    refusal(lambda: corrupt(BATCH, "fog", 3, draws=True))


def test_severities_and_presets_of_any_type() -> None:
    expected = corrupt(BATCH, "fog", 3, draws=0, preset=32)
    for severity, preset in ((np.int64(3), np.int64(32)), (3.0, 32.0), ("3", "32")):
        assert torch.equal(corrupt(BATCH, "fog", severity, draws=0, preset=preset), expected)
    for wrong in (True, None, [3], 2.5, "three"):
        assert "severity must be a whole number" in refusal(lambda wrong=wrong: corrupt(BATCH, "fog", wrong))
    assert "preset must be a whole number" in refusal(lambda: corrupt(BATCH, "fog", 3, preset="x"))
    assert "corruption must be text" in refusal(lambda: corrupt(BATCH, 3, 3))
    assert "frost_dir must be a path" in refusal(lambda: corrupt(BATCH, "frost", 3, frost_dir=3))
