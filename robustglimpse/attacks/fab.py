"""FAB: the nearest misclassified image, by steps to the decision boundary as it looks from here.

A minimal-norm attack: its iterates may lie outside the ball, and only those inside count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustglimpse.attacks.geometry import scale_of
from robustglimpse.attacks.gradient import (
    Iterates,
    Logits,
    ask,
    by_sample,
    likeliest_wrong,
    slope,
    towards,
    waves,
)
from robustglimpse.attacks.loss import targeted_lead
from robustglimpse.records import Threat
from robustglimpse.rng import KeyedDraws

# Croce & Hein 2020 (FAB), sec. 3: how far past the boundary, how far back once past it, and the most
# that the image itself may draw the iterate towards it.
OVERSHOOT, BACK, MOST_PULL = 1.05, 0.9, 0.1


def fab_t(
    logits: Logits,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    draws: KeyedDraws,
    *,
    steps: int = 100,
    targets: int = 9,
    eot: int = 1,
    at_once: int | None = None,
) -> Iterates:
    """Yield the images of targeted FAB, two for each of `steps` steps towards each likely wrong class.

    x: f32 [B,3,H,W] in [0,1].  y: i64 [B].  Nothing is random.  They may lie outside the ball.
    The likeliest class goes first, then the others side by side.  at_once: see apgd_t.  eot: see slope.
    Source: Croce & Hein 2020, "Minimally distorted adversarial examples", algorithm 1, targeted as in
    AutoAttack.
    """
    ranked = likeliest_wrong(logits, x, y, targets)
    for wave in waves(ranked.shape[1]):
        pairs, image = towards(y, ranked, wave), x.repeat_interleave(len(wave), 0)
        now = image
        for half in range(2 * steps):
            if half % 2 == 0:
                value, gradient = slope(logits, now, pairs, targeted_lead, eot=eot, at_once=at_once)
                now = _ahead(image, now, value, gradient, threat)
            else:
                is_past = ask(logits, now, at_once).argmax(1) != pairs[:, 0]
                now = torch.where(is_past[:, None, None, None], image + BACK * (now - image), now)
            keep = yield by_sample(now, wave)
            if keep is not None:
                x, y, ranked, keep = x[keep], y[keep], ranked[keep], keep.repeat_interleave(len(wave))
                pairs, image, now = pairs[keep], image[keep], now[keep]


def _ahead(x: Tensor, now: Tensor, value: Tensor, gradient: Tensor, threat: Threat) -> Tensor:
    """Return a step past the linearised boundary, between the way from here and the way from the image."""
    from_here = boundary_step(now, -value, gradient, threat)
    missing = -value - ((x - now) * gradient).sum((1, 2, 3))
    from_image = boundary_step(x, missing, gradient, threat)
    here, image = (_length(step, threat).clamp_min(1e-8) for step in (from_here, from_image))
    pull = (here / (here + image)).clamp(0, MOST_PULL)[:, None, None, None]
    ahead = (now + OVERSHOOT * from_here) * (1 - pull) + (x + OVERSHOOT * from_image) * pull
    return ahead if threat.bounds is None else ahead.clamp(*threat.bounds)


def _length(step: Tensor, threat: Threat) -> Tensor:
    scaled = (step / scale_of(threat, step)).flatten(1)
    return scaled.abs().amax(1) if threat.norm == "linf" else torch.linalg.vector_norm(scaled, dim=1)


def boundary_step(x: Tensor, missing: Tensor, gradient: Tensor, threat: Threat) -> Tensor:
    """Return the shortest step of each image whose dot product with the gradient is `missing`.

    missing: f32 [B], of either sign.  The step keeps x inside threat.bounds, and is measured in threat's
    norm and scale; where the bounds leave no such step it is the one that comes nearest.
    A pixel can give up to |gradient| * room; raising one number t gives each min(t * rate, that), and the
    t at which they add up to what is missing is read off the sorted points where pixels run out of room.
    """
    scale = scale_of(threat, x)
    weight = (gradient * scale).flatten(1)
    direction = weight.sign() * missing.sign()[:, None]
    if threat.bounds is None:
        room = torch.full_like(weight, torch.inf)
    else:
        low, high = ((bound - x) / scale for bound in threat.bounds)
        room = torch.where(direction > 0, high.flatten(1), -low.flatten(1)).clamp_min(0)
    rate = weight.abs() if threat.norm == "linf" else weight**2
    run_out = torch.where(rate > 0, room * weight.abs() / rate.clamp_min(1e-38), torch.inf)
    most = torch.where(rate > 0, room * weight.abs(), 0)
    order = run_out.argsort(1)
    points, rates, mosts = (v.gather(1, order) for v in (run_out, rate, most))
    used_up = mosts.nan_to_num(0, 0, 0).cumsum(1) - mosts.nan_to_num(0, 0, 0)
    left = rates.flip(1).cumsum(1).flip(1)
    gained = (used_up + torch.where(points.isinf(), 0, points) * left).masked_fill(points.isinf(), torch.inf)
    at = torch.searchsorted(gained.contiguous(), missing.abs()[:, None]).clamp_max(weight.shape[1] - 1)
    t = (missing.abs()[:, None] - used_up.gather(1, at)) / left.gather(1, at).clamp_min(1e-38)
    t = t.nan_to_num(0.0, posinf=torch.finfo(t.dtype).max)  # out of reach: everything to its bound
    size = torch.minimum(t * (rate / weight.abs().clamp_min(1e-38)), room)
    return (direction * size).view_as(x) * scale
