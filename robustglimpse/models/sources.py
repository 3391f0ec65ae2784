"""Models from outside: any nn.Module as a Classifier."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustglimpse.models.surrogates import surrogates
from robustglimpse.records import Channels, Classifier, UserError


def wrap(
    module: nn.Module,
    *,
    name: str,
    classes: int | Sequence[str],
    size_px: int,
    mean: Channels = (0.0, 0.0, 0.0),
    std: Channels = (1.0, 1.0, 1.0),
    device: str = "cpu",
) -> Classifier:
    """Return a module (images f32 [B,3,H,W] -> logits [B,K]) as a Classifier of [0,1] images.

    The module itself is moved to the device, put in eval mode and frozen, not copied.
    classes: their names in the order of the logits, or how many there are.
    mean, std: what to normalise with before the module; leave them where it does so itself.
    It has one exit, so all surrogates share one gradient.  Its hash is that of its parameters and buffers.
    Raises UserError where an image of noise does not give finite logits f32 [1,K].
    """
    module = module.to(device).eval().requires_grad_(False)
    labels = tuple(str(k) for k in range(classes)) if isinstance(classes, int) else tuple(classes)
    shift = torch.tensor(mean, device=device)[:, None, None]
    scale = torch.tensor(std, device=device)[:, None, None]

    def exits(x: Tensor, path: Any = None) -> Tensor:
        logits: Tensor = module((x - shift) / scale)
        return logits[None]

    _preflight(exits, name, len(labels), size_px, device)
    return Classifier(
        name=name,
        logits=lambda x: exits(x)[0],
        exits=exits,
        surrogates=surrogates(exits, 1),
        trace=lambda x: x.new_tensor([1.0, 0.0, 0.0]).expand(len(x), 1, 3),
        classes=labels,
        size_px=size_px,
        sha256=_hash(module),
        normalisation=(mean, std),
        meta={"backbone": type(module).__name__, "family": "", "dataset": "", "exits": 1, "device": device},
    )


def _preflight(exits: Any, name: str, count: int, size_px: int, device: str) -> None:
    """Raise UserError unless two images give what they give alone: finite logits [B,K]."""
    x = torch.rand(2, 3, size_px, size_px, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        try:
            both = exits(x)[0]
        except (RuntimeError, TypeError, AttributeError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"{name}: expected a module that turns f32 [2,3,{size_px},{size_px}] into logits ({reason})"
            ) from None
        shape = tuple(getattr(both, "shape", ()))
        if shape != (2, count) or not both.isfinite().all():
            raise UserError(f"{name}: expected finite logits [2,{count}], got {list(shape)}")
        alone = exits(x[:1])[0]
    if not torch.allclose(alone[0], both[0], rtol=1e-3, atol=1e-3):
        raise UserError(
            f"{name}: an image's logits depend on the other images of its batch or on chance; "
            "put the module in eval mode and switch off its randomness"
        )


def _hash(module: nn.Module) -> str:
    digest = hashlib.sha256(type(module).__name__.encode())
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
