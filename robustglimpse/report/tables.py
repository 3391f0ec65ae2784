"""Tables: frames of results in, text out. Percent signs and rounding live here and nowhere else."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustglimpse.records import PROTOCOLS, UserError
from robustglimpse.registry import fraction_text
from robustglimpse.texts import safe

# From the mildest to the hardest, as readers should meet them.
PROTOCOL_ORDER = tuple(sorted(PROTOCOLS, key=lambda name: PROTOCOLS[name].rank))
ESTIMATE = ["accuracy", "ci_low", "ci_high"]
# What an attacked row shares with the clean row of the same images.
UNTOUCHED = [
    "model", "exit", "weights_sha256", "dataset", "data_sha256", "split", "n", "size_px", "batch_size", "run",
]  # fmt: skip
# How a label says what tells its cell from others: what was done, and to which images, ...
DONE = {
    "norm": "{}", "eps_text": "eps {}", "steps": "{:.0f} steps", "step_size": "steps of {}",
    "restarts": "restarts {:.0f}", "seed": "seed {:.0f}", "dataset": "{}", "split": "{}",
    "size_px": "{:.0f} px", "n": "{:.0f} images",
}  # fmt: skip
# ... and whose numbers they are.
WHOSE = {
    "weights_sha256": "weights {:.8}", "data_sha256": "data {:.8}", "run": "{}",
    "batch_size": "batches of {:.0f}", "cell": "cell {:.8}",
}  # fmt: skip
# The columns that change along a line of a table or figure: a sweep's steps grow with its eps.
ALONG = {"steps": ("steps",), "eps": ("eps", "eps_text", "step_size")}


def headline(results: pd.DataFrame, *, all_exits: bool = False) -> pd.DataFrame:
    """Return the rows that a protocol is quoted by: its first verdict, clean rows, the last exit.

    In reading order: by backbone, family, model, attack, and protocol from the mildest to the hardest.
    all_exits: keep the earlier exits too.
    """
    rows = results[results["status"] == "ok"]
    order = rows["protocol"].map({name: i for i, name in enumerate(PROTOCOL_ORDER)})
    rows = rows.assign(order=order.fillna(-1)).sort_values(
        ["backbone", "family", "model", "attack", "options", "exit", "order", "steps"],
        kind="stable",
        na_position="first",
    )
    first_judge = {name: protocol.judges[0] for name, protocol in PROTOCOLS.items()}
    is_first = rows["judge"] == rows["protocol"].map(first_judge).fillna("worst")
    has_one = ~rows["cell"].isin(rows.loc[is_first, "cell"])  # attacks that run long: worst alone
    is_quoted = (rows["kind"] == "clean") | is_first | has_one
    rows = rows[is_quoted].drop(columns="order")
    if all_exits:
        return rows
    of_network = rows.groupby(["model", "weights_sha256"], dropna=False)
    return rows[rows["exit"] == of_network["exit"].transform("max")]


def lines_of(
    rows: pd.DataFrame, *, along: Literal["steps", "eps"], beside: Sequence[str] = ()
) -> pd.DataFrame:
    """Return the attacked rows with `line`, a number for the rows of one cell and exit, and its label.

    along: what changes along a line.  The label is in two columns: attack, now with the options of the call
    ("pgd(loss='dlr')"), and apart, what tells lines apart that would else be called alike (", seed 1"), ""
    where nothing has to.  beside: columns that are shown next to model, exit, attack and protocol.
    Raises UserError where a row is there twice: no number is a mean of two.
    """
    attacked = rows[rows["kind"] == "attack"]
    lines = attacked.reindex(columns=list(dict.fromkeys([*attacked, "options", *DONE, *WHOSE])))
    lines["attack"] = [called(*call) for call in zip(lines["attack"], lines["options"], strict=True)]
    named = ["model", "exit", "attack", "protocol"]
    keys = [column for column in [*named, *DONE, *WHOSE] if column not in ALONG[along]]
    lines["line"] = lines.groupby(keys, sort=False, dropna=False).ngroup()
    twice = lines[lines.duplicated(["line", along])]
    if len(twice):
        row = twice.iloc[0]
        raise UserError(
            f"expected one row for {row['attack']} on {row['model']}, {row['protocol']}, at {along} "
            f"{row[along]}, got two that nothing tells apart; read every results.csv once"
        )
    ends = lines.sort_values(along, kind="stable").drop_duplicates("line", keep="last").sort_values("line")
    # A sweep's step is told too: that of its largest eps.
    told = [name for name in DONE if name not in (*beside, *ALONG[along]) or name == "step_size"]
    return lines.assign(apart=lines["line"].map(_apart(ends, told, [*named, *beside])))


def _apart(ends: pd.DataFrame, told: Sequence[str], named: Sequence[str]) -> dict[int, str]:
    """Return by line what its label has to add to the columns in named.

    ends: a row per line.  What was done is added to every line of an attack that was run in several ways,
    whichever model it met; whose numbers they are only where a label would be there twice.
    """
    rows = ends.to_dict("records")
    texts = [{name: _text(row, name) for name in (*told, *WHOSE)} for row in rows]
    added: list[tuple[str, ...]] = [() for _ in rows]
    for places in _alike((row["attack"], row["protocol"]) for row in rows):
        for name in told:
            if len({texts[k][name] for k in places}) > 1:
                for k in places:
                    added[k] = (*added[k], texts[k][name])
    for places in _alike((*(row[name] for name in named), added[k]) for k, row in enumerate(rows)):
        for name in WHOSE:
            finer = {k: (*added[k], texts[k][name]) for k in places}
            if len(set(finer.values())) > len({added[k] for k in places}):
                for k in places:
                    added[k] = finer[k]
    return {int(row["line"]): "".join(f", {text}" for text in added[k] if text) for k, row in enumerate(rows)}


def _alike(keys: Iterable[Hashable]) -> list[list[int]]:
    """Return the places of each key, in order of first appearance."""
    places: dict[Hashable, list[int]] = {}
    for k, key in enumerate(keys):
        places.setdefault(key, []).append(k)
    return list(places.values())


def _text(row: Mapping[Hashable, Any], name: str) -> str:
    """Return what a label says of a row's column, "" where there is nothing to say."""
    value = row[name]
    if pd.isna(value) or value == "":
        return ""
    if name == "step_size":
        if value == row["eps"]:  # an attack without steps goes all the way at once
            return ""
        value = fraction_text(float(value))
    text = (DONE | WHOSE)[name].format(value)
    return "1 step" if text == "1 steps" else text


