"""The gate: simulated runs of known truth, seven ways to change a real run, what it prints."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor
from typer.testing import CliRunner

from robustglimpse import cli, regress
from robustglimpse.policy import (
    VERDICTS,
    Acknowledgement,
    Limits,
    Policy,
    Rule,
    Target,
    load_policy,
    parse_policy,
)
from robustglimpse.power import smallest_found
from robustglimpse.questions import verdict_on
from robustglimpse.records import Cell, Threat, UserError
from robustglimpse.regress import Finding, Judgement, Selection, compare, judge, plan, update
from robustglimpse.report import verdicts
from robustglimpse.store import Curve, Outcome, Provenance, Store, read_outcomes, write_baseline

PGD = "pgd(step_size=0.004, steps=[1, 4])"
DAY = datetime.date(2026, 11, 23)


def cell(perturb: str = PGD, *, protocol: str = "standard", seed: int = 0, model: str = "net") -> Cell:
    if not perturb.startswith("pgd"):
        protocol = ""
    threat = Threat("linf", 4 / 255 if protocol else 0.0)
    return Cell(model, "made-up", "test", perturb, threat, protocol, 1, None, 64, seed)


def outcome(
    right: NDArray[np.bool_],
    what: Cell | None = None,
    *,
    weights: str = "old",
    curve: Sequence[tuple[int, NDArray[np.bool_]]] = (),
) -> Outcome:
    """Return a made-up cell's outcome: right after 4 steps, and what curve says after others."""
    what = what or cell()
    judge_name = {"standard": "worst", "paper": "last"}.get(what.protocol, "")
    steps = 4 if what.protocol else 0
    curves = [*(Curve(1, judge_name, k, r) for k, r in curve), Curve(1, judge_name, steps, right)]
    description = json.loads(json.dumps(asdict(what)))
    return Outcome(
        description, Provenance(weights, "data"), "4/255" if what.protocol else "0", np.arange(len(right)),
        tuple(curves),
    )  # fmt: skip


def changed(right: NDArray[np.bool_], *, lost: int, gained: int) -> NDArray[np.bool_]:
    """Return right with its first so many of each kind turned over."""
    right = right.copy()
    is_right, is_wrong = np.flatnonzero(right), np.flatnonzero(~right)
    right[is_right[:lost]] = False
    right[is_wrong[:gained]] = True
    return right


def right_of(total: int, correct: int) -> NDArray[np.bool_]:
    return np.arange(total) < correct


def only(found: Judgement) -> Finding:
    assert len(found.findings) == 1
    return found.findings[0]


def verdict_of(total: int, lost: int, gained: int, policy: Policy | None = None) -> Finding:
    before = right_of(total, round(0.8 * total))
    after = changed(before, lost=lost, gained=gained)
    return only(judge([outcome(before)], [outcome(after, weights="new")], policy))


# Statistics: runs of known truth


POINT = Policy(limits=Limits(margin=0.01))


def simulate(
    rng: np.random.Generator,
    lost: float,
    gained: float,
    *,
    cells: int = 1,
    total: int = 1000,
    policy: Policy | None = None,
) -> Judgement:
    """Return the judgement of a run of cells that each lose and gain samples at those rates."""
    before, after = [], []
    for seed in range(cells):
        kind = rng.choice(4, total, p=[lost, gained, 0.8 - lost, 0.2 - gained])
        before.append(outcome((kind == 0) | (kind == 2), cell(seed=seed)))
        after.append(outcome((kind == 1) | (kind == 2), cell(seed=seed), weights="new"))
    return judge(before, after, policy)


def share(runs: int, wanted: str, **options: Any) -> float:
    rng = np.random.default_rng(0)
    found = [simulate(rng, **options) for _ in range(runs)]
    return float(np.mean([any(f.verdict == wanted for f in one.findings) for one in found]))


def test_false_alarms_are_at_most_alpha_over_all_cells() -> None:
    one = share(500, "regressed", lost=0.02, gained=0.02, policy=POINT)
    many = share(150, "regressed", lost=0.02, gained=0.02, cells=6, policy=POINT)
    print(f"false alarms at alpha 5 %, 4 % discordant, n=1000: {one:.1%} of one cell, {many:.1%} of six")  # noqa: T201
    assert one <= 0.05
    assert many <= 0.05


def test_a_drop_of_two_points_is_found() -> None:
    found = share(1000, "regressed", lost=0.03, gained=0.01)
    print(f"power at a drop of 2 points, 4 % discordant, n=1000: {found:.1%}")  # noqa: T201
    assert found > 0.9


def test_a_drop_as_large_as_the_margin_seldom_passes() -> None:
    assert share(500, "pass", lost=0.025, gained=0.015, policy=POINT) <= 0.06
    assert share(500, "pass", lost=0.035, gained=0.01) <= 0.06


def test_a_model_that_only_changed_places_passes_with_enough_samples() -> None:
    assert share(100, "pass", lost=0.005, gained=0.005, total=5000) > 0.95


def grid(rng: np.random.Generator, total: int, cells: int, lost: float, gained: float) -> Judgement:
    """Return the judgement of corruptions that hit the same images: whole images are lost and gained."""
    kind = rng.choice(4, total, p=[lost, gained, 0.8 - lost, 0.2 - gained])
    before, after = [], []
    for k in range(cells):
        is_hit = rng.random(total) < 0.8  # of what changed, this cell shows most
        was, now = (kind == 0) | (kind == 2), (kind == 1) | (kind == 2)
        what = cell(f"fog(severity={k + 1})")
        before.append(outcome(was, what))
        after.append(outcome(np.where(is_hit, now, was), what, weights="new"))
    return judge(before, after)


def test_a_grid_of_corruptions_raises_no_more_false_alarms() -> None:
    rng = np.random.default_rng(2)
    found = [grid(rng, 200, 8, 0.03, 0.03) for _ in range(150)]
    rate = np.mean([any(f.verdict == "regressed" for f in one.findings) for one in found])
    assert rate <= 0.05


