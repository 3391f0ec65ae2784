"""The only reader and writer of a results directory. A cell's record is written last.

DIR/run.json              every command that went into it, with versions and hashes
DIR/results.csv           one row per cell, exit, verdict and step count
DIR/outcomes/KEY.csv.gz   what happened to every sample of a cell
DIR/cells/KEY.json        a cell's record: its description, its provenance and its rows
DIR/parts/KEY-…/K-N.npz   batches of a cell under way: from sample N on, in part K of its attack

A baseline of the gate is smaller, and is read in a review:

DIR/baseline.json         every cell's description, the hashes of its weights and data; the log of updates
DIR/accuracy.csv          one row per cell, exit, verdict and step count, with its accuracy
DIR/outcomes.npz          one bit per row and sample: still correct
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustglimpse.files import write_file
from robustglimpse.records import RESULT_COLUMNS, SCHEMA, Cell, UserError

Columns = dict[str, NDArray[np.generic]]
Row = dict[str, Any]
SORT_BY = [
    "model", "kind", "attack", "norm", "eps", "protocol", "judge", "corruption", "severity", "exit", "steps",
]  # fmt: skip


@dataclass(frozen=True)
class Provenance:
    """What a cell's numbers depend on beside its description: the weights and the data."""

    weights_sha256: str
    data_sha256: str


class Store:
    """A results directory. Raises UserError where it cannot be made or written to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        if (root / "results.csv").is_file() and not (root / "cells").is_dir():
            raise UserError(f"{root}: holds a results.csv that no run here wrote; choose another --out")
        try:
            (root / "cells").mkdir(parents=True, exist_ok=True)
            probe = root / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"{root}: cannot write results there ({error.strerror}); choose another --out"
            ) from None

    def is_done(self, cell: Cell, provenance: Provenance) -> bool:
        """Return whether the cell's record and outcomes are there, made from the same weights and data.

        Raises UserError for a record that is none.
        """
        path = self._record(cell)
        if not path.exists() or not self._outcomes(cell.key).exists():
            return False
        record = _record(path)
        return bool(record["provenance"] == asdict(provenance) and record["schema"] == SCHEMA)

    def parts(self, cell: Cell, provenance: Provenance) -> dict[tuple[int, int], tuple[Columns, float]]:
        """Return the finished batches of a cell under way: (part, first index) -> (columns, seconds)."""
        found = {}
        for path in sorted(self._parts(cell, provenance).glob("*-*.npz")):
            try:
                with np.load(path) as arrays:
                    columns = {name: arrays[name] for name in arrays.files}
            except (OSError, ValueError, EOFError, BadZipFile):
                continue  # broken since it was written: it is made again
            part, _, first = path.stem.partition("-")
            found[int(part), int(first)] = (columns, float(columns.pop("seconds")[0]))
        return found

    def save_part(
        self, cell: Cell, provenance: Provenance, at: tuple[int, int], columns: Columns, seconds: float
    ) -> None:
        """Keep a finished batch; at: the part of the attack and the first index, both from 0."""
        content = io.BytesIO()
        np.savez(content, seconds=np.array([seconds]), **columns)  # type: ignore[arg-type]
        write_file(self._parts(cell, provenance) / f"{at[0]}-{at[1]:09d}.npz", content.getvalue())

    def finish(self, cell: Cell, provenance: Provenance, columns: Columns, rows: Sequence[Row]) -> None:
        """Write a cell's outcomes and its record, then forget its parts."""
        frame = pd.DataFrame(columns)
        content = io.BytesIO()
        frame.to_csv(content, index=False, compression={"method": "gzip", "mtime": 0})
        write_file(self._outcomes(cell.key), content.getvalue())
        record = {
            "schema": SCHEMA,
            "key": cell.key,
            "cell": asdict(cell),
            "provenance": asdict(provenance),
            "rows": list(rows),
        }
        write_file(self._record(cell), (json.dumps(record, indent=1) + "\n").encode())
        shutil.rmtree(self._parts(cell, provenance), ignore_errors=True)

    def results(self, keys: Collection[str] | None = None, failed: Sequence[Row] = ()) -> pd.DataFrame:
        """Return the rows of the finished cells (those with the keys), in an order of their own content.

        failed: rows of cells that crashed, put behind them: holes, with an error and no accuracy.
        """
        rows: list[Row] = []
        for path in sorted((self.root / "cells").glob("*.json")):
            if keys is None or path.stem in keys:
                rows += _record(path)["rows"]
        rows.sort(key=lambda row: tuple(row[name] for name in SORT_BY))
        return pd.DataFrame([*rows, *failed], columns=list(RESULT_COLUMNS))

    def write_results(self, failed: Sequence[Row] = ()) -> None:
        """Write results.csv from every finished cell."""
        frame = self.results(failed=failed)
        write_file(self.root / "results.csv", frame.to_csv(index=False).encode())

    def outcomes(self, key: str) -> pd.DataFrame:
        """Return the per-sample outcomes of the cell with that key. Raises UserError for a broken file."""
        return _outcomes(self._outcomes(key))

    def add_run(self, info: Mapping[str, Any]) -> None:
        """Add a run to run.json, which lists every different one that went into this directory."""
        path = self.root / "run.json"
        runs = _json(path) if path.exists() else []
        if info not in runs:
            write_file(path, (json.dumps([*runs, info], indent=1) + "\n").encode())

    def write_figure(self, name: str, content: bytes) -> Path:
        """Write a rendered figure and return its path."""
        write_file(self.root / name, content)
        return self.root / name

    def write_text(self, name: str, text: str) -> Path:
        """Write a rendered table and return its path."""
        write_file(self.root / name, (text.rstrip("\n") + "\n").encode())
        return self.root / name

    def _outcomes(self, key: str) -> Path:
        return self.root / "outcomes" / f"{key}.csv.gz"

    def _record(self, cell: Cell) -> Path:
        return self.root / "cells" / f"{cell.key}.json"

    def _parts(self, cell: Cell, provenance: Provenance) -> Path:
        made_from = f"{provenance.weights_sha256[:8]}-{provenance.data_sha256[:8]}"
        return self.root / "parts" / f"{cell.key}-{made_from}"


