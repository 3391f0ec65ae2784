"""MGNet, the Multi-Glimpse Network (Tan, Dong and Ma, BMVC 2021). Equation numbers are the paper's.

FF-Net, the plain network beside it, is the same class with one glimpse at full resolution (T=1, M=1).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from math import floor, sqrt
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustglimpse.models.backbones import (
    BACKBONES,
    backbone_called,
    default_gradient_scale,
    feature_count,
    make_backbone,
)
from robustglimpse.records import UserError
from robustglimpse.registry import parse_fraction

GradientPath = Literal["as-trained", "no-detach", "exact"]
GRADIENT_PATHS: tuple[GradientPath, ...] = ("as-trained", "no-detach", "exact")
REGION_SCALE = (0.2, 0.5)
# MKL was seen to add in another order on 1 and 2 threads for up to 11 rows that are no multiple of 4, and for
# fewer outputs than 12.
ROWS, OUTPUTS = 4, 16


@dataclass(frozen=True)
class Architecture:
    """What is needed to build an MGNet: everything that travels beside its weights.

    downsample: M as a fraction ("7/3"); a glimpse of an H px image is floor(H/M) px square.
    gradient_scale: s, what the gradient through the localisation network is multiplied by.
    """

    backbone: str
    glimpses: int
    downsample: str
    classes: int
    gradient_scale: float

    def glimpse_px(self, size_px: int) -> int:
        """Return the side of a glimpse of an image whose shorter side is size_px."""
        return floor(size_px / Fraction(self.downsample))

    @property
    def family(self) -> str:
        """ "ffnet" for one glimpse at full resolution, else "mgnet"."""
        return "ffnet" if self.glimpses == 1 and Fraction(self.downsample) == 1 else "mgnet"


def bare_architecture(name: str, *, classes: int, glimpses: int, downsample: str) -> Architecture:
    """Return what a name such as "mgnet-r18" or "ffnet-r34-nopool" stands for, checkpoints aside.

    An ffnet has one glimpse at full resolution, whatever glimpses and downsample are.
    Raises UserError for another name, and for numbers that no network can have.
    """
    family, _, short = name.partition("-")
    backbone = backbone_called(short)
    if family not in ("mgnet", "ffnet") or backbone is None:
        known = ", ".join(row.short for row in BACKBONES.values())
        raise UserError(
            f"unknown architecture {name!r}; it is mgnet- or ffnet-, then one of {known}, "
            "'-nopool' behind it or not"
        )
    if classes < 1 or glimpses < 1 or parse_fraction(downsample, what="downsample") < 1:
        raise UserError(
            f"classes, glimpses and downsample must be at least 1, got {classes}, {glimpses} and {downsample}"
        )
    if family == "ffnet":
        glimpses, downsample = 1, "1"
    return Architecture(backbone, glimpses, downsample, classes, default_gradient_scale(backbone))


class Glimpses(NamedTuple):
    """What one pass yields, the first glimpse first."""

    logits: Tensor  # [T,B,K], the global classifier after each glimpse
    regions: Tensor  # [T,B,3], (a_s, a_x, a_y) of each glimpse
    features: Tensor  # [T,B,D], the backbone's features of each glimpse


class Glance(NamedTuple):
    """What one glimpse shows of the samples that take it."""

    logits: Tensor  # [B,K], the global classifier after it
    region: Tensor  # [B,3], (a_s, a_x, a_y)
    feature: Tensor  # [B,D], the backbone's


class MGNet(nn.Module):
    """Multi-Glimpse Network: normalised images [B,3,H,W] -> Glimpses.

    State names are those of the authors' checkpoints without their "model." prefix.  The glimpse
    classifier serves the training loss only: glimpse_head says whether the network has one.
    """

    def __init__(self, architecture: Architecture, *, glimpse_head: bool = False) -> None:
        super().__init__()
        self.architecture = architecture
        features = feature_count(architecture.backbone)
        coded = features + 3
        self.backbone: nn.Module = make_backbone(architecture.backbone)
        self.feat_fusion = FeatureFusion(coded)
        self.loc_network = Head(coded, 3)
        self.global_fc = Head(coded, architecture.classes)
        self.glimpse_fc = Head(features, architecture.classes) if glimpse_head else None

    def forward(
        self,
        x: Tensor,
        *,
        gradient: GradientPath = "as-trained",
        glimpses: int | None = None,
    ) -> Glimpses:
        """Return logits, regions and features of every glimpse.

        gradient: what the backward pass sees; the numbers forward are the same for all three.
            "as-trained" scales the gradient through the regions by s and detaches the position code,
            "no-detach" keeps the position code's gradient, "exact" scales nothing either.
        glimpses: stop after that many (1..T); None means T.
        """
        count = self.architecture.glimpses if glimpses is None else glimpses
        seen = islice(self.glances(x, gradient=gradient), count)
        logits, regions, features = map(torch.stack, zip(*seen, strict=True))
        return Glimpses(logits, regions, features)

    def glances(
        self, x: Tensor, *, gradient: GradientPath = "as-trained"
    ) -> Generator[Glance, Tensor | None, None]:
        """Yield what one glimpse after the other shows; nothing is computed before it is asked for.

        What is sent, bool [B] over the samples just yielded, says which of them look again: the others
        leave the batch, and those that stay get what they would have got in the whole one.
        """
        scale = 1.0 if gradient == "exact" else self.architecture.gradient_scale
        side = self.architecture.glimpse_px(min(x.shape[2:]))
        region = x.new_tensor([1.0, 0.0, 0.0]).expand(len(x), 3)
        memory: list[Tensor] = []
        for t in range(self.architecture.glimpses):
            feature = self.backbone(look(x, region, side))
            position = region.detach() if gradient == "as-trained" else region
            fused = self.feat_fusion(torch.cat([feature, position], 1), memory)
            keep = yield Glance(self.global_fc(fused), region, feature)
            if keep is not None:
                x, fused, memory = x[keep], fused[keep], [each[keep] for each in memory]
            if t + 1 < self.architecture.glimpses:
                region = self._next_region(fused, scale)

    def _next_region(self, fused: Tensor, gradient_scale: float) -> Tensor:
        """Return the next region (a_s, a_x, a_y) [B,3] (eq. 4, 5): inside the image, at its own scale."""
        return region_of(_ScaledGradient.apply(self.loc_network(fused), gradient_scale))


class FeatureFusion(nn.Module):
    """Single-head attention over the glimpses so far, for the newest one only (eq. 3).

    Keys and values of earlier glimpses never change, so they are kept and only the newest glimpse asks:
    the last row of full self-attention, for T instead of T^2 projections.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mha = AttentionWeights(width)
        self.norm = nn.LayerNorm(width)

    def forward(self, coded: Tensor, memory: list[Tensor]) -> Tensor:
        """Return the fused feature [B,W] of the newest coded feature [B,W].

        memory: keys and values [B,2W] of the earlier glimpses; the newest are appended to it.
        """
        width = coded.shape[1]
        mha = self.mha
        memory.append(linear(coded, mha.in_proj_weight[width:], mha.in_proj_bias[width:]))
        if len(memory) == 1:  # one key: its weight is 1, whatever the query
            attended = memory[0][:, width:]
        else:
            query = linear(coded, mha.in_proj_weight[:width], mha.in_proj_bias[:width])
            keys, values = torch.stack(memory, 1).tensor_split(2, 2)
            attended = _attend(query, keys, values, is_frozen=not mha.in_proj_weight.requires_grad)
        attended = linear(attended, mha.out_proj.weight, mha.out_proj.bias)
        return torch.relu(self.norm(attended))


