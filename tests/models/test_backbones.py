"""Backbones, and what becomes of their batch norms; the small CNN, and the authors' initialisation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from robustglimpse.models import zoo
from robustglimpse.models.backbones import (
    BACKBONES,
    Backbone,
    SmallCNN,
    backbone_called,
    family,
    feature_count,
    fold_batch_norm_,
    make_backbone,
)
from robustglimpse.models.mgnet import Architecture, MGNet, initialise_as_authors_
from robustglimpse.records import UserError

HEADS = ("loc_network", "global_fc", "glimpse_fc")
RESIDUAL = [name for name, row in BACKBONES.items() if row.torchvision]


@pytest.mark.parametrize("name", [*RESIDUAL, "resnet18-nopool"])
def test_folding_leaves_no_batch_norm_and_the_same_features(name: str) -> None:
    torch.manual_seed(0)
    backbone = Backbone(name)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    backbone.eval()
    folded = copy.deepcopy(backbone)
    fold_batch_norm_(folded)
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = backbone(x)
        torch.testing.assert_close(folded(x), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_the_small_cnn_has_the_authors_layers() -> None:
    backbone = make_backbone("cnn")
    assert isinstance(backbone, SmallCNN)
    shapes = {name: tuple(p.shape) for name, p in backbone.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "conv1.weight": (16, 3, 5, 5), "conv2.weight": (32, 16, 5, 5), "conv3.weight": (64, 32, 3, 3),
        "conv4.weight": (128, 64, 3, 3),
    }  # fmt: skip
    sides: list[int] = []
    for conv in backbone.children():
        conv.register_forward_hook(lambda _, inputs, output: sides.append(output.shape[-1]))
    # 28 px: 24 after the first, which has no padding, then halved three times.
    assert backbone(torch.zeros(2, 3, 28, 28)).shape == (2, feature_count("cnn")) == (2, 128)
    assert sides == [24, 12, 6, 3]


def test_the_small_cnn_computes_convolutions_rectifiers_pooling_and_a_mean() -> None:
    torch.manual_seed(0)
    backbone, x = SmallCNN(), torch.randn(2, 3, 28, 28)
    y = x
    for conv in (backbone.conv1, backbone.conv2, backbone.conv3):
        y = nn.functional.max_pool2d(torch.relu(conv(y)), 2)
    torch.testing.assert_close(backbone(x), torch.relu(backbone.conv4(y)).mean((2, 3)))


def test_three_equal_channels_are_as_one_whose_weights_are_their_sum() -> None:
    torch.manual_seed(0)
    conv, grey = SmallCNN().conv1, torch.rand(2, 1, 28, 28)
    one = nn.functional.conv2d(grey, conv.weight.sum(1, keepdim=True), conv.bias)
    torch.testing.assert_close(conv(grey.expand(-1, 3, -1, -1)), one, atol=1e-5, rtol=1e-5)


def test_the_small_cnn_has_no_stem_to_leave_a_pool_out_of() -> None:
    assert (backbone_called("cnn"), backbone_called("cnn-nopool")) == ("cnn", None)
    assert backbone_called("r18-nopool") == "resnet18-nopool"
    with pytest.raises(UserError, match=r"unknown backbone 'cnn-nopool'.*behind a residual network's"):
        family("cnn-nopool")
    with pytest.raises(ValueError, match="expected a residual network, got 'cnn'"):
        Backbone("cnn")


def test_a_frozen_network_of_the_small_cnn_answers_as_before() -> None:
    torch.manual_seed(0)
    network = MGNet(Architecture("cnn", 3, "4", 10, 0.02)).eval()
    x = torch.randn(4, 3, 112, 112)
    with torch.no_grad():
        torch.testing.assert_close(zoo.frozen(network)(x).logits, network(x).logits, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_authors_initialisation_is_kaiming_with_zero_biases() -> None:
    torch.manual_seed(0)
    network = MGNet(Architecture("resnet18", 2, "2", 10, 0.02), glimpse_head=True)
    before = {name: p.clone() for name, p in network.named_parameters()}
    mha = network.feat_fusion.mha
    assert float(mha.in_proj_weight.std()) == pytest.approx(0.031, rel=0.03)
    initialise_as_authors_(network)
    for weight in (mha.in_proj_weight, mha.out_proj.weight):  # of 515 inputs
        assert float(weight.std()) == pytest.approx((2 / 515) ** 0.5, rel=0.02)
        assert float(weight.std()) == pytest.approx(0.062, rel=0.03)
    assert network.glimpse_fc is not None
    for head in (network.loc_network.fc, network.global_fc.fc, network.glimpse_fc.fc):
        assert float(head.weight.std()) == pytest.approx((2 / head.in_features) ** 0.5, rel=0.1)
        assert not head.bias.any()
    assert not mha.in_proj_bias.any()
    assert not mha.out_proj.bias.any()
    changed = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    heads = {f"{head}.fc.{kind}" for head in HEADS for kind in ("weight", "bias")}
    # The biases of the attention are zero in both.
    assert changed == heads | {f"feat_fusion.mha.{name}" for name in ("in_proj_weight", "out_proj.weight")}
