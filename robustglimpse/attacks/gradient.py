"""Attacks that follow the gradient of the loss. Each yields its iterate after every step."""

from __future__ import annotations

from collections.abc import Callable, Generator

import torch
from torch import Tensor

from robustglimpse.attacks.geometry import ball
from robustglimpse.attacks.loss import cross_entropy
from robustglimpse.records import Threat
from robustglimpse.rng import KeyedDraws

Logits = Callable[[Tensor], Tensor]
# An attack yields its iterate f32 [B,3,H,W]; it may be sent bool [B], the samples to go on with.
Iterates = Generator[Tensor, Tensor | None, None]


def fgsm(
    logits: Logits,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    draws: KeyedDraws,
    *,
    random_start: bool = False,
) -> Iterates:
    """Yield x after one step of size eps.

    x: f32 [B,3,H,W] in [0,1].  y: i64 [B].  random_start: from a random point of the ball.
    Source: Goodfellow et al. 2015, sec. 4; with a start, Wong et al. 2020 at a step of eps.
    """
    return pgd(logits, x, y, threat, draws, steps=1, step_size=threat.eps, random_start=random_start)


def pgd(
    logits: Logits,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    draws: KeyedDraws,
    *,
    steps: int,
    step_size: float,
    random_start: bool = True,
) -> Iterates:
    """Yield x after each of `steps` steps of projected gradient ascent on the cross-entropy.

    x: f32 [B,3,H,W] in [0,1].  y: i64 [B].  step_size: in the units of threat.eps.
    random_start: begin at a point drawn uniformly from the ball, not at x.
    Source: Madry et al. 2018, sec. 2.1.
    """
    allowed = ball(threat, x)
    x_adv = allowed.random_start(draws) if random_start else x
    for _ in range(steps):
        gradient = input_gradient(logits, x_adv, y)
        x_adv = allowed.project(allowed.step(x_adv, gradient, step_size))
        keep = yield x_adv
        if keep is not None:
            x_adv, y, allowed = x_adv[keep], y[keep], allowed[keep]


def mifgsm(
    logits: Logits,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    draws: KeyedDraws,
    *,
    steps: int,
    step_size: float,
    decay: float = 1.0,
    random_start: bool = False,
) -> Iterates:
    """Yield x after each of `steps` steps along a decaying sum of gradients, each of unit L1 mean.

    x: f32 [B,3,H,W] in [0,1].  y: i64 [B].  step_size: in the units of threat.eps.  decay: mu.
    Source: Dong et al. 2018, algorithm 1.
    """
    allowed = ball(threat, x)
    x_adv = allowed.random_start(draws) if random_start else x
    momentum = torch.zeros_like(x)
    for _ in range(steps):
        gradient = input_gradient(logits, x_adv, y)
        mean = gradient.abs().mean((1, 2, 3), keepdim=True)
        momentum = decay * momentum + gradient / mean.clamp_min(1e-30)
        x_adv = allowed.project(allowed.step(x_adv, momentum, step_size))
        keep = yield x_adv
        if keep is not None:
            x_adv, y, allowed, momentum = x_adv[keep], y[keep], allowed[keep], momentum[keep]


def input_gradient(logits: Logits, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of each sample's cross-entropy at x, raised as slope does: its direction counts."""
    return slope(lambda v: cross_entropy(logits(v), y), x)[1]


def slope(score: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each sample's score [B] and its gradient at x, times raised_by(the score's type).

    Raising it keeps the gradient of a sample that the model is sure of in f32's normal range: below, its
    sign is lost and arithmetic is several times slower.  Weights keep no gradient.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = score(x)  # summed below: each sample's gradient at its own size
        (gradient,) = torch.autograd.grad(value.sum() * raised_by(value.dtype), x)
    return value.detach(), gradient


def raised_by(dtype: torch.dtype) -> float:
    """Return the power of two that slope multiplies gradients by; every digit stays."""
    return 2.0**40 if dtype == torch.float32 else 1.0  # f16 has no room for it


def likeliest_wrong(logits: Logits, x: Tensor, y: Tensor, most: int) -> Tensor:
    """Return the `most` likeliest wrong classes of each image, i64 [B,min(most,K-1)], the likeliest first."""
    with torch.no_grad():
        scores = logits(x)
    ranked = scores.scatter(1, y[:, None], float("-inf")).argsort(1, descending=True)
    return ranked[:, : min(most, scores.shape[1] - 1)]