TEXT_COLUMNS = (
    "model", "backbone", "family", "weights_sha256", "dataset", "data_sha256", "split", "kind", "attack",
    "options", "norm", "eps_text", "protocol", "surrogate", "judge", "corruption", "store", "texture",
    "device", "torch", "robustglimpse", "cell", "status", "error",
)  # fmt: skip
WHOLE_COLUMNS = (
    "schema", "classes", "size_px", "n", "n_total", "steps", "restarts", "seed", "severity", "preset",
    "exit", "correct", "total", "forwards", "backwards", "batch_size",
)  # fmt: skip


def read_results(*paths: str | Path) -> pd.DataFrame:
    """Return the rows of results.csv files as one tidy frame, texts, whole numbers and floats as such.

    paths: files, results directories, or globs of either ("results/*").  The column `run` in front says
    which directory a row comes from.  Whole numbers that a row lacks are <NA>, missing texts "".
    Raises UserError where there is nothing to read, or where a newer version wrote it.
    """
    frames = [_read_one(path) for pattern in paths for path in _matching(pattern)]
    frame = pd.concat(frames, ignore_index=True)
    return frame[["run", *(name for name in frame if name != "run")]]


def _matching(pattern: str | Path) -> list[Path]:
    """Return the results files that a path or glob names."""
    path = Path(pattern)
    names = [Path(name) for name in sorted(glob(str(pattern)))] or [path]  # noqa: PTH207 - may be absolute
    is_glob = has_magic(str(pattern))
    files = [name / "results.csv" if name.is_dir() else name for name in names]
    found = [file for file in files if file.is_file()]
    if not found or (len(found) < len(files) and not is_glob):
        raise UserError(f"{files[0]}: no such results; make them with `robustglimpse bench --out {path}`")
    return found


