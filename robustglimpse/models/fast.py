"""MGNet rewritten for answers alone: the same logits with less work, and no gradients.

1. Attention is two matrices instead of four.  A score is x' K'Q x with K'Q multiplied out beforehand (what
   does not depend on the key drops out of the softmax), and an output is OV x: 7 products of W x W numbers
   for four glimpses where `MGNet` has 15, and the paper's network 40.
2. The grid of a glimpse is one product and one sum, and FF-Net's glimpse is the image itself.

The backbone is that of a frozen network: models.packed.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustglimpse.models import zoo
from robustglimpse.models.mgnet import MGNet, region_of


class FastMGNet(nn.Module):
    """A network's answers: normalised images f32 [B,3,S,S], channels-last -> logits [T,B,K].

    Weights are copies.
    """

    def __init__(self, network: MGNet) -> None:
        super().__init__()
        network = zoo.frozen(network)
        self.architecture = network.architecture
        self.backbone = network.backbone
        self.attention = _FastAttention(network)
        self.norm = network.feat_fusion.norm
        self.global_fc = network.global_fc
        self.loc_network = network.loc_network

    @torch.inference_mode()
    def forward(self, x: Tensor, *, glimpses: int | None = None) -> Tensor:
        """Return the logits of every glimpse; glimpses: stop after that many."""
        count = self.architecture.glimpses if glimpses is None else glimpses
        side = self.architecture.glimpse_px(x.shape[-1])
        across = _across(side)
        region = x.new_tensor([1.0, 0.0, 0.0]).expand(len(x), 3)
        glimpse = x if side == x.shape[-1] else _look(x, region, across)
        seen: list[Tensor] = []
        logits = []
        for t in range(count):
            feature = self.backbone(glimpse)
            fused = torch.relu(self.norm(self.attention(torch.cat([feature, region], 1), seen)))
            logits.append(self.global_fc(fused))
            if t + 1 < count:
                region = region_of(self.loc_network(fused))
                glimpse = _look(x, region, across)
        return torch.stack(logits)


def _across(side: int) -> Tensor:
    """Return where the pixels of a glimpse of the whole image lie in it, [side,side,2] in [-1,1]."""
    line = torch.linspace(-1, 1, side)
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), 2)


def _look(x: Tensor, region: Tensor, across: Tensor) -> Tensor:
    """Return what mgnet.look returns, up to rounding."""
    grid = across * region[:, None, None, :1] + region[:, None, None, 1:]
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


class _FastAttention(nn.Module):
    """FeatureFusion's attention with its products multiplied out (in f64, then rounded once)."""

    def __init__(self, network: MGNet) -> None:
        super().__init__()
        mha = network.feat_fusion.mha
        width = len(mha.out_proj.weight)
        q, k, v = mha.in_proj_weight.double().tensor_split(3)
        q_bias, _, v_bias = mha.in_proj_bias.double().tensor_split(3)
        out = mha.out_proj.weight.double()
        self.scores = _linear(k.T @ q / sqrt(width), k.T @ q_bias / sqrt(width))
        self.values = _linear(out @ v, out @ v_bias + mha.out_proj.bias)

    def forward(self, coded: Tensor, seen: list[Tensor]) -> Tensor:
        """Return what the newest coded feature [B,W] attends to; seen keeps what later ones need of it."""
        width = coded.shape[1]
        seen.append(torch.cat([coded, self.values(coded)], 1))
        if len(seen) == 1:
            return seen[0][:, width:]
        keys, values = torch.stack(seen, 1).tensor_split(2, 2)
        weights = torch.softmax((keys @ self.scores(coded)[:, :, None])[:, :, 0], 1)
        return (weights[:, None] @ values)[:, 0]


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight.float(), bias.float()
    return layer.requires_grad_(False)
