"""Results as frames: what they hold follows from the rows and outcomes by hand."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from robustglimpse import frames, read_results
from robustglimpse.data import from_tensors
from robustglimpse.models.sources import wrap
from robustglimpse.records import UserError
from robustglimpse.report.tables import eps_curve, steps_table
from robustglimpse.runner import Bench, bench
from robustglimpse.sweep import Sweep, sweep_corruptions


class Threshold(nn.Module):
    """Bright or dark, by a threshold on the mean: two of them differ on images between the two."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor(at))

    def forward(self, x: Tensor) -> Tensor:
        score = (x.mean((1, 2, 3)) - self.at) * 20
        return torch.stack([-score, score], 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two thresholds on ten flat images from 0.05 to 0.95, labelled by 0.5: clean, attacked, corrupted."""
    means = torch.arange(10) / 10 + 0.05
    data = from_tensors(means[:, None, None, None].expand(10, 3, 8, 8), (means > 0.5).long(), name="flat")
    models = tuple(wrap(Threshold(at), name=f"at {at}", classes=2, size_px=8) for at in (0.5, 0.7))
    out = tmp_path_factory.mktemp("run")
    bench(Bench(models=models, data=data, steps=(1, 16), eps="16/255", step_size="4/255"), out)
    asked = Sweep(models=models, data=data, corruptions=("brightness",), severities=(1, 5))
    sweep_corruptions(asked, out)
    return out


def test_a_step_curve_starts_clean_and_has_the_rows_accuracies(run: Path) -> None:
    curve = frames.steps_curve(read_results(run))
    assert curve.columns.tolist() == [0, 1, 16]
    # 0.5 itself is nowhere; within 16/255 = 0.063 of 0.5 are the images of 0.45 and 0.55.
    assert curve.loc[("at 0.5", "pgd", "16/255", "standard")].tolist()[::2] == [1.0, 0.8]
    # 0.55 and 0.65 are read as dark; of the rest 0.75 falls.
    assert curve.loc[("at 0.7", "pgd", "16/255", "standard")].tolist()[::2] == [0.8, 0.7]


def test_outcomes_are_one_row_per_sample_and_verdict(run: Path) -> None:
    samples = frames.outcomes(run)
    perturbed = samples[samples["perturb"] != "clean"]
    kinds = perturbed.groupby(["model", "perturb", "steps"]).size()
    assert (kinds == 10).all()
    assert len(kinds) == 2 * (2 + 2)
    clean = samples[(samples["model"] == "at 0.7") & (samples["perturb"] == "clean")].head(10)
    assert clean.set_index("index")["is_correct"].tolist() == [True] * 5 + [False] * 2 + [True] * 3


def test_a_paired_difference_counts_who_was_lost_and_gained(run: Path) -> None:
    found = frames.paired_difference(frames.outcomes(run), "at 0.5", "at 0.7").set_index(["perturb", "steps"])
    clean = found.loc[("clean", 0)]
    assert (clean["lost"], clean["gained"], clean["n"]) == (2, 0, 10)
    assert clean["difference"] == pytest.approx(-0.2)
    assert clean["ci_low"] < -0.2 < clean["ci_high"]
    assert clean["p_value"] == pytest.approx(0.5)  # two coins of one side, either side
    assert clean["p_holm"] == 1
    # Brighter by 0.3 the lower threshold calls images from 0.25 on bright, the higher one from 0.45 on.
    bright = found.loc[("brightness(preset=32, severity=5, store='exact')", 0)]
    assert (bright["lost"], bright["gained"]) == (0, 2)


def test_a_model_without_outcomes_is_named(run: Path) -> None:
    with pytest.raises(UserError, match=r"no outcomes of 'at 0.6'; there are those of at 0.5, at 0.7"):
        frames.paired_difference(frames.outcomes(run), "at 0.5", "at 0.6")


def test_models_on_other_images_are_not_paired(run: Path) -> None:
    samples = frames.outcomes(run)
    samples.loc[samples["model"] == "at 0.7", "images_sha256"] = "other"
    with pytest.raises(UserError, match="not run on the same images"):
        frames.paired_difference(samples, "at 0.5", "at 0.7")


def test_corruption_frames_are_table_2_and_mce(run: Path) -> None:
    results = read_results(run)
    table = frames.corruption_table(results).set_index("model")
    # Severity 1 adds 0.05: 0.45 turns bright for the lower threshold. Severity 5 adds 0.3.
    assert table.loc["at 0.5", "brightness"] == pytest.approx((0.9 + 0.7) / 2, abs=0.051)
    one = results[results["model"] == "at 0.5"]
    errors = frames.corruption_errors(results, one).set_index("model")
    assert errors.loc["at 0.5", "mce"] == pytest.approx(1)
    expected = (1 - table.loc["at 0.7", "brightness"]) / (1 - table.loc["at 0.5", "brightness"])
    assert errors.loc["at 0.7", "mce"] == pytest.approx(expected)
    assert frames.corruption_errors(results)["mce"].isna().all()


def test_nothing_finished_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    with pytest.raises(UserError, match="no finished cell"):
        frames.outcomes(tmp_path)


def test_frames_load_no_torch() -> None:
    script = "import sys, robustglimpse.frames; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_frames_are_plain_pandas(run: Path) -> None:
    assert isinstance(frames.steps_curve(read_results(run)), pd.DataFrame)


def test_every_cell_has_a_row_of_its_own(run: Path, tmp_path: Path) -> None:
    means = torch.arange(10) / 10 + 0.05
    data = from_tensors(means[:, None, None, None].expand(10, 3, 8, 8), (means > 0.5).long(), name="flat")
    model = wrap(Threshold(0.5), name="at 0.5", classes=2, size_px=8)
    asked = Bench(models=(model,), data=data, steps=(16,), eps="16/255", step_size="4/255")
    two = replace(asked, attacks=("pgd(loss='margin', eot=2)", "pgd"))
    lines = steps_table(bench(two, tmp_path / "calls")).splitlines()[2:]
    assert len(lines) == len({line.split("|")[2] for line in lines}) == 2
    swept = replace(two, curve="eps", eps="8/255,16/255")
    curve = eps_curve(bench(swept, tmp_path / "swept"))
    assert len(curve) == 2
    assert curve.index.is_unique
    # Another seed, another run of the same: rows beside each other, never a mean.
    bench(replace(asked, seed=7), tmp_path / "seed")
    frame = read_results(run, tmp_path / "seed")
    rows = frames.steps_curve(frame[frame["steps"] != 1]).reset_index()
    assert rows["attack"].tolist() == ["pgd, seed 0", "pgd, seed 7", "pgd, seed 0"]
    again = frames.steps_curve(read_results(run, shutil.copytree(run, tmp_path / "again"))).reset_index()
    assert set(again["attack"]) == {f"pgd, {tmp_path / 'again'}", f"pgd, {run}"}
    assert len(again) == 4


def test_runs_that_contradict_each_other_are_not_paired(run: Path) -> None:
    samples = frames.outcomes(run)
    other = samples.assign(run="other")
    assert len(frames.paired_difference(pd.concat([samples, other]), "at 0.5", "at 0.7")) == 5
    other.loc[(other["model"] == "at 0.7") & (other["index"] == 3), "is_correct"] ^= True
    with pytest.raises(
        UserError, match=r"at 0.7 has an image both right and wrong under one condition; .*other"
    ):
        frames.paired_difference(pd.concat([samples, other]), "at 0.5", "at 0.7")


def test_restarts_are_part_of_the_condition(run: Path) -> None:
    samples = frames.outcomes(run)
    samples.loc[samples["model"] == "at 0.7", "restarts"] = 5
    with pytest.raises(UserError, match="not run on the same images under any one condition"):
        frames.paired_difference(samples, "at 0.5", "at 0.7")


@pytest.mark.parametrize("read", [frames.corruption_table, frames.corruption_errors])
def test_corruptions_of_two_runs_are_no_one_table(run: Path, read: Any) -> None:
    frame = read_results(run)
    with pytest.raises(
        UserError, match=r"at 0.5 under brightness at severity 1 once.*read one run at a time"
    ):
        read(pd.concat([frame, frame.assign(run="other")]))
