"""What the JSON files of a results directory and of a baseline must hold. Raises UserError for all else.

A file is checked as a whole where it is read, and what is read stays the plain dictionary that it was: what a
later version adds is passed on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from robustglimpse.files import read_file
from robustglimpse.records import SCHEMA, UserError
from robustglimpse.registry import parse_call
from robustglimpse.texts import one_line, shortened

AGAIN = "delete it and run the same command again"
LARGEST = 2**53  # whole numbers up to here are the same as floats
MOST_SAMPLES = 100_000_000
NEAR = 1e-6  # how far a share that is written may be from the one that its counts give


def _call(text: str) -> str:
    """Return a call string that can be parsed, its radii numbers."""
    try:
        call = parse_call(text)
    except (UserError, ValueError, RecursionError, MemoryError):
        raise ValueError("it should be a call such as 'pgd(steps=4)'") from None
    radii = call.get("radii", [])
    if not (isinstance(radii, list) and all(isinstance(r, float | int) and 0 < r < 1e6 for r in radii)):
        raise ValueError("the radii should be numbers above 0")
    return text


def _number(value: float) -> float:
    if math.isinf(value):
        raise ValueError("it should not be infinite")
    return value


Count = Annotated[int, Field(ge=0, le=LARGEST)]
Whole = Annotated[int, Field(ge=-LARGEST, le=LARGEST)]
Samples = Annotated[int, Field(ge=1, le=MOST_SAMPLES)]
Finite = Annotated[float, Field(allow_inf_nan=False, ge=0)]
Number = Annotated[float, AfterValidator(_number)]  # or NaN: there is none
Share = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1)]
CallText = Annotated[str, AfterValidator(_call)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class ThreatModel(_Strict):
    """records.Threat."""

    norm: str
    eps: Finite
    scale: list[Finite] | None = None
    bounds: list[float] | None = None


class CellModel(_Strict):
    """records.Cell, as it is described in files."""

    model: str
    data: str
    split: str
    perturb: CallText
    threat: ThreatModel
    protocol: str
    restarts: Count
    limit: Count | None
    batch_size: Count
    seed: Whole
    exits: str = "last"
    classes_of_data: bool = False


class ProvenanceModel(_Strict):
    """store.Provenance."""

    weights_sha256: str
    data_sha256: str
    labels_sha256: str = ""
    images_sha256: str = ""
    listing_sha256: str = ""
    answers: list[list[float]] = []
    machine: str = ""


class DescriptionModel(_Strict):
    """A row of results.csv up to its numbers: also that of a cell that crashed."""

    schema_: Whole = Field(SCHEMA, alias="schema")
    model: str = ""
    backbone: str = ""
    family: str = ""
    weights_sha256: str = ""
    dataset: str = ""
    data_sha256: str = ""
    split: str = ""
    labels: str = ""
    classes: Count = 0
    size_px: Count = 0
    preparation: str = ""
    n: Count = 0
    n_total: Count = 0
    kind: Literal["", "clean", "attack", "corruption"] = ""
    attack: str = ""
    options: str = ""
    norm: str = ""
    eps: Finite = 0.0
    eps_text: str = ""
    step_size: Number = 0.0
    restarts: Count = 0
    protocol: str = ""
    surrogate: str = ""
    seed: Whole = 0
    corruption: str = ""
    severity: Count = 0
    preset: Count = 0
    store: str = ""
    texture: str = ""
    batch_size: Count = 0
    device: str = ""
    torch: str = ""
    robustglimpse: str = ""
    cell: str = ""


Nothing = Literal[""] | None  # how a row says that it has none


class CrashedRowModel(DescriptionModel):
    """The row of a cell that crashed: it has no number."""

    judge: str | None = None
    steps: Count | Nothing = None
    exit: Count | Nothing = None
    correct: Nothing = None
    total: Count | Nothing = None
    accuracy: Nothing = None
    ci_low: Nothing = None
    ci_high: Nothing = None
    gmacs: Number | Nothing = None
    forwards: Count | Nothing = None
    backwards: Count | Nothing = None
    seconds: Number | Nothing = None
    status: Literal["failed"]
    error: str


class RowModel(DescriptionModel):
    """A row with a number. What is not there was not asked for when it was written."""

    judge: str
    steps: Count
    exit: Annotated[int, Field(ge=1, le=10_000)]
    correct: Count
    total: Samples
    eps_text: str
    accuracy: Share | None = None
    ci_low: Number | None = None
    ci_high: Number | None = None
    gmacs: Number = 0.0
    forwards: Count = 0
    backwards: Count = 0
    seconds: Number = 0.0
    status: Literal["ok"] = "ok"
    error: str = ""

    @model_validator(mode="after")
    def _adds_up(self) -> RowModel:
        if self.correct > self.total:
            raise ValueError(f"{self.correct} of {self.total} cannot be correct")
        if self.accuracy is not None and abs(self.accuracy - self.correct / self.total) > NEAR:
            raise ValueError(f"{self.correct} of {self.total} is no accuracy of {self.accuracy}")
        return self


def is_grid(rows: Iterable[tuple[Any, ...]]) -> bool:
    """Return whether every exit has the same rows under a judge; of each: exit, judge, and the others."""
    of_exit: dict[tuple[Any, Any], set[Any]] = {}
    for exit_number, judge, *others in rows:
        of_exit.setdefault((judge, exit_number), set()).add(tuple(others))
    return all(
        others == next(o for (name, _), o in of_exit.items() if name == judge)
        for (judge, _), others in of_exit.items()
    )


class KeptModel(_Strict):
    """How a file beside a record was when it was written: its SHA-256."""

    sha256: str


class RecordModel(_Strict):
    """A cell's record, cells/KEY.json. outcomes: of its file of outcomes; None in older ones."""

    schema_: Whole = Field(alias="schema")
    key: str = ""
    cell: CellModel
    provenance: ProvenanceModel
    rows: list[RowModel] = Field(min_length=1)
    outcomes: KeptModel | None = None

    @model_validator(mode="after")
    def _adds_up(self) -> RecordModel:
        told = [(row.exit, row.judge, row.steps, row.eps) for row in self.rows]
        if len(set(told)) < len(told):
            raise ValueError("it has a row twice")
        if len({row.total for row in self.rows}) > 1:
            raise ValueError("its rows are of different numbers of samples")
        if not is_grid(told):
            raise ValueError("an exit lacks a row that others have")
        return self


