"""Models made by hand, images for them and plans: what the tests of the loop and of the attacks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from robustglimpse import evaluate
from robustglimpse.models.surrogates import surrogates
from robustglimpse.records import Batch, Channels, Classifier, Threat
from robustglimpse.registry import parse_call

SIZE = 8
NORMALISATION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def make_plan(
    text: str,
    threat: Threat,
    *,
    protocol: str = "standard",
    restarts: int = 1,
    normalisation: tuple[Channels, Channels] = NORMALISATION,
) -> evaluate.Plan:
    return evaluate.make_plan(
        parse_call(text), protocol=protocol, threat=threat, normalisation=normalisation,
        restarts=restarts, seed=5, all_exits=False,
    )  # fmt: skip


def attacked(model: Classifier, batch: Batch, call: str, threat: Threat, **options: Any) -> evaluate.Columns:
    return evaluate.attack(model, batch, make_plan(call, threat, **options), device="cpu")


def classifier_of(logits: Callable[[Tensor], Tensor], classes: int = 2, **meta: Any) -> Classifier:
    def exits(x: Tensor) -> Tensor:
        return logits(x)[None]

    return Classifier(
        "hand-made", logits, exits, surrogates(lambda x, _: exits(x), 1), lambda x: x,
        tuple(str(k) for k in range(classes)), SIZE, "", NORMALISATION, meta,
    )  # fmt: skip


def linear(weight: Tensor, bias: float) -> Classifier:
    """Class 1 where weight . x + bias is above 0.  A sum per sample: the same in any batch."""

    def logits(x: Tensor) -> Tensor:
        score = (x * weight).flatten(1).sum(1) + bias
        return torch.stack([torch.zeros_like(score), score], 1)

    return classifier_of(logits)


def anisotropic_weight() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    size = torch.logspace(-2, 0, 3 * SIZE * SIZE)
    sign = torch.randint(0, 2, size.shape, generator=generator) * 2.0 - 1
    order = torch.randperm(len(size), generator=generator)
    return (size * sign)[order].view(3, SIZE, SIZE)


def batch_of(images: Tensor, labels: Tensor) -> Batch:
    return Batch(images, labels, torch.arange(len(labels)))


def random_batch(count: int = 64, low: int = 100, high: int = 156) -> Batch:
    """Images of pixels from low to high - 1, all of class 1."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(low, high, (count, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return batch_of(images, torch.ones(count, dtype=torch.int64))