def _attend(query: Tensor, keys: Tensor, values: Tensor, *, is_frozen: bool) -> Tensor:
    """Return the mean of the values [B,T,W], weighted by how the query [B,W] fits the keys [B,T,W].

    Frozen on the CPU as sums, not as products of matrices: a BLAS adds a row by where it lies in memory.
    """
    if is_frozen and query.device.type == "cpu":
        weights = torch.softmax((keys * query[:, None]).sum(2) / sqrt(query.shape[1]), 1)
        return (weights[:, :, None] * values).sum(1)
    weights = torch.softmax((keys @ query[:, :, None])[:, :, 0] / sqrt(query.shape[1]), 1)
    return (weights[:, None] @ values)[:, 0]


class AttentionWeights(nn.Module):
    """The parameters of nn.MultiheadAttention with one head, under its names and initialisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)


class Head(nn.Module):
    """One linear layer under the authors' name for it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.fc.weight, self.fc.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x [B,I] times the weight [O,I], with the bias: a row's result does not depend on the batch.

    A BLAS has kernels of their own for few rows, for few outputs and, on several threads, for numbers that
    they cannot share; those add in another order, some by a row's place.  Zeros behind the last row and the
    last output make every product one of the usual kind.  MGNet needs that more than other networks: it looks
    at another place where a last bit differs.
    For frozen weights on the CPU alone: training is as it was, and nothing is promised of other devices.
    """
    if weight.requires_grad or x.device.type != "cpu":
        return F.linear(x, weight, bias)
    count, outputs = len(x), len(weight)
    if count % ROWS:
        x = F.pad(x, (0, 0, 0, -count % ROWS))
    if outputs < OUTPUTS:  # no more than these: to copy a large weight would cost as much as the product
        weight, bias = (F.pad(weight, (0, 0, 0, OUTPUTS - outputs)), F.pad(bias, (0, OUTPUTS - outputs)))
    return F.linear(x, weight, bias)[:count, :outputs]


@torch.no_grad()
def initialise_as_authors_(network: MGNet) -> None:
    """Draw the attention and the heads anew as the authors' code does: Kaiming (fan in), all biases zero.

    PyTorch's own, which a network has otherwise, makes projections half as large (a standard deviation of
    0.031 where theirs is 0.062, of ResNet-18) and biases random.  Backbones are alike in both: residual
    networks as torchvision initialises them, the small CNN as PyTorch does.
    """
    mha = network.feat_fusion.mha
    heads = [network.loc_network.fc, network.global_fc.fc]
    if network.glimpse_fc is not None:
        heads.append(network.glimpse_fc.fc)
    for weight in (mha.in_proj_weight, mha.out_proj.weight, *(head.weight for head in heads)):
        nn.init.kaiming_normal_(weight)
    for bias in (mha.in_proj_bias, mha.out_proj.bias, *(head.bias for head in heads)):
        nn.init.zeros_(bias)


def region_of(raw: Tensor) -> Tensor:
    """Return the region (a_s, a_x, a_y) [B,3] of what the localisation network says, [B,3] (eq. 5)."""
    low, high = REGION_SCALE
    a_s = low + (high - low) * torch.sigmoid(raw[:, :1])
    a_xy = (2 * torch.sigmoid(raw[:, 1:]) - 1) * (1 - a_s)
    return torch.cat([a_s, a_xy], 1)


def look(x: Tensor, region: Tensor, side: int) -> Tensor:
    """Return the glimpse of each image at its region (eq. 1, 2): [B,3,H,W], [B,3] -> [B,3,side,side].

    Bilinear with aligned corners and no anti-aliasing.  The identity region (1, 0, 0) is the whole image;
    it is sampled too, not copied: skipping it for FF-Net is 1e-7 away from the authors' network, which is
    enough to turn the sign of tiny gradients, and six steps of PGD then differ in 8 % of the pixels.
    """
    a_s, a_x, a_y = region.unbind(1)
    zero = torch.zeros_like(a_s)
    theta = torch.stack([a_s, zero, a_x, zero, a_s, a_y], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [len(x), x.shape[1], side, side], align_corners=True)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor (the paper's gradient re-scaling)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None
