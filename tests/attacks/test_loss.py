"""Losses on logits small enough to work out by hand."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch.nn import functional as F

from robustglimpse.attacks.loss import (
    LEAST_SLOPE,
    LOSSES,
    cross_entropy,
    dlr,
    log_odds,
    margin,
    targeted_dlr,
    targeted_lead,
)


def test_log_odds_are_those_of_the_wrong_classes_together() -> None:
    logits = torch.tensor([[log(6), log(2), 0.0], [log(6), log(2), 0.0]])  # shares 6, 2 and 1 of 9
    found = log_odds(logits, torch.tensor([0, 1]))
    torch.testing.assert_close(found, torch.tensor([log(3 / 6), log(7 / 2)]))


def test_log_odds_are_cross_entropy_on_a_longer_scale() -> None:
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5
    logits.requires_grad_()
    y = torch.arange(50) % 10
    odds, entropy = log_odds(logits, y), F.cross_entropy(logits, y, reduction="none")
    torch.testing.assert_close(entropy, odds.exp().log1p())
    ours, theirs = (torch.autograd.grad(v.sum(), logits)[0] for v in (odds, entropy))
    torch.testing.assert_close(F.normalize(ours), F.normalize(theirs))


def test_cross_entropy_is_torchs_where_that_has_digits_and_goes_on_by_its_tangent_where_it_has_none() -> None:
    y = torch.zeros(4, dtype=torch.int64)
    logits = torch.tensor([[0.0, 0.0], [13.86, 0.0], [13.87, 0.0], [5000.0, 0.0]], requires_grad=True)
    found, plain = cross_entropy(logits, y), F.cross_entropy(logits, y, reduction="none")
    assert torch.equal(found[:2], plain[:2])
    assert found.tolist() == sorted(found.tolist(), reverse=True)
    assert len(set(found.tolist())) == 4
    (steep,), (flat,) = (torch.autograd.grad(v.sum(), logits) for v in (found, plain))
    assert torch.equal(steep[:2], flat[:2])
    assert not flat[3].any(), "nothing is left of torch's"
    assert steep[2:].tolist() == [[-LEAST_SLOPE, LEAST_SLOPE]] * 2, (
        "a power of two: gradients keep their bits"
    )
    torch.testing.assert_close(steep[2], flat[2], rtol=0.1, atol=0)


def test_targeted_lead_is_the_targets_over_the_true_class() -> None:
    assert targeted_lead(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[0, 2]])).tolist() == [-1.0]


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
    assert not torch.allclose(log_odds(1000 * logits, y), log_odds(logits, y))


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


def test_cross_entropy_has_no_step_where_its_tangent_takes_over() -> None:
    odds = torch.linspace(-13.9, -13.8, 11).requires_grad_()
    value = cross_entropy(torch.stack([0 * odds, odds], 1), torch.zeros(11, dtype=torch.int64))
    gradient = torch.autograd.grad(value.sum(), odds)[0]
    torch.testing.assert_close(gradient, odds.exp().detach(), rtol=0.1, atol=0)
    assert (value[1:] >= value[:-1]).all()
    assert value[-1] > value[0]