def _read_one(file: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(file, dtype=dict.fromkeys(TEXT_COLUMNS, str))
        newest = int(frame["schema"].max()) if len(frame) else SCHEMA
    except (ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{file}: not a results.csv of robustglimpse ({reason})") from None
    if newest > SCHEMA:
        raise UserError(
            f"{file}: written by a newer version (schema {newest}, this one reads up to {SCHEMA}); "
            "update with pip install --upgrade robustglimpse"
        )
    return _typed(frame).assign(run=str(file.parent))


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the columns of RESULT_COLUMNS, each of its type."""
    frame = frame.reindex(columns=list(RESULT_COLUMNS))  # columns that came later are there, and empty
    for name in TEXT_COLUMNS:
        frame[name] = frame[name].astype(object).where(frame[name].notna(), "").astype(str)
    for name in WHOLE_COLUMNS:
        frame[name] = frame[name].astype("Int64")
    return frame


@dataclass(frozen=True)
class Run:
    """A results directory as a report reads it.

    results: the rows of every finished cell, then those of cells that crashed.
    commands: what run.json lists.  records: a cell's key -> its record, without the rows.
    notes: where results.csv and the cells' records tell different stories.
    """

    root: Path
    results: pd.DataFrame
    commands: Sequence[Mapping[str, Any]]
    records: Mapping[str, Mapping[str, Any]]
    notes: Sequence[str]

    def outcomes(self, key: str) -> pd.DataFrame | None:
        """Return the per-sample outcomes of the cell with that key, or None where they are not kept."""
        path = self.root / "outcomes" / f"{key}.csv.gz"
        return _outcomes(path) if path.is_file() else None

    def table(self, name: str) -> pd.DataFrame | None:
        """Return a table that a command wrote beside the results, texts that are missing as "", or None.

        Raises UserError for a file that is no table.
        """
        path = self.root / name
        if not path.is_file():
            return None
        try:
            frame = pd.read_csv(path)
        except ValueError as error:
            raise UserError(
                f"{path}: not a table ({error}); delete it and run the same command again"
            ) from None
        texts = frame.select_dtypes(["object", "string"]).columns
        return frame.assign(**{name: frame[name].fillna("") for name in texts})

    def picture(self, name: str) -> bytes | None:
        """Return a picture that lies beside the results, or None where there is none."""
        path = self.root / name
        return path.read_bytes() if path.is_file() else None


def read_run(root: Path) -> Run:
    """Return a results directory, also one under way, and write nothing.

    The cells' records are believed before results.csv, which is made of them and may be older; a crashed
    cell has a row in results.csv alone.  Raises UserError where there is nothing to read.
    """
    file, paths = root / "results.csv", sorted((root / "cells").glob("*.json"))
    if not paths and not file.is_file():
        raise UserError(f"{root}: no results there; make them with `robustglimpse bench --out {root}`")
    records = {path.stem: _record(path) for path in paths}
    listed = _read_one(file) if file.is_file() else None
    frames, notes = [], []
    if records:
        rows = [row for record in records.values() for row in record.pop("rows")]
        rows.sort(key=lambda row: tuple(row[name] for name in SORT_BY))
        frames.append(_typed(pd.DataFrame(rows)))
        notes = _disagreement(listed, frames[0], len(records))
    if listed is not None:
        is_new = ~listed["cell"].isin(list(records)) & ((listed["cell"] != "") | (listed["status"] != "ok"))
        frames.append(listed.drop(columns="run")[is_new if records else listed["schema"].notna()])
    results = pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)
    if not len(results):
        raise UserError(f"{file}: holds no rows yet; run the same command again to go on")
    commands = _json(root / "run.json") if (root / "run.json").is_file() else []
    return Run(root, results, commands, records, notes)


def _disagreement(listed: pd.DataFrame | None, recorded: pd.DataFrame, cells: int) -> list[str]:
    """Return what a reader should know of a results.csv that is not the one its records would give."""
    if listed is None:
        return [f"results.csv is not written yet: {cells} cells are finished and the run is not"]
    told = ["cell", "judge", "exit", "steps"]
    both = listed.merge(recorded, on=told, suffixes=("", "_recorded"))
    differ = int((both["correct"] != both["correct_recorded"]).sum())
    lacking = len(set(recorded["cell"]) - set(listed["cell"]))
    notes = (
        [f"{differ} rows of results.csv differ from the cells' records, which are shown"] if differ else []
    )
    if lacking:
        notes.append(f"results.csv is older than {lacking} of the cells, which are shown")
    return notes


def _record(path: Path) -> dict[str, Any]:
    """Return what a cell's file holds. Raises UserError where that is no record."""
    record = _json(path)
    if not isinstance(record, dict) or not {"schema", "cell", "provenance", "rows"} <= record.keys():
        raise UserError(f"{path}: not a cell's record; delete it and run the same command again")
    return record


def _outcomes(path: Path) -> pd.DataFrame:
    """Return a table of outcomes. Raises UserError where the file is broken."""
    try:
        return pd.read_csv(path)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path}: not a table of outcomes ({reason}); delete it and run the same command again"
        ) from None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); delete it and run the same command again") from None


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


