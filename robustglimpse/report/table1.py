"""The paper's Table 1: what each exit costs, with the published figures beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
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
        paper = published_for(cost.architecture, cost.size_px, cost.exit)
        theirs_ms = paper.latency_ms if paper else None
        lines.append(
            [
                cost.model, str(cost.exit), f"{cost.params / 1e6:.2f}", f"{cost.gmacs:.4f}",
                f"{cost.gmacs_published:.4f}", f"{paper.gflops:g}" if paper else "-",
                *(f"{ms:.1f}" for ms in cost.latency_ms.values()), f"{theirs_ms:g}" if theirs_ms else "-",
                *(f"{mb:.1f}" for mb in cost.peak_mb.values()),
            ]
        )  # fmt: skip
    return markdown(header, lines)


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
    architecture = cost.architecture
    paper = published_for(architecture, cost.size_px, cost.exit)
    batch_size = next(iter(cost.latency_ms))
    return {
        "model": cost.model,
        "exit": cost.exit,
        "params": cost.params,
        "gmacs": round(cost.gmacs, 9),
        "gmacs_published": round(cost.gmacs_published, 9),
        "gmacs_paper": paper.gflops if paper else None,
        "latency_ms": cost.latency_ms[batch_size],
        "latency_ms_paper": paper.latency_ms if paper else None,
        "peak_mb": cost.peak_mb[batch_size],
        "batch_size": batch_size,
        "latency_ms_by_batch": {str(n): ms for n, ms in cost.latency_ms.items()},
        "peak_mb_by_batch": {str(n): mb for n, mb in cost.peak_mb.items()},
        "runs_by_batch": {str(n): runs for n, runs in cost.runs.items()},
        "backbone": architecture.backbone,
        "family": architecture.family,
        "glimpses": architecture.glimpses,
        "downsample": architecture.downsample,
        "classes": architecture.classes,
        "size_px": cost.size_px,
        "device": cost.device,
        "threads": cost.threads,
        "is_fast": cost.is_fast,
    }
