"""What a report says, before it has a form: runs in, comparisons of models and their curves out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import nan
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustglimpse.models import DEFAULT_DATASET, bundled
from robustglimpse.registry import fraction_text, options_text, parse_call
from robustglimpse.report.paired import correctness, mean_interval, still_right, tie_groups
from robustglimpse.report.table2 import Table2, averaged_columns, table2
from robustglimpse.report.tables import PROTOCOL_ORDER, headline
from robustglimpse.store import Run

# Two cells with these alike did the same thing to the same images.
TASK = [
    "dataset", "split", "n", "data_sha256", "images_sha256", "kind", "attack", "options", "swept", "norm",
    "eps", "eps_text", "step_size", "restarts", "protocol", "surrogate", "seed", "corruption", "severity",
    "preset", "store", "texture",
]  # fmt: skip
VERDICT = ["judge", "exit", "steps"]
DATA = ["dataset", "split", "n", "n_total", "images_sha256"]
THREAT = ["attack", "options", "swept", "norm", "eps_text", "step_size", "restarts", "seed"]
HASHES = ["data_sha256", "images_sha256", "listing_sha256"]
NORM_TEXT = {"linf": "L∞", "l2": "L2"}


@dataclass(frozen=True)
class Entry:
    """A headline number of one model: accuracy and its interval as fractions, NaN for a hole.

    clean: the accuracy on the untouched images, NaN where no run has it.
    ties: letters; entries of a comparison that share one are not told apart.  error: why there is a hole.
    cells: (run, key) of every cell that the number is made of.  flags: what is doubtful about it.
    """

    model: str
    backbone: str
    family: str
    weights_sha256: str
    exit: int | None
    accuracy: float
    low: float
    high: float
    correct: int | None
    total: int
    clean: float
    gmacs: float
    ties: str
    error: str
    cells: tuple[tuple[str, str], ...]
    runs: tuple[str, ...]
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Entries that may be compared: the same images, the same threat, the same protocol."""

    kind: str
    data: str
    threat: str
    protocol: str
    judge: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Curves:
    """Attacked rows that share data and threat, with the clean rows of their models, for Figure 4."""

    data: str
    threat: str
    rows: pd.DataFrame


@dataclass(frozen=True)
class Sweep:
    """A set of corrupted cells that several models share, as Table 2.

    correct: f64, a row per model, exit and corruption, a column per image; empty where not kept.
    """

    data: str
    threat: str
    table: Table2
    rows: pd.DataFrame
    correct: pd.DataFrame


@dataclass(frozen=True)
class Exits:
    """Accuracy of every exit of several models under one condition, for Figure 3.

    points: columns shown, family, exit, gmacs, accuracy, ci_low, ci_high; intervals NaN where unknown.
    """

    data: str
    condition: str
    points: pd.DataFrame


