"""Attacks that follow the gradient of the loss. Each yields its iterate after every step."""

from __future__ import annotations

from collections.abc import Callable, Generator

import torch
from torch import Tensor

from robustglimpse.attacks.geometry import ball, begin
from robustglimpse.attacks.loss import INSTEAD, LOSSES, Objective, cross_entropy
from robustglimpse.records import Threat
from robustglimpse.registry import find
from robustglimpse.rng import KeyedDraws

Logits = Callable[[Tensor], Tensor]
# An attack yields its iterate f32 [B,3,H,W], or [B,L,3,H,W] while it follows L ways side by side; it may be
# sent bool [B], the samples to go on with.
Iterates = Generator[Tensor, Tensor | None, None]


def fgsm(
    logits: Logits,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    draws: KeyedDraws,
    *,
    random_start: bool = False,
    eot: int = 1,
) -> Iterates:
    """Yield x after one step of size eps.

    x: f32 [B,3,H,W] in [0,1].  y: i64 [B].  random_start: from a random point of the ball.  eot: see slope.
    Source: Goodfellow et al. 2015, sec. 4; with a start, Wong et al. 2020 at a step of eps.
    """
    return pgd(logits, x, y, threat, draws, steps=1, step_size=threat.eps, random_start=random_start, eot=eot)


def pgd(
    logits: Logits,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    draws: KeyedDraws,
    *,
    steps: int,
    step_size: float,
    loss: str = "ce",
    random_start: bool = True,
    eot: int = 1,
    start: Tensor | None = None,
) -> Iterates:
    """Yield x after each of `steps` steps of projected gradient ascent on a loss: "ce", "dlr" or "margin".

    x: f32 [B,3,H,W] in [0,1].  y: i64 [B].  step_size: in the units of threat.eps.
    random_start: begin at a point drawn uniformly from the ball, not at x.  eot: see slope.
    start: begin as near to these images [B,3,H,W] as the ball allows.
    Source: Madry et al. 2018, sec. 2.1.
    """
    objective = find(LOSSES, loss, kind="loss")
    allowed = ball(threat, x)
    x_adv = begin(allowed, x, draws, random_start, start)
    for _ in range(steps):
        _, gradient = slope(logits, x_adv, y, objective, eot=eot, is_sized=False)
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
    eot: int = 1,
    start: Tensor | None = None,
) -> Iterates:
    """Yield x after each of `steps` steps along a decaying sum of gradients, each of unit L1 mean.

    x: f32 [B,3,H,W] in [0,1].  y: i64 [B].  step_size: in the units of threat.eps.  decay: mu.
    eot: see slope.  start: see pgd.
    Source: Dong et al. 2018, algorithm 1.
    """
    allowed = ball(threat, x)
    x_adv = begin(allowed, x, draws, random_start, start)
    momentum = torch.zeros_like(x)
    for _ in range(steps):
        _, gradient = slope(logits, x_adv, y, cross_entropy, eot=eot, is_sized=False)
        mean = gradient.abs().mean((1, 2, 3), keepdim=True)
        momentum = decay * momentum + gradient / mean.clamp_min(1e-30)
        x_adv = allowed.project(allowed.step(x_adv, momentum, step_size))
        keep = yield x_adv
        if keep is not None:
            x_adv, y, allowed, momentum = x_adv[keep], y[keep], allowed[keep], momentum[keep]


def slope(
    logits: Logits,
    x: Tensor,
    labels: Tensor,
    objective: Objective,
    *,
    eot: int = 1,
    at_once: int | None = None,
    is_sized: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return each sample's objective [B] and its gradient at x. Weights keep no gradient.

    labels: what the objective reads beside the logits.
    eot: the mean over so many passes, for models that answer at random (Athalye et al. 2018, sec. 3.3).
    at_once: the most images in a pass; None for all.
    is_sized: whether its size counts.  For its direction alone each sample's may be a power of two larger:
        where a model is sure, f32's range ends before the way back does.
    A sample whose objective is flat in the logits gets the gradient of INSTEAD's, where there is one.  Where
    the gradient is no number it is 0, as where there is none: both count as lost (zero_gradients).
    """
    most = at_once or len(x)
    parts = list(zip(torch.split(x, most), torch.split(labels, most), strict=True))
    passes = [[_slope(logits, *part, objective, is_sized or eot > 1) for part in parts] for _ in range(eot)]
    values, gradients = zip(*(map(_joined, zip(*each, strict=True)) for each in passes), strict=True)
    if eot == 1:
        return values[0], gradients[0]
    return torch.stack(values).mean(0), torch.stack(gradients).mean(0)


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _slope(
    logits: Logits, x: Tensor, labels: Tensor, objective: Objective, is_sized: bool
) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        v = x.detach().requires_grad_()
        answer = logits(v)
        z = answer.detach().requires_grad_()
        value = objective(z, labels)  # summed below: each sample's gradient at its own size
        first = torch.autograd.grad(value.sum(), z)[0]
        instead = INSTEAD.get(objective)
        if instead is not None:
            is_flat = (first == 0).all(1)
            if is_flat.any():
                other = torch.autograd.grad(instead(z, labels).sum(), z)[0]
                first = torch.where(is_flat[:, None], other, first)
                note_lost = getattr(logits, "note_lost", None)  # a Watched counts it
                if note_lost is not None:
                    note_lost(is_flat)
        if not is_sized:  # exact: the largest slope of each sample is raised to about 1
            exponent = torch.frexp(first.abs().amax(1, keepdim=True)).exponent
            first = torch.ldexp(first, (-exponent).clamp_min(0))
        gradient = torch.autograd.grad(answer, v, first)[0]
    return value.detach(), gradient.nan_to_num(0.0)


def ask(logits: Logits, x: Tensor, at_once: int | None = None) -> Tensor:
    """Return the logits of x without a gradient, at_once images in a pass."""
    with torch.no_grad():
        return _joined(tuple(logits(part) for part in torch.split(x, at_once or len(x))))


def likeliest_wrong(logits: Logits, x: Tensor, y: Tensor, most: int) -> Tensor:
    """Return the `most` likeliest wrong classes of each image, i64 [B,min(most,K-1)], the likeliest first."""
    scores = ask(logits, x)
    ranked = scores.scatter(1, y[:, None], float("-inf")).argsort(1, descending=True)
    return ranked[:, : min(most, scores.shape[1] - 1)]


def waves(targets: int) -> list[range]:
    """Return which of so many target classes are gone for side by side, one wave after the other.

    The likeliest fells most of what falls, so it goes alone.  What is left is little, and a network answers
    many images hardly slower than a few: the others go together.  This must not depend on the batch, since
    what a sample is charged does not.
    """
    return [wave for wave in (range(min(1, targets)), range(1, targets)) if wave]


def towards(y: Tensor, ranked: Tensor, wave: range) -> Tensor:
    """Return (true class, target) of every sample and target of a wave, i64 [B*L,2], sample by sample."""
    targets = ranked[:, wave.start : wave.stop]
    return torch.stack([y[:, None].expand_as(targets), targets], 2).flatten(0, 1)


def by_sample(x: Tensor, wave: range) -> Tensor:
    """Return x [B*L,...] as an attack yields it: [B,L,...], or [B,...] where L is 1."""
    return x.view(-1, len(wave), *x.shape[1:]) if len(wave) > 1 else x
