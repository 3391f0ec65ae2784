"""Losses on logits small enough to work out by hand."""

from __future__ import annotations

from math import log

import pytest
import torch

from robustglimpse.attacks.loss import cross_entropy, margin


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
