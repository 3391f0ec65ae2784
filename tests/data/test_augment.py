"""Augmentations: options are checked, and AutoAugment is as MGNet's authors draw it where that is asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from robustglimpse.data.augment import GREY, IMAGENET_POLICY, autoaugment, draw_as_authors, pipeline
from robustglimpse.records import UserError


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """A picture of noise, 40 x 40 px."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))


@pytest.mark.parametrize(
    "call, message",
    [
        ("shift(pixel=4)", "shift has no option 'pixel'; it takes pixels"),
        ("shift", "shift has to be given 'pixels'; it takes pixels"),
        ("flip(often=1)", "flip has no option 'often'; it takes none"),
        ("autoaugment(like='pillow')", "like must be 'torchvision' or 'authors'"),
        ("crap(area=0.3)", "did you mean 'crop'?"),
    ],
)
def test_an_augmentation_that_cannot_be_done_is_refused(call: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        pipeline(["flip", call])
    assert message in str(refused.value)


def test_the_policy_is_that_of_torchvision() -> None:
    theirs = v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET)._policies
    names = {"shear_x": "ShearX", "autocontrast": "AutoContrast"}
    without = {"AutoContrast", "Equalize", "Invert"}  # whose magnitude says nothing
    ours = [
        tuple(
            (named, probability, None if named in without else magnitude)
            for name, probability, magnitude in pair
            for named in [names.get(name, name.capitalize())]
        )
        for pair in IMAGENET_POLICY
    ]
    assert ours == [tuple(pair) for pair in theirs]


def test_the_authors_rotation_is_anticlockwise_and_leaves_grey(picture: Image.Image) -> None:
    # At magnitude 9 by 30 degrees, by both signs: what they compose is the turned picture over grey.
    turned = picture.convert("RGBA").rotate(30)
    grey = Image.new("RGBA", turned.size, (128,) * 4)
    expected = np.asarray(Image.composite(turned, grey, turned).convert("RGB"))
    for sign in (1, -1):
        assert np.array_equal(np.asarray(draw_as_authors(picture, "rotate", 9, sign=sign)), expected)
    assert tuple(expected[0, 0]) == GREY
    white = Image.new("RGB", (40, 40))
    white.paste((255, 255, 255), (18, 0, 22, 10))  # a mark at the top goes to the left
    columns = np.nonzero((np.asarray(draw_as_authors(white, "rotate", 9, sign=1)) == 255).all(2))[1]
    assert columns.mean() < 15


def test_the_authors_shear_is_bicubic_about_the_upper_edge_with_grey_beside() -> None:
    ramp = np.zeros((40, 40, 3), np.uint8)
    ramp[:, 20:] = 200
    for sign in (1, -1):
        sheared = np.asarray(draw_as_authors(Image.fromarray(ramp), "shear_x", 9, sign=sign)).astype(int)
        # Row y shows what lies 0.3 y to the right (sign 1) or to the left of it: at row 39 by 12 px.
        edge = [int(np.argmax((row[:, 0] > 100) & (row[:, 0] != 128))) for row in sheared]
        assert abs(edge[0] - 20) <= 1
        assert abs(edge[30] - (20 - sign * 9)) <= 1
        beside = sheared[39, -1 if sign == 1 else 0]
        assert tuple(beside) == GREY
        assert sheared[sheared != 128].max() > 200, "a bicubic kernel overshoots beside an edge"


def test_the_authors_levels_are_pillows() -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    picture = Image.fromarray(levels)

    def drawn(name: str, magnitude: int, sign: int = 1) -> np.ndarray:
        return np.asarray(draw_as_authors(picture, name, magnitude, sign=sign)).reshape(256, 3)[:, 0]

    # Magnitude 3 of 9: a third of the way from 256 to 0 is 170.67, so 171 is the first to be turned around.
    solarized = drawn("solarize", 3)
    assert (solarized[170], solarized[171]) == (170, 84)
    assert sorted(set(drawn("posterize", 9))) == list(range(0, 256, 16))  # 4 bits
    assert np.array_equal(drawn("invert", 0), np.arange(255, -1, -1))
    assert np.array_equal(drawn("color", 9, -1), np.arange(256)), "a grey picture has no colour to lose"
    # The mean level is 128 (rounded); of the distance to it a factor of 1.8 or 0.2 is left at magnitude 8.
    assert abs(int(drawn("contrast", 8, -1)[0]) - (128 - 0.2 * 128)) <= 1
    assert drawn("contrast", 8, 1)[0] == 0


def test_autoaugment_of_ours_is_what_it_was_and_the_authors_differs() -> None:
    images = torch.randint(0, 256, (16, 3, 24, 24), dtype=torch.uint8)
    torch.manual_seed(3)
    transform = v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET)
    expected = torch.stack([transform(image) for image in images])
    torch.manual_seed(3)
    assert torch.equal(pipeline(["autoaugment"])(images), expected)
    torch.manual_seed(3)
    theirs = autoaugment(images, like="authors")
    assert (theirs.shape, theirs.dtype) == (images.shape, torch.uint8)
    assert not torch.equal(theirs, expected)
    torch.manual_seed(3)
    assert torch.equal(autoaugment(images, like="authors"), theirs)


def test_each_operation_comes_as_often_as_the_policy_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import Counter

    from robustglimpse.data import augment

    seen: Counter[tuple[str, int]] = Counter()

    def counted(picture: Image.Image, name: str, magnitude: int, *, sign: int) -> Image.Image:
        seen[name, sign] += 1
        return picture

    monkeypatch.setattr(augment, "draw_as_authors", counted)
    torch.manual_seed(0)
    count = 20_000
    autoaugment(torch.zeros(1, 3, 4, 4, dtype=torch.uint8).expand(count, -1, -1, -1), like="authors")
    names = {name for pair in IMAGENET_POLICY for name, _, _ in pair}
    for name in names:
        share = sum(chance for pair in IMAGENET_POLICY for other, chance, _ in pair if other == name) / 25
        for sign in (1, -1):
            assert seen[name, sign] / count == pytest.approx(share / 2, abs=0.015), name
