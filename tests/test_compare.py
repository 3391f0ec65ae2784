"""Attacks set beside each other: a linear model, where every difference has a known cause."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hand_made import anisotropic_weight, linear, random_batch
from typer.testing import CliRunner

from robustglimpse import cli
from robustglimpse.attacks import ATTACKS, AttackRow
from robustglimpse.compare import compare
from robustglimpse.data import from_tensors
from robustglimpse.records import UserError
from robustglimpse.report.tables import compare_table
from robustglimpse.runner import Bench

STEP = 0.002


@pytest.fixture
def asked() -> Bench:
    """64 images at distances around what five steps of 0.002 cover, 15 % of them wrong before."""
    batch, weight = random_batch(), anisotropic_weight()
    scores = ((batch.images.float() / 255) * weight).flatten(1).sum(1)
    model = linear(weight, -float(scores.quantile(0.15)))
    data = from_tensors(batch.images, batch.labels, classes=model.classes, name="grey")
    return Bench((model,), eps="0.02", step_size=str(STEP), steps=(5,), data=data, device="cpu")


def run(asked: Bench, out: Path, *attacks: str) -> pd.DataFrame:
    return compare(Bench(**{**vars(asked), "attacks": attacks}), out)


def test_an_attack_beside_itself_differs_nowhere(asked: Bench, tmp_path: Path) -> None:
    frame = run(asked, tmp_path, "native:pgd", "pgd")
    assert frame["attack"].tolist() == ["native:pgd", "pgd"]
    assert frame["other_verdicts"].tolist() == [0, 0]
    assert frame["other_predictions"].tolist() == [0, 0]
    assert frame["p_value"].tolist() == [1, 1]
    assert frame["first_index"].tolist() == [-1, -1]
    assert frame["accuracy"].between(0.05, 0.8).all()


def test_a_weaker_attack_leaves_more_standing_and_the_first_sample_is_named(
    asked: Bench, tmp_path: Path
) -> None:
    frame = run(asked, tmp_path, "pgd", "pgd(steps=2)")
    first, second = frame.to_dict("records")
    more = round((second["accuracy"] - first["accuracy"]) * 64)
    assert more > 5
    assert (second["stands_here_alone"], second["stands_there_alone"]) == (more, 0)
    assert second["other_verdicts"] == second["other_predictions"] == more
    assert second["p_value"] == pytest.approx(2 * 0.5**more)
    assert 0 <= second["first_index"] < 64
    assert second["first_other_default"] == "steps: 2, not 16", "of the defaults, whatever was asked"
    again = run(asked, tmp_path, "pgd(steps=2)", "pgd").to_dict("records")[1]
    assert (again["stands_here_alone"], again["stands_there_alone"]) == (0, more)


def test_all_begin_at_the_image_itself(asked: Bench, tmp_path: Path) -> None:
    # Without a random start, five steps cover five step sizes and no more.
    weight = anisotropic_weight()
    scores = ((asked.data.images / 255) * weight.numpy()).sum((1, 2, 3))  # type: ignore[union-attr]
    far = (scores - np.quantile(scores, 0.15)) / float(weight.abs().sum())
    frame = run(asked, tmp_path, "pgd", "mifgsm")
    assert frame["accuracy"].tolist() == pytest.approx([float((far > 5 * STEP).mean())] * 2, abs=1 / 64)


def crash(
    logits: Any, x: Any, y: Any, threat: Any, draws: Any, *, steps: int, step_size: float, random_start: bool
) -> Any:
    """Fail at once."""
    raise RuntimeError("no such luck")
    yield torch.empty(0)


def test_a_crash_is_a_row_with_its_error(
    asked: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        ATTACKS, "crash", AttackRow(f"{__name__}:crash", ("linf",), True, "nothing", "0", "this test")
    )
    frame = run(asked, tmp_path, "pgd", "crash")
    assert frame["status"].tolist() == ["ok", "failed"]
    assert np.isnan(frame["accuracy"][1])
    table = compare_table(frame)
    assert "RuntimeError: no such luck" in table.splitlines()[-1]
    assert "| grey" not in table


def test_one_attack_is_no_comparison(asked: Bench, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a comparison needs two attacks or more"):
        run(asked, tmp_path, "pgd")


def test_the_command_prints_a_table_and_keeps_it(tmp_path: Path) -> None:
    arguments = ["compare", "--attack", "native:fgsm", "--attack", "pgd", "--limit", "4", "--steps", "1"]
    done = CliRunner().invoke(
        cli.app, [*arguments, "--step-size", "4/255", "--out", str(tmp_path), "--device", "cpu"]
    )
    assert done.exit_code == 0, done.output
    assert "| mgnet-r18 | pgd " in done.output
    kept = pd.read_csv(tmp_path / "compare.csv")
    assert kept["other_verdicts"].tolist() == [0, 0], "one step of eps is FGSM"