@dataclass(frozen=True)
class Board:
    """Everything that runs have to say.

    rows: finished cells, each verdict once; columns run, swept, runs and flags beside those of results.csv.
    failed: cells that crashed and that no run finished.
    """

    runs: Mapping[str, Run]
    rows: pd.DataFrame
    failed: pd.DataFrame
    notes: Sequence[str]
    _outcomes: dict[tuple[str, str], pd.DataFrame | None] = field(default_factory=dict, repr=False)

    def outcomes(self, run: str, key: str) -> pd.DataFrame | None:
        """Return a cell's outcomes, read once, or None where they are not kept."""
        if (run, key) not in self._outcomes:
            self._outcomes[run, key] = self.runs[run].outcomes(key) if key else None
        return self._outcomes[run, key]

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """The headline, in reading order: clean images, attacks from mild to hard, corruptions."""
        return [*_clean(self), *_attacked(self), *_corrupted(self)]

    @cached_property
    def curves(self) -> list[Curves]:
        """Accuracy against steps, a set per data and threat."""
        quoted = headline(self.rows, all_exits=True)
        clean, attacked = quoted[quoted["kind"] == "clean"], quoted[quoted["kind"] == "attack"]
        found = []
        for key, group in attacked.groupby([*DATA, *THREAT], sort=False, dropna=False):
            at = dict(zip([*DATA, *THREAT], key, strict=True))
            beside = _same(clean, at, DATA)
            beside = beside[beside["model"].isin(group["model"])]
            found.append(Curves(_data_text(at), _threat_text(at), pd.concat([beside, group])))
        return found

    @cached_property
    def exits(self) -> list[Exits]:
        """Accuracy against cost where several exits of a model were judged, a set per condition."""
        found = [*_exits_of_cells(self), *_exits_of_sweeps(self)]
        return [each for each in found if each.points.groupby("shown")["exit"].nunique().gt(1).any()]

    @cached_property
    def sweeps(self) -> list[Sweep]:
        """Table 2, one per set of corruptions."""
        found = []
        for threat, group in _sweep_groups(self):
            last_clean = self.rows[self.rows["kind"] == "clean"]
            clean = _same(last_clean, group.iloc[0], ["dataset", "split", "n", "images_sha256"])
            rows = pd.concat([clean[clean["model"].isin(group["model"])], group])
            rows = rows.assign(model=rows["shown"])
            correct = _correctness(self, group)
            found.append(Sweep(_data_text(group.iloc[0]), threat, table2(rows, correct), rows, correct))
        return found


def make_board(runs: Sequence[Run]) -> Board:
    """Return what the runs say together: what several have is told once, contradictions are flagged."""
    for run in runs:
        run.check()
    named = dict(zip(_names(runs), runs, strict=True))
    told = pd.concat([_with_source(name, run) for name, run in named.items()], ignore_index=True)
    is_ok = told["status"] == "ok"
    rows, failed = _merge(told[is_ok]), told[~is_ok]
    done = rows[["model", *TASK]].drop_duplicates().assign(is_done=True)
    failed = failed.drop_duplicates(["model", *TASK]).assign(shown=failed["model"])
    if len(failed) and len(done):
        failed = failed.merge(done, how="left", on=["model", *TASK])
        failed = failed[failed["is_done"].isna()].drop(columns="is_done")
    notes = [
        f"{name}: {note}"
        for name, run in named.items()
        for note in [*run.notes, *_unfinished(run), *_not_as_bundled(run.results)]
    ]
    return Board(named, rows, failed, notes)


def _not_as_bundled(rows: pd.DataFrame) -> list[str]:
    """Return a note on each model that is called as a bundled one and has other weights."""
    named = rows[["model", "weights_sha256"]].drop_duplicates().itertuples(index=False, name=None)
    return [
        f"{model}: its weights {weights[:8]} are not those of the bundled model of that name"
        for model, weights in named
        if _is_other_than_bundled(model, weights)
    ]


def _is_other_than_bundled(model: str, weights: str) -> bool:
    row = bundled().get(model if "@" in model else f"{model}@{DEFAULT_DATASET}")
    return row is not None and bool(weights) and weights != row.sha256


