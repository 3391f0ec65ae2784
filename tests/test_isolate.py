"""Protocols taken apart: each row is one change, on the same images, at the same effort."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robustglimpse.data import Dataset
from robustglimpse.isolate import ARMS, CHANGES, COLUMNS, TRIES, isolate, to_markdown
from robustglimpse.records import PROTOCOLS, Classifier, UserError
from robustglimpse.runner import Bench
from robustglimpse.store import read_results


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, mgnet: Classifier, digits: Dataset
) -> tuple[Path, pd.DataFrame]:
    out = tmp_path_factory.mktemp("isolate")
    asked = Bench((mgnet,), data=digits.first(24), steps=(1, 3), eps="6/255", step_size="2/255", device="cpu")
    return out, isolate(asked, out)


def test_each_arm_differs_from_the_one_before_in_the_thing_that_its_row_names() -> None:
    assert len(CHANGES) == len(ARMS) - 1
    for before, after, change in zip(ARMS, ARMS[1:], CHANGES, strict=False):
        a, b = PROTOCOLS[before.protocol], PROTOCOLS[after.protocol]
        efforts = [arm.tries * len(p.surrogates) for arm, p in ((before, a), (after, b))]
        differs = {
            "shape and clip": a.normalised != b.normalised,
            "ball": before.is_small != after.is_small and a.normalised == b.normalised,
            "verdict": before.judge != after.judge,
            "start": a.random_start != b.random_start,
            "tries": efforts[0] != efforts[1],
            "gradients": a.surrogates != b.surrogates,
        }
        assert [name for name, is_other in differs.items() if is_other] == [change.name]


def test_the_balls_are_as_large_in_pixels_as_the_rows_say(
    run: tuple[Path, pd.DataFrame], mgnet: Classifier
) -> None:
    results = read_results(run[0])
    attacked = results[results["kind"] == "attack"]
    small = 6 / 255 * float(np.mean(mgnet.normalisation[1]))
    assert set(attacked["eps"].round(6)) == {round(6 / 255, 6), round(small, 6)}
    plain = attacked[attacked["protocol"] == "plain"]
    assert (plain["step_size"] / plain["eps"]).round(4).eq(round(1 / 3, 4)).all()
    assert sorted(set(attacked.loc[attacked["protocol"] == "standard", "restarts"])) == [1, TRIES]


def test_a_row_counts_what_the_two_arms_leave_standing(run: tuple[Path, pd.DataFrame]) -> None:
    out, found = run
    assert list(found.columns) == list(COLUMNS) and len(found) == len(CHANGES)
    steps = read_results(out)
    accuracy = {(row.protocol, row.restarts, row.judge, round(row.eps, 6)): row.accuracy
                for row in steps[steps["kind"] == "attack"].itertuples()}  # fmt: skip
    assert found["accuracy_after"].iloc[-1] == accuracy["adaptive", 1, "worst", round(6 / 255, 6)]
    assert found["accuracy_before"].iloc[-1] == accuracy["standard", TRIES, "worst", round(6 / 255, 6)]
    assert found["accuracy_before"].iloc[0] == min(
        value for (protocol, _, judge, _), value in accuracy.items() if (protocol, judge) == ("paper", "last")
    )
    assert (
        found["accuracy_after"].iloc[:-1].to_numpy() == found["accuracy_before"].iloc[1:].to_numpy()
    ).all()
    assert found["difference"].sum() == pytest.approx(
        found["accuracy_after"].iloc[-1] - found["accuracy_before"].iloc[0]
    )
    ends = ((found["gained"] - found["lost"]) / found["n"]).to_numpy()
    assert ends == pytest.approx(found["difference"].to_numpy())
    assert (found["ci_low"] <= found["difference"]).all() and (found["difference"] <= found["ci_high"]).all()
    assert (found["p_holm"] >= found["p_value"]).all()
    assert found.loc[found["change"] == "verdict", "gained"].item() == 0, "more verdicts only take away"
    assert found.loc[found["change"] == "tries", "gained"].item() == 0, "the first try is among the three"


def test_the_table_says_it_in_points(run: tuple[Path, pd.DataFrame]) -> None:
    text = to_markdown(run[1])
    assert len(text.splitlines()) == 2 + len(CHANGES)
    assert "any iterate may fool, not the last alone" in text
    assert f"of {run[1]['n'].iloc[0]}" in text


def test_nothing_is_run_again(run: tuple[Path, pd.DataFrame], mgnet: Classifier, digits: Dataset) -> None:
    out, found = run
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    asked = Bench((mgnet,), data=digits.first(24), steps=(3,), eps="6/255", step_size="2/255", device="cpu")
    pd.testing.assert_frame_equal(isolate(asked, out), found)
    assert {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()} == before


def test_what_cannot_be_taken_apart_is_refused(tmp_path: Path, mgnet: Classifier, digits: Dataset) -> None:
    asked = Bench((mgnet,), data=digits.first(4), device="cpu")
    for other, says in (
        ({"attacks": ("pgd", "fgsm")}, "expected one attack and no sweep, got 2 attacks"),
        ({"curve": "eps", "steps": (2,)}, "and a sweep over eps"),
        ({"attacks": ("apgd",)}, r"whose start may be random \(pgd, mifgsm\), got 'apgd'"),
        ({"attacks": ("fgsm",)}, "got 'fgsm'"),
        ({"attacks": ("foolbox:LinfPGD",)}, "expected an attack of our own"),
    ):
        with pytest.raises(UserError, match=says):
            isolate(replace(asked, **other), tmp_path)
