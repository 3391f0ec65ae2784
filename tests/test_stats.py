"""Statistics against closed forms, printed tables and scipy."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest, ttest_rel

from robustglimpse.corruptions import names
from robustglimpse.stats import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERROR,
    drop_p_value,
    holm,
    mcnemar,
    mcnemar_power,
    mean_corruption_error,
    mean_difference,
    newcombe,
    paired_difference,
    paired_p_value,
    proof_power,
    sign_flip,
    smallest_drop,
    table_difference,
    table_p_value,
    unseen,
    wilson,
)

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


# Mean corruption error


def test_mce_is_the_mean_of_quotients_by_name() -> None:
    # 0.3/0.6 and 0.5/0.5, whichever is named first in either table
    errors, baseline = {"fog": 0.3, "snow": 0.5}, {"frost": 0.1, "snow": 0.5, "fog": 0.6}
    assert mean_corruption_error(errors, baseline) == pytest.approx(0.75)
    assert mean_corruption_error(dict(reversed(errors.items())), baseline) == pytest.approx(0.75)


def test_relative_mce_takes_off_what_is_wrong_without_corruption() -> None:
    # (0.3 - 0.1)/(0.6 - 0.2) and (0.5 - 0.1)/(0.5 - 0.2)
    errors, baseline = {"fog": 0.3, "snow": 0.5}, {"snow": 0.5, "fog": 0.6}
    found = mean_corruption_error(errors, baseline, clean=0.1, baseline_clean=0.2)
    assert found == pytest.approx((1 / 2 + 4 / 3) / 2)


def test_a_corruptions_quotient_is_of_sums_over_severities() -> None:
    ours, theirs = np.array([0.1, 0.2, 0.9]), np.array([0.2, 0.8, 0.9])
    found = mean_corruption_error({"fog": float(ours.mean())}, {"fog": float(theirs.mean())})
    assert found == pytest.approx(1.2 / 1.9)
    assert found != pytest.approx(float((ours / theirs).mean()), abs=0.02)


def test_a_baseline_against_itself_is_one() -> None:
    assert mean_corruption_error(ALEXNET_ERROR, ALEXNET_ERROR) == pytest.approx(1)
    clean = ALEXNET_CLEAN_ERROR
    relative = mean_corruption_error(ALEXNET_ERROR, ALEXNET_ERROR, clean=clean, baseline_clean=clean)
    assert relative == pytest.approx(1)


def test_a_model_that_is_never_wrong_has_no_error() -> None:
    assert mean_corruption_error(dict.fromkeys(ALEXNET_ERROR, 0.0), ALEXNET_ERROR) == 0


@pytest.mark.parametrize(
    "errors, baseline, clean, message",
    [
        ({"fog": 0.5, "snow": 0.5}, {"fog": 0.5}, 0.0, "lacks .*snow"),
        ({}, {"fog": 0.5}, 0.0, "lacks all"),
        ({"fog": 0.5}, {"fog": 0.0}, 0.0, "error on fog must be above"),
        ({"fog": 0.5}, {"fog": 0.3}, 0.3, "error on fog must be above 0.3"),
    ],
)
def test_nothing_to_divide_by_is_refused(
    errors: dict[str, float], baseline: dict[str, float], clean: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mean_corruption_error(errors, baseline, clean=0.1, baseline_clean=clean)


def test_alexnets_table_is_the_published_one() -> None:
    assert tuple(ALEXNET_ERROR) == names()
    assert np.mean(list(ALEXNET_ERROR.values())) == pytest.approx(0.788993, abs=5e-7)
    # Relative denominators, with the clean error taken off, from gaussian noise to JPEG.
    relative = [
        0.4517, 0.4597, 0.4879, 0.3851, 0.3915, 0.3512, 0.3636, 0.4320, 0.3918, 0.3845, 0.1298, 0.4184,
        0.2113, 0.2831, 0.1717,
    ]  # fmt: skip
    assert ALEXNET_CLEAN_ERROR == 0.43478
    found = [error - ALEXNET_CLEAN_ERROR for error in ALEXNET_ERROR.values()]
    assert found == pytest.approx(relative, abs=6e-5)


# Paired comparisons


def scores(seed: int, count: int) -> NDArray[np.float64]:
    """Return made-up scores of images, fifths as severities give them."""
    return np.random.default_rng(seed).integers(0, 6, count) / 5


@pytest.mark.parametrize("count", [2, 3, 10, 1000])
@pytest.mark.parametrize("shift", [0.0, 0.03, 0.3])
def test_a_p_value_is_scipys(count: int, shift: float) -> None:
    a, b = scores(1, count) + shift, scores(2, count)
    expected = ttest_rel(a, b).pvalue
    assert 0 < expected < 1
    assert paired_p_value(a, b) == pytest.approx(expected, rel=1e-9)
    assert paired_p_value(b, a) == paired_p_value(a, b)


def test_a_p_value_of_two_images_has_a_closed_form() -> None:
    # d = (1, 3): mean 2, standard error 1, and Student's t with one degree of freedom is Cauchy's law.
    found = paired_p_value(np.array([1.0, 3.0]), np.zeros(2))
    assert found == pytest.approx(1 - 2 * np.arctan(2) / np.pi)


def test_pairing_sees_what_the_means_alone_do_not() -> None:
    a = np.repeat([0.0, 1.0], 50)
    b = a.copy()
    b[50:58] = 0  # eight images lost, none gained: means of .50 and .42
    assert paired_p_value(a, b) < 0.01
    assert paired_p_value(a, np.roll(b, 50)) > 0.1


def test_equal_scores_and_constant_differences_need_no_division() -> None:
    a = scores(1, 20)
    assert paired_p_value(a, a.copy()) == 1
    assert paired_p_value(np.zeros(20), np.full(20, 0.25)) == 0


@pytest.mark.parametrize(
    "a, b",
    [
        (np.zeros(3), np.zeros(4)),
        (np.zeros(1), np.zeros(1)),
        (np.zeros(0), np.zeros(0)),
        (np.zeros((2, 3)), np.zeros((2, 3))),
    ],
)
def test_scores_that_are_not_pairs_are_refused(a: NDArray[Any], b: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"two f64 \[N\] with N >= 2"):
        paired_p_value(a, b)


def test_holm_gives_the_textbooks_values() -> None:
    # Sorted .005 .01 .03 .04: times 4, 3, 2, 1, and never below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9, 0.7]) == [1, 1, 1]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_holm_keeps_the_order_and_lies_between_each_and_bonferroni() -> None:
    p = np.random.default_rng(0).uniform(0, 0.4, 50)
    found = np.array(holm(p.tolist()))
    assert (np.diff(found[np.argsort(p)]) >= 0).all()
    assert (found >= p).all()
    assert (found <= np.minimum(1, 50 * p) + 1e-12).all()
    assert found.min() == pytest.approx(50 * p.min())
    assert found.max() <= 1


def statsmodels(module: str) -> Any:
    return pytest.importorskip(f"statsmodels.stats.{module}", reason="statsmodels is in the dev extra only")


# Intervals of one proportion


@pytest.mark.parametrize("correct, total", [(0, 7), (1, 7), (5, 10), (81, 263), (999, 1000), (1000, 1000)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilsons_interval_agrees_with_statsmodels(correct: int, total: int, confidence: float) -> None:
    interval = statsmodels("proportion").proportion_confint
    ours = wilson(correct, total, confidence=confidence)
    theirs = interval(correct, total, alpha=1 - confidence, method="wilson")
    assert (ours.low, ours.high) == pytest.approx(theirs, abs=1e-10)


def test_none_of_n_leaves_three_in_n_open() -> None:
    # (1 - p)^1000 = 0.05: the exact interval's upper end.
    assert (1 - unseen(1000)) ** 1000 == pytest.approx(0.05)
    assert unseen(1000) == pytest.approx(3 / 1000, rel=0.01)


# McNemar


def test_mcnemars_p_values_by_hand() -> None:
    # 1 of 6 to one side: (1 + 6) / 64 on it, twice that on both; 0 of 5: 1 / 32.
    assert mcnemar(5, 1, alternative="worse") == pytest.approx(7 / 64)
    assert mcnemar(5, 1) == mcnemar(1, 5) == pytest.approx(14 / 64)
    assert mcnemar(5, 0, alternative="worse") == pytest.approx(1 / 32)
    assert mcnemar(0, 5, alternative="worse") == 1
    assert mcnemar(0, 0) == mcnemar(0, 0, alternative="worse") == mcnemar(3, 3) == 1


@pytest.mark.parametrize("lost, gained", [(0, 1), (1, 12), (30, 10), (7, 1), (250, 300), (5, 5)])
def test_mcnemar_agrees_with_statsmodels_and_scipy(lost: int, gained: int) -> None:
    theirs = statsmodels("contingency_tables").mcnemar([[9, lost], [gained, 3]], exact=True)
    assert mcnemar(lost, gained) == pytest.approx(theirs.pvalue, rel=1e-9)
    one_sided = binomtest(lost, lost + gained, alternative="greater").pvalue
    assert mcnemar(lost, gained, alternative="worse") == pytest.approx(one_sided, rel=1e-9)


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="-1 lost"):
        mcnemar(-1, 3)
    with pytest.raises(ValueError, match="counts from 0 up"):
        newcombe(5, -1, 0, 3)


def test_power_is_what_simulated_runs_find() -> None:
    expected = mcnemar_power(0.02, total=1000, discordant=0.04)
    rng = np.random.default_rng(0)
    outcomes = rng.multinomial(1000, [0.03, 0.01, 0.96], size=4000)
    found = np.mean([mcnemar(int(b), int(c), alternative="worse") <= 0.05 for b, c, _ in outcomes])
    print(f"power at a drop of 2 points, 4 % discordant, n=1000: {expected:.3f}, simulated {found:.3f}")  # noqa: T201
    assert expected > 0.9
    assert found == pytest.approx(expected, abs=0.015)


def test_the_smallest_drop_is_found_nine_times_in_ten() -> None:
    drop = smallest_drop(1000, discordant=0.04)
    assert drop is not None
    assert mcnemar_power(drop, total=1000, discordant=0.04) >= 0.9
    assert mcnemar_power(drop - 0.0005, total=1000, discordant=0.04) < 0.9
    assert smallest_drop(4) is None  # even four lost of four: p = 1/16
    assert smallest_drop(5) is not None
    certain = smallest_drop(1000)
    assert certain is not None and certain < drop


def test_alternating_signs_give_the_binomial_law() -> None:
    for lost, gained in ((5, 1), (30, 10), (3, 8), (0, 4)):
        d = np.array([-3] * lost + [3] * gained + [0] * 20)
        assert sign_flip(d) == pytest.approx(mcnemar(lost, gained, alternative="worse"), rel=1e-9)


def test_a_sign_flip_counts_all_choices_of_signs() -> None:
    d = np.array([-5, 2, -1, -4, 0, 3])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1)
    sums = np.abs(d[d != 0]) @ signs
    assert sign_flip(d) == pytest.approx(np.mean(sums <= d.sum()))
    assert sign_flip(np.zeros(4, int)) == 1


def test_very_many_images_go_by_the_normal_law(monkeypatch: pytest.MonkeyPatch) -> None:
    from robustglimpse import stats

    d = np.random.default_rng(0).integers(-9, 9, 800)
    exact = sign_flip(d)
    monkeypatch.setattr(stats, "EXACT_COST", 0)
    assert sign_flip(d) == pytest.approx(exact, abs=1e-3)


# Newcombe


def test_newcombes_interval_is_that_of_published_examples() -> None:
    # Altman et al. 2000, Statistics with Confidence, table 6.2: 14, 5, 0, 22.
    found = newcombe(14, 0, 5, 22)
    assert (found.value, found.low, found.high) == pytest.approx((0.122, 0.011, 0.226), abs=5e-4)
    # Airway hyper-responsiveness of Bentur et al. 2009, in Fagerland et al. 2014: 1, 1, 7, 12.
    found = newcombe(1, 7, 1, 12)
    assert (found.value, found.low, found.high) == pytest.approx((-0.286, -0.507, -0.026), abs=5e-4)


def test_newcombe_without_correlation_is_worked_by_hand() -> None:
    # 1 lost, 1 gained, 1 right and 1 wrong twice: phi is 0, both proportions are 1/2 with Wilson's half
    # width w, so the difference reaches w * sqrt(2) to either side.
    w = wilson(2, 4).high - 0.5
    found = newcombe(1, 1, 1, 1)
    assert (found.low, found.high) == pytest.approx((-w * 2**0.5, w * 2**0.5))


def test_newcombe_keeps_a_width_where_nothing_differs_and_turns_with_the_runs() -> None:
    for both in (0, 1, 50, 99, 100):
        found = newcombe(both, 0, 0, 100 - both)
        assert found.value == 0
        assert found.low < 0 < found.high
    one, other = newcombe(60, 9, 3, 28), newcombe(60, 3, 9, 28)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_newcombe_covers_the_truth() -> None:
    rng = np.random.default_rng(1)
    tables = rng.multinomial(300, [0.75, 0.04, 0.02, 0.19], size=2000)
    found = [newcombe(*table, confidence=0.9) for table in tables.tolist()]
    above = np.mean([interval.low > -0.02 for interval in found])
    below = np.mean([interval.high < -0.02 for interval in found])
    assert max(above, below) < 0.06


# The exact test that a drop is smaller than a margin


def test_where_only_losses_occur_the_test_is_binomial() -> None:
    for lost, total in ((0, 400), (2, 500), (5, 1000), (3, 12)):
        expected = binomtest(lost, total, 0.3 if total == 12 else 0.01, alternative="less").pvalue
        found = table_p_value(lost, 0, total, margin=0.3 if total == 12 else 0.01)
        assert found == pytest.approx(expected, abs=1e-12)
    # 1 - 0.05^(1/n), and Clopper and Pearson's bound.
    assert -table_difference(0, 0, 400, alpha=0.05).low == pytest.approx(unseen(400), abs=1e-6)
    bound = binomtest(2, 500).proportion_ci(0.9, method="exact").high
    assert -table_difference(2, 0, 500, alpha=0.05).low == pytest.approx(bound, abs=1e-6)
    assert bound == pytest.approx(0.0125, abs=5e-5)


def test_the_likeliest_law_is_tangos_and_the_tail_is_summed_by_hand() -> None:
    # n = 2, one lost and one gained, margin 1/2: 4 x^2 - x/2 - 1/8 = (2 * 2) x^2 - 1 x - ... is solved below.
    a, b, c = 4, 2 * 2 * 0.5 - 2, -0.25
    up = ((b * b - 4 * a * c) ** 0.5 - b) / (2 * a)
    down, same = up + 0.5, 0.5 - 2 * up
    # Two draws sum to 0 or more: all pairs but (down, same), (same, down) and (down, down).
    expected = 1 - 2 * down * same - down**2
    assert table_p_value(1, 1, 2, margin=0.5) == pytest.approx(expected)


def test_tangos_score_interval_is_near_and_the_law_is_that_of_the_general_test() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        total = int(rng.integers(5, 2000))
        lost, gained = (int(x) for x in rng.integers(0, total // 4 + 1, 2))
        margin = float(rng.uniform(-0.1, 0.3))
        counts = np.array([lost, total - lost - gained, gained])
        general = drop_p_value(np.array([-1, 0, 1]), counts, margin=margin)
        assert table_p_value(lost, gained, total, margin=margin) == pytest.approx(general, abs=1e-10)
    # Tango 1998, table II: 1 and 2 discordant of 44, 95 %: (-0.096, 0.14) about; the exact one is wider.
    found = table_difference(1, 2, 44, alpha=0.025)
    assert (found.low, found.high) == pytest.approx((-0.097, 0.140), abs=0.02)


def test_the_interval_turns_the_test_round_and_turns_with_the_runs() -> None:
    for lost, gained, total in ((20, 20, 1000), (5, 0, 300), (0, 3, 50), (30, 10, 100), (2000, 1900, 50_000)):
        found = table_difference(lost, gained, total, alpha=0.05)
        assert table_p_value(lost, gained, total, margin=-found.low) == pytest.approx(0.05, abs=1e-3)
        mirrored = table_difference(gained, lost, total, alpha=0.05)
        assert (found.low, found.high) == pytest.approx((-mirrored.high, -mirrored.low))
        assert found.low < found.value < found.high
    whole = table_difference(40, 0, 40, alpha=0.05)
    assert (whole.low, whole.value) == (-1, -1)


def test_cells_that_are_copies_of_each_other_count_as_one() -> None:
    one = table_difference(30, 20, 1000, alpha=0.05)
    values, counts = np.array([-7, 0, 7]), np.array([30, 950, 20])
    found = paired_difference(values, counts, alpha=0.05, cells=7)
    assert (found.value, found.low, found.high) == pytest.approx((one.value, one.low, one.high), abs=1e-6)


def test_a_mean_of_many_small_changes_has_students_interval() -> None:
    sums = np.random.default_rng(0).integers(-3, 4, 2000)
    values, counts = np.unique(sums, return_counts=True)
    found = paired_difference(values, counts, alpha=0.05, cells=20)
    student = mean_difference(sums / 20, confidence=0.9)
    assert found.high == pytest.approx(student.high, abs=5e-4)
    assert found.low == pytest.approx(student.low, abs=5e-4)


def test_the_power_of_the_proof_is_what_is_simulated() -> None:
    expected = proof_power(0.01, total=600, discordant=0.04, margin=0.03, alpha=0.05)
    tables = np.random.default_rng(0).multinomial(600, [0.025, 0.015, 0.96], size=3000)
    found = np.mean([table_p_value(int(b), int(c), 600, margin=0.03) <= 0.05 for b, c, _ in tables])
    assert found == pytest.approx(expected, abs=0.02)


def test_impossible_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="3 lost and 2 gained of 4"):
        table_difference(3, 2, 4, alpha=0.05)


def test_a_mean_difference_is_students_and_keeps_a_width() -> None:
    from scipy.stats import ttest_1samp

    d = scores(1, 50) - scores(2, 50)
    theirs = ttest_1samp(d, 0).confidence_interval(0.9)
    found = mean_difference(d, confidence=0.9)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    none = mean_difference(np.zeros(50), confidence=0.9)
    assert none.high == -none.low == pytest.approx(unseen(50))


def test_holm_agrees_with_statsmodels() -> None:
    p = np.random.default_rng(3).uniform(0, 0.2, 40)
    assert holm(p.tolist()) == pytest.approx(statsmodels("multitest").multipletests(p, method="holm")[1])
