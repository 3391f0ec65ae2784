"""MGNet rewritten for answers alone, on the CPU: the same logits with less work, and no gradients.

1. Attention is two matrices instead of four.  A score is x' K'Q x with K'Q multiplied out beforehand (what
   does not depend on the key drops out of the softmax), and an output is OV x: 7 products of W x W numbers
   for four glimpses where `MGNet` has 15, and the paper's network 40.
2. Convolutions have their weights laid out as the kernels read them.  Otherwise they are rearranged at every
   call, which for one image takes as long as a small layer's arithmetic.
3. The rectifier and the shortcut's addition happen inside the convolution before them.
4. Small maps of several images [B,C,H,W] are laid out as one volume [1,C,H,W,B] and convolved with kernels of
   size 1 in B, so that the batch becomes a row.  Kernels work on rows, and rows of 3 keep them idle; also the
   zeros around a map of 3 x 3, 40 % of its products, are then skipped.  The sums are the same.
5. The grid of a glimpse is one product and one sum, and FF-Net's glimpse is the image itself.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustglimpse.models import zoo
from robustglimpse.models.backbones import Backbone
from robustglimpse.models.mgnet import MGNet, region_of

MAPS, VOLUME = torch.channels_last, torch.channels_last_3d
# Packed maps of at most so many rows, of at least so many images, become volumes (measured on one AVX2 core:
# 1.0 to 1.5 times as fast for 4 to 64 images; convolutions that are not packed are slower so).
VOLUME_ROWS, VOLUME_IMAGES = 8, 4


class FastMGNet(nn.Module):
    """A network's answers: normalised images f32 [B,3,S,S], channels-last -> logits [T,B,K].

    It is made for one size of images and one of batches, since kernels read weights laid out for another
    very slowly: any number of images is taken batch_size at a time, the last ones filled up with zeros.
    Weights are copies.
    """

    def __init__(self, network: MGNet, *, size_px: int, batch_size: int) -> None:
        super().__init__()
        network = zoo.frozen(network)
        self.architecture = network.architecture
        self.shape = (batch_size, 3, size_px, size_px)
        side = self.architecture.glimpse_px(size_px)
        self.across = _across(side)
        self.backbone = _FastBackbone(network.backbone, side, batch_size)
        self.attention = _FastAttention(network)
        self.norm = network.feat_fusion.norm
        self.global_fc = network.global_fc
        self.loc_network = network.loc_network

    @torch.inference_mode()
    def forward(self, x: Tensor, *, glimpses: int | None = None) -> Tensor:
        """Return the logits of every glimpse; glimpses: stop after that many.

        Raises ValueError for images of another size than it is made for.
        """
        if x.shape[1:] != self.shape[1:]:
            raise ValueError(f"made for images {list(self.shape[1:])}, got {list(x.shape[1:])}")
        count = self.architecture.glimpses if glimpses is None else glimpses
        size = self.shape[0]
        if len(x) == size:
            return self._logits(x, count)
        filled = F.pad(x, (0, 0, 0, 0, 0, 0, 0, -len(x) % size)).contiguous(memory_format=MAPS)
        return torch.cat([self._logits(part, count) for part in torch.split(filled, size)], 1)[:, : len(x)]

    def _logits(self, x: Tensor, count: int) -> Tensor:
        side = len(self.across)
        region = x.new_tensor([1.0, 0.0, 0.0]).expand(len(x), 3)
        glimpse = x if side == x.shape[-1] else _look(x, region, self.across)
        seen: list[Tensor] = []
        logits = []
        for t in range(count):
            feature = self.backbone(glimpse.contiguous(memory_format=MAPS))
            fused = torch.relu(self.norm(self.attention(torch.cat([feature, region], 1), seen)))
            logits.append(self.global_fc(fused))
            if t + 1 < count:
                region = region_of(self.loc_network(fused))
                glimpse = _look(x, region, self.across)
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


class _FastBackbone(nn.Module):
    """A Backbone with its batch norms merged already."""

    def __init__(self, backbone: Backbone, side: int, batch_size: int) -> None:
        super().__init__()
        x = torch.zeros(batch_size, 3, side, side).contiguous(memory_format=MAPS)
        self.conv1 = _conv(backbone.conv1, x)
        self.maxpool = backbone.maxpool
        x = self.maxpool(self.conv1(x))
        blocks: list[nn.Module] = []
        is_volume = False
        for layer in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
            for block in layer:
                rows = -(-x.shape[2] // block.stride)
                is_small = rows <= VOLUME_ROWS and batch_size >= VOLUME_IMAGES
                if not is_volume and is_small and can_pack():
                    blocks.append(_AsVolume())
                    x, is_volume = blocks[-1](x), True
                blocks.append(_FastBlock(block, x))
                x = blocks[-1](x)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.maxpool(self.conv1(x)))
        return x.mean((2, 3)) if x.ndim == 4 else x.mean((2, 3))[0].T


class _AsVolume(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(1, 2, 3, 0)[None].contiguous(memory_format=VOLUME)


class _FastBlock(nn.Module):
    """A residual block; x is one of its inputs."""

    def __init__(self, block: Any, x: Tensor) -> None:
        super().__init__()
        shortcut = block.downsample
        self.shortcut = None if shortcut is None else _conv(shortcut[0], x)
        self.convs = nn.ModuleList()
        for name in ("conv1", "conv2", "conv3"):
            if hasattr(block, name):
                self.convs.append(_conv(getattr(block, name), x))
                x = self.convs[-1](x)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x, relu=False)
        *first, last = self.convs
        for conv in first:
            x = conv(x)
        y: Tensor = last(x, shortcut)
        return y


def _conv(conv: nn.Conv2d, x: Tensor) -> nn.Module:
    """Return a convolution like conv for inputs like x, [B,C,H,W] or a volume [1,C,H,W,B]."""
    return _PackedConv(conv, x) if can_pack() else _PlainConv(conv, x)


def can_pack() -> bool:
    """Return whether this torch has the operators that torch.compile's own CPU code calls."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise_")  # type: ignore[no-untyped-call]


