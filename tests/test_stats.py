"""Wilson's interval against its closed forms, printed tables and scipy."""

from __future__ import annotations

from statistics import NormalDist

import pytest
from scipy.stats import binomtest

from robustglimpse.stats import wilson

Z2 = NormalDist().inv_cdf(0.975) ** 2  # 3.8415


def test_none_of_ten_has_the_closed_form() -> None:
    found = wilson(0, 10)
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(Z2 / (10 + Z2))  # p = 0 leaves z^2 / (n + z^2)
    assert found.high == pytest.approx(0.2775, abs=5e-5)


def test_ten_of_ten_mirrors_none_of_ten() -> None:
    found = wilson(10, 10)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(1 - wilson(0, 10).high)


def test_five_of_ten_is_the_textbook_interval() -> None:
    found = wilson(5, 10)
    assert (found.correct, found.total, found.value) == (5, 10, 0.5)
    assert (found.low, found.high) == pytest.approx((0.2366, 0.7634), abs=5e-5)


@pytest.mark.parametrize("correct, total", [(0, 1), (1, 1), (1, 2), (3, 7), (81, 263), (999, 1000)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_agrees_with_scipy(correct: int, total: int, confidence: float) -> None:
    theirs = binomtest(correct, total).proportion_ci(confidence, method="wilson")
    found = wilson(correct, total, confidence=confidence)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_the_interval_stays_inside_and_holds_the_proportion() -> None:
    for correct in range(51):
        found = wilson(correct, 50)
        assert 0 <= found.low <= found.value <= found.high <= 1
        assert found.high > found.low


@pytest.mark.parametrize("correct, total", [(-1, 10), (11, 10), (0, 0)])
def test_impossible_counts_are_refused(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"{correct} of {total}"):
        wilson(correct, total)
