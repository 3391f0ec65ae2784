"""The only reader and writer of a results directory. A cell's record is written last.

DIR/run.json              every command that went into it, with versions and hashes
DIR/results.csv           one row per cell, exit, verdict and step count
DIR/outcomes/KEY.csv.gz   what happened to every sample of a cell
DIR/cells/KEY.json        a cell's record: its description, its provenance and its rows
DIR/failures/KEY.json     a cell that crashed, until it is made good: its row without a number, its traceback
DIR/parts/KEY-…/K-N.npz   batches of a cell under way: from sample N on, in part K of its attack; and what the
                          cell depends on, provenance.json

A baseline of the gate is smaller, and is read in a review:

DIR/baseline.json         every cell's description, the hashes of its weights and data; the log of updates
DIR/accuracy.csv          one row per cell, exit, verdict and step count, with its accuracy
DIR/outcomes.npz          one bit per row and sample: still correct
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import robustglimpse
from robustglimpse.arguments import path as path_of
from robustglimpse.arguments import paths as paths_of
from robustglimpse.baseline import (
    Curve,
    Outcome,
    check_schema,
    is_baseline,
    read_baseline,
    write_baseline,
)
from robustglimpse.columns import Columns, DamageError, pack, unpack
from robustglimpse.corruptions import CORRUPTIONS
from robustglimpse.data.precomputed import is_own_name
from robustglimpse.evidence import (
    SORT_BY,
    Provenance,
    Row,
    curves_of,
    damage,
    is_correct,
    newer,
    read_cell_outcomes,
    read_failed,
    read_origin,
    read_record,
    whole_rows,
)
from robustglimpse.files import check_writable, read_file, sweep, write_file
from robustglimpse.notes import tell
from robustglimpse.records import OUTCOME_COLUMNS, RESULT_COLUMNS, SCHEMA, Cell, UserError
from robustglimpse.schema import AGAIN, LARGEST, NEAR, ProvenanceModel, RunModel, RunsModel, check, read_json
from robustglimpse.sheets import EXACT, csv_text, read_csv
from robustglimpse.texts import from_csv, one_line

__all__ = [
    "Columns", "Curve", "Outcome", "Provenance", "Row", "Run", "Store", "csv_text", "is_baseline",
    "is_correct", "read_failed", "read_failures", "read_outcomes", "read_results", "read_run", "tells_of",
    "write_baseline",
]  # fmt: skip


class Store:
    """A results directory. Raises UserError where it cannot be made or written to."""

    def __init__(self, root: str | Path) -> None:
        self.root = root = path_of(root, "out")
        if (root / "results.csv").is_file() and not (root / "cells").is_dir():
            raise UserError(f"{root}: holds a results.csv that no run here wrote; choose another --out")
        try:
            check_writable(root)
            (root / "cells").mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{root}: cannot write results there ({error.strerror}); choose another --out"
            ) from None
        for folder in (root, *(root / name for name in FOLDERS), *(root / "parts").glob("*")):
            sweep(folder)

    def is_done(self, cell: Cell, provenance: Provenance) -> bool:
        """Return whether the cell's record and outcomes are there, of the same weights, data and answers.

        Tells why what is there does not count.  Raises UserError for a record that is none.
        """
        path, outcomes = self._record(cell), self._outcomes(cell.key)
        if not path.exists() or not outcomes.exists() or self._failure(cell).exists():
            return False
        record = read_record(path)
        reason = provenance.difference(record["provenance"]) or damage(outcomes, record)
        if reason:
            tell(f"{cell.model} in {self.root}: {reason}; what is there of it is made again")
        return not reason

    def parts(self, cell: Cell, provenance: Provenance) -> dict[tuple[int, int], tuple[Columns, float]]:
        """Return the finished batches of a cell under way: (part, first index) -> (columns, seconds).

        Those of a model that answered otherwise are forgotten, and damaged ones passed over, with a line.
        """
        folder = self._parts(cell, provenance)
        if not folder.is_dir():
            return {}
        reason = _other_parts(folder / "provenance.json", provenance)
        if reason:
            tell(f"{cell.model}, {folder}: {reason}; its batches are made again")
            shutil.rmtree(folder, ignore_errors=True)
            return {}
        found = {}
        for path in sorted(folder.iterdir()):
            name = PART.fullmatch(path.name)
            if name is None:
                continue
            at = int(name[1]), int(name[2])
            try:
                found[at] = _read_part(path, _told(cell, provenance, at))
            except (UserError, DamageError) as error:
                said = one_line(str(error)).removeprefix(f"{path}: ")
                tell(f"{path}: {said}; that batch is made again")
        return _of_one_kind(found, folder)

    def save_part(
        self, cell: Cell, provenance: Provenance, at: tuple[int, int], columns: Columns, seconds: float
    ) -> None:
        """Keep a finished batch; at: the part of the attack and the first index, both from 0."""
        folder = self._parts(cell, provenance)
        if not (folder / "provenance.json").is_file():
            told = {**asdict(provenance), "robustglimpse": robustglimpse.__version__}
            write_file(folder / "provenance.json", json.dumps(told).encode())
        content = pack({**columns, "seconds": np.array([seconds])}, _told(cell, provenance, at))
        write_file(folder / f"{at[0]}-{at[1]:09d}.npz", content)

    def finish(self, cell: Cell, provenance: Provenance, columns: Columns, rows: Sequence[Row]) -> None:
        """Write a cell's outcomes and its record, then forget its parts."""
        frame = pd.DataFrame(columns)
        content = io.BytesIO()
        frame.to_csv(content, index=False, compression={"method": "gzip", "mtime": 0})
        write_file(self._outcomes(cell.key), content.getvalue(), lasting=True)
        record = {
            "schema": SCHEMA,
            "key": cell.key,
            "cell": cell.described,
            "provenance": {**asdict(provenance), "machine": self._machines(cell, provenance)},
            "outcomes": {"sha256": hashlib.sha256(content.getvalue()).hexdigest()},
            "rows": list(rows),
        }
        write_file(self._record(cell), (json.dumps(record, indent=1) + "\n").encode(), lasting=True)
        self._failure(cell).unlink(missing_ok=True)
        shutil.rmtree(self._parts(cell, provenance), ignore_errors=True)

    def _machines(self, cell: Cell, provenance: Provenance) -> str:
        """Return what made a cell: this machine, and before it the one that began it, if that is another."""
        path, ours = self._parts(cell, provenance) / "provenance.json", provenance.machine
        try:
            begun = check(ProvenanceModel, read_json(path), path, what="what its batches depend on").machine
        except UserError:  # none was begun, or all is made again here
            return ours
        return f"{begun}; {ours}" if begun and begun != ours else ours

    def fail(self, cell: Cell, row: Row, traceback: str) -> None:
        """Keep a cell's crash: its row, which has no accuracy, and where it happened."""
        told = {"schema": SCHEMA, "key": cell.key, "cell": cell.described, "row": row, "traceback": traceback}
        write_file(self._failure(cell), (json.dumps(told, indent=1) + "\n").encode(), lasting=True)

    def results(self, keys: Collection[str] | None = None) -> pd.DataFrame:
        """Return the rows of the finished cells (those with the keys), in an order of their own content.

        Behind them those of cells that crashed: holes, with an error and no accuracy, even where an earlier
        run of the cell had one.
        """
        failed = read_failed(self.root)
        rows: list[Row] = []
        for path in sorted((self.root / "cells").glob("*.json")):
            if (keys is None or path.stem in keys) and path.stem not in failed:
                rows += whole_rows(path, read_record(path))
        rows.sort(key=lambda row: tuple(row[name] for name in SORT_BY))
        holes = [record["row"] for key, record in failed.items() if keys is None or key in keys]
        return pd.DataFrame([*rows, *holes], columns=list(RESULT_COLUMNS))

    def write_results(self, holes: Sequence[Row] = ()) -> None:
        """Write results.csv from every cell that finished or crashed.

        holes: rows of more cells that crashed.  Those that the file has already stay, until the cell is made
        good: an older version kept a crash there alone.
        """
        frame = self.results()
        holes = [*self._old_holes(set(frame["cell"])), *holes]
        if holes:
            frame = pd.DataFrame([*frame.to_dict("records"), *holes], columns=list(RESULT_COLUMNS))
        write_file(self.root / "results.csv", csv_text(frame).encode(), lasting=True)

    def _old_holes(self, known: Collection[str]) -> list[Row]:
        """Return the rows in results.csv of crashed cells that no other file tells of."""
        file = self.root / "results.csv"
        if not file.is_file():
            return []
        try:
            listed = _read_one(file)
        except UserError as error:
            tell(f"{error}; it is written anew")
            return []
        is_hole = (listed["status"] == "failed") & ~listed["cell"].isin(list(known))
        return _dicts(listed[is_hole])

    def outcomes(self, key: str) -> pd.DataFrame:
        """Return the per-sample outcomes of the cell with that key. Raises UserError for a broken file."""
        record = self.root / "cells" / f"{key}.json"
        return read_cell_outcomes(self._outcomes(key), read_origin(record) if record.is_file() else {})

    def images(self, key: str) -> str:
        """Return which images a cell with that key saw, as two cells that are paired must agree on."""
        kept = read_origin(self.root / "cells" / f"{key}.json")["provenance"]
        return str(kept.get("images_sha256") or kept["data_sha256"])

    def add_run(self, info: Mapping[str, Any]) -> None:
        """Add a run to run.json, which lists every different one that went into this directory."""
        path = self.root / "run.json"
        runs = _runs(path)
        if info not in runs:
            write_file(path, (json.dumps([*runs, info], indent=1) + "\n").encode(), lasting=True)

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

    def _failure(self, cell: Cell) -> Path:
        return self.root / "failures" / f"{cell.key}.json"

    def _parts(self, cell: Cell, provenance: Provenance) -> Path:
        made_from = "-".join(digest[:8] for digest in provenance.made_from)
        return self.root / "parts" / f"{cell.key}-{made_from}"


