"""Losses that an attack climbs, and the margin that tells how far it is. Each is [B,K],[B] -> [B]."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of each sample, f32 [B], in nats."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return how far the true class leads the best other class, per sample.

    logits: f32 [B,K], unnormalised.  y: i64 [B] in [0,K).
    Returns f32 [B] in logit units; negative means misclassified.
    Raises ValueError if K < 2.  Source: Carlini & Wagner 2017, sec. V-A, f6 up to sign.
    """
    if logits.shape[1] < 2:
        raise ValueError(f"a margin needs at least two classes, got {logits.shape[1]}")
    true = logits.gather(1, y[:, None])[:, 0]
    others = logits.scatter(1, y[:, None], float("-inf"))
    return true - others.amax(1)
