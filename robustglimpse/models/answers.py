"""What a model answers on a few images: what tells that it has changed where its hash does not."""

from __future__ import annotations

import torch
from torch import Tensor

from robustglimpse.models.preflight import finite_logits
from robustglimpse.records import Classifier

OWN, NOISE, SHOWN = 4, 2, 32  # images of the set, images of noise, logits kept of each
DIGITS = 7  # significant ones, as f32 has


def answers(classifier: Classifier, images: Tensor) -> tuple[tuple[float, ...], ...]:
    """Return logits of the first images and of as many of noise, a row each, to f32's precision.

    images: f32 [B,3,H,W] in [0,1], on the model's device.  Of more than 32 classes every k-th logit is kept,
    and the largest and the mean of all stand behind.  A model that answers at random draws from seed 0.
    Raises UserError where the logits are none.
    """
    noise = torch.rand(NOISE, *images.shape[1:], generator=torch.Generator().manual_seed(0))
    x = torch.cat([images[:OWN], noise.to(images)])
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.default_generator.manual_seed(0)
        logits = finite_logits(classifier.logits, x, classifier.name).double().cpu()
    stride = -(-logits.shape[1] // SHOWN)
    kept = torch.cat([logits[:, ::stride], logits.amax(1, keepdim=True), logits.mean(1, keepdim=True)], 1)
    return tuple(tuple(float(f"{value:.{DIGITS}g}") for value in row) for row in kept.tolist())