FOLDERS = ("cells", "outcomes", "failures")
PART = re.compile(r"(\d{1,9})-(\d{9,18})\.npz")


def _told(cell: Cell, provenance: Provenance, at: tuple[int, int]) -> Row:
    """Return what a finished batch is of: it counts for nothing else."""
    return {"cell": cell.key, "made_from": list(provenance.made_from), "at": list(at)}


def _read_part(path: Path, told: Row) -> tuple[Columns, float]:
    """Return a finished batch and its seconds. Raises DamageError where it is not what was written."""
    columns = unpack(read_file(path), told)
    seconds = columns.pop("seconds", np.array([np.nan]))
    if not (len(seconds) == 1 and np.isfinite(seconds).all()):
        raise DamageError("it does not say how long it took")
    if not columns or len({len(column) for column in columns.values()}) > 1:
        raise DamageError("its columns are of different lengths")
    return columns, float(seconds[0])


def _of_one_kind(
    found: dict[tuple[int, int], tuple[Columns, float]], folder: Path
) -> dict[tuple[int, int], tuple[Columns, float]]:
    """Return the batches, without those of a part of the attack whose batches have unlike columns."""
    kinds: dict[int, set[Any]] = {}
    for (part, _), (columns, _) in found.items():
        exits = tuple(np.unique(columns["exit"])) if "exit" in columns else ()
        listed = tuple(sorted((name, column.dtype.str) for name, column in columns.items()))
        kinds.setdefault(part, set()).add((listed, exits))
    mixed = {part for part, of_part in kinds.items() if len(of_part) > 1}
    if mixed:
        tell(f"{folder}: its batches do not have the same columns; they are made again")
    return {at: batch for at, batch in found.items() if at[0] not in mixed}


