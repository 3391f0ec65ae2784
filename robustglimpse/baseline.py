"""A baseline of the gate: three small files that are read in a review.

DIR/baseline.json         every cell's description, the hashes of its weights and data; the log of updates
DIR/accuracy.csv          one row per cell, exit, verdict and step count, with its accuracy
DIR/outcomes.npz          one bit per row and sample: still correct
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustglimpse.columns import Columns, DamageError, read_arrays
from robustglimpse.evidence import Provenance, Row
from robustglimpse.files import read_file, write_file
from robustglimpse.records import SCHEMA, UserError
from robustglimpse.schema import MOST_SAMPLES, NEAR, BaselineModel, check, is_grid, read_json
from robustglimpse.sheets import csv_text, read_csv
from robustglimpse.texts import one_line, shortened


@dataclass(frozen=True)
class Curve:
    """Which samples one exit still had right, bool [N] by index, under one verdict after so many steps."""

    exit: int
    judge: str
    steps: int
    is_correct: NDArray[np.bool_]


@dataclass(frozen=True)
class Outcome:
    """A finished cell as the gate sees it.

    cell: its description.  index: i64 [N], the samples' places in the data set, increasing.
    """

    cell: Row
    provenance: Provenance
    eps_text: str
    index: NDArray[np.int64]
    curves: tuple[Curve, ...]


def is_baseline(root: Path) -> bool:
    """Return whether the directory holds a baseline of the gate, not a run."""
    return (root / "baseline.json").is_file()


def check_schema(record: Row, path: Path) -> None:
    if record.get("schema") != SCHEMA:
        raise UserError(
            f"{path}: expected schema {SCHEMA}, got {shortened(record.get('schema'))}; make it again with "
            "this version"
        )


BASELINE_COLUMNS = (
    "key", "model", "perturb", "eps", "protocol", "seed", "exit", "judge", "steps", "correct", "total",
    "accuracy",
)  # fmt: skip
BASELINE_TEXTS = ("key", "model", "perturb", "eps", "protocol", "judge")
TOGETHER = "restore accuracy.csv, baseline.json and outcomes.npz together, or make them again with --update"


def _manifest(root: Path) -> Row:
    """Return what baseline.json holds. Raises UserError where that is no baseline of this version."""
    path = root / "baseline.json"
    manifest = read_json(path, mend=TOGETHER)
    if isinstance(manifest, dict):
        check_schema(manifest, path)
    check(BaselineModel, manifest, path, what="a baseline", mend=TOGETHER)
    return dict(manifest)


def read_baseline(root: Path) -> list[Outcome]:
    manifest, table = _manifest(root), _accuracies(root / "accuracy.csv")
    entries = {entry["key"]: entry for entry in manifest["cells"]}
    of_cell: dict[str, list[Row]] = {key: [] for key in entries}
    for row in table:
        entry = entries.get(row["key"])
        if entry is None or any(row[name] != value for name, value in _told_of(entry).items()):
            raise UserError(
                f"{root}: accuracy.csv tells of a cell {row['key']!r} that baseline.json does not have so; "
                f"{TOGETHER}"
            )
        of_cell[row["key"]].append(row)
    packed = _packed(root / "outcomes.npz", table)
    bits: NDArray[Any] = packed["bits"]
    start = 0
    for row in table:
        stop = start + (row["total"] + 7) // 8
        row["right"] = np.unpackbits(bits[start:stop], count=row["total"]).astype(bool)
        start = stop
    if any(int(row["right"].sum()) != row["correct"] for row in table):
        raise UserError(f"{root}: accuracy.csv and outcomes.npz don't tell the same; {TOGETHER}")
    if any(abs(row["accuracy"] - row["correct"] / row["total"]) > NEAR for row in table):
        raise UserError(f"{root / 'accuracy.csv'}: an accuracy is not that of its counts; {TOGETHER}")
    return [_kept_outcome(root, entry, of_cell[key], packed) for key, entry in entries.items()]


def _kept_outcome(root: Path, entry: Row, rows: Sequence[Row], packed: Columns) -> Outcome:
    """Return a baseline's cell. Raises UserError where its rows are not of the same samples."""
    if not rows:
        raise UserError(f"{root}: accuracy.csv lacks the cell {entry['key']!r}; {TOGETHER}")
    total = rows[0]["total"]
    index: NDArray[Any] = packed.get(f"index_{entry['key']}", np.arange(total))
    told = {(row["exit"], row["judge"], row["steps"]) for row in rows}
    if len(told) < len(rows) or not is_grid(told) or {row["total"] for row in rows} != {total}:
        raise UserError(
            f"{root}: accuracy.csv has a row of {entry['key']!r} twice, or unlike ones; {TOGETHER}"
        )
    if len(index) != total or index.dtype != np.int64 or index[0] < 0 or (np.diff(index) <= 0).any():
        raise UserError(f"{root}: outcomes.npz has other samples of {entry['key']!r} than rows; {TOGETHER}")
    curves = tuple(Curve(row["exit"], row["judge"], row["steps"], row["right"]) for row in rows)
    provenance = Provenance(entry["weights_sha256"], entry["data_sha256"], machine=entry.get("machine", ""))
    return Outcome(entry["cell"], provenance, entry["eps"], index, curves)


