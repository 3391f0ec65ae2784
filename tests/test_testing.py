"""The gate as an assertion, as a project's own tests use it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_regress import cell, outcome, right_of, save

from robustglimpse.policy import Policy
from robustglimpse.records import UserError
from robustglimpse.testing import assert_no_regression


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    save(tmp_path / "baseline", outcome(right_of(1000, 800)), cell())
    return tmp_path / "baseline"


def run_of(tmp_path: Path, correct: int) -> Path:
    save(tmp_path / "run", outcome(right_of(1000, correct), weights="new"), cell())
    return tmp_path / "run"


def test_a_run_as_good_passes_and_tells_how(baseline: Path, tmp_path: Path) -> None:
    found = assert_no_regression(baseline, run_of(tmp_path, 799))
    assert [finding.verdict for finding in found.findings] == ["pass"]
    assert found.findings[0].lost == 1


def test_a_worse_run_fails_with_the_table(baseline: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, 760)
    with pytest.raises(AssertionError, match=r"REGRESSED[\s\S]*net, pgd 4/255[\s\S]*40 / 0 of 1000"):
        assert_no_regression(baseline, run)
    assert_no_regression(str(baseline), str(run), policy={"margin": 0.06})


def test_what_could_not_be_compared_does_not_pass(baseline: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, 790)
    with pytest.raises(AssertionError, match="INCOMPLETE"):
        assert_no_regression(baseline, run, policy={"margin": 0.012, "min_effect": 0.012})
    inconclusive = {"margin": 0.012, "min_effect": 0.012, "allow_inconclusive": True}
    assert_no_regression(baseline, run, policy=inconclusive)
    with pytest.raises(AssertionError, match="NOTHING SELECTED"):
        assert_no_regression(baseline, run, models=("other-*",))
    shutil.rmtree(run / "cells")
    (run / "cells").mkdir()
    with pytest.raises(AssertionError, match="missing"):
        assert_no_regression(baseline, run)


def test_policies_come_as_files_tables_and_objects(baseline: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, 760)
    (tmp_path / "gate.toml").write_text("[[margins]]\nattack = 'pgd'\nmargin = 0.06\n")
    assert_no_regression(baseline, run, policy=tmp_path / "gate.toml")
    with pytest.raises(AssertionError):
        assert_no_regression(baseline, run, policy=Policy())
    with pytest.raises(UserError, match="did you mean 'margin'"):
        assert_no_regression(baseline, run, policy={"margn": 0.06})
    with pytest.raises(UserError, match="nowhere"):
        assert_no_regression(tmp_path / "nowhere", run)


def test_a_failure_points_at_the_callers_line(baseline: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as failure:
        assert_no_regression(baseline, run_of(tmp_path, 700))
    frames = [entry for entry in failure.traceback if not entry.ishidden(failure)]
    assert Path(str(frames[-1].path)).name == "test_testing.py"