def _names(runs: Sequence[Run]) -> list[str]:
    """Return the directories' own names, with as much of the path as tells them apart."""
    parts = [run.root.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _unfinished(run: Run) -> list[str]:
    asked = list(dict.fromkeys(key for command in run.commands for key in command.get("cells", [])))
    known = set(run.results["cell"])
    lacking = [key for key in asked if key not in known]
    return [f"{len(lacking)} of {len(asked)} cells asked for are not there yet"] if lacking else []


def _with_source(name: str, run: Run) -> pd.DataFrame:
    """Return a run's rows with its name, the hashes of the data, the options of each call and what it swept.

    images_sha256: which photographs, however they were prepared: models that share it are compared.
    listing_sha256: their names alone, which the cells of a set that was saved corrupted share.
    is_last_exit, is_most_steps: what a cell is quoted by; marked here, for merging runs takes cells apart.
    """
    rows = run.results
    cells = rows["cell"].tolist()
    calls = {key: str(record.get("cell", {}).get("perturb", "")) for key, record in run.records.items()}
    origins = {key: record.get("provenance", {}) for key, record in run.records.items()}
    data = {key: str(origin.get("data_sha256", "")) for key, origin in origins.items()}
    images = {key: str(origin.get("images_sha256") or data[key]) for key, origin in origins.items()}
    listing = {key: str(origin.get("listing_sha256", "")) for key, origin in origins.items()}
    options = {key: options_text(call) for key, call in calls.items()}
    swept = {key: _swept_text(call) for key, call in calls.items()}
    listed = rows["options"].astype(object).where(rows["options"].notna(), "").astype(str)
    rows = rows.assign(
        run=name, data_sha256=[data.get(cell, "") for cell in cells],
        images_sha256=[images.get(cell, "") for cell in cells],
        listing_sha256=[listing.get(cell, "") for cell in cells],
        options=[options.get(cell, text) for cell, text in zip(cells, listed, strict=True)],
        swept=[swept.get(cell, "") for cell in cells],
    )  # fmt: skip
    # A crashed cell has no record: it saw and did what the others of its run saw and did.
    told_by = {name: ["dataset", "split", "n"] for name in HASHES} | {"swept": ["attack"]}
    if (listed != rows["options"]).any():  # an older results.csv, which says nothing of options
        told_by["options"] = ["attack"]
    for column, alike in told_by.items():
        known = rows[rows["status"] == "ok"].groupby(alike)[column].agg(["nunique", "first"])
        known = known.loc[known["nunique"] == 1, ["first"]].reset_index()
        found = rows[alike].merge(known, how="left", on=alike)["first"].set_axis(rows.index)
        rows[column] = rows[column].where(rows["status"] == "ok", found.fillna(""))
    by_cell = rows.groupby(["cell", "model", "weights_sha256", *TASK], dropna=False)
    for mark, column in {"is_last_exit": "exit", "is_most_steps": "steps"}.items():
        rows[mark] = (rows[column] == by_cell[column].transform("max")).fillna(False).astype(bool)
    return rows


def _swept_text(call: str) -> str:
    """Return "swept over 2/255, 4/255" of a sweep: what fell at one eps counts as fallen at those above."""
    radii = parse_call(call).get("radii", [])
    return "swept over " + ", ".join(map(fraction_text, radii)) if radii else ""


def _merge(rows: pd.DataFrame) -> pd.DataFrame:
    """Return every verdict once, with the runs that have it; contradicting ones all stay, flagged.

    shown: the model's name, with its weights' hash where one name stands for several weights.
    """
    weights = rows.groupby("model")["weights_sha256"].transform("nunique")
    shown = rows["model"].where(weights <= 1, rows["model"] + " (" + rows["weights_sha256"].str[:8] + ")")
    rows = rows.assign(shown=shown)
    same = ["model", "weights_sha256", *TASK, *VERDICT]
    groups = rows.groupby([*same, "correct"], sort=False, dropna=False)
    names = groups["run"].transform(lambda run: "\n".join(dict.fromkeys(run)))
    marks = {mark: groups[mark].transform("any") for mark in ("is_last_exit", "is_most_steps")}
    rows = rows.assign(runs=names, **marks).drop_duplicates([*same, "correct"])
    by_verdict = rows.groupby(same, sort=False, dropna=False)
    told = rows["run"] + ": " + rows["correct"].astype(str) + " of " + rows["total"].astype(str)
    rows = rows.assign(told=told, count=by_verdict["correct"].transform("size"))
    flags = rows.groupby(same, sort=False, dropna=False)["told"].transform("; ".join)
    rows["flags"] = ("the same cell came out differently: " + flags).where(rows["count"] > 1, "")
    is_several = rows["shown"] != rows["model"]
    rows.loc[is_several & (rows["flags"] == ""), "flags"] = "one name, several weights"
    named = zip(rows["model"], rows["weights_sha256"], strict=True)
    is_other = pd.Series([_is_other_than_bundled(*each) for each in named], index=rows.index, dtype=bool)
    rows.loc[is_other & (rows["flags"] == ""), "flags"] = "not the bundled weights of that name"
    return rows.drop(columns=["told", "count"]).reset_index(drop=True)


def _same(rows: pd.DataFrame, at: Any, columns: Sequence[str]) -> pd.DataFrame:
    """Return the rows that are as at is in the columns."""
    fits = pd.Series(True, index=rows.index)
    for name in columns:
        fits &= rows[name].isna() if pd.isna(at[name]) else rows[name] == at[name]
    return rows[fits]


def _data_text(at: Any) -> str:
    """Return "glimpse-digits, test, 200 of 1000 images"."""
    images = f"{at['n']}" if at["n"] == at["n_total"] else f"{at['n']} of {at['n_total']}"
    return ", ".join(str(part) for part in (at["dataset"], at["split"], f"{images} images") if part)


def _threat_text(at: Any) -> str:
    """Return "PGD, L∞ 4/255, steps of 1/255"."""
    parts = [str(at["attack"]).upper(), f"{NORM_TEXT.get(at['norm'], at['norm'])} {at['eps_text']}"]
    if not pd.isna(at["step_size"]):
        parts.append(f"steps of {fraction_text(float(at['step_size']))}")
    if not pd.isna(at["restarts"]) and at["restarts"] > 1:
        parts.append(f"restarts {at['restarts']}")
    if not pd.isna(at["seed"]) and at["seed"] != 0:
        parts.append(f"seed {at['seed']}")
    return ", ".join([*parts, *(at[name] for name in ("options", "swept") if at[name])])


def _clean_of(board: Board, row: Any) -> float:
    """Return the clean accuracy of the row's exit on the row's images, NaN where it is not known."""
    clean = board.rows[board.rows["kind"] == "clean"]
    found = _same(clean, row, ["model", "weights_sha256", "dataset", "split", "n", "exit", "images_sha256"])
    return float(found["accuracy"].iloc[0]) if found["correct"].nunique() == 1 else nan


def _scores(board: Board, row: Any) -> pd.Series[float] | None:
    """Return per sample whether the row's exit was right, or None where that is not kept."""
    outcomes = board.outcomes(row["run"], row["cell"])
    if outcomes is None:
        return None
    of_cell = board.rows[(board.rows["run"] == row["run"]) & (board.rows["cell"] == row["cell"])]
    if "fell_at" in outcomes:  # of a sweep: who fell at a larger eps still stands at this one
        stands = outcomes["fell_at"] > row["eps"]
        outcomes = outcomes.assign(first_success_step=np.where(stands, -1, 0))
    return still_right(
        outcomes, exit_number=row["exit"], judge=row["judge"], steps=row["steps"],
        most=int(of_cell["steps"].max()),
    )  # fmt: skip


def _entry(board: Board, row: Any) -> Entry:
    """Return a row as an entry without ties."""
    return Entry(
        model=row["shown"], backbone=row["backbone"], family=row["family"],
        weights_sha256=row["weights_sha256"], exit=int(row["exit"]), accuracy=float(row["accuracy"]),
        low=float(row["ci_low"]), high=float(row["ci_high"]), correct=int(row["correct"]),
        total=int(row["total"]), clean=_clean_of(board, row), gmacs=float(row["gmacs"]), ties="", error="",
        cells=((row["run"], row["cell"]),), runs=tuple(row["runs"].split("\n")),
        flags=(row["flags"],) if row["flags"] else (),
    )  # fmt: skip


def _hole(row: Any, error: str, cells: Sequence[tuple[str, str]] = ()) -> Entry:
    """Return the entry of a model that has no number here."""
    return Entry(
        model=row["shown"], backbone=row["backbone"], family=row["family"],
        weights_sha256=row["weights_sha256"], exit=None, accuracy=nan, low=nan, high=nan, correct=None,
        total=int(row["n"]), clean=nan, gmacs=nan, ties="", error=error,
        cells=tuple(cells) or ((row["run"], row["cell"]),), runs=(row["run"],), flags=(),
    )  # fmt: skip


def _ordered(
    pairs: Sequence[tuple[Entry, pd.Series[float] | None]], holes: Sequence[Entry]
) -> tuple[Entry, ...]:
    """Return the entries with their ties, the highest first, holes last."""
    letters = tie_groups([scores for _, scores in pairs])
    entries = [replace(entry, ties=ties) for (entry, _), ties in zip(pairs, letters, strict=True)]
    return (*sorted(entries, key=lambda e: (-e.accuracy, e.model)), *sorted(holes, key=lambda e: e.model))


def _compare(board: Board, rows: pd.DataFrame, failed: pd.DataFrame) -> tuple[Entry, ...]:
    rows = _with_preparations(rows)
    pairs = [(_entry(board, row), _scores(board, row)) for row in rows.to_dict("records")]
    return _ordered(pairs, [_hole(row, str(row["error"])) for row in failed.to_dict("records")])


def _with_preparations(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows, each with a flag that says how it saw the images where they did not see them alike."""
    if len(rows[["preparation", "size_px"]].drop_duplicates()) < 2:
        return rows
    told = "images " + rows["preparation"] + ", " + rows["size_px"].astype(str) + " px"
    told = told.where(rows["preparation"] != "", "")
    flags = ["; ".join(filter(None, pair)) for pair in zip(rows["flags"], told, strict=True)]
    return rows.assign(flags=flags)


def _groups(
    rows: pd.DataFrame, failed: pd.DataFrame, columns: Sequence[str]
) -> Iterator[tuple[Any, pd.DataFrame, pd.DataFrame]]:
    """Yield what a group has in common, its rows and its failed rows, in order of first appearance."""
    both = pd.concat([rows[list(columns)], failed[list(columns)]]).drop_duplicates()
    for at in both.to_dict("records"):
        yield at, _same(rows, at, columns), _same(failed, at, columns)


def _clean(board: Board) -> Iterator[Comparison]:
    rows = board.rows[(board.rows["kind"] == "clean") & board.rows["is_last_exit"]]
    failed = board.failed[board.failed["kind"] == "clean"]
    for at, ours, holes in _groups(rows, failed, DATA):
        yield Comparison("clean", _data_text(at), "", "", "", _compare(board, ours, holes))


def _attacked(board: Board) -> Iterator[Comparison]:
    quoted = headline(board.rows, all_exits=True)
    rows = quoted[(quoted["kind"] == "attack") & quoted["is_last_exit"] & quoted["is_most_steps"]]
    failed = board.failed[board.failed["kind"] == "attack"]
    order = {name: k for k, name in enumerate(PROTOCOL_ORDER)}
    found = []
    shared = [*DATA, *THREAT, "protocol"]
    for at, ours, holes in _groups(rows, failed, shared):
        counts = sorted(ours["steps"].unique()) or [0]
        for steps in counts:
            of_count = ours[ours["steps"] == steps]
            text = _threat_text(at) + (f", after {_steps(int(steps))}" if steps else "")
            judge = str(of_count["judge"].iloc[0]) if len(of_count) else ""
            entries = _compare(board, of_count, holes)
            comparison = Comparison("attack", _data_text(at), text, at["protocol"], judge, entries)
            rank = order.get(at["protocol"], -1)
            found.append(((comparison.data, _threat_text(at), int(steps), rank), comparison))
    firsts = list(dict.fromkeys(key[:2] for key, _ in found))
    found.sort(key=lambda pair: (firsts.index(pair[0][:2]), *pair[0][2:]))
    yield from (comparison for _, comparison in found)


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"


def _sweep_groups(board: Board) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield corrupted rows that belong together, crashed cells among them, and what they show."""
    failed = board.failed.assign(runs=board.failed["run"])
    rows = pd.concat([each[each["kind"] == "corruption"] for each in (board.rows, failed)], ignore_index=True)
    rows["member"] = rows["runs"].str.split("\n")
    is_saved = rows["preset"] == 0  # each cell then is a set of files of its own, and its split names it
    rows["split"] = rows["split"].where(~is_saved, "")
    sets: dict[tuple[Any, ...], list[pd.DataFrame]] = {}
    base = ["dataset", "split", "n", "seed", "store"]
    of_cell = ["corruption", "severity", "preset", "images_sha256"]
    for key, group in rows.explode("member").groupby(["member", *base], sort=False, dropna=False):
        for cells, models in _by_cells(group, of_cell):
            sets.setdefault((*key[1:], cells), []).append(models)
    for groups in sets.values():
        together = pd.concat(groups)
        together = together[~together.index.duplicated()]
        names, severities = together["corruption"].unique(), sorted(together["severity"].unique())
        what = names[0] if len(names) == 1 else f"{len(names)} corruptions"
        by = f"severity {severities[0]}" if len(severities) == 1 else f"{len(severities)} severities"
        store = together["store"].iloc[0]
        extra = f", {store}" if store not in ("", "exact") else ""
        seed = together["seed"].iloc[0]
        yield f"{what} at {by}{extra}" + (f", seed {seed}" if seed else ""), together


def _by_cells(
    group: pd.DataFrame, of_cell: Sequence[str]
) -> Iterator[tuple[frozenset[tuple[Any, ...]], pd.DataFrame]]:
    """Yield the rows of the models that saw the same images under the same corruptions, and what they saw."""
    seen = {
        model: frozenset(rows[list(of_cell)].itertuples(index=False, name=None))
        for model, rows in group.groupby("shown", sort=False)
    }
    for cells in dict.fromkeys(seen.values()):
        yield cells, group[group["shown"].map(seen).map(cells.__eq__)]


def _corrupted(board: Board) -> Iterator[Comparison]:
    for threat, group in _sweep_groups(board):
        last = group[(group["status"] != "ok") | (group["is_last_exit"])]
        names = list(dict.fromkeys(group["corruption"]))
        averaged = averaged_columns(names)
        last = last[last["corruption"].isin(averaged)]
        severities = last["severity"].unique()
        pairs, holes = [], []
        for _, rows in last.groupby(["shown", "weights_sha256"], sort=False):
            ok = rows[rows["status"] == "ok"]
            asked = len(averaged) * len(severities)
            first = rows.to_dict("records")[0]
            cells = list(dict.fromkeys(zip(rows["run"], rows["cell"], strict=True)))
            is_once = not ok.duplicated(["corruption", "severity"]).any()
            if is_once and ok["listing_sha256"].nunique() > 1:
                holes.append(_hole(first, "its cells hold different images, which have no mean", cells))
            elif len(ok) == asked and is_once:
                pairs.append(_mean_entry(board, ok, cells))
            elif not is_once:
                holes.append(_hole(first, "runs contradict each other on its cells", cells))
            else:
                holes.append(_hole(first, _lacking(rows, ok, asked), cells))
        yield Comparison("corruption", _data_text(group.iloc[0]), threat, "", "mean", _ordered(pairs, holes))


def _lacking(rows: pd.DataFrame, ok: pd.DataFrame, asked: int) -> str:
    errors = dict.fromkeys(rows.loc[rows["status"] != "ok", "error"])
    return f"{len(ok)} of {asked} cells" + "".join(f"; {error}" for error in errors)


def _mean_entry(
    board: Board, rows: pd.DataFrame, cells: Sequence[tuple[str, str]]
) -> tuple[Entry, pd.Series[float] | None]:
    """Return the mean over a model's cells, its interval from the images, and each image's mean."""
    row = rows.to_dict("records")[0]
    each = [_scores(board, r) for r in rows.to_dict("records")]
    whole = [scores for scores in each if scores is not None]
    scores: pd.Series[float] | None = None
    low = high = nan
    if len(whole) == len(each) and all(s.index.equals(whole[0].index) for s in whole):
        per_image: NDArray[np.float64] = np.mean([s.to_numpy() for s in whole], axis=0)
        scores = pd.Series(per_image, index=whole[0].index, dtype=float)
        interval = mean_interval(per_image)
        low, high = interval.low, interval.high
    entry = Entry(
        model=row["shown"], backbone=row["backbone"], family=row["family"],
        weights_sha256=row["weights_sha256"], exit=int(row["exit"]), accuracy=float(rows["accuracy"].mean()),
        low=low, high=high, correct=None, total=int(row["n"]), clean=_clean_of(board, row),
        gmacs=float(row["gmacs"]), ties="", error="", cells=tuple(cells),
        runs=tuple(dict.fromkeys(name for names in rows["runs"] for name in names.split("\n"))),
        flags=tuple(dict.fromkeys(flag for flag in rows["flags"] if flag)),
    )  # fmt: skip
    return entry, scores


def _correctness(board: Board, rows: pd.DataFrame) -> pd.DataFrame:
    """Return what each exit left right, for table2, from the outcomes that are kept."""
    ok = rows[rows["status"] == "ok"].to_dict("records")
    kept = ((row, _scores(board, row)) for row in ok)
    return correctness(
        ((row["shown"], int(row["exit"]), row["corruption"]), scores)
        for row, scores in kept
        if scores is not None
    )


def _exits_of_cells(board: Board) -> Iterator[Exits]:
    """Yield clean accuracies, and attacked ones at the most steps, per exit."""
    quoted = headline(board.rows, all_exits=True)
    quoted = quoted[quoted["gmacs"].notna() & (quoted["kind"] != "corruption")]
    for key, rows in quoted.groupby([*DATA, "kind", *THREAT, "protocol"], sort=False, dropna=False):
        at = dict(zip([*DATA, "kind", *THREAT, "protocol"], key, strict=True))
        last = rows[rows["steps"] == rows["steps"].max()]
        condition = "clean images"
        if at["kind"] == "attack":
            steps = _steps(int(rows["steps"].max()))
            condition = f"{_threat_text(at)}, after {steps}, protocol {at['protocol']}"
        yield Exits(_data_text(at), condition, last)


def _exits_of_sweeps(board: Board) -> Iterator[Exits]:
    """Yield mean accuracies over corruptions per exit, with intervals from the images."""
    for sweep in board.sweeps:
        values = sweep.table.values
        first = sweep.rows.drop_duplicates("shown").set_index("shown")
        intervals = [
            _table_interval(sweep, at) for at in zip(values["model"], values["glimpses"], strict=True)
        ]
        points = pd.DataFrame(
            {
                "shown": values["model"],
                "family": values["model"].map(first["family"]),
                "exit": values["glimpses"],
                "gmacs": values["gmacs"],
                "accuracy": values["average"],
                "ci_low": [low for low, _ in intervals],
                "ci_high": [high for _, high in intervals],
            }
        )
        points = points[points["accuracy"].notna() & points["gmacs"].notna()]
        if len(points):
            yield Exits(sweep.data, sweep.threat, points)


def _table_interval(sweep: Sweep, at: tuple[str, int]) -> tuple[float, float]:
    """Return the interval of a row's average in Table 2, from each image's mean."""
    if not len(sweep.correct):
        return nan, nan
    averaged = averaged_columns(sweep.table.corruptions)
    scores = sweep.correct[sweep.correct.index.get_level_values("corruption").isin(averaged)]
    mine = scores[[(model, exit_number) == at for model, exit_number, _ in scores.index]]
    if len(mine) < len(averaged):
        return nan, nan
    interval = mean_interval(mine.to_numpy(np.float64).mean(axis=0))
    return interval.low, interval.high
