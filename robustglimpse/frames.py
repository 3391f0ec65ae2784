"""Results as pandas frames: per-sample outcomes, step curves, Table 2, paired differences of two models.

Each function takes frames and returns one; reading is read_results' and outcomes'. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustglimpse.arguments import paths as paths_of
from robustglimpse.arguments import shown
from robustglimpse.baseline import is_baseline
from robustglimpse.records import UserError
from robustglimpse.report import table2
from robustglimpse.report.tables import clean_of, headline, lines_of
from robustglimpse.stats import holm, mcnemar, newcombe
from robustglimpse.store import Outcome, read_outcomes

# What two models must share to be compared sample by sample.
CONDITION = [
    "data",
    "split",
    "images_sha256",
    "perturb",
    "eps_text",
    "norm",
    "protocol",
    "restarts",
    "seed",
    "judge",
    "steps",
]


def outcomes(*paths: str | Path) -> pd.DataFrame:
    """Return one row per cell, exit, verdict, step count and sample of results directories or baselines.

    paths: directories, globs of them ("runs/*"), or lists of either.
    Columns: run, model, weights_sha256, data_sha256, those of CONDITION, exit, index (the sample's place in
    its data set), is_correct.
    """
    frames = [
        _samples(outcome, str(path), exit_number, judge, steps, is_correct)
        for path in _runs(paths)
        for outcome in read_outcomes(path)
        for exit_number, judge, steps, is_correct in (
            (c.exit, c.judge, c.steps, c.is_correct) for c in outcome.curves
        )
    ]
    if not frames:
        raise UserError(f"{', '.join(map(str, paths))}: no finished cell there yet; run the command again")
    return pd.concat(frames, ignore_index=True)


def _runs(given: tuple[str | Path, ...]) -> Iterator[Path]:
    """Yield the directories that paths or globs name; of a glob those that hold outcomes."""
    for pattern in paths_of(given, "paths", example="outcomes('runs/*')"):
        names = sorted(glob(str(pattern))) if has_magic(str(pattern)) else []  # noqa: PTH207 - may be absolute
        found = [path for path in map(Path, names) if (path / "cells").is_dir() or is_baseline(path)]
        yield from found or [pattern]


def _check_frame(frame: Any, made_by: str, column: str) -> None:
    """Raise UserError for what is no frame of that function, which has such a column."""
    if not isinstance(frame, pd.DataFrame) or column not in frame:
        raise UserError(
            f"expected a frame of {made_by}, got {shown(frame)}; for example {made_by}('runs/mine')"
        )


def _samples(
    outcome: Outcome, run: str, exit_number: int, judge: str, steps: int, is_correct: Any
) -> pd.DataFrame:
    cell = outcome.cell
    told = {
        "run": run,
        "model": cell["model"],
        "weights_sha256": outcome.provenance.weights_sha256,
        "data": cell["data"],
        "split": cell["split"],
        "data_sha256": outcome.provenance.data_sha256,
        "images_sha256": outcome.provenance.images_sha256 or outcome.provenance.data_sha256,
        "perturb": cell["perturb"],
        "eps_text": outcome.eps_text,
        "norm": cell["threat"]["norm"],
        "protocol": cell["protocol"],
        "restarts": cell["restarts"],
        "seed": cell["seed"],
        "judge": judge,
        "steps": steps,
        "exit": exit_number,
    }
    return pd.DataFrame({**told, "index": outcome.index, "is_correct": is_correct})


def steps_curve(results: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy by steps (columns; 0 is clean), a row per model, attack, eps and protocol.

    The verdict is each protocol's own, at the last exit: the lines of Figure 4.  Every cell has a row of its
    own; what else tells them apart is in attack: "pgd(loss='dlr')", "pgd, seed 1, runs/a".
    """
    _check_frame(results, "read_results", "accuracy")
    rows = headline(results)
    lines = lines_of(rows, along="steps", beside=["eps_text"])
    lines = lines.assign(attack=lines["attack"] + lines["apart"])
    index = ["line", "model", "attack", "eps_text", "protocol"]
    curve = lines.pivot(index=index, columns="steps", values="accuracy")
    clean = clean_of(rows, lines)["accuracy"]
    curve.insert(0, 0, clean.reindex(curve.index.get_level_values("line")).to_numpy())
    return curve.droplevel("line")


