"""The only reader and writer of a results directory. A cell's record is written last.

DIR/run.json              every command that went into it, with versions and hashes
DIR/results.csv           one row per cell, exit, verdict and step count
DIR/outcomes/KEY.csv.gz   what happened to every sample of a cell
DIR/cells/KEY.json        a cell's record: its description, its provenance and its rows
DIR/parts/KEY-…/N.npz     batches of a cell under way
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

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
        """Return whether the cell's record is there, made from the same weights and data."""
        path = self._record(cell)
        if not path.exists():
            return False
        record = json.loads(path.read_text())
        return bool(record["provenance"] == asdict(provenance) and record["schema"] == SCHEMA)

    def has(self, key: str) -> bool:
        """Return whether a cell with that key is done."""
        return (self.root / "cells" / f"{key}.json").exists()

    def parts(self, cell: Cell, provenance: Provenance) -> dict[int, tuple[Columns, float]]:
        """Return the finished batches of a cell under way: first index -> (columns, seconds)."""
        found = {}
        for path in sorted(self._parts(cell, provenance).glob("*.npz")):
            with np.load(path) as arrays:
                columns = {name: arrays[name] for name in arrays.files}
            found[int(path.stem)] = (columns, float(columns.pop("seconds")[0]))
        return found

    def save_part(
        self, cell: Cell, provenance: Provenance, first: int, columns: Columns, seconds: float
    ) -> None:
        """Keep a finished batch."""
        content = io.BytesIO()
        np.savez(content, seconds=np.array([seconds]), **columns)  # type: ignore[arg-type]
        write_file(self._parts(cell, provenance) / f"{first:09d}.npz", content.getvalue())

    def finish(self, cell: Cell, provenance: Provenance, columns: Columns, rows: Sequence[Row]) -> None:
        """Write a cell's outcomes and its record, then forget its parts."""
        frame = pd.DataFrame(columns)
        content = io.BytesIO()
        frame.to_csv(content, index=False, compression={"method": "gzip", "mtime": 0})
        write_file(self.root / "outcomes" / f"{cell.key}.csv.gz", content.getvalue())
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
                rows += json.loads(path.read_text())["rows"]
        rows.sort(key=lambda row: tuple(row[name] for name in SORT_BY))
        return pd.DataFrame([*rows, *failed], columns=list(RESULT_COLUMNS))

    def write_results(self, failed: Sequence[Row] = ()) -> None:
        """Write results.csv from every finished cell."""
        frame = self.results(failed=failed)
        write_file(self.root / "results.csv", frame.to_csv(index=False).encode())

    def outcomes(self, key: str) -> pd.DataFrame:
        """Return the per-sample outcomes of the cell with that key."""
        return pd.read_csv(self.root / "outcomes" / f"{key}.csv.gz")

    def add_run(self, info: Mapping[str, Any]) -> None:
        """Add a run to run.json, which lists every different one that went into this directory."""
        path = self.root / "run.json"
        runs = json.loads(path.read_text()) if path.exists() else []
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

    def _record(self, cell: Cell) -> Path:
        return self.root / "cells" / f"{cell.key}.json"

    def _parts(self, cell: Cell, provenance: Provenance) -> Path:
        made_from = f"{provenance.weights_sha256[:8]}-{provenance.data_sha256[:8]}"
        return self.root / "parts" / f"{cell.key}-{made_from}"


def write_file(path: Path, content: bytes) -> None:
    """Write a file that appears only when it is whole. Raises UserError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); what is done so far is kept"
        ) from None


TEXT_COLUMNS = (
    "model", "backbone", "family", "weights_sha256", "dataset", "split", "kind", "attack", "norm",
    "eps_text", "protocol", "surrogate", "judge", "corruption", "store", "texture", "device", "torch",
    "robustglimpse", "cell", "status", "error",
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
    frame = frame.reindex(columns=list(RESULT_COLUMNS))  # columns that came later are there, and empty
    for name in TEXT_COLUMNS:
        frame[name] = frame[name].astype(object).where(frame[name].notna(), "").astype(str)
    for name in WHOLE_COLUMNS:
        frame[name] = frame[name].astype("Int64")
    return frame.assign(run=str(file.parent))
