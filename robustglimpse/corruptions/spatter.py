"""Spatter: drops of water or splashes of mud on the lens. Source as in noise.py.

The reference draws its drops with OpenCV's edge detector, distance transform and histogram equalisation;
these are here in their integer arithmetic, batched. Every plane is [B,H,W].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from robustglimpse.corruptions import filters
from robustglimpse.corruptions.levels import ROUNDING, levels, unit
from robustglimpse.rng import Draws

SPATTER = {  # mean, standard deviation, sigma, threshold; strength of water or sigma of mud; is it mud
    32: (
        (0.62, 0.1, 0.7, 0.7, 0.5, False), (0.65, 0.1, 0.8, 0.7, 0.5, False),
        (0.65, 0.3, 1, 0.69, 0.5, False), (0.65, 0.1, 0.7, 0.69, 0.6, True),
        (0.65, 0.1, 0.5, 0.68, 0.6, True),
    ),
    64: (
        (0.62, 0.1, 0.7, 0.7, 0.6, False), (0.65, 0.1, 0.8, 0.7, 0.6, False),
        (0.65, 0.3, 1, 0.69, 0.6, False), (0.65, 0.1, 0.7, 0.68, 0.6, True),
        (0.65, 0.1, 0.5, 0.67, 0.6, True),
    ),
    224: (
        (0.65, 0.3, 4, 0.69, 0.6, False), (0.65, 0.3, 3, 0.68, 0.6, False),
        (0.65, 0.3, 2, 0.68, 0.5, False), (0.65, 0.3, 1, 0.65, 1.5, True),
        (0.67, 0.4, 1, 0.65, 1.5, True),
    ),
}  # fmt: skip
WATER = (175 / 255, 238 / 255, 238 / 255)
MUD = (63 / 255, 42 / 255, 20 / 255)
CANNY_LOW, CANNY_HIGH = 50, 150
TAN_22 = 13573  # tan(22.5 degrees) in 15-bit fixed point
STRAIGHT, DIAGONAL, KNIGHT = 65536, 91750, 143976  # 1, 1.4 and 2.1969 px in 16-bit fixed point
FAR_PX = 20


def spatter(x: Tensor, severity: int, preset: int, draws: Draws) -> Tensor:
    """Return the images behind drops of water (severity 1 to 3) or under splashes of mud (4 and 5)."""
    mean, deviation, sigma, threshold, amount, is_mud = SPATTER[preset][severity - 1]
    liquid = draws.normal("liquid", tuple(x.shape[1:3])).to(x.device).mul_(deviation).add_(mean)
    liquid = filters.gaussian_blur(liquid[..., None], sigma)[..., 0]
    liquid = torch.where(liquid < threshold, torch.zeros_like(liquid), liquid)
    v = unit(x)
    if is_mud:
        cover = (liquid > threshold).float()
        cover = filters.gaussian_blur(cover[..., None], amount)
        cover = torch.where(cover < 0.8, torch.zeros_like(cover), cover)
        return levels(v * (1 - cover) + cover * cover.new_tensor(MUD))
    # Not clipped: what is brighter than white wraps to black, in the reference too.
    drops = (liquid * 255 + ROUNDING[liquid.dtype]).long().bitwise_and_(255).to(torch.uint8)
    shine = drops.float() * _shading(drops).float()
    # Without a drop the reference divides by 0; here the image stays as it is.
    brightest = shine.amax((1, 2), keepdim=True).clamp_(min=1)
    shine = (shine / brightest * amount)[..., None]
    return levels(v + shine * shine.new_tensor(WATER))


def _shading(drops: Tensor) -> Tensor:
    """Return how light and shadow lie on drops u8, as levels u8: embossed distance from their edges."""
    distance = _distance(_edges(drops.int())).clamp_(max=FAR_PX)
    relief = _equalised(_box_mean(distance).to(torch.uint8))
    kernel = torch.tensor([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]], dtype=torch.float64, device=drops.device)
    embossed = F.conv2d(_mirrored(relief.double())[:, None], kernel[None, None])[:, 0].clamp_(0, 255)
    return _box_mean(embossed).round_().to(torch.uint8)


def _mirrored(v: Tensor) -> Tensor:
    """Return planes with a border of 1, mirrored about the outer pixels (repeated where there is but one)."""
    for axis in (1, 2):
        last = v.shape[axis] - 1
        before, after = (v.narrow(axis, min(max(at, 0), last), 1) for at in (1, last - 1))
        v = torch.cat([before, v, after], axis)
    return v


def _box_mean(v: Tensor) -> Tensor:
    """Return the mean over 3 x 3 pixels, f64."""
    return F.avg_pool2d(_mirrored(v.double())[:, None], 3, 1)[:, 0]


def _edges(v: Tensor) -> Tensor:
    """Return where Canny's detector (Sobel, L1 magnitude, hysteresis) finds edges in planes i32, as bool."""
    padded = filters.repeat_edges(filters.repeat_edges(v, 1, 1), 1, 2)
    height, width = v.shape[1:]

    def at(plane: Tensor, dy: int, dx: int) -> Tensor:
        return plane[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    gx = sum(w * (at(padded, dy, 1) - at(padded, dy, -1)) for dy, w in ((-1, 1), (0, 2), (1, 1)))
    gy = sum(w * (at(padded, 1, dx) - at(padded, -1, dx)) for dx, w in ((-1, 1), (0, 2), (1, 1)))
    assert isinstance(gx, Tensor)
    assert isinstance(gy, Tensor)
    strength = gx.abs() + gy.abs()
    around = F.pad(strength, (1, 1, 1, 1))
    # A ridge is as strong as its two neighbours across it; which two follows from the gradient's direction.
    x, y = gx.abs().long(), gy.abs().long() << 15
    flat, steep = y < x * TAN_22, y > x * TAN_22 + (x << 16)
    falling = (gx ^ gy) < 0
    across = (strength > at(around, 0, -1)) & (strength >= at(around, 0, 1))
    along = (strength > at(around, -1, 0)) & (strength >= at(around, 1, 0))
    down = (strength > at(around, -1, -1)) & (strength > at(around, 1, 1))
    up = (strength > at(around, -1, 1)) & (strength > at(around, 1, -1))
    is_ridge = torch.where(flat, across, torch.where(steep, along, torch.where(falling, up, down)))
    weak = is_ridge & (strength > CANNY_LOW)
    edges = weak & (strength > CANNY_HIGH)
    while True:
        grown = (F.max_pool2d(edges[:, None].float(), 3, 1, 1)[:, 0] > 0) & weak
        if torch.equal(grown, edges):
            return edges
        edges = grown


def _distance(is_source: Tensor) -> Tensor:
    """Return the distance to the nearest source in pixels, f32, by chamfer steps of a 5 x 5 mask.

    Source: Borgefors 1986, with OpenCV's three step lengths.
    """
    height, width = is_source.shape[1:]
    far = 2**29
    d = torch.where(is_source, 0, far)
    ramp = torch.arange(width, device=d.device) * STRAIGHT
    for sweep in (1, -1):
        # Two rows before, two columns on either side; then along the row, as a running minimum.
        d = F.pad(d.flip(1, 2) if sweep < 0 else d, (2, 2, 2, 0), value=far)
        for row in range(2, height + 2):
            d[:, row, 2:-2] = torch.stack(
                [d[:, row, 2:-2]]
                + [
                    d[:, row - dy, 2 + dx : 2 + dx + width] + cost
                    for dy, dx, cost in (
                        (2, -1, KNIGHT), (2, 1, KNIGHT), (1, -2, KNIGHT), (1, 2, KNIGHT),
                        (1, -1, DIAGONAL), (1, 1, DIAGONAL), (1, 0, STRAIGHT),
                    )
                ]
            ).amin(0)  # fmt: skip
            d[:, row, 2:-2] = (d[:, row, 2:-2] - ramp).cummin(1).values + ramp
        d = d[:, 2:, 2:-2]
        d = d.flip(1, 2) if sweep < 0 else d
    return d.float() / STRAIGHT


def _equalised(plane: Tensor) -> Tensor:
    """Return levels u8 with each image's histogram equalised; one level alone stays."""
    flat = plane.flatten(1).long()
    histogram = torch.zeros(len(flat), 256, dtype=torch.int64, device=plane.device)
    histogram.scatter_add_(1, flat, torch.ones_like(flat))
    lowest = flat.amin(1, keepdim=True)
    of_lowest = histogram.gather(1, lowest)
    rest = flat.shape[1] - of_lowest
    scale = 255 / rest.clamp(min=1).float()
    table = ((histogram.cumsum(1) - of_lowest).float() * scale).round_().clamp_(0, 255)
    table = torch.where(rest == 0, torch.arange(256, device=plane.device).float(), table)
    return table.gather(1, flat).to(torch.uint8).view(plane.shape)
