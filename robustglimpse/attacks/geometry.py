"""Balls of allowed perturbations, per norm: project, random start, steepest step, distance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustglimpse.records import Threat
from robustglimpse.rng import KeyedDraws

# The most that f32 arithmetic may put a projected point outside its ball.
ROUNDING = 1e-5


def scale_of(threat: Threat, x: Tensor) -> Tensor:
    """Return the threat's per-channel scale as [C,1,1] of x's dtype and device (ones where it has none)."""
    scale = threat.scale or (1.0,) * x.shape[1]
    return x.new_tensor(scale)[:, None, None]


def distance(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Return each image's distance from x in the threat's norm and scale, f32 [B]; compare it with eps."""
    delta = ((x_adv - x) / scale_of(threat, x)).flatten(1)
    if threat.norm == "linf":
        return delta.abs().amax(1)
    norms: Tensor = torch.linalg.vector_norm(delta, dim=1)
    return norms


def ball(threat: Threat, x: Tensor) -> LinfBall | L2Ball:
    """Return the set of allowed images around x f32 [B,3,H,W]."""
    scale = scale_of(threat, x)
    if threat.norm == "l2":
        return L2Ball(x, threat.eps, scale, threat.bounds)
    low, high = x - threat.eps * scale, x + threat.eps * scale
    if threat.bounds is not None:
        low, high = low.clamp_(min=threat.bounds[0]), high.clamp_(max=threat.bounds[1])
    return LinfBall(low, high, scale)


@dataclass(frozen=True)
class LinfBall:
    """The box between low and high [B,3,H,W]: the eps-cube around x, cut at the valid pixel range."""

    low: Tensor
    high: Tensor
    scale: Tensor

    def __getitem__(self, keep: Tensor) -> LinfBall:
        return LinfBall(self.low[keep], self.high[keep], self.scale)

    def project(self, x: Tensor) -> Tensor:
        """Return the nearest allowed images."""
        return torch.clamp(x, self.low, self.high)

    def random_start(self, draws: KeyedDraws) -> Tensor:
        """Return images uniform in the box."""
        share = draws.uniform("start", tuple(self.low.shape[1:])).to(self.low)
        return self.project(torch.lerp(self.low, self.high, share))

    def step(self, x: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """Return x moved by size (one, or f32 [B,1,1,1]) in the direction of the gradient's sign."""
        return torch.addcmul(x, gradient.sign(), size * self.scale)


@dataclass(frozen=True)
class L2Ball:
    """The images within eps of x in the (channel-scaled) Euclidean norm and inside the bounds."""

    x: Tensor
    eps: float
    scale: Tensor
    bounds: tuple[float, float] | None

    def __getitem__(self, keep: Tensor) -> L2Ball:
        return L2Ball(self.x[keep], self.eps, self.scale, self.bounds)

    def project(self, x: Tensor) -> Tensor:
        """Return x drawn back to the sphere, then clipped to the bounds, which only brings it nearer."""
        delta = (x - self.x) / self.scale
        shrink = (self.eps / _norm(delta).clamp_min(1e-12)).clamp_max(1.0)
        x = self.x + delta * shrink * self.scale
        return x if self.bounds is None else x.clamp(*self.bounds)

    def random_start(self, draws: KeyedDraws) -> Tensor:
        """Return images uniform in the ball: a Gaussian direction, a radius u^(1/d)."""
        shape = tuple(self.x.shape[1:])
        direction = draws.normal("start", shape).to(self.x)
        radius = draws.uniform("radius", (1, 1, 1)).to(self.x) ** (1 / direction[0].numel())
        direction = direction / _norm(direction).clamp_min(1e-12)
        return self.project(self.x + direction * radius * self.eps * self.scale)

    def step(self, x: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """Return x moved by size (one, or f32 [B,1,1,1]) along the gradient (of the scaled pixels)."""
        scaled = gradient * self.scale
        # By the largest first: squares of small numbers are 0.
        scaled = scaled / scaled.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        return x + size * self.scale * scaled / _norm(scaled).clamp_min(1e-12)


def begin(
    allowed: LinfBall | L2Ball, x: Tensor, draws: KeyedDraws, random_start: bool, start: Tensor | None
) -> Tensor:
    """Return where an attack begins: at start, drawn into the ball; else at random in it; else at x."""
    if start is not None:
        return allowed.project(start)
    return allowed.random_start(draws) if random_start else x


def _norm(x: Tensor) -> Tensor:
    """Return the Euclidean norm of each sample, [B,1,1,1]."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)
    return norms
