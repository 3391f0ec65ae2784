"""Backbones: torchvision's residual networks and the authors' CNN for digits, cut before their classifier."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustglimpse.records import UserError


@dataclass(frozen=True)
class Family:
    """A backbone family member: torchvision's name for it and the paper's gradient re-scaling s.

    torchvision: "" for a network that is not theirs.
    short: as it stands in a model's name: mgnet-r18.
    """

    torchvision: str
    short: str
    features: int
    gradient_scale: float


BACKBONES: dict[str, Family] = {
    "resnet18": Family("resnet18", "r18", 512, 0.02),
    "resnet34": Family("resnet34", "r34", 512, 0.01),
    "resnet50": Family("resnet50", "r50", 2048, 0.01),
    "resnext50": Family("resnext50_32x4d", "rx50", 2048, 0.01),
    "wrn50": Family("wide_resnet50_2", "wrn50", 2048, 0.01),
    # No s is published for the toy sets: this is ResNet-18's.
    "cnn": Family("", "cnn", 128, 0.02),
}
NOPOOL = "-nopool"


def make_backbone(name: str) -> nn.Module:
    """Return the backbone of that name, initialised: images [B,3,H,W] -> features [B,D]."""
    return Backbone(name) if family(name).torchvision else SmallCNN()


class Backbone(nn.Module):
    """A residual network without its classifier: images [B,3,H,W] -> features [B,D].

    name: a key of BACKBONES, or one with "-nopool" behind it, which leaves out the max-pool after the
    first convolution (the paper's dagger models, for 64 px images).  State names are torchvision's.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        from torchvision import models

        if not family(name).torchvision:
            raise ValueError(f"expected a residual network, got {name!r} (make_backbone makes either)")
        network = getattr(models, family(name).torchvision)(weights=None)
        self.conv1, self.bn1 = network.conv1, network.bn1
        self.maxpool = nn.Identity() if name.endswith(NOPOOL) else network.maxpool
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(torch.relu_(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3))


class SmallCNN(nn.Module):
    """The authors' network for digits without its classifier: images [B,3,H,W] -> features [B,128].

    Four convolutions, a max-pool after each of the first three, no batch norm; state names are theirs.
    Theirs reads one channel, this one three: of three equal ones it computes the same family of functions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 5)
        self.conv2 = nn.Conv2d(16, 32, 5, padding=2)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv4 = nn.Conv2d(64, 128, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.conv1, self.conv2, self.conv3):
            x = torch.relu_(F.max_pool2d(conv(x), 2))  # after pooling: the same numbers, a quarter of them
        return torch.relu_(self.conv4(x)).mean((2, 3))


def fold_batch_norm_(backbone: Backbone) -> None:
    """Merge every batch norm of a backbone in eval mode into the convolution before it.

    The function stays the same up to rounding, and a pass over memory per layer is gone, forward and
    backward.  Statistics are then fixed: the backbone cannot be trained on.
    """
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for module in backbone.modules():
        layers = dict(module.named_children())
        pairs = [(f"conv{k}", f"bn{k}") for k in (1, 2, 3)]
        if isinstance(module, nn.Sequential):  # the shortcut of a block that changes the number of channels
            pairs = [("0", "1")]
        for conv, norm in pairs:
            first, second = layers.get(conv), layers.get(norm)
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(module, conv, fuse_conv_bn_eval(first, second))
                setattr(module, norm, nn.Identity())


def family(name: str) -> Family:
    """Return what is known of a backbone. Raises UserError with the nearest name."""
    stem = name.removesuffix(NOPOOL)
    if stem not in BACKBONES or (stem != name and not BACKBONES[stem].torchvision):
        raise UserError(
            f"unknown backbone {name!r}; it is one of {', '.join(BACKBONES)}, '-nopool' behind a residual "
            "network's or not"
        )
    return BACKBONES[stem]


def backbone_called(short: str) -> str | None:
    """Return the backbone that a model's name spells "r18" or "wrn50-nopool", None where there is none."""
    stem = short.removesuffix(NOPOOL)
    suffix = short[len(stem) :]
    able = (name for name, row in BACKBONES.items() if row.short == stem and (row.torchvision or not suffix))
    return next((name + suffix for name in able), None)


def feature_count(name: str) -> int:
    """Return D, the number of features of the backbone called name."""
    return family(name).features


def default_gradient_scale(name: str) -> float:
    """Return the paper's s for the backbone called name: 0.02 for ResNet-18, 0.01 for the deeper ones."""
    return family(name).gradient_scale