def tells_of(columns: Columns, index: NDArray[np.int64]) -> bool:
    """Return whether a batch has the columns that every batch has, and is of these samples, exit by exit.

    index: i64 [B], the samples' places in the data set, in order.
    """
    if not set(OUTCOME_COLUMNS) <= columns.keys():
        return False
    found = columns["index"]
    return len(found) % len(index) == 0 and bool((found.reshape(-1, len(index)) == index).all())


def _other_parts(path: Path, provenance: Provenance) -> str:
    """Return why the batches of a folder do not count, from what they depend on, or ""."""
    try:
        kept = read_json(path)
        check(ProvenanceModel, kept, path, what="what its batches depend on")
    except UserError:
        return "what its batches depend on is not there, or damaged"
    if kept.get("robustglimpse", robustglimpse.__version__) != robustglimpse.__version__:
        return f"robustglimpse {kept['robustglimpse']} made it, this is {robustglimpse.__version__}"
    return provenance.difference(kept)


TEXT_COLUMNS = (
    "model", "backbone", "family", "weights_sha256", "dataset", "data_sha256", "split", "labels",
    "preparation", "kind", "attack", "options", "norm", "eps_text", "protocol", "surrogate", "judge",
    "corruption", "store", "texture", "device", "torch", "robustglimpse", "cell", "status", "error",
)  # fmt: skip
WHOLE_COLUMNS = (
    "schema", "classes", "size_px", "n", "n_total", "steps", "restarts", "seed", "severity", "preset",
    "exit", "correct", "total", "forwards", "backwards", "batch_size",
)  # fmt: skip


