"""Ties that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from robustglimpse.report.paired import mean_interval, still_right, tie_groups


def series(values: np.ndarray) -> pd.Series:
    return pd.Series(values.astype(float))


def right(count: int, total: int = 200) -> pd.Series:
    return series(np.arange(total) < count)


def test_models_alike_share_a_letter_and_one_far_below_has_its_own() -> None:
    assert tie_groups([right(100), right(180), right(179)]) == ["B", "A", "A"]


def test_ties_are_no_equivalence() -> None:
    # 20 and 17 discordant images in one direction: neighbours differ by few, the ends by many.
    low, middle, high = right(176), right(180), right(184)
    assert tie_groups([low, middle, high]) == ["B", "AB", "A"]


def test_without_outcomes_there_is_no_letter() -> None:
    assert tie_groups([right(100), None]) == ["", ""]
    assert tie_groups([right(100)]) == [""]
    assert tie_groups([]) == []


def test_other_images_are_not_compared() -> None:
    assert tie_groups([right(100), right(90, 150), right(20)]) == ["A", "", "B"]


def test_the_mean_of_images_has_students_interval() -> None:
    # mean 0.5, s = 0.5345 of 8 images, t(7) = 2.3646: 0.5 +- 0.4469.
    estimate = mean_interval(np.array([0, 0, 0, 0, 1, 1, 1, 1.0]))
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.5, 0.0531, 0.9469), abs=1e-4)


def test_images_all_alike_are_not_certainty() -> None:
    # 0 of 100 right: Wilson's bound is z^2 / (n + z^2).
    assert mean_interval(np.zeros(100)).high == pytest.approx(0.0370, abs=1e-4)
    assert mean_interval(np.ones(100)).low == pytest.approx(0.9630, abs=1e-4)


def test_worst_counts_every_step_and_last_only_the_asked() -> None:
    outcomes = pd.DataFrame(
        {
            "index": [2, 0, 1], "label": [1, 1, 1], "exit": 1, "pred": [0, 1, 1],
            "first_success_step": [4, -1, 2], "pred_at_4": [0, 1, 1],
        }
    )  # fmt: skip
    assert still_right(outcomes, exit_number=1, judge="worst", steps=4, most=8).tolist() == [1, 0, 0]
    assert still_right(outcomes, exit_number=1, judge="worst", steps=2, most=8).tolist() == [1, 0, 1]
    assert still_right(outcomes, exit_number=1, judge="last", steps=4, most=8).tolist() == [1, 1, 0]
    assert still_right(outcomes, exit_number=1, judge="", steps=0, most=0).tolist() == [1, 1, 0]


def test_the_most_steps_of_a_cell_stand_for_all_that_the_attack_made() -> None:
    # A targeted attack of 4 steps for each of nine classes fooled the second sample at its seventh iterate.
    outcomes = pd.DataFrame({"exit": 1, "index": [0, 1], "label": [0, 0], "first_success_step": [-1, 7]})
    assert still_right(outcomes, exit_number=1, judge="worst", steps=4, most=4).tolist() == [1, 0]
    assert still_right(outcomes, exit_number=1, judge="worst", steps=4, most=8).tolist() == [1, 1]