def corruption_table(results: pd.DataFrame) -> pd.DataFrame:
    """Return Table 2: a row per model and glimpses, accuracy clean, on average and per corruption.

    Raises UserError where a cell is there more than once, as those of several runs are.
    """
    _check_once(results)
    return table2.table2(results, pd.DataFrame()).values


def corruption_errors(results: pd.DataFrame, baseline: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return mean accuracies in all and per family, and mCE, a row per model and glimpses.

    baseline: the results of one model on the same set, whose errors mCE divides by; NaN without one.
    Raises UserError where a cell is there more than once, as those of several runs are.
    """
    _check_once(results)
    divisor = None if baseline is None else table2.baseline_from(baseline, where="baseline")
    return table2.summary(results, divisor)


def _check_once(results: pd.DataFrame) -> None:
    _check_frame(results, "read_results", "accuracy")
    cells = results[(results["status"] == "ok") & (results["kind"] == "corruption")]
    twice = cells[cells.duplicated(["model", "exit", "corruption", "severity"])]
    if len(twice):
        row = twice.iloc[0]
        raise UserError(
            f"expected {row['model']} under {row['corruption']} at severity {row['severity']} once, got it "
            "several times, and Table 2 has room for one; read one run at a time"
        )


def paired_difference(samples: pd.DataFrame, before: str, after: str) -> pd.DataFrame:
    """Return how much more accurate `after` is than `before`, a row per condition that both were run under.

    samples: what outcomes gives.  before, after: models; each is taken at its last exit.
    Columns: those of CONDITION, n, lost, gained (samples), difference with its 95 % interval (Newcombe),
    p_value (McNemar, exact) and p_holm, corrected for all rows together.
    Raises UserError where a model is missing, where several runs of one contradict each other, or where the
    two share no images under any condition.
    """
    _check_frame(samples, "outcomes", "is_correct")
    sides = []
    for model in (before, after):
        rows = samples[samples["model"] == model]
        if rows.empty:
            known = ", ".join(sorted(set(samples["model"])))
            raise UserError(f"no outcomes of {model!r}; there are those of {known}")
        last = rows[rows["exit"] == rows["exit"].max()]
        told = last.drop_duplicates([*CONDITION, "index", "is_correct"])
        if told.duplicated([*CONDITION, "index"]).any():
            runs = ", ".join(dict.fromkeys(told["run"]))
            raise UserError(
                f"{model} has an image both right and wrong under one condition; give one run of {runs}"
            )
        sides.append(told[[*CONDITION, "index", "is_correct"]])
    both = sides[0].merge(sides[1], on=[*CONDITION, "index"], suffixes=("_before", "_after"))
    if both.empty:
        raise UserError(f"{before} and {after} were not run on the same images under any one condition")
    found = []
    for condition, group in both.groupby(CONDITION, sort=False):
        a, b = group["is_correct_before"].to_numpy(), group["is_correct_after"].to_numpy()
        lost, gained = int((a & ~b).sum()), int((~a & b).sum())
        change = newcombe(int((a & b).sum()), lost, gained, int((~a & ~b).sum()))
        told = dict(zip(CONDITION, condition if isinstance(condition, tuple) else (condition,), strict=True))
        found.append(
            {
                **told, "n": len(a), "lost": lost, "gained": gained, "difference": change.value,
                "ci_low": change.low, "ci_high": change.high, "p_value": mcnemar(lost, gained),
            }
        )  # fmt: skip
    frame = pd.DataFrame(found)
    return frame.assign(p_holm=np.array(holm(frame["p_value"].tolist())))
