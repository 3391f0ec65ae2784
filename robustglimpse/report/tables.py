"""Tables: frames of results in, text out. Percent signs and rounding live here and nowhere else."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from robustglimpse.records import PROTOCOLS

# From the mildest to the hardest, as readers should meet them.
PROTOCOL_ORDER = ("paper", "plain", "standard", "adaptive")


def headline(results: pd.DataFrame, *, all_exits: bool = False) -> pd.DataFrame:
    """Return the rows that a protocol is quoted by: its first verdict, clean rows, the last exit.

    In reading order: by backbone, family, model, attack, and protocol from the mildest to the hardest.
    all_exits: keep the earlier exits too.
    """
    rows = results[results["status"] == "ok"]
    order = rows["protocol"].map({name: i for i, name in enumerate(PROTOCOL_ORDER)})
    rows = rows.assign(order=order.fillna(-1)).sort_values(
        ["backbone", "family", "model", "attack", "exit", "order", "steps"], kind="stable"
    )
    first_judge = {name: protocol.judges[0] for name, protocol in PROTOCOLS.items()}
    is_first = rows["judge"] == rows["protocol"].map(first_judge).fillna("worst")
    has_one = ~rows["cell"].isin(rows.loc[is_first, "cell"])  # attacks that run long: worst alone
    is_quoted = (rows["kind"] == "clean") | is_first | has_one
    rows = rows[is_quoted].drop(columns="order")
    return rows if all_exits else rows[rows["exit"] == rows.groupby("model")["exit"].transform("max")]


def percent(value: float, low: float, high: float) -> str:
    """Return "81.4 [78.9, 83.7]"; at zero the upper bound is what was learned, so it stands alone."""
    if value == 0:
        return f"0.0 [<= {100 * high:.1f}]"
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def steps_table(results: pd.DataFrame) -> str:
    """Return accuracies in percent with 95 % intervals: a line per model and protocol, a column per count.

    Where several exits of a model were judged, each has a line.
    """
    rows = headline(results, all_exits=True)
    clean = rows[rows["kind"] == "clean"].set_index(["model", "exit"])
    attacked = rows[rows["kind"] == "attack"]
    counts = sorted(attacked["steps"].unique())
    several = bool((rows.groupby("model")["exit"].nunique() > 1).any())
    steps = [f"{k} step{'s' if k > 1 else ''}" for k in counts]
    header = ["model", *(["exit"] if several else []), "attack", "protocol", "clean", *steps]
    lines = []
    groups = attacked.groupby(["model", "exit", "attack", "eps_text", "protocol"], sort=False)
    for (model, exit_number, attack, eps, protocol), group in groups:
        by_steps = group.drop_duplicates("steps").set_index("steps")
        names = [str(model), *([str(exit_number)] if several else []), f"{attack} {eps}", str(protocol)]
        cells = [_cell(by_steps, k) for k in counts]
        lines.append([*names, _cell(clean, (model, exit_number)), *cells])
    return markdown(header, lines)


def eps_curve(results: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy by eps (columns; 0 is clean), and `area`, a row per model, exit, attack and protocol.

    area: under the curve from 0 to the largest eps, as a share of what a model that is always right would
    have (trapezoids): the mean accuracy over all radii up to there.
    """
    rows = headline(results, all_exits=True)
    clean = rows[rows["kind"] == "clean"].drop_duplicates(["model", "exit"]).set_index(["model", "exit"])
    attacked = rows[rows["kind"] == "attack"]
    named = ["model", "exit", "attack", "protocol"]
    curve = attacked.pivot_table(index=named, columns="eps", values="accuracy", sort=False)
    radii = np.sort(curve.columns.to_numpy(float))
    curve = curve.reindex(columns=radii)
    at = pd.MultiIndex.from_frame(curve.index.to_frame()[["model", "exit"]])
    curve.insert(0, 0.0, clean["accuracy"].reindex(at).to_numpy())
    area = np.trapezoid(curve.to_numpy(float), np.array([0.0, *radii]), axis=1)
    return curve.assign(area=area / radii[-1])


def eps_table(results: pd.DataFrame) -> str:
    """Return eps_curve in percent as Markdown."""
    curve = eps_curve(results)
    texts = results[results["kind"] == "attack"].drop_duplicates("eps").set_index("eps")["eps_text"]
    radii = [str(texts.loc[eps]) for eps in curve.columns[1:-1]]
    header = ["model", "exit", "attack", "protocol", "clean", *radii, "area"]
    lines = [
        [*map(str, key if isinstance(key, tuple) else (key,)), *(f"{100 * value:.1f}" for value in row)]
        for key, row in zip(curve.index, curve.to_numpy(), strict=True)
    ]
    return markdown(header, lines)


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
        by_condition = group.drop_duplicates("at").set_index("at")
        gmacs = _number(float(group["gmacs"].iloc[0]))
        cells = [_cell(by_condition, condition) for condition in conditions]
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
    return f"{str(row['attack']).upper()} {row['norm']} {row['eps_text']}, {count}, {row['protocol']}"


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.4g}"


def _more(row: Mapping[Hashable, Any]) -> str:
    """Return "+25 [8, 41]": what a rule costs more than on clean images, in percent of that."""
    clean = row["mean_gmacs"] - row["more_gmacs"]
    if np.isnan(clean):
        return "-"
    more, low, high = (100 * row[name] / clean for name in ("more_gmacs", "more_low", "more_high"))
    return f"{more:+.0f}" if np.isnan(low) else f"{more:+.0f} [{low:+.0f}, {high:+.0f}]"


def _cell(frame: pd.DataFrame, key: Hashable) -> str:
    """Return the percentage in the row called key, or a dash where there is none."""
    if key not in frame.index:
        return "-"
    accuracy, low, high = frame[["accuracy", "ci_low", "ci_high"]].loc[[key]].to_numpy()[0]
    return percent(accuracy, low, high)


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return an aligned Markdown table."""
    widths = [max(len(str(row[i])) for row in [header, *lines]) for i in range(len(header))]
    rule = ["-" * width for width in widths]
    rows = [
        "| " + " | ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [header, rule, *lines]
    ]
    return "\n".join(rows)
