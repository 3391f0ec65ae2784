"""Losses that an attack climbs, and the margin that tells how far it is. Each is [B,K],[B] -> [B]."""

from __future__ import annotations

from collections.abc import Callable
from math import log, log1p

import torch
from torch import Tensor
from torch.nn import functional as F

# What an attack climbs: logits [B,K] and labels (i64 [B], or [B,2]: the true class and a target) -> [B].
Objective = Callable[[Tensor, Tensor], Tensor]


# Below these log-odds of being wrong cross-entropy runs out of f32's digits; its slope there, the chance of
# being wrong, is that power of two.
LEAST_SLOPE = 2.0**-20
SURE = -log(1 / LEAST_SLOPE - 1)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of each sample, f32 [B], in nats; continued by its tangent where it goes flat.

    Where a model is surer than SURE, cross-entropy and its gradient lose their digits and then are 0 in f32
    (on logits times 1000 for 83 % of the samples of a test network).  There its tangent over the log-odds
    stands in: they rise together and their gradients point the same way, so steps of a given size and the
    choice of the better iterate stay those of cross-entropy, and in a mean over a model's random answers the
    hopeless ones hardly count.  Elsewhere it is torch's, bit for bit.  Raises ValueError if K < 2.
    """
    odds = log_odds(logits, y)
    entropy = F.cross_entropy(logits, y, reduction="none")
    return torch.where(odds < SURE, (odds - SURE) * LEAST_SLOPE - log1p(-LEAST_SLOPE), entropy)


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """Return each sample's log-odds of being wrong, f32 [B]; cross-entropy is log(1 + exp(them))."""
    true, others = _true_and_others(logits, y)
    return others.logsumexp(1) - true


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return how far the true class leads the best other class, per sample.

    logits: f32 [B,K], unnormalised.  y: i64 [B] in [0,K).
    Returns f32 [B] in logit units; negative means misclassified.
    Raises ValueError if K < 2.  Source: Carlini & Wagner 2017, sec. V-A, f6 up to sign.
    """
    true, others = _true_and_others(logits, y)
    return true - others.amax(1)


def _true_and_others(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the true class's logits [B], and all of them with -inf in its place [B,K]."""
    if logits.shape[1] < 2:
        raise ValueError(f"a margin needs at least two classes, got {logits.shape[1]}")
    true = logits.gather(1, y[:, None])[:, 0]
    return true, logits.scatter(1, y[:, None], float("-inf"))


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


def targeted_lead(logits: Tensor, labels: Tensor) -> Tensor:
    """Return how far the target leads the true class, f32 [B]; labels: i64 [B,2], true class and target."""
    true, target = logits.gather(1, labels).unbind(1)
    return target - true


def targeted_dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the targeted DLR, f32 [B]: the target's lead over the true class, over the logits' spread.

    labels: i64 [B,2], the true class and the target.  Below four classes it is the plain lead.
    Source: Croce & Hein 2020, eq. 7.
    """
    ahead = targeted_lead(logits, labels)
    if logits.shape[1] < 4:
        return ahead
    largest = logits.topk(4, 1).values
    return ahead / (largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 + 1e-12)


# Larger is worse for the model.
LOSSES: dict[str, Objective] = {
    "ce": cross_entropy,
    "dlr": dlr,
    "margin": lead,
}
# What is followed instead where a loss has no gradient: a ratio is flat where it is at its largest, as the
# DLR is for a true class that ranks third.
INSTEAD: dict[Objective, Objective] = {dlr: lead, targeted_dlr: targeted_lead}
