"""Losses that an attack climbs, and the margin that tells how far it is. Each is [B,K],[B] -> [B]."""

from __future__ import annotations

from collections.abc import Callable

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


def lead(logits: Tensor, y: Tensor) -> Tensor:
    """Return how far the best other class leads the true one: minus the margin."""
    return -margin(logits, y)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Return the difference of logits ratio, f32 [B]: the lead over the spread of the three largest logits.

    Unlike cross-entropy it does not change when logits are shifted or scaled.  Below three classes there
    is no such spread, and it is the lead.  Source: Croce & Hein 2020, eq. 6.
    """
    if logits.shape[1] < 3:
        return lead(logits, y)
    largest = logits.topk(3, 1).values
    return lead(logits, y) / (largest[:, 0] - largest[:, 2] + 1e-12)


def targeted_dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the targeted DLR, f32 [B]: the target's lead over the true class, over the logits' spread.

    labels: i64 [B,2], the true class and the target.  Below four classes it is the plain lead.
    Source: Croce & Hein 2020, eq. 7.
    """
    ahead = (logits.gather(1, labels[:, 1:]) - logits.gather(1, labels[:, :1]))[:, 0]
    if logits.shape[1] < 4:
        return ahead
    largest = logits.topk(4, 1).values
    return ahead / (largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 + 1e-12)


# Larger is worse for the model.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "dlr": dlr,
    "margin": lead,
}
