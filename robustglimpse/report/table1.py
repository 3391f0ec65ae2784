"""The paper's Table 1: what each exit costs, with the published figures beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from robustglimpse.report.tables import markdown, row_dicts

if TYPE_CHECKING:
    from robustglimpse.cost import ExitCost
    from robustglimpse.models.mgnet import Architecture

PAPER = Path(__file__).with_name("paper")
# What the networks of a table were: image side, classes, and for MGNet the glimpses and their side.
SETTINGS = {"table1": (224, 100, 4, 96), "table2": (224, 100, 4, 96), "table3": (64, 200, 3, 32)}
NETWORKS = tuple(
    f"{family}-{short}" for short in ("r18", "r50", "rx50", "wrn50") for family in ("ffnet", "mgnet")
)


@dataclass(frozen=True)
class Published:
    """A figure of the paper for one exit of one network; latency_ms where it gives one."""

    table: str
    backbone: str
    network: str
    exit: int
    gflops: float
    latency_ms: float | None


def published() -> list[Published]:
    """Return the paper's 27 counts of its own networks, from Tables 1, 2 and 3 (its fvcore's flops are MACs).

    The two baselines of Table 3 are cited, not the authors' networks, and left out.
    """
    rows = []
    for table, (_, _, glimpses, _) in SETTINGS.items():
        for row in row_dicts(pd.read_csv(PAPER / f"{table}.csv")):
            if row["network"] != "reference":
                last = 1 if row["network"] == "ffnet" else glimpses
                rows.append(
                    Published(
                        table, str(row["backbone"]), str(row["network"]), int(row.get("glimpses", last)),
                        float(row["gflops"]), row.get("latency_ms"),
                    )
                )  # fmt: skip
    return rows


def published_for(architecture: Architecture, size_px: int, exit_number: int) -> Published | None:
    """Return the paper's figure for that exit, Table 1 before the others; None where it has none."""
    for row in published():
        size, classes, glimpses, side = SETTINGS[row.table]
        if row.network == "ffnet":
            glimpses, side = 1, size
        theirs = (row.backbone, row.network, row.exit, size, classes, glimpses, side)
        ours = (
            architecture.backbone, architecture.family, exit_number, size_px, architecture.classes,
            architecture.glimpses, architecture.glimpse_px(size_px),
        )  # fmt: skip
        if ours == theirs:
            return row
    return None


def to_markdown(costs: Sequence[ExitCost]) -> str:
    """Return Table 1: a line per model and exit, the paper's figures beside ours, "-" where it has none."""
    sizes = list(costs[0].latency_ms) if costs else []
    header = ["Model", "T", "Params M", "GMACs", "as published", "paper"]
    header += [*(f"ms, batch {n}" for n in sizes), "paper ms", *(f"MB, batch {n}" for n in sizes)]
    lines = []
    for cost in costs:
        paper = _paper(cost)
        theirs_ms = paper.latency_ms if paper else None
        lines.append(
            [
                cost.model, str(cost.exit), _told(None if cost.params is None else cost.params / 1e6, ".2f"),
                _told(cost.gmacs, ".4f"), _told(cost.gmacs_published, ".4f"),
                _told(paper.gflops if paper else None, "g"),
                *(f"{ms:.1f}" for ms in cost.latency_ms.values()), _told(theirs_ms, "g"),
                *(_told(mb, ".1f") for mb in cost.peak_mb.values()),
            ]
        )  # fmt: skip
    return markdown(header, lines)


def _paper(cost: ExitCost) -> Published | None:
    if cost.architecture is None:
        return None
    return published_for(cost.architecture, cost.size_px, cost.exit)


def _told(value: float | None, form: str) -> str:
    """Return a number as text, "-" where there is none."""
    return "-" if value is None or isnan(value) else f"{value:{form}}"


def _number(value: float, digits: int | None = None) -> float | None:
    """Return a number as JSON has it, which knows no NaN."""
    return None if isnan(value) else value if digits is None else round(value, digits)


def conditions(costs: Sequence[ExitCost]) -> str:
    """Return where and how often the latencies were measured, in a line."""
    runs = [n for cost in costs for n in cost.runs.values()]
    often = f"{min(runs)} to {max(runs)}" if min(runs) < max(runs) else str(max(runs))
    return (
        f"latency: median of {often} warm runs on {costs[0].device}, {costs[0].threads} threads"
        f"{', rewritten for answers alone' if costs[0].is_fast else ''}; "
        "memory: weights, images and intermediate tensors"
    )


def to_json(costs: Sequence[ExitCost]) -> str:
    """Return a list of one object per model and exit.

    latency_ms and peak_mb are those of the first batch size, batch_size; latency_ms_by_batch and
    peak_mb_by_batch have them all.
    """
    return json.dumps([_object(cost) for cost in costs], indent=2)


def _object(cost: ExitCost) -> dict[str, Any]:
    made, paper = cost.architecture, _paper(cost)
    batch_size = next(iter(cost.latency_ms))
    return {
        "model": cost.model,
        "exit": cost.exit,
        "params": cost.params,
        "gmacs": _number(cost.gmacs, 9),
        "gmacs_published": _number(cost.gmacs_published, 9),
        "gmacs_paper": paper.gflops if paper else None,
        "latency_ms": cost.latency_ms[batch_size],
        "latency_ms_paper": paper.latency_ms if paper else None,
        "peak_mb": _number(cost.peak_mb[batch_size]),
        "batch_size": batch_size,
        "latency_ms_by_batch": {str(n): ms for n, ms in cost.latency_ms.items()},
        "peak_mb_by_batch": {str(n): _number(mb) for n, mb in cost.peak_mb.items()},
        "runs_by_batch": {str(n): runs for n, runs in cost.runs.items()},
        "backbone": made.backbone if made else None,
        "family": made.family if made else None,
        "glimpses": made.glimpses if made else None,
        "downsample": made.downsample if made else None,
        "classes": made.classes if made else None,
        "size_px": cost.size_px,
        "device": cost.device,
        "threads": cost.threads,
        "is_fast": cost.is_fast,
    }
