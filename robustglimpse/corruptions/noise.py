"""The noise family: images u8 [B,H,W,3] in, images u8 [B,H,W,3] out.

Constants are those of the reference's three scripts (CIFAR, Tiny ImageNet, ImageNet): Hendrycks &
Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations".
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from robustglimpse.corruptions.levels import levels, unit
from robustglimpse.rng import Draws

GAUSSIAN_SIGMA = {
    32: (0.04, 0.06, 0.08, 0.09, 0.10),
    64: (0.04, 0.08, 0.12, 0.15, 0.18),
    224: (0.08, 0.12, 0.18, 0.26, 0.38),
}
SHOT_PHOTONS = {32: (500, 250, 100, 75, 50), 64: (250, 100, 50, 30, 15), 224: (60, 25, 12, 5, 3)}
IMPULSE_SHARE = {
    32: (0.01, 0.02, 0.03, 0.05, 0.07),
    64: (0.01, 0.02, 0.05, 0.08, 0.14),
    224: (0.03, 0.06, 0.09, 0.17, 0.27),
}
SPECKLE_SIGMA = {
    32: (0.06, 0.1, 0.12, 0.16, 0.2),
    64: (0.15, 0.2, 0.25, 0.3, 0.35),
    224: (0.15, 0.2, 0.35, 0.45, 0.6),
}


def gaussian_noise(x: Tensor, severity: int, preset: int, draws: Draws) -> Tensor:
    """Return the images with Gaussian noise on every channel."""
    noise = draws.normal("noise", tuple(x.shape[1:])).to(x.device)
    noise *= GAUSSIAN_SIGMA[preset][severity - 1]
    return levels(noise.add_(unit(x, noise.dtype)))


def shot_noise(x: Tensor, severity: int, preset: int, draws: Draws) -> Tensor:
    """Return the images as counted in photons: a full level is a mean of so many."""
    photons = SHOT_PHOTONS[preset][severity - 1]
    rates = np.arange(256) / 255.0 * photons
    counts = draws.poisson("counts", x.cpu().numpy(), rates, photons)
    level = (np.clip(np.arange(counts.max(initial=0) + 1) / float(photons), 0, 1) * 255).astype(np.uint8)
    return torch.from_numpy(level.take(counts)).to(x.device)


def impulse_noise(x: Tensor, severity: int, preset: int, draws: Draws) -> Tensor:
    """Return the images with a share of their values, channel by channel, set to 0 or 255."""
    is_hit = draws.uniform("hit", tuple(x.shape[1:])) < IMPULSE_SHARE[preset][severity - 1]
    salt = (draws.uniform("salt", tuple(x.shape[1:])) < 0.5).to(torch.uint8) * 255
    return torch.where(is_hit.to(x.device), salt.to(x.device), x)


def speckle_noise(x: Tensor, severity: int, preset: int, draws: Draws) -> Tensor:
    """Return the images with Gaussian noise in proportion to the value that it falls on."""
    noise = draws.normal("noise", tuple(x.shape[1:])).to(x.device)
    noise *= SPECKLE_SIGMA[preset][severity - 1]
    return levels(noise.add_(1).mul_(unit(x, noise.dtype)))