def test_a_mean_over_corruptions_sees_what_no_cell_shows() -> None:
    rng = np.random.default_rng(3)
    total, cells = 600, 30
    before, after = [], []
    for k in range(cells):  # each cell loses a point, each somewhere else
        was = rng.random(total) < 0.8
        lost, gained = rng.choice(total, 8, replace=False), rng.choice(total, 4, replace=False)
        now = was.copy()
        now[lost], now[gained] = False, True
        before.append(outcome(was, cell(f"snow(severity={k + 1})")))
        after.append(outcome(now, cell(f"snow(severity={k + 1})"), weights="new"))
    found = judge(before, after, Policy(limits=Limits(margin=0.006)))
    mean = next(f for f in found.findings if f.subject.kind == "mean")
    assert mean.label == "net, mean of 30 corruptions"
    assert mean.verdict == "regressed"
    each = [f for f in found.findings if f.subject.kind == "corruption"]
    assert len(each) == cells
    assert sum(f.verdict == "regressed" for f in each) < 3
    assert not any(f.decides for f in each if f.verdict == "inconclusive")
    assert found.exit_code == 1


# Verdicts


@pytest.mark.parametrize(
    ("low", "value", "p_drop", "p_gain", "max_drop", "expected"),
    [
        (-0.004, -0.001, 0.3, 0.7, None, "pass"),
        (-0.009, -0.006, 0.001, 1.0, None, "pass"),  # a drop beyond chance, but a small one
        (-0.030, -0.020, 0.001, 1.0, None, "regressed"),
        (-0.030, -0.020, 0.060, 1.0, None, "inconclusive"),
        (-0.012, -0.004, 0.001, 1.0, None, "inconclusive"),  # below min_effect
        (0.005, 0.020, 1.0, 0.001, None, "improved"),
        (-0.004, 0.003, 0.9, 0.001, None, "pass"),  # a gain below min_effect
        (-0.200, -0.100, 0.3, 0.7, 0.1, "regressed"),
        (-0.004, -0.003, 0.3, 0.7, 0.1, "pass"),
    ],
)
def test_the_rule_of_verdicts(
    low: float, value: float, p_drop: float, p_gain: float, max_drop: float | None, expected: str
) -> None:
    limits = Limits(margin=0.01, min_effect=0.005, max_drop=max_drop)
    is_proven = low > -limits.margin
    assert verdict_on(value, is_proven, is_proven, p_drop, p_gain, limits, 0.05) == expected
    if is_proven and p_drop <= 0.05 and -value >= limits.min_effect:
        found = verdict_on(value, is_proven, False, p_drop, p_gain, limits, 0.05)
        assert found == "regressed", "proven smaller than the margin, but not than what is tolerated"


def test_no_difference_in_few_samples_is_no_proof() -> None:
    found = verdict_of(100, 0, 0, POINT)
    assert found.verdict == "inconclusive"
    assert found.change is not None
    assert found.change.low < 0 < found.change.high
    assert "about 300 samples would settle it" in found.note
    assert verdict_of(400, 0, 0, POINT).verdict == "pass"


@pytest.mark.parametrize(("lost", "gained"), [(5, 3), (12, 8), (9, 1)])
def test_as_many_samples_as_it_names_do_settle_it(lost: int, gained: int) -> None:
    found = verdict_of(400, lost, gained, Policy(limits=Limits(margin=0.012)))
    if found.verdict == "regressed":
        return
    assert found.verdict == "inconclusive"
    many = int(found.note.split()[1].replace(",", ""))
    factor = many / 400
    assert factor > 1
    again = verdict_of(
        many, round(lost * factor), round(gained * factor), Policy(limits=Limits(margin=0.012))
    )
    assert again.verdict in ("pass", "regressed")


def test_a_drop_as_large_as_the_margin_can_never_be_settled() -> None:
    found = verdict_of(200, 2, 0, Policy(limits=Limits(margin=0.01, min_effect=0.0)))
    assert found.verdict == "inconclusive"
    assert "samples would settle it" in found.note  # as a drop beyond chance, in the end
    found = only(
        judge(
            [outcome(right_of(200, 160))],
            [outcome(changed(right_of(200, 160), lost=1, gained=0), weights="new")],
            Policy(limits=Limits(margin=0.005, min_effect=0.0051)),
        )
    )
    assert found.verdict == "inconclusive"


def test_with_the_same_weights_few_samples_are_enough_and_few_may_differ() -> None:
    before = right_of(24, 20)
    for differing, expected in ((0, "pass"), (2, "pass"), (3, "evaluator-drift")):
        found = judge([outcome(before)], [outcome(changed(before, lost=differing, gained=0))])
        assert only(found).verdict == expected
        assert found.exit_code == (4 if differing == 3 else 0)
    assert Policy().drift_allowed(1000) == 5
    assert Policy().drift_allowed(100) == 2


def on(one: Outcome, machine: str) -> Outcome:
    return replace(one, provenance=replace(one.provenance, machine=machine))


@pytest.mark.parametrize(
    ("lost", "gained", "expected"),
    [
        (14, 13, "machine-drift"),  # what 16 steps on MGNet gave between two processors
        (25, 25, "machine-drift"),
        (26, 25, "evaluator-drift"),  # more than 5 %
        (20, 5, "evaluator-drift"),  # p = 0.004: no rounding prefers a side
        (5, 20, "suspicious-gain"),
        (3, 0, "pass"),
        (6, 0, "evaluator-drift"),  # p = 0.031
        (5, 1, "machine-drift"),
    ],
)
def test_on_another_machine_rounding_may_turn_outcomes_over_either_way_alike(
    lost: int, gained: int, expected: str
) -> None:
    before = outcome(right_of(1000, 500))
    after = outcome(changed(right_of(1000, 500), lost=lost, gained=gained))
    found = judge([on(before, "Zen 4, AVX512")], [on(after, "Zen 2, AVX2")])
    assert only(found).verdict == expected
    if expected == "machine-drift":
        assert found.exit_code == 0
        assert "made on Zen 4, AVX512 and on Zen 2, AVX2" in only(found).note
        for machines in (("", "Zen 2, AVX2"), ("Zen 2, AVX2", ""), ("same", "same")):
            again = judge([on(before, machines[0])], [on(after, machines[1])])
            assert only(again).verdict in ("evaluator-drift", "suspicious-gain")


