"""Square: a random search that reads scores alone. Yields every candidate that it asks about."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from robustglimpse.attacks.geometry import ball, scale_of
from robustglimpse.attacks.gradient import Iterates, Logits
from robustglimpse.attacks.loss import margin
from robustglimpse.records import Threat
from robustglimpse.rng import KeyedDraws

# Andriushchenko et al. 2020, sec. 3: after so many of so many queries the share of changed pixels halves.
HALVINGS, OF = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000), 10_000
BLOCK = 64  # so many queries draw their random numbers together


def square(
    logits: Logits,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    draws: KeyedDraws,
    *,
    steps: int = 5000,
    p: float = 0.8,
    rescale: bool = True,
) -> Iterates:
    """Yield the image of each of `steps` queries; what lowers the margin is kept.

    x: f32 [B,3,H,W] in [0,1].  y: i64 [B].  p: the share of pixels that the first squares change.
    rescale: fit the schedule by which squares shrink, made for 10 000 queries, to `steps`, as the source
        does; AutoAttack does not, and its 5 000 are the first half of it.
    Every sample has squares of its own, anywhere in its image, of any aspect ratio.
    Source: Andriushchenko et al. 2020, algorithms 1 to 3.
    """
    allowed = ball(threat, x)
    linf = threat.norm == "linf"
    best = allowed.project(_stripes(x, threat, draws) if linf else _tiles(x, threat, draws))
    best_margin = torch.full_like(x[:, 0, 0, 0], torch.inf)
    candidate = best
    uniforms = x.new_empty(0)
    for k in range(steps):
        keep = yield candidate
        if k + 1 == steps:
            return
        if keep is not None:
            allowed, x, y, draws = allowed[keep], x[keep], y[keep], draws[keep]
            best, best_margin, candidate = best[keep], best_margin[keep], candidate[keep]
            uniforms = uniforms[keep] if len(uniforms) else uniforms
        with torch.no_grad():
            found = margin(logits(candidate), y)
        is_better = found < best_margin
        best = torch.where(is_better[:, None, None, None], candidate, best)
        best_margin = torch.where(is_better, found, best_margin)
        if k % BLOCK == 0:
            # Two corners, a turn, and a sign for each channel.
            uniforms = draws.uniform(f"queries {k}", (BLOCK, 5 + x.shape[1])).to(x)
        query = (k + 1) * OF // steps if rescale else k + 1
        side = _side(p, query, x.shape[2], x.shape[3], least=1 if linf else 3)
        propose = _recolour if linf else _move_mass
        candidate = allowed.project(propose(x, best, uniforms[:, k % BLOCK], side, threat))


def _side(p: float, query: int, height: int, width: int, *, least: int) -> int:
    """Return the side of the square of a query, in pixels; it fits into the image."""
    share = p / 2 ** sum(query > h for h in HALVINGS)
    return min(max(round(sqrt(share * height * width)), least), height, width)


def _stripes(x: Tensor, threat: Threat, draws: KeyedDraws) -> Tensor:
    """Return x with every column of every channel moved to one end of the ball."""
    signs = draws.uniform("stripes", (x.shape[1], 1, x.shape[3])).to(x).sub_(0.5).sign()
    return x + threat.eps * scale_of(threat, x) * signs


def _recolour(x: Tensor, best: Tensor, uniforms: Tensor, side: int, threat: Threat) -> Tensor:
    """Return best with a square of each image moved by twice eps, each channel one way."""
    inside = _window(uniforms[:, 0], uniforms[:, 1], side, x)
    signs = (uniforms[:, 5:] - 0.5).sign()[:, :, None, None]
    return best + inside * signs * (2 * threat.eps * scale_of(threat, x))


def _tiles(x: Tensor, threat: Threat, draws: KeyedDraws) -> Tensor:
    """Return x on the sphere, its perturbation five by five tiles of two bumps each."""
    height, width = x.shape[2:]
    side = max(1, min(height, width) // 5)
    bumps = _bumps(side, x)
    rows, columns = height // side, width // side
    signs = draws.uniform("tiles", (x.shape[1], rows, columns)).to(x).sub_(0.5).sign()
    delta = torch.zeros_like(x)
    pattern = torch.kron(signs, bumps)
    delta[:, :, : rows * side, : columns * side] = pattern
    return x + _on_sphere(delta, threat) * scale_of(threat, x)


def _move_mass(x: Tensor, best: Tensor, uniforms: Tensor, side: int, threat: Threat) -> Tensor:
    """Return best with the perturbation of one square moved to another, as two bumps of opposite sign."""
    side -= 1 - side % 2 if side > 1 else 0
    scale = scale_of(threat, x)
    delta = (best - x) / scale
    new, old = (_window(uniforms[:, k], uniforms[:, k + 1], side, x) for k in (0, 2))
    either = torch.maximum(new, old)
    of_image = (threat.eps**2 - (delta**2).sum((1, 2, 3), keepdim=True)).clamp_min(0)
    of_windows = ((delta * either) ** 2).sum((2, 3), keepdim=True)
    budget = (of_image / x.shape[1] + of_windows).sqrt()
    bumps = _placed_bumps(uniforms, side, x) * (uniforms[:, 5:] - 0.5).sign()[:, :, None, None]
    before = delta * new
    mixed = bumps + before / _norm(before)
    mixed = mixed / _norm(mixed) * budget
    delta = torch.where(new > 0, mixed, torch.where(old > 0, torch.zeros_like(delta), delta))
    return x + _on_sphere(delta, threat) * scale


def _norm(v: Tensor) -> Tensor:
    """Return the norm of each channel of each image, [B,C,1,1], never 0."""
    return (v**2).sum((2, 3), keepdim=True).sqrt() + 1e-12


def _on_sphere(delta: Tensor, threat: Threat) -> Tensor:
    return delta / ((delta**2).sum((1, 2, 3), keepdim=True).sqrt() + 1e-12) * threat.eps


def _window(u: Tensor, v: Tensor, side: int, x: Tensor) -> Tensor:
    """Return f32 [B,1,H,W], 1 inside a square of each image; u, v f32 [B] in [0,1) choose its corner."""
    rows, columns = _within(u, side, x.shape[2]), _within(v, side, x.shape[3])
    is_in = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None]
    return is_in[:, None].to(x.dtype)


def _within(u: Tensor, side: int, size: int) -> Tensor:
    """Return each place's distance i64 [B,size] from the corner that u f32 [B] chooses; all corners fit."""
    corner = (u * (size - side + 1)).long().clamp_(0, size - side)
    return torch.arange(size, device=u.device) - corner[:, None]


