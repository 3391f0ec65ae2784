"""A network at another input size: the image is resized inside, where an attacker's gradient goes through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from robustglimpse.models.surrogates import Surrogate, as_surrogate
from robustglimpse.records import Classifier, UserError


def resize(x: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Return images [B,3,H,W] in another size, height and width or one for both: bilinear, anti-aliased."""
    sides = (size, size) if isinstance(size, int) else size
    if x.shape[2:] == sides:
        return x
    return F.interpolate(x, sides, mode="bilinear", antialias=True)


def at_size(classifier: Classifier, size_px: int) -> Classifier:
    """Return the classifier that resizes an image before it looks: the same weights and threat, other costs.

    It takes the same images as before; meta["input_px"] is what the network gets, meta["network"] its name.
    Raises UserError for a size below 1.
    """
    if size_px < 1:
        raise UserError(f"sizes must be at least 1 px, got {size_px}; for example --sizes 32,48,64")

    def inside(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: run(resize(x, size_px))

    def surrogate(own: Any) -> Surrogate:
        return as_surrogate(own, classifier).through(inside)

    glances = classifier.glances
    return replace(
        classifier,
        name=f"{classifier.name} at {size_px} px",
        logits=inside(classifier.logits),
        exits=inside(classifier.exits),
        surrogates={name: surrogate(own) for name, own in classifier.surrogates.items()},
        trace=inside(classifier.trace),
        meta={**classifier.meta, "network": classifier.name, "input_px": size_px},
        glances=None if glances is None else lambda x: glances(resize(x, size_px)),
    )
