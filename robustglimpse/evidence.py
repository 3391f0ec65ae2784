"""A cell's own files: its record, its crash and its outcomes. Each is checked before it counts.

What is damaged is never half believed: a UserError names the file, what is wrong in it, and what to do.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustglimpse.columns import Columns
from robustglimpse.corruptions import CORRUPTIONS
from robustglimpse.data.precomputed import is_own_name
from robustglimpse.files import read_file
from robustglimpse.records import SCHEMA, UserError
from robustglimpse.schema import (
    AGAIN,
    FailureModel,
    OriginModel,
    RecordModel,
    check,
    key_of,
    read_json,
)
from robustglimpse.sheets import read_csv
from robustglimpse.texts import one_line

Row = dict[str, Any]
SORT_BY = [
    "model", "kind", "attack", "norm", "eps", "protocol", "judge", "corruption", "severity", "exit", "steps",
]  # fmt: skip
ALIKE = 1e-3  # how far two answers may differ, as a share of the largest: machines round otherwise


@dataclass(frozen=True)
class Provenance:
    """What a cell's numbers depend on beside its description: the weights, the data, what the model answers.

    labels_sha256: of the labels as the model numbers them.
    images_sha256: of which images these are and their true classes, however they were prepared; what two
        models must share to be paired.  listing_sha256: of their names, which cells of one mean must share.
    answers: logits of a few probe images, a row each (models.preflight.answers): where a hash does not see
        that a model has changed, these do.  Empty in records of older versions, which are made again.
    machine: what computed the numbers (machine.name_of), "" in older records.  It decides nothing: another
        machine may go on with a cell, but the gate must know why last bits differ.
    """

    weights_sha256: str
    data_sha256: str
    labels_sha256: str = ""
    images_sha256: str = ""
    listing_sha256: str = ""
    answers: tuple[tuple[float, ...], ...] = ()
    machine: str = ""

    @property
    def made_from(self) -> tuple[str, str]:
        """The hashes of the weights and of the data: what a baseline of the gate keeps."""
        return self.weights_sha256, self.data_sha256

    @staticmethod
    def of(kept: Mapping[str, Any]) -> Provenance:
        """Return the provenance that a file tells of; what a later version adds to it is passed over."""
        known = {f.name: kept[f.name] for f in fields(Provenance) if f.name in kept}
        return Provenance(**{**known, "answers": tuple(map(tuple, known.get("answers", ())))})

    def difference(self, kept: Mapping[str, Any]) -> str:
        """Return why what was kept under another provenance does not count under this one, or ""."""
        before = Provenance.of(kept)
        if before.weights_sha256 != self.weights_sha256:
            return "the model's weights or code have changed"
        if before.data_sha256 != self.data_sha256:
            return "the data has changed"
        if not before.answers or not before.labels_sha256:
            return "an older version made it, which kept no answers of the model"
        if before.labels_sha256 != self.labels_sha256:
            return "the labels were matched to the model's classes otherwise"
        if [len(row) for row in self.answers] != [len(row) for row in before.answers]:
            return "the model answers otherwise on the same probe images"
        ours, theirs = np.array(self.answers), np.array(before.answers)
        apart = float(np.abs(ours - theirs).max())
        if not apart <= ALIKE * float(np.abs(theirs).max()):  # NaN is not near
            return f"the model answers otherwise on the same probe images, by up to {apart:.2g}"
        return ""


def read_failed(root: Path) -> dict[str, Row]:
    """Return the records of the cells that crashed and were not made good since, by key."""
    found = {}
    for path in sorted((root / "failures").glob("*.json")):
        record = read_json(path)
        check_version(record, path)
        check(FailureModel, record, path, what="a record of a crash")
        _check_key(record, path)
        found[path.stem] = record
    return found


def read_record(path: Path) -> dict[str, Any]:
    """Return what a cell's file holds. Raises UserError where that is no record, or one of another cell."""
    record = read_json(path)
    check_version(record, path)
    check(RecordModel, record, path, what="a cell's record")
    _check_key(record, path)
    cell, made_from = record["cell"], record["provenance"]
    for row in record["rows"]:
        told = {
            "cell": path.stem, "model": cell["model"], "protocol": cell["protocol"],
            "data_sha256": made_from["data_sha256"],
        }  # fmt: skip
        other = [name for name, value in told.items() if row.get(name, value) not in (value, "")]
        if other:
            raise UserError(
                f"{path}: not a cell's record (a row has another {other[0]} than the cell); {AGAIN}"
            )
        corruption = row.get("corruption", "")
        if corruption not in ("", *CORRUPTIONS) and not is_own_name(corruption, row.get("store")):
            raise UserError(f"{path}: there is no corruption {corruption!r} here; {AGAIN}")
    return dict(record)


def read_origin(path: Path) -> dict[str, Any]:
    """Return the part of a cell's record that tells of its images and of its outcomes."""
    record = read_json(path)
    check(OriginModel, record, path, what="a cell's record")
    return {name: record[name] for name in ("provenance", "outcomes") if name in record}


