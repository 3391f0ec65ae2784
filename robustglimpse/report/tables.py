"""Tables: frames of results in, text out. Percent signs and rounding live here and nowhere else."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import pandas as pd

from robustglimpse.records import PROTOCOLS

# From the mildest to the hardest, as readers should meet them.
PROTOCOL_ORDER = ("paper", "standard", "adaptive")


def headline(results: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that a protocol is quoted by: its first verdict, clean rows, the last exit.

    In reading order: by backbone, family, model, attack, and protocol from the mildest to the hardest.
    """
    rows = results[results["status"] == "ok"]
    order = rows["protocol"].map({name: i for i, name in enumerate(PROTOCOL_ORDER)})
    rows = rows.assign(order=order.fillna(-1)).sort_values(
        ["backbone", "family", "model", "attack", "order", "steps"], kind="stable"
    )
    first_judge = {name: protocol.judges[0] for name, protocol in PROTOCOLS.items()}
    is_quoted = rows["judge"].isin(["", None]) | rows["judge"].isna()
    is_quoted |= rows["judge"] == rows["protocol"].map(first_judge)
    rows = rows[is_quoted]
    last_exit = rows.groupby("model")["exit"].transform("max")
    return rows[rows["exit"] == last_exit].drop(columns="order")


def percent(value: float, low: float, high: float) -> str:
    """Return "81.4 [78.9, 83.7]"; at zero the upper bound is what was learned, so it stands alone."""
    if value == 0:
        return f"0.0 [<= {100 * high:.1f}]"
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def steps_table(results: pd.DataFrame) -> str:
    """Return accuracies in percent with 95 % intervals: a line per model and protocol, a column per count."""
    rows = headline(results)
    clean = rows[rows["kind"] == "clean"].set_index("model")
    attacked = rows[rows["kind"] == "attack"]
    counts = sorted(attacked["steps"].unique())
    header = ["model", "attack", "protocol", "clean", *(f"{k} step{'s' if k > 1 else ''}" for k in counts)]
    lines = []
    groups = attacked.groupby(["model", "attack", "eps_text", "protocol"], sort=False)
    for (model, attack, eps, protocol), group in groups:
        by_steps = group.drop_duplicates("steps").set_index("steps")
        cells = [_cell(by_steps, k) for k in counts]
        lines.append([str(model), f"{attack} {eps}", str(protocol), _cell(clean, model), *cells])
    return _markdown(header, lines)


def _cell(frame: pd.DataFrame, key: Hashable) -> str:
    """Return the percentage in the row called key, or a dash where there is none."""
    if key not in frame.index:
        return "-"
    accuracy, low, high = frame[["accuracy", "ci_low", "ci_high"]].loc[[key]].to_numpy()[0]
    return percent(accuracy, low, high)


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return an aligned Markdown table."""
    widths = [max(len(str(row[i])) for row in [header, *lines]) for i in range(len(header))]
    rule = ["-" * width for width in widths]
    rows = [
        "| " + " | ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [header, rule, *lines]
    ]
    return "\n".join(rows)