def test_rounding_alone_is_seldom_called_more_than_machine_drift() -> None:
    """Of 400 runs of five step counts, whose outcomes fall either way alike, at most 5 % + 2 % by chance."""
    rng = np.random.default_rng(0)
    failed = 0
    for _ in range(400):
        curves = []
        for steps in (1, 2, 4, 8, 16):
            was = right_of(1000, 500)
            turned = rng.choice(1000, rng.binomial(1000, 0.027), replace=False)
            now = was.copy()
            now[turned] = ~now[turned]
            curves.append((steps, was, now))
        before = outcome(curves[-1][1], curve=[(k, was) for k, was, _ in curves if k != 4])
        after = outcome(curves[-1][2], curve=[(k, now) for k, _, now in curves if k != 4])
        found = judge([on(before, "a")], [on(after, "b")])
        failed += only(found).verdict not in ("pass", "machine-drift")
    assert failed <= 28


def test_drift_is_seen_on_every_step_of_the_curve() -> None:
    right = right_of(100, 50)
    before = outcome(right, curve=[(1, right_of(100, 80))])
    after = outcome(right, curve=[(1, right_of(100, 70))])
    found = only(judge([before], [after]))
    assert found.verdict == "evaluator-drift"
    assert "10 of 100 outcomes differ at exit 1 worst after 1 steps (at most 2 may)" in found.note


def test_more_robust_with_the_same_weights_is_suspicious() -> None:
    before = right_of(100, 50)
    found = judge([outcome(before)], [outcome(changed(before, lost=0, gained=10))])
    assert only(found).verdict == "suspicious-gain"
    assert found.exit_code == 4
    clean = cell("clean")
    found = judge([outcome(before, clean)], [outcome(changed(before, lost=0, gained=10), clean)])
    assert only(found).verdict == "evaluator-drift"


def test_a_curve_that_rises_is_suspicious_unless_the_baseline_has_it() -> None:
    paper, low, high = cell(protocol="paper"), right_of(400, 200), right_of(400, 240)
    falling, rising = outcome(low, paper, curve=[(1, high)]), outcome(high, paper, curve=[(1, low)])
    new = replace(rising, provenance=Provenance("new", "data"))
    found = judge([falling], [new])
    assert only(found).verdict == "suspicious-gain"
    assert "rises from 50.0 % to 60.0 % between 1 and 4 steps" in only(found).note
    assert found.exit_code == 4
    assert only(judge([rising], [new])).verdict != "suspicious-gain"
    wobble = outcome(right_of(400, 202), paper, curve=[(1, low)], weights="new")
    assert only(judge([falling], [wobble])).verdict != "suspicious-gain"


def test_exits_are_compared_one_by_one_when_asked() -> None:
    right = right_of(1000, 800)
    before = outcome(right)
    two = (Curve(1, "worst", 4, changed(right, lost=60, gained=0)), Curve(2, "worst", 4, right))
    both = replace(before, curves=(Curve(1, "worst", 4, right), Curve(2, "worst", 4, right)))
    after = replace(before, curves=two, provenance=Provenance("new", "data"))
    assert [f.verdict for f in judge([both], [after]).findings] == ["pass"]
    found = judge([both], [after], Policy(exits="all"))
    assert {f.label.rpartition(", ")[2]: f.verdict for f in found.findings} == {
        "exit 1": "regressed", "exit 2": "pass",
    }  # fmt: skip


# Joint, groups, cells


def cells_that_lose(
    lost: Sequence[int], total: int = 1000, **options: Any
) -> tuple[list[Outcome], list[Outcome]]:
    """Return a run of one attack's cells before and after, each losing and gaining other images."""
    rng = np.random.default_rng(0)
    before, after = [], []
    for seed, many in enumerate(lost):
        was = rng.permutation(right_of(total, round(0.8 * total)))
        now = was.copy()
        now[rng.choice(np.flatnonzero(was), 20 + many, replace=False)] = False
        now[rng.choice(np.flatnonzero(~was), 20, replace=False)] = True
        before.append(outcome(was, cell(seed=seed), **options))
        after.append(outcome(now, cell(seed=seed), weights="new"))
    return before, after


def test_cells_that_are_not_certain_alone_pass_where_their_mean_is() -> None:
    found = judge(*cells_that_lose([14, -9, 8, -8]))
    assert found.exit_code == 0
    joint = next(f for f in found.findings if f.level == "joint")
    assert (joint.label, joint.verdict, joint.cells, joint.total) == ("net, all 4 cells", "pass", 4, 1000)
    assert joint.before == pytest.approx(0.8)
    assert joint.change is not None and joint.change.value == pytest.approx(-5 / 4000)
    first = found.findings[0]
    assert (first.level, first.verdict, first.decides) == ("cell", "inconclusive", False)
    assert first.note.startswith("not certain alone: would take about ")
    strict = judge(*cells_that_lose([14, -9, 8, -8]), Policy(prove="each"))
    assert strict.exit_code == 3


def test_a_mean_that_is_not_proven_is_incomplete_and_one_that_falls_has_regressed() -> None:
    before, after = cells_that_lose([3, 2], total=150)
    found = judge(before, after)
    assert (found.exit_code, found.summary) == (3, "incomplete")
    assert judge(before, after, Policy(allow_inconclusive=True)).exit_code == 0
    falls = judge(*cells_that_lose([30, 30, 30]))
    joint = next(f for f in falls.findings if f.level == "joint")
    assert (joint.verdict, falls.exit_code) == ("regressed", 1)