def read_results(*paths: str | Path) -> pd.DataFrame:
    """Return the rows of results.csv files as one tidy frame, texts, whole numbers and floats as such.

    paths: files, results directories, globs of either ("results/*"), or lists of them.  The column `run` in
    front says which directory a row comes from.  Whole numbers that a row lacks are <NA>, missing texts "".
    Raises UserError where there is nothing to read, or where a newer version wrote it.
    """
    patterns = paths_of(paths, "paths", example="read_results('runs/*')")
    frames = [_adding_up(_read_one(path), path) for pattern in patterns for path in _matching(pattern)]
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


NUMBER_COLUMNS = tuple(c for c in RESULT_COLUMNS if c not in (*TEXT_COLUMNS, *WHOLE_COLUMNS))


def _read_one(file: Path) -> pd.DataFrame:
    try:
        frame = read_csv(read_file(file), TEXT_COLUMNS)
        lacking = {"schema", "model", "status"} - set(frame)
        if lacking:
            raise ValueError(f"it lacks the column {min(lacking)}")
        newest = int(pd.to_numeric(frame["schema"]).max()) if len(frame) else SCHEMA
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise _no_results(file, one_line(str(error).partition("\n")[0])) from None
    if newest > SCHEMA:
        raise newer(file, newest)
    try:
        frame = _typed(frame)
    except (ValueError, TypeError, OverflowError) as error:
        raise _no_results(file, one_line(str(error).partition("\n")[0])) from None
    fault = _fault(frame)
    if fault:
        raise _no_results(file, fault)
    return frame.assign(run=str(file.parent))


def _no_results(file: Path, reason: str) -> UserError:
    return UserError(
        f"{file}: not a results.csv of robustglimpse ({reason}); delete it and run the same command again"
    )


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the columns of RESULT_COLUMNS, each of its type, texts on one line.

    Raises ValueError or TypeError where a column holds something else.
    """
    frame = frame.reindex(columns=list(RESULT_COLUMNS))  # columns that came later are there, and empty
    for name in TEXT_COLUMNS:
        texts = frame[name].astype(object).where(frame[name].notna(), "").astype(str)
        frame[name] = texts.map(one_line)
    for name in WHOLE_COLUMNS:
        numbers = pd.to_numeric(frame[name])
        if not numbers.dropna().between(-LARGEST if name == "seed" else 0, LARGEST).all():
            raise ValueError(f"its column {name} holds a number out of range")
        frame[name] = numbers.astype("Int64")
    for name in NUMBER_COLUMNS:
        frame[name] = pd.to_numeric(frame[name]).astype(float)
    return frame


def _fault(frame: pd.DataFrame) -> str:
    """Return what cannot be in rows of results.csv, or ""."""
    ok = frame[frame["status"] == "ok"]
    if not frame["status"].isin(["ok", "failed"]).all():
        return "a status is neither ok nor failed"
    if not ok["accuracy"].between(0, 1).all():
        return "a row has no accuracy between 0 and 1"
    if np.isinf(frame[list(NUMBER_COLUMNS)].to_numpy(float)).any():
        return "a number is infinite"
    named = set(zip(frame["corruption"], frame["store"], strict=True))
    unknown = sorted(n for n, s in named if n not in ("", *CORRUPTIONS) and not is_own_name(n, s))
    return f"there is no corruption {unknown[0]!r} here" if unknown else ""


def _adding_up(frame: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Return rows of results.csv. Raises UserError where an accuracy is not that of its counts."""
    ok = frame[(frame["status"] == "ok") & frame["correct"].notna() & frame["total"].notna()]
    shares = ok["correct"].astype(float) / ok["total"].astype(float)
    if not ((shares - ok["accuracy"]).abs() <= NEAR).all():
        raise _no_results(file, "an accuracy is not that of its correct and total")
    return frame


def _dicts(frame: pd.DataFrame) -> list[Row]:
    """Return rows as dictionaries, without what they lack."""
    rows = frame.to_dict("records")
    return [{str(k): v for k, v in row.items() if not pd.isna(v)} for row in rows]


