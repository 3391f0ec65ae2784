"""Losses on logits small enough to work out by hand."""

from __future__ import annotations

from math import log

import pytest
import torch

from robustglimpse.attacks.loss import LOSSES, cross_entropy, dlr, margin, targeted_dlr


def test_cross_entropy_is_minus_the_log_of_the_true_share() -> None:
    logits = torch.tensor([[0.0, 0.0], [log(3), 0.0], [log(3), 0.0]])
    found = cross_entropy(logits, torch.tensor([0, 0, 1]))  # shares 1/2, 3/4, 1/4
    torch.testing.assert_close(found, torch.tensor([log(2), log(4 / 3), log(4)]))


def test_margin_is_the_lead_over_the_best_other_class() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [-5.0, -4.0, -9.0]])
    assert margin(logits, torch.tensor([0, 1, 2])).tolist() == [1.0, -2.0, -5.0]


def test_a_tie_has_no_margin() -> None:
    assert margin(torch.tensor([[2.0, 2.0]]), torch.tensor([1])).tolist() == [0.0]


def test_margin_leaves_its_input_alone() -> None:
    logits = torch.tensor([[3.0, 1.0]])
    margin(logits, torch.tensor([0]))
    assert logits.tolist() == [[3.0, 1.0]]


def test_one_class_has_no_margin() -> None:
    with pytest.raises(ValueError, match="at least two classes, got 1"):
        margin(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64))


def test_dlr_is_the_lead_over_the_spread_of_the_three_largest() -> None:
    logits = torch.tensor([[5.0, 1.0, 3.0, 0.0], [1.0, 5.0, 3.0, 0.0]])
    found = dlr(logits, torch.tensor([0, 0]))
    # Right: -(5 - 3) / (5 - 1).  Wrong by 4: -(1 - 5) / (5 - 1).
    torch.testing.assert_close(found, torch.tensor([-0.5, 1.0]))


def test_dlr_does_not_change_when_logits_are_shifted_or_scaled() -> None:
    logits = torch.randn(8, 10, generator=torch.Generator().manual_seed(0))
    y = torch.arange(8)
    torch.testing.assert_close(dlr(1000 * logits + 7, y), dlr(logits, y), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(cross_entropy(1000 * logits, y), cross_entropy(logits, y))


def test_targeted_dlr_is_the_targets_lead_over_the_spread() -> None:
    logits = torch.tensor([[5.0, 1.0, 3.0, 0.0]])
    found = targeted_dlr(logits, torch.tensor([[0, 2]]))
    torch.testing.assert_close(found, torch.tensor([(3 - 5) / (5 - (1 + 0) / 2)]))


@pytest.mark.parametrize("classes", [2, 3])
def test_where_a_spread_is_undefined_the_lead_is_climbed(classes: int) -> None:
    logits = torch.tensor([[2.0, 0.5, 0.0]])[:, :classes]
    assert torch.isfinite(targeted_dlr(logits, torch.tensor([[0, 1]]))).all()
    assert targeted_dlr(logits, torch.tensor([[0, 1]])).item() == -1.5
    if classes == 2:
        assert dlr(logits, torch.tensor([0])).item() == -1.5


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_rises_as_the_true_class_falls(name: str) -> None:
    y = torch.zeros(1, dtype=torch.int64)
    values = [LOSSES[name](torch.tensor([[z, 1.0, 0.5, 0.0]]), y).item() for z in (3.0, 2.0, 1.2, 0.9)]
    assert values == sorted(values)
    assert len(set(values)) == 4