class _PlainConv(nn.Module):
    """A convolution, then the shortcut's addition and the rectifier."""

    def __init__(self, conv: nn.Conv2d, x: Tensor) -> None:
        super().__init__()
        self.bias = conv.bias
        self.weight, self.options = _as_dimensions(conv, x)

    def forward(self, x: Tensor, shortcut: Tensor | None = None, *, relu: bool = True) -> Tensor:
        """Return relu(conv(x) + shortcut).  The shortcut is overwritten."""
        padding, stride, dilation, groups = self.options
        convolve = F.conv2d if x.ndim == 4 else F.conv3d
        y = convolve(x, self.weight, self.bias, stride, padding, dilation, groups)
        if shortcut is not None:
            y += shortcut
        return torch.relu_(y) if relu else y


class _PackedConv(nn.Module):
    """The same in one call, weights in the kernel's own layout."""

    def __init__(self, conv: nn.Conv2d, x: Tensor) -> None:
        super().__init__()
        self.bias = conv.bias
        weight, self.options = _as_dimensions(conv, x)
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.options, list(x.shape))

    def forward(self, x: Tensor, shortcut: Tensor | None = None, *, relu: bool = True) -> Tensor:
        """Return relu(conv(x) + shortcut).  The shortcut is overwritten."""
        y: Tensor
        if shortcut is None:
            y = torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, *self.options, "relu" if relu else "none", [], ""
            )
        else:
            y = torch.ops.mkldnn._convolution_pointwise_.binary(
                shortcut, x, self.weight, self.bias, *self.options, "add", 1.0, "relu", [], ""
            )
        return y


def _as_dimensions(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
    """Return conv's weight, and padding, stride, dilation and groups, for maps or for volumes like x."""
    padding, stride, dilation = list(conv.padding), list(conv.stride), list(conv.dilation)
    weight = conv.weight.detach()
    if x.ndim == 5:
        weight = weight[..., None].contiguous(memory_format=VOLUME)
        padding, stride, dilation = [*padding, 0], [*stride, 1], [*dilation, 1]
    return weight, (padding, stride, dilation, conv.groups)