def is_correct(
    outcomes: pd.DataFrame | Columns, judge: str, steps: int, *, most: int, eps: float | None = None
) -> NDArray[np.bool_]:
    """Return which rows of a cell's outcomes count as correct: what every row of results.csv counts.

    eps: the radius asked about where the cell is a sweep over eps (it has a column fell_at), else None.
    most: the most steps that the cell reports.  They stand for all that the attack made, which may be
    more iterates than that: a targeted attack takes its steps once for each class.
    """
    if eps is not None:
        return np.asarray(np.asarray(outcomes["fell_at"]) > eps)
    if judge == "worst":
        first = np.asarray(outcomes["first_success_step"])
        return np.asarray((first == -1) | ((first > steps) & (steps < most)))
    predicted = np.asarray(outcomes[f"pred_at_{steps}" if judge == "last" else "pred"])
    return np.asarray(predicted == np.asarray(outcomes["label"]))


def is_baseline(root: Path) -> bool:
    """Return whether the directory holds a baseline of the gate, not a run."""
    return (root / "baseline.json").is_file()


def read_outcomes(root: Path) -> list[Outcome]:
    """Return every finished cell of a results directory or a baseline, in an order of their own content.

    Raises UserError where there is neither, or where two of its files don't tell the same.
    """
    if is_baseline(root):
        found = _read_baseline(root)
    elif (root / "cells").is_dir():
        found = [_read_cell(root, path) for path in sorted((root / "cells").glob("*.json"))]
    else:
        raise UserError(
            f"{root}: expected a results directory or a baseline, found neither cells/ nor baseline.json; "
            f"make one with `robustglimpse bench --out {root}`, or a baseline with `robustglimpse regress "
            f"{root} RUN --update --reason TEXT`"
        )
    return sorted(found, key=lambda outcome: json.dumps(outcome.cell, sort_keys=True))


def _read_cell(root: Path, path: Path) -> Outcome:
    record = _record(path)
    _check_schema(record, path)
    file = root / "outcomes" / f"{path.stem}.csv.gz"
    frame = _outcomes(file).sort_values(["exit", "index"])
    curves, most = [], max(row["steps"] for row in record["rows"])
    last = record["rows"][-1].get("eps")
    rows = [row for row in record["rows"] if row.get("eps") == last]  # a sweep's largest
    for row in rows:
        part = frame[frame["exit"] == row["exit"]]
        right = is_correct(part, row["judge"], row["steps"], most=most)
        if (int(right.sum()), len(right)) != (row["correct"], row["total"]):
            raise UserError(
                f"{file}: {right.sum()} of {len(right)} correct, but {path.name} says {row['correct']} of "
                f"{row['total']}; one of them was changed: delete both and run the cell again"
            )
        curves.append(Curve(row["exit"], row["judge"], row["steps"], right))
    index = np.unique(frame["index"].to_numpy())
    eps_text = str(rows[0]["eps_text"])
    return Outcome(record["cell"], Provenance(**record["provenance"]), eps_text, index, tuple(curves))