def called(attack: str, options: Any) -> str:
    """Return "pgd(loss='dlr')"."""
    return str(attack) if pd.isna(options) or options == "" else f"{attack}({options})"


def clean_of(rows: pd.DataFrame, lines: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy, ci_low and ci_high of each line's network and exit on its images untouched, by line.

    NaN where there is none, or where several contradict each other.  lines: of lines_of.
    """
    clean = rows[rows["kind"] == "clean"].reindex(columns=[*UNTOUCHED, "correct", *ESTIMATE])
    clean = clean.drop_duplicates([*UNTOUCHED, "correct"]).drop_duplicates(UNTOUCHED, keep=False)
    asked = lines.reindex(columns=["line", *UNTOUCHED]).drop_duplicates("line")
    return asked.merge(clean, how="left", on=UNTOUCHED).set_index("line")[ESTIMATE].astype(float)


def percent(value: float, low: float, high: float) -> str:
    """Return "81.4 [78.9, 83.7]"; at zero the upper bound is what was learned, so it stands alone.

    A dash where there is no value.
    """
    if np.isnan(value):
        return "-"
    if value == 0:
        return f"0.0 [<= {100 * high:.1f}]"
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def steps_table(results: pd.DataFrame) -> str:
    """Return accuracies in percent with 95 % intervals: a line per cell and eps, a column per step count.

    Where several exits of a model were judged, each has a line.
    """
    rows = headline(results, all_exits=True)
    lines = lines_of(rows, along="steps", beside=["eps_text"])
    clean = clean_of(rows, lines)
    counts = sorted(lines["steps"].unique())
    several = bool((rows.groupby("model")["exit"].nunique() > 1).any())
    steps = [f"{k} step{'s' if k > 1 else ''}" for k in counts]
    header = ["model", *(["exit"] if several else []), "attack", "protocol", "clean", *steps]
    table = []
    for line, group in lines.groupby("line"):
        row = group.iloc[0]
        label = f"{row['attack']} {row['eps_text']}{row['apart']}"
        names = [str(row["model"]), *([str(row["exit"])] if several else []), label, str(row["protocol"])]
        cells = [_cell(group[group["steps"] == k]) for k in counts]
        table.append([*names, _cell(clean.loc[[line]]), *cells])
    return markdown(header, table)


def eps_curve(results: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy by eps (columns; 0 is clean), and `area`, a row per model, exit, attack and protocol.

    area: under the curve from 0 to the largest eps, as a share of what a model that is always right would
    have (trapezoids): the mean accuracy over all radii up to there.  NaN where the curve ends before.
    What else tells cells apart ("pgd, seed 1") is in attack.
    """
    return _eps_curves(results)[0]


def _eps_curves(results: pd.DataFrame) -> list[pd.DataFrame]:
    """Return eps_curve of the accuracies, and of the two ends of their intervals.

    The ends of the area are the areas under the ends: points of a curve that err together err most, so the
    95 % hold whatever the radii have to do with each other.
    """
    rows = headline(results, all_exits=True)
    lines = lines_of(rows, along="eps")
    clean = clean_of(rows, lines)
    # One column for what is one radius: an eighth of 8/255 is 1/255 up to rounding.
    lines = lines.assign(
        attack=lines["attack"] + lines["apart"], eps=lines.groupby("eps_text")["eps"].transform("min")
    )
    curves = []
    for name in ESTIMATE:
        index = ["line", "model", "exit", "attack", "protocol"]
        curve = lines.pivot(index=index, columns="eps", values=name).astype(float)
        radii = np.array([0.0, *curve.columns])
        curve.insert(0, 0.0, clean[name].reindex(curve.index.get_level_values("line")).to_numpy())
        area = [_area(line, radii) for line in curve.to_numpy()]
        curves.append(curve.assign(area=area).droplevel("line"))
    return curves


def _area(line: NDArray[np.float64], radii: NDArray[np.float64]) -> float:
    """Return the mean height of a curve from 0 to the largest radius, f64 [R] over f64 [R], by trapezoids."""
    is_there = ~np.isnan(line)
    if not (is_there[0] and is_there[-1]):
        return float("nan")
    return float(np.trapezoid(line[is_there], radii[is_there]) / radii[-1])


def eps_table(results: pd.DataFrame) -> str:
    """Return eps_curve in percent with 95 % intervals as Markdown."""
    curves = _eps_curves(results)
    texts = results[results["kind"] == "attack"].drop_duplicates("eps").set_index("eps")["eps_text"]
    radii = [str(texts.loc[eps]) for eps in curves[0].columns[1:-1]]
    header = ["model", "exit", "attack", "protocol", "clean", *radii, "area"]
    values = np.stack([curve.to_numpy() for curve in curves], axis=2)
    table = [
        [*map(str, key), *(percent(*estimate) for estimate in line)]
        for key, line in zip(curves[0].index, values, strict=True)
    ]
    return markdown(header, table)


def compare_table(compared: pd.DataFrame) -> str:
    """Return compare's rows as Markdown, the first attack of each model without differences."""
    header = [
        "model",
        "attack",
        "robust",
        "other verdicts",
        "other classes",
        "p",
        "excess",
        "s",
        "first other default",
    ]
    lines = []
    for row in compared.to_dict("records"):
        told = [str(row["model"]), str(row["attack"])]
        if row["status"] != "ok":
            lines.append([*told, "-", "-", "-", "-", "-", "-", str(row["error"])])
            continue
        lines.append(
            [
                *told, f"{100 * row['accuracy']:.1f} %", f"{row['other_verdicts']:.0f} of {row['n']:.0f}",
                f"{row['other_predictions']:.0f}", f"{row['p_value']:.2g}", f"{row['excess']:.1e}",
                f"{row['seconds']:.1f}", row["first_other_default"] or "-",
            ]
        )  # fmt: skip
    return markdown(header, lines)


def points_grid(points: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return Figure 3's points as header and lines: percent per model, size and exit, a column per condition.

    points: a frame of exits.POINT_COLUMNS.
    """
    told = points.assign(at=[condition_text(row) for row in points.to_dict("records")])
    conditions = list(dict.fromkeys(told["at"]))
    lines = []
    for (model, size, number), group in told.groupby(["model", "size_px", "exit"], sort=False):
        gmacs = _number(float(group["gmacs"].iloc[0]))
        cells = [_cell(group[group["at"] == condition]) for condition in conditions]
        lines.append([str(model), f"{size} px", str(number), gmacs, *cells])
    return ["model", "input", "exit", "GMACs", *conditions], lines


def rules_grid(rules: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return exit by confidence as header and lines: one per model, condition and threshold.

    rules: a frame of exits.RULE_COLUMNS.  "costs more" is against the same images clean, in percent of what
    these cost, with its 95 % interval.
    """
    left = [name for name in rules.columns if str(name).startswith("left_")]
    lines = []
    for row in rules.to_dict("records"):
        shares = [row[name] for name in left if not np.isnan(row[name])]
        lines.append(
            [
                str(row["model"]), f"{row['threshold']:g}", condition_text(row), str(row["against"]) or "-",
                percent(row["accuracy"], row["ci_low"], row["ci_high"]), _number(row["mean_gmacs"]),
                _more(row), " ".join(f"{100 * share:.0f}" for share in shares),
            ]
        )  # fmt: skip
    header = [
        "model", "leaves at", "condition", "against", "accuracy, %", "mean GMACs", "costs more, %",
        "leaving at exit 1, 2, ..., %",
    ]  # fmt: skip
    return header, lines


def condition_text(row: Mapping[Hashable, Any]) -> str:
    """Return "clean images", or "PGD linf 4/255, 16 steps, standard", of a row of exits' tables."""
    if row["condition"] == "clean":
        return "clean images"
    steps = int(row["steps"])
    count = f"{steps} step" if steps == 1 else f"{steps} steps"
    attack = called(str(row["attack"]).upper(), row.get("options", ""))
    return f"{attack} {row['norm']} {row['eps_text']}, {count}, {row['protocol']}"


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.4g}"


def _more(row: Mapping[Hashable, Any]) -> str:
    """Return "+25 [8, 41]": what a rule costs more than on clean images, in percent of that."""
    clean = row["mean_gmacs"] - row["more_gmacs"]
    if np.isnan(clean):
        return "-"
    more, low, high = (100 * row[name] / clean for name in ("more_gmacs", "more_low", "more_high"))
    return f"{more:+.0f}" if np.isnan(low) else f"{more:+.0f} [{low:+.0f}, {high:+.0f}]"


def _cell(rows: pd.DataFrame) -> str:
    """Return the percentage of the one row, or a dash; where there are several, all of them."""
    return " / ".join(percent(*estimate) for estimate in rows[ESTIMATE].to_numpy(float)) or "-"


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return an aligned Markdown table; what a cell says stays in it, whatever it is."""
    header, *lines = ([safe(cell, "markdown cell") for cell in row] for row in [header, *lines])
    widths = [max(len(row[i]) for row in [header, *lines]) for i in range(len(header))]
    rule = ["-" * width for width in widths]
    rows = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [header, rule, *lines]
    ]
    return "\n".join(rows)


def latex(text: str) -> str:
    """Return text that LaTeX prints as it is."""
    return safe(text, "latex")


def row_dicts(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as dicts by column."""
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]
