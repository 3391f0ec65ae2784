"""Tables: frames of results in, text out. Percent signs and rounding live here and nowhere else."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import pandas as pd

from robustglimpse.attacks import ATTACKS
from robustglimpse.records import PROTOCOLS

# From the mildest to the hardest, as readers should meet them.
PROTOCOL_ORDER = ("paper", "standard", "adaptive")


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
    is_quoted = (rows["kind"] == "clean") | (
        rows["judge"] == rows["protocol"].map(first_judge).fillna("worst")
    )
    is_quoted |= rows["attack"].isin([name for name, row in ATTACKS.items() if row.runs_long])  # worst alone
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