def _check_schema(record: Row, path: Path) -> None:
    if record.get("schema") != SCHEMA:
        raise UserError(
            f"{path}: expected schema {SCHEMA}, got {record.get('schema')}; make it again with this version"
        )


BASELINE_COLUMNS = (
    "key", "model", "perturb", "eps", "protocol", "seed", "exit", "judge", "steps", "correct", "total",
    "accuracy",
)  # fmt: skip


def _read_baseline(root: Path) -> list[Outcome]:
    path = root / "baseline.json"
    manifest = _json(path)
    _check_schema(manifest, path)
    try:
        table = pd.read_csv(root / "accuracy.csv", keep_default_na=False)
        with np.load(root / "outcomes.npz") as arrays:
            packed = {name: arrays[name] for name in arrays.files}
        rows = _unpack(packed["bits"], table["total"].tolist())
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{root}: the baseline cannot be read ({error}); restore its three files together"
        ) from None
    if [int(row.sum()) for row in rows] != table["correct"].tolist():
        raise UserError(
            f"{root}: accuracy.csv and outcomes.npz don't tell the same; restore the three files together, "
            "or make them again with --update"
        )
    curves: dict[str, list[Curve]] = {}
    for row, right in zip(table.to_dict("records"), rows, strict=True):
        curve = Curve(int(row["exit"]), str(row["judge"]), int(row["steps"]), right)
        curves.setdefault(str(row["key"]), []).append(curve)
    found = []
    for entry in manifest["cells"]:
        key, provenance = entry["key"], Provenance(entry["weights_sha256"], entry["data_sha256"])
        if key not in curves:
            raise UserError(f"{root}: accuracy.csv lacks the cell {key}; restore the three files together")
        index = packed.get(f"index_{key}", np.arange(len(curves[key][0].is_correct)))
        found.append(Outcome(entry["cell"], provenance, entry["eps"], index, tuple(curves[key])))
    return found


def _unpack(bits: NDArray[np.uint8], totals: Sequence[int]) -> list[NDArray[np.bool_]]:
    rows, start = [], 0
    for total in totals:
        stop = start + (total + 7) // 8
        if stop > len(bits):
            raise ValueError("outcomes.npz is too short")
        rows.append(np.unpackbits(bits[start:stop], count=total).astype(bool))
        start = stop
    return rows


def write_baseline(root: Path, found: Mapping[str, Outcome], entry: Row) -> None:
    """Replace the baseline by the outcomes, by key, and add the entry to its log.

    Raises UserError where the directory holds a run, which would be lost among the baseline's files.
    """
    if (root / "cells").exists():
        raise UserError(f"{root} is a results directory; choose another directory for the baseline")
    log = _json(root / "baseline.json")["log"] if is_baseline(root) else []
    cells, table, bits, arrays = [], [], [np.zeros(0, np.uint8)], {}
    for key, one in found.items():
        known = {"key": key, **asdict(one.provenance), "eps": one.eps_text, "cell": one.cell}
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
    write_file(root / "outcomes.npz", content.getvalue())
    write_file(root / "accuracy.csv", frame.to_csv(index=False).encode())
    # A line per cell and per update, so that a review shows what changed.
    lists = [",\n".join(f"  {line}" for line in lines) for lines in (cells, map(json.dumps, [*log, entry]))]
    text = f'{{\n "schema": {SCHEMA},\n "cells": [\n{lists[0]}\n ],\n "log": [\n{lists[1]}\n ]\n}}\n'
    write_file(root / "baseline.json", text.encode())


def read_failures(root: Path) -> list[Row]:
    """Return the rows of results.csv that tell of crashed cells; none where there is no such file."""
    if is_baseline(root) or not (root / "results.csv").is_file():
        return []
    frame = read_results(root)
    failed = frame[frame["status"] == "failed"].to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in failed]
