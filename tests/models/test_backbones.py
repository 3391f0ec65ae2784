"""Backbones, and what becomes of their batch norms."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from robustglimpse.models.backbones import BACKBONES, Backbone, fold_batch_norm_


@pytest.mark.parametrize("name", [*BACKBONES, "resnet18-nopool"])
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