def check_version(record: Any, path: Path) -> None:
    """Raise UserError where a newer version wrote the file."""
    schema = record.get("schema") if isinstance(record, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise newer(path, schema)


def _check_key(record: Row, path: Path) -> None:
    """Raise UserError where a file tells of another cell than the one that it is called by."""
    if not key_of(record["cell"]) == record.get("key", path.stem) == path.stem:
        raise UserError(f"{path}: not of the cell that it is called by (it was changed or moved); {AGAIN}")


def whole_rows(path: Path, record: Row) -> list[Row]:
    """Return a record's rows. Raises UserError where they lack what they are told apart by."""
    rows: list[Row] = record["rows"]
    for row in rows:
        lacking = [name for name in SORT_BY if name not in row]
        if lacking:
            raise UserError(f"{path}: not a cell's record (a row lacks {lacking[0]}); {AGAIN}")
    return rows


OUTCOMES_PER_BYTE = 256  # ours pack to a tenth; a file that unpacks to more is made to
LONGEST_LINE = 8192  # of outcomes
FIRST = ("index", "label", "exit", "pred")  # what outcomes always have
MOST_EXITS = 10_000
WHOLE_OUTCOMES = (
    *FIRST, "clean_pred", "first_success_step", "forwards", "backwards", "zero_gradients", "left_at",
)  # fmt: skip


def read_cell_outcomes(path: Path, record: Mapping[str, Any]) -> pd.DataFrame:
    """Return a table of outcomes. Raises UserError where it is not the one that its record tells of.

    record: the cell's, or what is known of it.
    """
    content = read_file(path)
    try:
        reason = _changed(content, record)
        if reason:
            raise ValueError(reason)
        frame = read_csv(_unpacked(content, record), ())
        _check_outcomes(frame)
    except (ValueError, TypeError, OverflowError, MemoryError, zlib.error) as error:
        reason = one_line(str(error).partition("\n")[0]) or type(error).__name__
        raise UserError(f"{path}: not a table of outcomes ({reason}); {AGAIN}") from None
    return frame


def _changed(content: bytes, record: Mapping[str, Any]) -> str:
    """Return why a file of outcomes is not the one that was written with the record, or ""."""
    kept = record.get("outcomes")
    if kept is not None and hashlib.sha256(content).hexdigest() != kept["sha256"]:
        return "it was cut or changed since it was written"
    return ""


def _unpacked(content: bytes, record: Mapping[str, Any]) -> bytes:
    """Return the table in a file of outcomes. Raises ValueError or zlib.error for a file cut short.

    Also where it unpacks to more than the lines that its record tells of.
    """
    most = OUTCOMES_PER_BYTE * len(content) + 1_000_000
    lines = sum(total for total in {row["exit"]: row["total"] for row in record.get("rows", ())}.values())
    if lines:
        most = min(most, LONGEST_LINE * (lines + 1))
    unpacking = zlib.decompressobj(wbits=31)  # of gzip
    table = unpacking.decompress(content, most + 1)
    if len(table) > most:
        raise ValueError("it unpacks to more than its record allows")
    if not unpacking.eof or unpacking.unused_data:
        raise ValueError("it is cut short, or something follows it")
    there = table.count(b"\n") - 1  # below the header
    if lines and there != lines:
        raise ValueError(f"it has {there} lines where its record has {lines}")
    return table


def _check_outcomes(frame: pd.DataFrame) -> None:
    """Raise ValueError unless every exit was judged on the same samples, each once, in numbers."""
    lacking = [name for name in FIRST if name not in frame]
    if lacking:
        raise ValueError(f"it lacks the column {lacking[0]}")
    if not len(frame):
        raise ValueError("it has no lines")
    for name in frame.columns:
        is_whole = str(name) in WHOLE_OUTCOMES or str(name).startswith("pred_at_")
        allowed = "iu" if is_whole else "iufb"
        if frame[name].dtype.kind not in allowed:
            raise ValueError(f"its column {name} does not hold {'whole ' if is_whole else ''}numbers")
    if not (frame["index"].between(0, 2**62).all() and frame["exit"].between(1, MOST_EXITS).all()):
        raise ValueError("an index is below 0, or an exit below 1")
    ordered = frame[["exit", "index"]].sort_values(["exit", "index"]).to_numpy()
    exits = len(np.unique(ordered[:, 0]))
    if len(ordered) % exits:
        raise ValueError("its exits were judged on different samples")
    index = ordered[:, 1].reshape(exits, -1)
    if len(np.unique(index[0])) < index.shape[1] or not (index == index[0]).all():
        raise ValueError("its exits were judged on different samples, or on one twice")


def damage(path: Path, record: Row) -> str:
    """Return why a finished cell's file of outcomes does not count, or ""."""
    try:
        content = read_file(path)
        reason = _changed(content, record)
        if not reason and record.get("outcomes") is None:
            _unpacked(content, record)
    except (UserError, ValueError, MemoryError, zlib.error) as error:
        return f"its outcomes are damaged: {one_line(str(error))}"
    return reason and f"its outcomes are damaged: {reason}"


def curves_of(record: Row, frame: pd.DataFrame, path: Path) -> list[tuple[Row, NDArray[np.bool_]]]:
    """Return a record's rows, each with what was right by index. Raises UserError where they don't add up.

    frame: the cell's outcomes.  path: of the record.
    """
    frame, found = frame.sort_values(["exit", "index"]), []
    most = max(row["steps"] for row in record["rows"])
    file = path.parents[1] / "outcomes" / f"{path.stem}.csv.gz"
    for row in record["rows"]:
        part = frame[frame["exit"] == row["exit"]]
        eps = row.get("eps") if "fell_at" in frame else None
        try:
            right = is_correct(part, row["judge"], row["steps"], most=most, eps=eps)
        except KeyError as error:
            raise UserError(
                f"{file}: not a table of outcomes (it lacks the column {error}); {AGAIN}"
            ) from None
        if (int(right.sum()), len(right)) != (row["correct"], row["total"]):
            raise UserError(
                f"{file}: {right.sum()} of {len(right)} correct, but {path.name} says {row['correct']} of "
                f"{row['total']}; one of them was changed: delete both and run the cell again"
            )
        found.append((row, right))
    return found


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


def newer(path: Path, schema: int) -> UserError:
    return UserError(
        f"{path}: written by a newer version (schema {schema}, this one reads up to {SCHEMA}); "
        "update with pip install --upgrade robustglimpse"
    )