def _told_of(entry: Row) -> Row:
    """Return what accuracy.csv repeats of a baseline's cell, for readers."""
    cell = entry["cell"]
    return {
        **{name: one_line(cell[name]) for name in ("model", "perturb", "protocol")},
        "eps": one_line(entry["eps"]), "seed": cell["seed"],
    }  # fmt: skip


def _accuracies(path: Path) -> list[Row]:
    """Return the rows of a baseline's accuracy.csv. Raises UserError where it is none."""
    try:
        frame = read_csv(read_file(path), BASELINE_TEXTS)
        if tuple(frame.columns) != BASELINE_COLUMNS:
            raise ValueError(f"its columns should be {', '.join(BASELINE_COLUMNS)}")
        for name in ("exit", "steps", "correct", "total", "seed"):
            if len(frame) and frame[name].dtype.kind not in "iu":
                raise ValueError(f"its column {name} does not hold whole numbers")
        rows = [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]
        for row in rows:
            _check_counts(row)
    except (UserError, ValueError, TypeError, OverflowError) as error:
        raise _unreadable(path, error) from None
    return rows


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = one_line(str(error).partition("\n")[0]).removeprefix(f"{path}: ")
    return UserError(f"{path}: the baseline cannot be read ({reason}); {TOGETHER}")


def _check_counts(row: Row) -> None:
    """Raise ValueError where a row of accuracy.csv cannot be."""
    if not (row["exit"] >= 1 and row["steps"] >= 0 and 0 <= row["correct"] <= row["total"] <= MOST_SAMPLES):
        raise ValueError("a number is out of its range")
    if row["total"] < 1 or not 0 <= row["accuracy"] <= 1:
        raise ValueError("a row has no sample, or no accuracy between 0 and 1")


def _packed(path: Path, table: Sequence[Row]) -> Columns:
    """Return the arrays in a baseline's outcomes.npz. Raises UserError unless they fit accuracy.csv."""
    length = sum((row["total"] + 7) // 8 for row in table)
    most = length + sum(8 * row["total"] + 1024 for row in table) + 1024
    try:
        arrays = read_arrays(read_file(path), most=most)
        bits = arrays.get("bits")
        if bits is None or bits.dtype != np.uint8 or len(bits) != length:
            raise DamageError(f"it should hold {length} bytes of bits")
    except (UserError, DamageError) as error:
        raise _unreadable(path, error) from None
    return arrays


def write_baseline(root: Path, found: Mapping[str, Outcome], entry: Row) -> None:
    """Replace the baseline by the outcomes, by key, and add the entry to its log.

    Raises UserError where the directory holds a run, which would be lost among the baseline's files.
    """
    if (root / "cells").exists():
        raise UserError(f"{root} is a results directory; choose another directory for the baseline")
    log = _manifest(root)["log"] if is_baseline(root) else []
    cells, table, bits, arrays = [], [], [np.zeros(0, np.uint8)], {}
    for key, one in found.items():
        weights, data = one.provenance.made_from
        known = {
            "key": key, "weights_sha256": weights, "data_sha256": data, "eps": one.eps_text,
            "machine": one.provenance.machine, "cell": one.cell,
        }  # fmt: skip
        cells.append(json.dumps(known))
        if not np.array_equal(one.index, np.arange(len(one.index))):
            arrays[f"index_{key}"] = one.index
        said = [key, one.cell["model"], one.cell["perturb"], one.eps_text, one.cell["protocol"]]
        for curve in one.curves:
            correct, total = int(curve.is_correct.sum()), len(curve.is_correct)
            counted = [curve.exit, curve.judge, curve.steps, correct, total, round(correct / total, 6)]
            table.append([*said, one.cell["seed"], *counted])
            bits.append(np.packbits(curve.is_correct))
    content = io.BytesIO()
    np.savez_compressed(content, bits=np.concatenate(bits), **arrays)  # type: ignore[arg-type]
    frame = pd.DataFrame(table, columns=list(BASELINE_COLUMNS))
    write_file(root / "outcomes.npz", content.getvalue(), lasting=True)
    write_file(root / "accuracy.csv", csv_text(frame).encode(), lasting=True)
    # A line per cell and per update, so that a review shows what changed.
    lists = [",\n".join(f"  {line}" for line in lines) for lines in (cells, map(json.dumps, [*log, entry]))]
    text = f'{{\n "schema": {SCHEMA},\n "cells": [\n{lists[0]}\n ],\n "log": [\n{lists[1]}\n ]\n}}\n'
    write_file(root / "baseline.json", text.encode(), lasting=True)