def test_a_group_shows_what_neither_the_mean_nor_a_cell_does() -> None:
    rng = np.random.default_rng(0)
    before, after = [], []
    for k in range(75):
        was = rng.random(1000) < 0.8
        now = was.copy()
        now[rng.choice(np.flatnonzero(was), 30 if k < 5 else 15, replace=False)] = False
        now[rng.choice(np.flatnonzero(~was), 12 if k < 5 else 15, replace=False)] = True
        name = ("fog", "snow", "frost")[k // 5] if k < 15 else f"c{k // 5}"
        what = cell(f"{name}(severity={k % 5 + 1})")
        before.append(outcome(was, what))
        after.append(outcome(now, what, weights="new"))
    found = judge(before, after)
    bad = [(f.level, f.label) for f in found.findings if f.verdict == "regressed"]
    assert bad == [("group", "net, fog (5 cells)")]
    assert next(f for f in found.findings if f.level == "joint").verdict == "pass"
    assert found.exit_code == 1
    text = " ".join(verdicts.to_markdown(found).split())
    assert "| **regressed** | net, fog (5 cells) |" in text
    assert "means over several cells (a model, an attack, a corruption)" in text


def test_cells_of_other_images_and_other_exits_are_not_averaged() -> None:
    before, after = cells_that_lose([0, 0, 0, 0])
    first, second = (
        [replace(one, index=one.index + 7 * (k // 2)) for k, one in enumerate(run)] for run in (before, after)
    )
    joint = [f.label for f in judge(first, second).findings if f.level == "joint"]
    assert joint == ["net, all 2 cells (images 1 of 2)", "net, all 2 cells (images 2 of 2)"]


def test_what_is_acknowledged_takes_no_part_in_a_mean() -> None:
    before, after = cells_that_lose([200, 0, 0])
    fogs = [
        replace(one, cell=outcome(one.curves[0].is_correct, cell("fog")).cell)
        for one in (before[0], after[0])
    ]
    known = Acknowledgement(Target(corruption="fog"), "fog corrected", DAY)
    runs = [fogs[0], *before[1:]], [fogs[1], *after[1:]]
    assert judge(*runs, today=DAY).exit_code == 1
    found = judge(*runs, Policy(acknowledged=(known,)), today=DAY)
    assert found.exit_code == 0
    assert next(f for f in found.findings if f.level == "joint").cells == 2
    late = judge(*runs, Policy(acknowledged=(known,)), today=DAY + datetime.timedelta(days=1))
    assert (late.exit_code, next(f for f in late.findings if f.level == "joint").cells) == (1, 3)


def test_means_have_the_margins_of_their_cells_and_no_rule_of_their_own() -> None:
    rules = (
        Rule(Target(attack="pgd"), margin=0.05, max_drop=0.001),
        Rule(Target(corruption="fog"), margin=0.01),
    )
    before, after = cells_that_lose([0, 0])
    fogs = [
        replace(one, cell=outcome(one.curves[0].is_correct, cell("fog")).cell)
        for one in (before[0], after[0])
    ]
    found = judge([fogs[0], before[1]], [fogs[1], after[1]], Policy(rules=rules))
    joint = next(f for f in found.findings if f.level == "joint")
    assert joint.margin == pytest.approx(0.03)
    assert not Target(model="*").fits(joint.subject)


def test_a_model_that_falls_is_found_beside_one_that_rises() -> None:
    before, after = cells_that_lose([25, 25, 25, -18, -18, -18])
    names = ["a"] * 3 + ["b"] * 3
    before, after = (
        [replace(one, cell={**one.cell, "model": name}) for one, name in zip(run, names, strict=True)]
        for run in (before, after)
    )
    found = judge(before, after)
    assert next(f for f in found.findings if f.level == "joint").label == "all 6 cells of 2 models"
    bad = {f.label for f in found.findings if f.verdict == "regressed" and f.level == "group"}
    assert bad == {"a, all 3 cells"}


# Policy


def test_a_policys_rules_are_for_what_their_globs_fit() -> None:
    policy = parse_policy(
        {
            "margin": 0.02,
            "margins": [
                {"model": "mgnet-*", "margin": 0.03},
                {"attack": "pgd*", "protocol": "paper", "margin": 0.05},
                {"corruption": "*", "max_drop": 0.2},
            ],
        }
    )
    subject = regress.Subject("mgnet-r18", "attack", "pgd", "paper")
    assert policy.limits_for(subject) == Limits(0.05, 0.005, None)
    assert policy.limits_for(replace(subject, protocol="standard")).margin == 0.03
    assert policy.limits_for(replace(subject, model="net", kind="clean", name="clean")).margin == 0.02
    fog = replace(subject, model="net", kind="corruption", name="fog", protocol="")
    assert policy.limits_for(fog) == Limits(0.02, 0.005, 0.2)
    assert policy.limits_for(replace(fog, kind="mean", name="mean")).max_drop == 0.2


def test_what_is_tolerated_goes_with_the_margin_unless_it_is_named() -> None:
    subject = regress.Subject("net", "attack", "pgd", "standard")
    given: list[tuple[dict[str, Any], float, float]] = [
        ({}, 0.025, 0.02),
        ({"margin": 0.06}, 0.06, 0.06),
        ({"margin": 0.06, "tolerated": 0.01}, 0.06, 0.01),
        ({"tolerated": 0.3}, 0.025, 0.025),
        ({"margins": [{"model": "net", "margin": 0.04}]}, 0.04, 0.04),
        ({"margins": [{"model": "net", "margin": 0.04, "tolerated": 0.03}]}, 0.04, 0.03),
        ({"margins": [{"model": "other", "margin": 0.04}]}, 0.025, 0.02),
    ]
    for table, margin, excused in given:
        limits = parse_policy(table).limits_for(subject)
        assert (limits.margin, limits.excused) == (margin, excused)
    before = right_of(5000, 4000)

    def verdict(policy: dict[str, Any]) -> str:
        after = outcome(changed(before, lost=100, gained=8), weights="new")  # 1.8 points, give or take 0.35
        return only(judge([outcome(before)], [after], parse_policy(policy))).verdict

    assert [verdict(policy) for policy in ({}, {"tolerated": 0.025}, {"margin": 0.025})] == [
        "regressed", "pass", "pass",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("margn = 0.01", "unknown key 'margn'; did you mean 'margin'?"),
        ("margin = 2", "margin must be a fraction between 0 and 1"),
        ("margin = '1'", "margin must be a fraction"),
        ("alpha = 0.5", "alpha must be a fraction above 0 and below 0.5"),
        ("drift_samples = 1.5", "drift_samples must be a whole number"),
        ("allow_inconclusive = 1", "must be true or false"),
        ("exits = 'first'", "exits must be one of last, all"),
        ("prove = 'all'", "prove must be one of joint, each"),
        ("margins = 3", "margins must be tables"),
        ("[[margins]]\nmodle = 'x'\nmargin = 0.1", "margins: unknown key 'modle'; did you mean 'model'?"),
        ("[[margins]]\nmodel = 'x'", "expected one of margin, min_effect, max_drop, tolerated, got model"),
        ("[[margins]]\nattack = 'x'\ncorruption = 'y'\nmargin = 0.1", "attack or corruption, got both"),
        ("[[acknowledged]]\nmodel = 'x'", "lacks reason and expires"),
        ("[[acknowledged]]\nreason = 'x'\nexpires = '2026-01-01'", "expires must be a date"),
        ("[[acknowledged]]\nreason = 'x'\nexpires = 2026-01-01\nverdicts = ['pass']", "list of verdicts"),
        ("margin = ", "not TOML"),
    ],
)
def test_a_wrong_policy_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_policy(path)
    assert says in str(error.value)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_policy_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.toml: the policy cannot be read"):
        load_policy(tmp_path / "nowhere.toml")


def test_an_acknowledged_change_does_not_fail_until_it_expires() -> None:
    before = right_of(1000, 800)
    known = Acknowledgement(Target(model="n*"), "pruned by half", DAY, max_drop=0.08)
    policy = Policy(acknowledged=(known,))

    def at(day: datetime.date, lost: int, policy: Policy) -> Judgement:
        after = outcome(changed(before, lost=lost, gained=0), weights="new")
        return judge([outcome(before)], [after], policy, today=day)

    on_time = at(DAY, 50, policy)
    assert on_time.exit_code == 0
    assert only(on_time).verdict == "regressed"
    assert only(on_time).acknowledged == "until 2026-11-23: pruned by half"
    late = at(DAY + datetime.timedelta(days=1), 50, policy)
    assert late.exit_code == 1
    assert "acknowledged until 2026-11-23 only" in only(late).note
    assert at(DAY, 100, policy).exit_code == 1, "a larger drop than the one acknowledged"
    other = Policy(acknowledged=(replace(known, target=Target(attack="fgsm")),))
    assert at(DAY, 50, other).exit_code == 1
    assert any("attack = 'fgsm' fits no cell" in note for note in at(DAY, 50, other).notes)


def test_inconclusive_fails_unless_it_is_allowed() -> None:
    before = right_of(50, 40)
    pair = [outcome(before)], [outcome(before, weights="new")]
    assert judge(*pair).exit_code == 3
    assert judge(*pair, Policy(allow_inconclusive=True)).exit_code == 0


def test_a_rule_with_a_slip_in_its_glob_is_named() -> None:
    before = right_of(50, 40)
    policy = Policy(rules=(Rule(Target(model="mgnet"), margin=0.1),))
    found = judge([outcome(before)], [outcome(before)], policy)
    assert found.notes == ("the policy's rule for model = 'mgnet' fits no cell",)


# Directories


def save(root: Path, one: Outcome, what: Cell) -> None:
    """Write a made-up outcome as a bench would."""
    n = len(one.index)
    most = max(curve.steps for curve in one.curves)
    final = next(c.is_correct for c in one.curves if c.steps == most)
    columns: dict[str, Any] = {
        "index": one.index, "label": np.zeros(n, int), "exit": np.ones(n, int),
        "pred": np.where(final, 0, 1), "first_success_step": np.where(final, -1, most),
    }  # fmt: skip
    rows = []
    for curve in one.curves:
        columns[f"pred_at_{curve.steps}"] = np.where(curve.is_correct, 0, 1)
        if curve.judge == "worst" and curve.steps < most:
            columns["first_success_step"][~curve.is_correct] = curve.steps
        correct = int(curve.is_correct.sum())
        rows.append(
            {"exit": 1, "judge": curve.judge, "steps": curve.steps, "correct": correct, "total": n,
             "eps_text": one.eps_text}
        )  # fmt: skip
    Store(root).finish(what, one.provenance, columns, rows)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A results directory of four made-up cells."""
    for what in MADE:
        save(tmp_path / "run", made_outcome(what), what)
    return tmp_path / "run"


MADE = (cell("clean"), cell(), cell(protocol="paper"), cell("fog(preset=64, severity=2)"))


def made_outcome(what: Cell) -> Outcome:
    curve = [(1, right_of(203, 190))] if what.protocol else []
    return outcome(right_of(203, 180), what, curve=curve)


def test_a_baseline_tells_what_the_run_told(made: Path, tmp_path: Path) -> None:
    base = tmp_path / "baseline"
    changes = update(base, made, reason="first", today=DAY)
    assert len(changes) == 4
    assert "net, pgd 4/255, paper, 4 steps: - -> 88.7 %" in changes
    assert compare(base, made).exit_code == 0
    for ours, theirs in zip(read_outcomes(base), read_outcomes(made), strict=True):
        assert (ours.cell, ours.provenance.made_from, ours.eps_text) == (
            theirs.cell,
            theirs.provenance.made_from,
            theirs.eps_text,
        )
        assert np.array_equal(ours.index, theirs.index)
        for one, other in zip(ours.curves, theirs.curves, strict=True):
            assert (one.exit, one.judge, one.steps) == (other.exit, other.judge, other.steps)
            assert np.array_equal(one.is_correct, other.is_correct)
    assert sorted(p.name for p in base.iterdir()) == ["accuracy.csv", "baseline.json", "outcomes.npz"]
    again = tmp_path / "again"
    update(again, made, reason="first", today=DAY)
    for file in base.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()


def test_samples_that_are_not_the_first_ones_keep_their_places(tmp_path: Path) -> None:
    one = replace(outcome(right_of(5, 3)), index=np.array([3, 8, 9, 20, 21]))
    write_baseline(tmp_path / "base", {"key": one}, {"reason": "x"})
    assert read_outcomes(tmp_path / "base")[0].index.tolist() == [3, 8, 9, 20, 21]
    shifted = replace(one, index=one.index + 1)
    found = judge([one], [shifted])
    assert (only(found).verdict, found.exit_code) == ("not-comparable", 4)


def with_batches_of(batch_size: int, attack: str) -> Outcome:
    what = replace(cell(), perturb=f"{attack}(step_size=0.004, steps=4)", batch_size=batch_size)
    return outcome(right_of(100, 80), what)


def test_our_own_attack_is_matched_whatever_the_batch_size() -> None:
    found = judge([with_batches_of(64, "pgd")], [with_batches_of(32, "pgd")])
    assert (only(found).verdict, found.exit_code) == ("pass", 0)


def test_a_librarys_attack_is_matched_at_one_batch_size_alone() -> None:
    before = with_batches_of(64, "torchattacks:PGD")
    assert only(judge([before], [with_batches_of(64, "torchattacks:PGD")])).verdict == "pass"
    found = judge([before], [with_batches_of(32, "torchattacks:PGD")])
    assert (only(found).verdict, found.exit_code) == ("not-comparable", 4)
    assert only(found).note == "set up otherwise: batch_size 64 -> 32"


def test_an_update_is_logged_with_old_and_new_accuracies(made: Path, tmp_path: Path) -> None:
    base = tmp_path / "baseline"
    update(base, made, reason="first", today=DAY)
    better = outcome(right_of(203, 200), MADE[0], weights="new")
    save(made, better, MADE[0])
    assert update(base, made, reason=" trained longer ", today=DAY) == ["net, clean: 88.7 % -> 98.5 %"]
    log = json.loads((base / "baseline.json").read_text())["log"]
    assert [entry["reason"] for entry in log] == ["first", "trained longer"]
    assert log[1]["date"] == "2026-11-23"
    assert log[1]["changes"] == [{"cell": "net, clean", "was": 0.8867, "now": 0.985222}]
    assert "net,clean,0,,0,1,,0,200,203,0.985222" in (base / "accuracy.csv").read_text()


def test_an_update_of_a_part_leaves_the_rest_and_drops_what_the_run_lacks(made: Path, tmp_path: Path) -> None:
    base = tmp_path / "baseline"
    update(base, made, reason="first")
    for folder, end in (("cells", "json"), ("outcomes", "csv.gz")):
        (made / folder / f"{MADE[3].key}.{end}").unlink()
    save(made, outcome(right_of(203, 100), MADE[0], weights="new"), MADE[0])
    assert update(base, made, reason="part", chosen=Selection(attacks=("pgd",))) == []
    assert update(base, made, reason="all") == ["net, clean: 88.7 % -> 49.3 %", "net, fog 2: 88.7 % -> -"]
    assert len(read_outcomes(base)) == 3


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda base: (base / "outcomes.npz").unlink(), "the baseline cannot be read"),
        (lambda base: (base / "outcomes.npz").write_bytes(b"PK"), "the baseline cannot be read"),
        (lambda base: edit(base / "accuracy.csv", ",180,", ",179,"), "don't tell the same"),
        (lambda base: edit(base / "baseline.json", '"schema": 1', '"schema": 9'), "expected schema 1, got 9"),
        (lambda base: edit(base / "baseline.json", '"cells"', "<<<<<<<"), "baseline.json"),
    ],
)
def test_a_damaged_baseline_is_refused(
    made: Path, tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    base = tmp_path / "baseline"
    update(base, made, reason="first")
    damage(base)
    with pytest.raises(UserError, match=says):
        compare(base, made)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_outcomes_that_do_not_add_up_to_the_record_are_refused(made: Path) -> None:
    edit(made / "cells" / f"{MADE[1].key}.json", '"correct": 180', '"correct": 190')
    with pytest.raises(UserError, match=r"180 of 203 correct, but .* says 190 of 203"):
        read_outcomes(made)


def test_a_baseline_is_not_written_over_a_run(made: Path) -> None:
    with pytest.raises(UserError, match="is a results directory; choose another"):
        update(made, made, reason="oops")


def test_a_plan_tells_what_each_cell_can_show(made: Path) -> None:
    rows = plan(made)
    assert [row.label for row in rows][:2] == ["net, clean", "net, fog 2"]
    for row in rows:
        assert row.certain is not None and row.likely is not None
        assert 5 / 203 < row.certain <= row.likely < 0.2
        assert row.provable < row.margin == 0.025
    assert verdicts.plan_markdown(rows).count("(!)") == 1, "in the legend alone"
    assert verdicts.plan_markdown(plan(made, POINT)).count("(!)") == 1 + len(rows)
    alone = plan(made, chosen=Selection(attacks=("clean",)))[0]
    assert alone.certain is not None and rows[0].certain is not None
    assert alone.certain < rows[0].certain, "fewer tests, each at a higher level"


def test_what_a_plan_promises_the_gate_finds() -> None:
    drop = smallest_found(1000, discordant=0.04, level=0.05, tolerated=0.02, alpha=0.05)
    assert drop is not None
    found = share(400, "regressed", lost=(0.04 + drop) / 2, gained=(0.04 - drop) / 2)
    assert found == pytest.approx(0.9, abs=0.04)


# Text


@pytest.fixture
def mixed() -> Judgement:
    """Every verdict but one, an acknowledged drop, a cell at 0 of n, and corruptions that say nothing."""
    right = right_of(1000, 800)
    cells = {name: cell(seed=k) for k, name in enumerate(("drop", "known", "gain", "lost", "drift", "zero"))}
    after = {
        "drop": outcome(changed(right, lost=50, gained=5), cells["drop"], weights="new"),
        "known": outcome(changed(right, lost=60, gained=0), cells["known"], weights="new"),
        "gain": outcome(changed(right, lost=0, gained=60), cells["gain"], weights="new"),
        "drift": outcome(changed(right, lost=60, gained=0), cells["drift"]),
        "zero": outcome(right_of(1000, 0), cells["zero"]),
    }
    before = [outcome(right, what) for name, what in cells.items() if name != "zero"]
    before.append(outcome(right_of(1000, 0), cells["zero"]))
    fogs = [cell(f"fog(severity={k})") for k in range(1, 6)]
    policy = Policy(acknowledged=(Acknowledgement(Target(model="nobody"), "x", DAY),))
    return judge(
        [*before, *(outcome(right, fog) for fog in fogs)],
        [*after.values(), *(outcome(right, fog, weights="new") for fog in fogs)],
        policy,
        today=DAY,
    )


def test_markdown_says_what_fails_first_and_why(mixed: Judgement) -> None:
    text = verdicts.to_markdown(mixed)
    lines = text.splitlines()
    assert lines[0] == "### Robustness gate: REGRESSED (exit code 1)"
    assert lines[2].startswith(
        "`` against ``: 14 comparisons (3 of means over several cells), 3 regressed, 1 evaluator-drift, "
        "1 missing, 1 improved"
    )
    assert lines[4].startswith("- Jointly, net, all 8 cells: -0.6 [-")
    assert lines[4].endswith("points, pass (a drop beyond chance, but proven smaller than 2 points).")
    table = [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:]
    assert table[:5] == ["**regressed**"] * 3 + ["**evaluator-drift**", "**missing**"]
    assert "| 80.0 | 75.5 | -4.5 [-" in " ".join(text.split())
    assert "50 / 5 of 1000" in text
    assert "0.0 [<= 0.4]" in text, "at 0 of n the upper bound is what was learned"
    assert text.count("fog") == 0
    assert "net, 5 corruptions (mean)" in text
    assert len(text.splitlines()) < 30


def test_junit_is_well_formed_and_counts(mixed: Judgement) -> None:
    suite = ElementTree.fromstring(verdicts.to_junit(mixed)).find("testsuite")
    assert suite is not None
    assert suite.attrib["tests"] == "14"
    assert (suite.attrib["failures"], suite.attrib["errors"]) == ("4", "1")
    assert len(suite.findall("testcase/failure")) == 4
    types = [failure.attrib["type"] for failure in suite.findall("testcase/failure")]
    assert sorted(types) == ["evaluator-drift", "regressed", "regressed", "regressed"]
    assert all(failure.text for failure in suite.findall("testcase/failure"))


def test_annotations_are_one_line_each_with_what_github_wants_escaped(mixed: Judgement) -> None:
    lines = verdicts.to_github(mixed).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["::error"] * 5 + ["::notice"] * 2
    assert lines[-1].startswith("::notice title=robustness%3A pass jointly::net, all 8 cells; 80.")
    assert lines[0].startswith("::error title=robustness%3A regressed::net, pgd")
    assert "80.0 %25 -> 75.5 %25, -4.5 [" in "".join(lines)
    assert not any(line.replace("%25", "").replace("%3A", "").count("%") for line in lines)


def test_json_holds_every_finding(mixed: Judgement) -> None:
    found = json.loads(verdicts.to_json(mixed))
    assert (found["verdict"], found["exit_code"]) == ("regressed", 1)
    assert len(found["findings"]) == 14
    assert [(one["label"], one["verdict"], one["cells"]) for one in found["joint"]] == [
        ("net, all 8 cells", "pass", 8)
    ]
    drop = next(f for f in found["findings"] if f["lost"] == 50)
    assert drop["change"]["value"] == pytest.approx(-0.045)
    assert drop["model"] == "net"
    assert found["policy"]["limits"]["margin"] == 0.025


# The command


@pytest.fixture(autouse=True)
def _outside_github(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


def run_cli(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["regress", *map(str, arguments)])
    if isinstance(result.exception, UserError):
        return 2, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_command_writes_everything_it_is_asked_for(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    base = tmp_path / "base"
    code, text = run_cli(base, made, "--update", "--reason", "first")
    assert (code, text.count("- -> 88.7 %")) == (0, 4)
    files = [tmp_path / name for name in ("gate.md", "gate.xml", "gate.json")]
    code, text = run_cli(base, made, "--markdown", files[0], "--junit", files[1], "--json", files[2])
    assert code == 0
    assert text.startswith("### Robustness gate: PASS")
    assert files[0].read_text() == summary.read_text() == text.strip() + "\n"
    ElementTree.parse(files[1])
    assert json.loads(files[2].read_text())["exit_code"] == 0
    code, text = run_cli(base, "--plan")
    assert (code, "drop seen" in text, "| nothing changed " in text) == (0, True, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["base"], "expected a results directory to judge"),
        (["nowhere", "run"], "nowhere: expected a results directory or a baseline"),
        (["run", "nowhere"], "nowhere: expected a results directory or a baseline"),
        (["run", "run", "--margin", "2"], "margin must be a fraction"),
        (["base", "run", "--update"], "give it with --reason"),
        (["base", "run", "--update", "--reason", "x", "--model", "zz"], "no finished cell is selected"),
        (["run", "run", "--reason", "x"], "--reason belongs to --update"),
        (["run", "run", "--policy", "nowhere.toml"], "the policy cannot be read"),
    ],
)
def test_the_command_refuses_in_one_line(
    made: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(made.parent)
    code, text = run_cli(*arguments)
    assert code == 2
    assert says in text
    assert len(text.splitlines()) == 1


def test_nothing_selected_is_no_pass(made: Path) -> None:
    code, text = run_cli(made, made, "--model", "mgnet-*")
    assert code == 5
    assert "NOTHING SELECTED" in text
    assert run_cli(made, "--plan", "--attack", "fgsm")[0] == 5


def test_a_crashed_cell_is_missing_with_its_error(made: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    update(base, made, reason="first")
    for folder, end in (("cells", "json"), ("outcomes", "csv.gz")):
        (made / folder / f"{MADE[1].key}.{end}").unlink()
    row = {"model": "net", "attack": "pgd", "protocol": "standard", "corruption": "", "status": "failed",
           "schema": 1, "error": "RuntimeError: out of memory", "cell": MADE[1].key}  # fmt: skip
    (made / "results.csv").write_text(",".join(row) + "\n" + ",".join(str(v) for v in row.values()) + "\n")
    code, text = run_cli(base, made)
    assert code == 3
    assert "it crashed: RuntimeError: out of memory" in text
    code, text = run_cli(base, made, "--update", "--reason", "x")
    assert (code, "1 of its cells crashed" in text) == (2, True)


# Real runs: seven changes, seven verdicts


@cache
def real_run(root: Path, change: str = "") -> Path:
    """Run a small bench of the bundled MGNet with one thing changed; return its directory."""
    import torch

    from robustglimpse.data import from_tensors, load_data
    from robustglimpse.models import WEIGHTS, zoo
    from robustglimpse.models.mgnet import MGNet
    from robustglimpse.runner import Bench, bench

    path = WEIGHTS / "mgnet-r18-glimpse-digits.safetensors"
    state, card, sha256 = zoo.read_checkpoint(path)
    noise = {"a little": 1e-5, "a lot": 0.3}.get(change, 0.0)
    if noise:
        generator = torch.Generator().manual_seed(0)
        state = {
            name: value + noise * value.float().abs().mean() * torch.randn(value.shape, generator=generator)
            if value.is_floating_point() and not name.endswith("running_var") else value
            for name, value in state.items()
        }  # fmt: skip
        sha256 = change
    network = MGNet(card.architecture)
    zoo.load_strictly(network, state, path)
    model = zoo.classifier(network, card, name="net", sha256=sha256)
    digits = load_data("glimpse-digits", limit=48)
    first = 24 if change == "data" else 0
    images, labels = (torch.from_numpy(a[first : first + 24]) for a in (digits.images, digits.labels))
    asked = Bench(
        (model,), steps=(1, 3), eps="8/255" if change == "eps" else "4/255", step_size="2/255",
        data=from_tensors(images, labels, name="some digits", classes=digits.classes), batch_size=24,
        seed=1 if change == "seed" else 0, device="cpu",
    )  # fmt: skip
    out = root / (change or "baseline").replace(" ", "-")
    bench(asked, out, command="test")
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def base(runs: Path) -> Path:
    update(runs / "base", real_run(runs), reason="first")
    return runs / "base"


def gate(base: Path, run: Path) -> tuple[int, set[str], str]:
    """Return the command's exit code, the verdicts of the attack cell, and what it printed."""
    found = compare(base, run, load_policy(None, {"margin": 0.25}))
    code, text = run_cli(base, run, "--margin", 0.25)
    assert code == found.exit_code
    return code, {f.verdict for f in found.findings if f.subject.kind == "attack"}, text


def test_the_same_run_passes(base: Path, runs: Path) -> None:
    assert gate(base, real_run(runs))[:2] == (0, {"pass"})


def test_1_weights_changed_a_little_pass(base: Path, runs: Path) -> None:
    code, found, text = gate(base, real_run(runs, "a little"))
    assert (code, found) == (0, {"pass"}), text
    assert "same weights" not in text


def test_2_weights_changed_a_lot_regressed(base: Path, runs: Path) -> None:
    code, found, text = gate(base, real_run(runs, "a lot"))
    assert (code, found) == (1, {"regressed"}), text


def test_3_a_deleted_cell_is_missing(base: Path, runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(real_run(runs), run)
    attacked = next(p for p in (run / "cells").iterdir() if '"protocol": "standard"' in p.read_text())
    attacked.unlink()
    assert gate(base, run)[:2] == (3, {"missing"})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("seed", "set up otherwise: seed 0 -> 1"),
        ("data", "other images: data"),
        ("eps", "set up otherwise: eps 4/255 -> 8/255"),
    ],
)
def test_4_to_6_other_settings_are_not_comparable(base: Path, runs: Path, change: str, says: str) -> None:
    code, found, text = gate(base, real_run(runs, change))
    assert (code, found) == (4, {"not-comparable"}), text
    assert says in text


def test_7_a_weaker_attack_by_the_same_name_is_suspicious(
    base: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustglimpse.attacks import gradient

    whole = gradient.slope

    def weakened(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        value, slope = whole(*arguments, **options)
        return value, 0 * slope

    monkeypatch.setattr(gradient, "slope", weakened)
    code, found, text = gate(base, real_run(runs, "weaker"))
    assert (code, found) == (4, {"suspicious-gain"}), text
    assert "the attack became weaker" in text
    assert "clean" in text


# Documents


def test_the_documents_policy_and_commands_are_right(tmp_path: Path) -> None:
    import re
    import shlex

    import typer

    root = Path(__file__).parents[1]
    text = (root / "docs" / "gate.md").read_text()
    (block,) = re.findall(r"```toml\n(.*?)```", text, re.S)
    (tmp_path / "gate.toml").write_text(block)
    policy = load_policy(tmp_path / "gate.toml")
    assert (len(policy.rules), len(policy.acknowledged), policy.limits.max_drop) == (2, 1, 0.1)
    group: Any = typer.main.get_command(cli.app)
    workflow = (root / ".github" / "workflows" / "robustness.yml").read_text()
    commands = re.findall(r"robustglimpse (?:bench|corruptions|regress) .*(?:\n {10}.*)*", text + workflow)
    assert len(commands) >= 8
    for command in commands:
        _, name, *arguments = shlex.split(command)
        known = {flag for option in group.commands[name].params for flag in option.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= known, command
    for verdict in VERDICTS:
        assert f"| {verdict} |" in text