@dataclass(frozen=True)
class Run:
    """A results directory as a report reads it.

    results: the rows of every finished cell, then those of cells that crashed.
    commands: what run.json lists.  records: a cell's key -> its record, without the rows.
    notes: where results.csv, run.json and the cells' records tell different stories.
    """

    root: Path
    results: pd.DataFrame
    commands: Sequence[Mapping[str, Any]]
    records: Mapping[str, Mapping[str, Any]]
    notes: Sequence[str]
    _whole: Mapping[str, Row] = field(default_factory=dict, repr=False)
    _read: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False)

    def outcomes(self, key: str) -> pd.DataFrame | None:
        """Return the per-sample outcomes of the cell with that key, or None where they are not kept.

        Raises UserError for a broken file, and for one that tells something else than the cell's record.
        """
        path = self.root / "outcomes" / f"{key}.csv.gz"
        if key not in self._read and path.is_file():
            record = self._whole.get(key, {})
            frame = read_cell_outcomes(path, record)
            if record:
                curves_of(record, frame, self.root / "cells" / f"{key}.json")
            self._read[key] = frame
        return self._read.get(key)

    def check(self) -> None:
        """Raise UserError where the outcomes of a cell are not those that its record tells of."""
        for key in self._whole:
            self.outcomes(key)

    def table(self, name: str) -> pd.DataFrame | None:
        """Return a table that a command wrote beside the results, texts that are missing as "", or None.

        Raises UserError for a file that is no table.
        """
        path = self.root / name
        if not path.is_file():
            return None
        try:
            frame: pd.DataFrame = pd.read_csv(io.BytesIO(read_file(path)), **EXACT)
        except (ValueError, OverflowError) as error:
            raise UserError(f"{path}: not a table ({one_line(str(error))}); {AGAIN}") from None
        for column in frame.select_dtypes(["object", "string"]).columns:
            frame[column] = frame[column].fillna("").map(lambda text: one_line(from_csv(str(text))))
        return frame

    def picture(self, name: str) -> bytes | None:
        """Return a picture that lies beside the results, or None where there is none."""
        path = self.root / name
        return read_file(path) if path.is_file() else None


def read_run(root: Path) -> Run:
    """Return a results directory, also one under way, and write nothing.

    The cells' records are believed before results.csv, which is made of them and may be older; whether the
    outcomes tell the same, Run.check says.  Raises UserError where there is nothing to read.
    """
    failed = read_failed(root)
    file = root / "results.csv"
    paths = [path for path in sorted((root / "cells").glob("*.json")) if path.stem not in failed]
    if not (paths or failed or file.is_file()):
        raise UserError(f"{root}: no results there; make them with `robustglimpse bench --out {root}`")
    records = {path.stem: read_record(path) for path in paths}
    listed = _read_one(file).drop(columns="run") if file.is_file() else None
    frames, notes = [], []
    if records:
        rows = [row for path in paths for row in whole_rows(path, records[path.stem])]
        rows.sort(key=lambda row: tuple(row[name] for name in SORT_BY))
        frames.append(_typed(pd.DataFrame(rows)))
        notes = _disagreement(listed, frames[0], len(records))
    if listed is not None:
        known = listed["cell"].isin([*records, *failed])
        is_new = ~known & ((listed["cell"] != "") | (listed["status"] != "ok"))
        frames.append(_adding_up(listed[is_new] if records or failed else listed, file))
    if failed:
        frames.append(_typed(pd.DataFrame([record["row"] for record in failed.values()])))
    results = pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)
    if not len(results):
        raise UserError(f"{file}: holds no rows yet; run the same command again to go on")
    usual = RunModel.model_validate({}).model_dump(by_alias=True)
    commands = [{**usual, **command} for command in _runs(root / "run.json")]
    told = {key: {k: v for k, v in record.items() if k != "rows"} for key, record in records.items()}
    return Run(root, results, commands, told, [*notes, *_other_weights(commands, records)], records)


