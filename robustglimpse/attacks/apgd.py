"""Auto-PGD: gradient ascent that chooses its own step size. Yields its iterate after every step."""

from __future__ import annotations

import torch
from torch import Tensor

from robustglimpse.attacks.geometry import ball, begin
from robustglimpse.attacks.gradient import (
    Iterates,
    Logits,
    by_sample,
    likeliest_wrong,
    slope,
    towards,
    waves,
)
from robustglimpse.attacks.loss import LOSSES, Objective, targeted_dlr
from robustglimpse.records import Threat
from robustglimpse.registry import find
from robustglimpse.rng import KeyedDraws

# Croce & Hein 2020, sec. 4: the first checkpoint, how the gaps between checkpoints shrink and to what,
# in shares of all steps; the share of steps that must have gained; the weight of the new direction.
FIRST_GAP, GAP_SHRINK, LEAST_GAP = 0.22, 0.03, 0.06
GAINING, INERTIA = 0.75, 0.75


def apgd(
    logits: Logits,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    draws: KeyedDraws,
    *,
    steps: int = 100,
    loss: str = "ce",
    random_start: bool = True,
    eot: int = 1,
    start: Tensor | None = None,
) -> Iterates:
    """Yield x after each of `steps` steps of Auto-PGD on a loss: "ce", "dlr" or "margin".

    x: f32 [B,3,H,W] in [0,1].  y: i64 [B].  No step size: it starts at twice eps and is halved where the
    loss stops rising.  eot: see slope.  start: see pgd.  Source: Croce & Hein 2020, algorithm 1.
    """
    objective = find(LOSSES, loss, kind="loss")
    start = begin(ball(threat, x), x, draws, random_start, start)
    return climb(logits, x, y, threat, start, objective, steps=steps, eot=eot)


def apgd_t(
    logits: Logits,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    draws: KeyedDraws,
    *,
    steps: int = 100,
    targets: int = 9,
    random_start: bool = True,
    eot: int = 1,
    at_once: int | None = None,
) -> Iterates:
    """Yield x after each step of `targets` runs of Auto-PGD on the targeted DLR loss.

    One run towards each of the likeliest wrong classes: the likeliest first, then the others side by side.
    at_once: the most images in a pass; None for all.  Source: Croce & Hein 2020, sec. 5.
    """
    ranked = likeliest_wrong(logits, x, y, targets)
    for wave in waves(ranked.shape[1]):
        allowed = ball(threat, x)
        starts = [begin(allowed, x, draws.named(f"target {k}"), random_start, None) for k in wave]
        run = climb(
            logits, x.repeat_interleave(len(wave), 0), towards(y, ranked, wave), threat,
            torch.stack(starts, 1).flatten(0, 1), targeted_dlr, steps=steps, eot=eot, at_once=at_once,
        )  # fmt: skip
        keep: Tensor | None = None
        while True:
            try:
                x_adv = run.send(None if keep is None else keep.repeat_interleave(len(wave)))
            except StopIteration:
                break
            keep = yield by_sample(x_adv, wave)
            if keep is not None:
                x, y, ranked, draws = x[keep], y[keep], ranked[keep], draws[keep]


def climb(
    logits: Logits,
    x: Tensor,
    labels: Tensor,
    threat: Threat,
    x_adv: Tensor,
    objective: Objective,
    *,
    steps: int,
    eot: int,
    at_once: int | None = None,
) -> Iterates:
    """Yield x after each step of Auto-PGD from x_adv up an objective (logits [B,K], labels -> [B])."""
    allowed = ball(threat, x)
    value, gradient = slope(logits, x_adv, labels, objective, eot=eot, at_once=at_once, is_sized=False)
    before, best_x, best_value, best_gradient = x_adv, x_adv, value, gradient
    size = value.new_full((len(x), 1, 1, 1), 2 * threat.eps)
    gains = torch.zeros_like(value)
    was_halved = torch.ones_like(value, dtype=torch.bool)
    best_at_check = value
    gap = max(1, int(FIRST_GAP * steps))
    since_check = 0
    for k in range(1, steps + 1):
        ahead = allowed.project(allowed.step(x_adv, gradient, size))
        if k > 1:
            ahead = allowed.project(x_adv + INERTIA * (ahead - x_adv) + (1 - INERTIA) * (x_adv - before))
        before, x_adv = x_adv, ahead
        keep = yield x_adv
        if k == steps:
            return
        if keep is not None:
            allowed, x_adv, labels, before = allowed[keep], x_adv[keep], labels[keep], before[keep]
            best_x, best_value, best_gradient = best_x[keep], best_value[keep], best_gradient[keep]
            value, size, gains = value[keep], size[keep], gains[keep]
            was_halved, best_at_check = was_halved[keep], best_at_check[keep]
        last = value
        value, gradient = slope(logits, x_adv, labels, objective, eot=eot, at_once=at_once, is_sized=False)
        gains = gains + (value > last)
        is_best = value > best_value
        best_value = torch.where(is_best, value, best_value)
        at = is_best[:, None, None, None]
        best_x, best_gradient = torch.where(at, x_adv, best_x), torch.where(at, gradient, best_gradient)
        since_check += 1
        if since_check == gap:
            # Halve where too few steps gained, or where nothing did since a check that halved nothing.
            halved = (gains <= GAINING * gap) | (~was_halved & (best_value <= best_at_check))
            was_halved, best_at_check = halved, best_value
            at = halved[:, None, None, None]
            size = torch.where(at, size / 2, size)
            x_adv, gradient = torch.where(at, best_x, x_adv), torch.where(at, best_gradient, gradient)
            gains, since_check = torch.zeros_like(gains), 0
            gap = max(gap - max(1, int(GAP_SHRINK * steps)), 1, int(LEAST_GAP * steps))