class OriginModel(_Strict):
    """The part of a record that tells which images its cell saw, and how its outcomes were written."""

    provenance: ProvenanceModel
    outcomes: KeptModel | None = None


class FailureModel(_Strict):
    """A cell that crashed, failures/KEY.json."""

    schema_: Whole = Field(alias="schema")
    key: str = ""
    cell: CellModel
    row: CrashedRowModel
    traceback: str = ""


class RunModel(_Strict):
    """A command that went into a directory, an entry of run.json."""

    schema_: Whole = Field(SCHEMA, alias="schema")
    command: str = ""
    device: str = ""
    machine: dict[str, str] = {}
    asked: dict[str, Any] = {}
    versions: dict[str, str] = {}
    weights: dict[str, str] = {}
    data: dict[str, str] = {}
    cells: list[str] = []


class RunsModel(_Strict):
    """run.json, under a name."""

    runs: list[RunModel]


class EntryModel(_Strict):
    """A cell of a baseline."""

    key: str
    weights_sha256: str
    data_sha256: str
    eps: str
    cell: CellModel
    machine: str = ""


class BaselineModel(_Strict):
    """baseline.json."""

    schema_: Whole = Field(alias="schema")
    cells: list[EntryModel]
    log: list[dict[str, Any]]

    @model_validator(mode="after")
    def _adds_up(self) -> BaselineModel:
        keys = [entry.key for entry in self.cells]
        if len(set(keys)) < len(keys):
            raise ValueError("it has a cell twice")
        return self


M = TypeVar("M", bound=BaseModel)


def read_json(path: Path, *, mend: str = AGAIN) -> Any:
    """Return what a JSON file holds. Raises UserError where that is none, or names something twice."""
    content = read_file(path)
    try:
        found = json.loads(content.decode(), object_pairs_hook=_named_once)
        if b"\\ud" in content.lower():  # half a character, which no file could hold
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path}: not JSON ({_short(error)}); {mend}") from None
    return found


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def check(model: type[M], content: Any, path: Path, *, what: str, mend: str = AGAIN) -> M:
    """Return the content as a model has it. Raises UserError naming the file, what is wrong and where."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: not {what} ({_told(error)}); {mend}") from None


def _told(error: ValidationError) -> str:
    """Return the first thing that is wrong: "rows.0.correct: Input should be a valid integer, got 'x'"."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    said = str(first["msg"]).removeprefix("Value error, ")
    got = "" if isinstance(first["input"], dict | list) else f", got {shortened(first['input'])}"
    return one_line(f"{where}: {said}{got}" if where else f"{said}{got}")


def _short(error: BaseException) -> str:
    text = one_line(str(error))
    return text if 0 < len(text) < 200 else type(error).__name__


def key_of(described: Any) -> str:
    """Return the key of a cell's description: what its files are called (records.Cell.key)."""
    text = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