def _disagreement(listed: pd.DataFrame | None, recorded: pd.DataFrame, cells: int) -> list[str]:
    """Return what a reader should know of a results.csv that is not the one its records would give."""
    if listed is None:
        return [f"results.csv is not written yet: {cells} cells are finished and the run is not"]
    told = ["cell", "judge", "exit", "steps", "eps"]  # of a sweep, every eps has a row
    both = listed[listed["status"] == "ok"].merge(recorded, on=told, suffixes=("", "_recorded"))
    differs = pd.Series(False, index=both.index)
    for name in RESULT_COLUMNS:
        if name not in told:
            ours, theirs = both[name], both[f"{name}_recorded"]
            is_other = (ours != theirs).fillna(False).astype(bool)
            for side in (ours, theirs):  # what came later is missing in one that is older
                is_other &= side.notna() & (side != "").fillna(False).astype(bool)
            differs |= is_other
    here = listed[listed["cell"].isin(recorded["cell"]) & (listed["status"] == "ok")]
    there = recorded[recorded["cell"].isin(here["cell"])]
    alone = max(len(here) - len(both), len(there) - len(both.drop_duplicates(told)))
    unlike = int(differs.sum()) + alone + int(here.duplicated(told).sum())
    lacking = len(set(recorded["cell"]) - set(listed["cell"]))
    notes = (
        [f"{unlike} rows of results.csv differ from the cells' records, which are shown"] if unlike else []
    )
    if lacking:
        notes.append(f"results.csv is older than {lacking} of the cells, which are shown")
    return notes


def _other_weights(commands: Sequence[Row], records: Mapping[str, Row]) -> list[str]:
    """Return a note on each model whose record has weights that no command in run.json tells of."""
    told: dict[str, set[str]] = {}
    for command in commands:
        for model, weights in command["weights"].items():
            told.setdefault(model, set()).add(weights)
    found = {(record["cell"]["model"], record["provenance"]["weights_sha256"]) for record in records.values()}
    return [
        f"{model}: its cells were made with weights {weights[:8]}, of which run.json does not tell"
        for model, weights in sorted(found)
        if model in told and weights not in told[model]
    ]


def _runs(path: Path) -> list[Row]:
    """Return what run.json lists, nothing where there is none."""
    if not path.exists():
        return []
    runs = read_json(path)
    check(RunsModel, {"runs": runs}, path, what="a list of commands")
    return list(runs)


def read_outcomes(root: Path) -> list[Outcome]:
    """Return every finished cell of a results directory or a baseline, in an order of their own content.

    Raises UserError where there is neither, or where two of its files don't tell the same.
    """
    if is_baseline(root):
        found = read_baseline(root)
    elif (root / "cells").is_dir():
        failed = read_failed(root)
        paths = sorted((root / "cells").glob("*.json"))
        found = [_read_cell(root, path) for path in paths if path.stem not in failed]
    else:
        raise UserError(
            f"{root}: expected a results directory or a baseline, found neither cells/ nor baseline.json; "
            f"make one with `robustglimpse bench --out {root}`, or a baseline with `robustglimpse regress "
            f"{root} RUN --update --reason TEXT`"
        )
    return sorted(found, key=lambda outcome: json.dumps(outcome.cell, sort_keys=True))


def _read_cell(root: Path, path: Path) -> Outcome:
    record = read_record(path)
    check_schema(record, path)
    frame = read_cell_outcomes(root / "outcomes" / f"{path.stem}.csv.gz", record)
    last = record["rows"][-1].get("eps")  # a sweep's largest
    curves = [
        Curve(row["exit"], row["judge"], row["steps"], right)
        for row, right in curves_of(record, frame, path)
        if row.get("eps") == last
    ]
    eps_text = str(record["rows"][-1]["eps_text"])
    index = np.unique(frame["index"].to_numpy())
    return Outcome(record["cell"], Provenance.of(record["provenance"]), eps_text, index, tuple(curves))


def read_failures(root: Path) -> list[Row]:
    """Return the rows that tell of crashed cells of a results directory: of failures/ and of results.csv.

    Where there is no failures/, an older version ran, which kept a crash in results.csv alone.
    """
    if is_baseline(root):
        return []
    failed = read_failed(root)
    rows = [_typed(pd.DataFrame([record["row"] for record in failed.values()]))] if failed else []
    if (root / "results.csv").is_file():
        listed = _read_one(root / "results.csv")
        mended = {path.stem for path in (root / "cells").glob("*.json") if (root / "failures").is_dir()}
        is_hole = (listed["status"] == "failed") & ~listed["cell"].isin([*failed, *mended])
        rows.append(listed[is_hole])
    return [{str(k): v for k, v in row.items()} for frame in rows for row in frame.to_dict("records")]
