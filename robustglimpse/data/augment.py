"""What training does to images so that they differ every epoch, without changing their label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from robustglimpse.records import UserError
from robustglimpse.registry import find, parse_call, resolve

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Augment = Callable[["Tensor"], "Tensor"]
# AutoAugment's policy for ImageNet (Cubuk et al. 2019, Table 9): twice an operation, its probability and its
# magnitude, 0 to 9, which some do not have.
IMAGENET_POLICY = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 2)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 8), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
    (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 9)),
    (("color", 0.4, 0), ("equalize", 0.6, 3)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
)
GREY = (128, 128, 128)


@dataclass(frozen=True)
class AugmentRow:
    """One line of the table of augmentations."""

    target: str
    summary: str


AUGMENTS: dict[str, AugmentRow] = {
    "shift": AugmentRow("robustglimpse.data.augment:shift", "moved by up to `pixels`, edges repeated"),
    "flip": AugmentRow("robustglimpse.data.augment:flip", "mirrored half of the time"),
    "crop": AugmentRow(
        "robustglimpse.data.augment:crop", "a part of at least `area`, resized back or to `size_px`"
    ),
    "autoaugment": AugmentRow(
        "robustglimpse.data.augment:autoaugment",
        "AutoAugment's ImageNet policy; like='authors' as MGNet's authors drew it",
    ),
}


def pipeline(calls: Sequence[str]) -> Augment:
    """Return one function u8 [B,3,H,W] -> u8 [B,3,H,W] that applies the named calls in order.

    Random numbers come from torch's global generator, which the training loop seeds every epoch.
    Raises UserError for an unknown name, and for options that one does not take or lacks.
    """
    steps = [_step(text) for text in calls]

    def augment(images: Tensor) -> Tensor:
        for step in steps:
            images = step(images)
        return images

    return augment


def _step(text: str) -> Augment:
    """Return the augmentation that a call spells."""
    call = parse_call(text)
    function = resolve(find(AUGMENTS, call.name, kind="augmentation"))
    options = dict(call.arguments)
    known = {p.name: p for p in signature(function).parameters.values() if p.kind is Parameter.KEYWORD_ONLY}
    missing = [name for name, p in known.items() if p.default is Parameter.empty and name not in options]
    for what, names in (("no option", sorted(options.keys() - known.keys())), ("to be given", missing)):
        if names:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise UserError(f"the augmentation {text!r}: {call.name} has {what} {names[0]!r}; {takes}")
    if options.get("like", LIKES[0]) not in LIKES:
        raise UserError(f"the augmentation {text!r}: like must be {' or '.join(map(repr, LIKES))}")
    return partial(function, **options)


def shift(images: Tensor, *, pixels: int) -> Tensor:
    """Return each image moved by its own offset, up to `pixels` along each axis."""
    import torch
    from torch.nn import functional as F

    height, width = images.shape[2:]
    padded = F.pad(images.float(), (pixels,) * 4, mode="replicate").to(torch.uint8)
    offsets = torch.randint(0, 2 * pixels + 1, (len(images), 2)).tolist()
    return torch.stack(
        [one[:, y : y + height, x : x + width] for one, (y, x) in zip(padded, offsets, strict=True)]
    )


def flip(images: Tensor) -> Tensor:
    """Return the images, each mirrored with probability one half."""
    import torch

    mirrored = (torch.rand(len(images)) < 0.5).to(images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def crop(images: Tensor, *, area: float, size_px: int | None = None) -> Tensor:
    """Return a random part of each image, `area` to 1 of it, sides 3:4 to 4:3, at the old size or size_px."""
    import torch
    from torchvision.transforms import v2

    size = tuple(images.shape[2:]) if size_px is None else (size_px, size_px)
    transform = v2.RandomResizedCrop(size, scale=(area, 1.0), antialias=True)
    return torch.stack([transform(image) for image in images])


def autoaugment(images: Tensor, *, like: str = "torchvision") -> Tensor:
    """Return each image under a random sub-policy of AutoAugment's ImageNet policy (Cubuk et al. 2019).

    like: who draws it.  "torchvision" fills with black, takes the nearest pixel in shears and turns to either
    side.  "authors" is what the code of MGNet's authors does, with Pillow: it fills with grey (128), shears
    bicubically, turns anticlockwise alone, and solarizes from thresholds of 256 instead of 255.
    """
    import torch
    from torchvision.transforms import v2

    if like == "authors":
        return torch.stack([_as_authors(image) for image in images])
    transform = v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET)
    return torch.stack([transform(image) for image in images])


LIKES = ("torchvision", "authors")


def _as_authors(image: Tensor) -> Tensor:
    """Return an image u8 [3,H,W] under a sub-policy drawn at random."""
    import numpy as np
    import torch
    from PIL import Image as PillowImage

    chosen = IMAGENET_POLICY[int(torch.randint(len(IMAGENET_POLICY), ()))]
    chances, signs = torch.rand(2).tolist(), torch.randint(2, (2,)).tolist()
    picture = PillowImage.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    for (name, probability, magnitude), chance, sign in zip(chosen, chances, signs, strict=True):
        if chance < probability:
            picture = draw_as_authors(picture, name, magnitude, sign=1 if sign else -1)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).to(image.device)


def draw_as_authors(picture: Image, name: str, magnitude: int, *, sign: int) -> Image:
    """Return an RGB picture under one operation of the policy at a magnitude, 0 to 9, as the authors draw it.

    sign: 1 or -1, to which side a shear or an enhancement goes; a turn goes anticlockwise whatever it is.
    """
    from PIL import Image as PillowImage
    from PIL import ImageEnhance, ImageOps

    share = magnitude / 9
    plain: dict[str, Callable[[Image], Image]] = {
        "autocontrast": ImageOps.autocontrast, "equalize": ImageOps.equalize, "invert": ImageOps.invert,
    }  # fmt: skip
    enhancers: dict[str, Any] = {
        "color": ImageEnhance.Color, "contrast": ImageEnhance.Contrast, "sharpness": ImageEnhance.Sharpness,
    }  # fmt: skip
    if name in plain:
        return plain[name](picture)
    if name in enhancers:
        enhanced: Image = enhancers[name](picture).enhance(1 + sign * 0.9 * share)
        return enhanced
    if name == "posterize":
        return ImageOps.posterize(picture, round(8 - 4 * share))
    if name == "solarize":
        return ImageOps.solarize(picture, 256 * (1 - share))  # type: ignore[arg-type]  # compared, no more
    if name == "rotate":
        return picture.rotate(30 * share, fillcolor=GREY)
    assert name == "shear_x", name
    affine, bicubic = PillowImage.Transform.AFFINE, PillowImage.Resampling.BICUBIC
    return picture.transform(
        picture.size, affine, (1, sign * 0.3 * share, 0, 0, 1, 0), bicubic, fillcolor=GREY
    )