def _placed_bumps(uniforms: Tensor, side: int, x: Tensor) -> Tensor:
    """Return f32 [B,1,H,W]: the two bumps in the square of each image, turned for half of them."""
    bumps = _bumps(side, x)
    rows = _within(uniforms[:, 0], side, x.shape[2])
    columns = _within(uniforms[:, 1], side, x.shape[3])
    i, j = rows.clamp(0, side - 1)[:, :, None], columns.clamp(0, side - 1)[:, None]
    turned = uniforms[:, 4, None, None] < 0.5
    placed = torch.where(turned, bumps[i, j], bumps.T[i, j])
    return placed[:, None] * _window(uniforms[:, 0], uniforms[:, 1], side, x)


def _bumps(side: int, x: Tensor) -> Tensor:
    """Return f32 [side,side] of unit norm: a bump above, its negative below (eq. 4 of the source)."""
    top = _bump(side // 2, side, x) if side > 1 else x.new_ones(0, 1)
    both = torch.cat([top, -_bump(side - side // 2, side, x)])
    unit: Tensor = both / both.norm()
    return unit


def _bump(height: int, width: int, x: Tensor) -> Tensor:
    """Return f32 [height,width]: squares about the centre, each ring of the inverse square of its size."""
    out = x.new_zeros(height, width)
    top, left = height // 2, width // 2
    for k in range(max(top, left) + 1):
        out[max(top - k, 0) : top + k + 1, max(left - k, 0) : left + k + 1] += 1 / (k + 1) ** 2
    unit: Tensor = out / out.norm()
    return unit
