"""What training does to images so that they differ every epoch, without changing their label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustglimpse.registry import find, parse_call, resolve

if TYPE_CHECKING:
    from torch import Tensor

Augment = Callable[["Tensor"], "Tensor"]


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
    "autoaugment": AugmentRow("robustglimpse.data.augment:autoaugment", "AutoAugment's ImageNet policy"),
}


def pipeline(calls: Sequence[str]) -> Augment:
    """Return one function u8 [B,3,H,W] -> u8 [B,3,H,W] that applies the named calls in order.

    Random numbers come from torch's global generator, which the training loop seeds every epoch.
    """
    steps = []
    for text in calls:
        call = parse_call(text)
        steps.append((resolve(find(AUGMENTS, call.name, kind="augmentation")), dict(call.arguments)))

    def augment(images: Tensor) -> Tensor:
        for step, options in steps:
            images = step(images, **options)
        return images

    return augment


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


def autoaugment(images: Tensor) -> Tensor:
    """Return each image under a random sub-policy of AutoAugment's ImageNet policy (Cubuk et al. 2019)."""
    import torch
    from torchvision.transforms import v2

    transform = v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET)
    return torch.stack([transform(image) for image in images])
