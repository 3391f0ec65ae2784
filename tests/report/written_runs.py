"""Results directories written by hand: what each image's fate was, and the rows that follow from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustglimpse.records import RESULT_COLUMNS, Cell, Threat
from robustglimpse.stats import wilson
from robustglimpse.store import Provenance, Store

STEPS = (1, 4)
EPS = 4 / 255


def first_right(correct: int, total: int = 100) -> NDArray[np.bool_]:
    """Return bool [total], the first of them true."""
    return np.arange(total) < correct


class Grid:
    """A results directory to fill, cell by cell."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.keys: list[str] = []

    def add(
        self,
        model: str,
        *right: NDArray[np.bool_],
        kind: str = "clean",
        name: str = "clean",
        protocol: str = "",
        severity: int = 0,
        weights: str = "a" * 64,
        seed: int = 0,
        batch_size: int = 64,
        error: str = "",
        family: str = "mgnet",
        options: str = "",
    ) -> None:
        """Add a cell. right: for an attack, which images are right after each of STEPS; else by exit.

        options: of the call ("loss='dlr'"), in results.csv too.
        """
        total = len(right[0]) if right else 100
        attacked, corrupted = kind == "attack", kind == "corruption"
        attack_call = f"{name}({options}{', ' if options else ''}steps={list(STEPS)})"
        call = {"attack": attack_call, "corruption": f"{name}(severity={severity})"}
        threat = Threat("linf", EPS if attacked else 0.0)
        cell = Cell(
            model, "set", "test", call.get(kind, "clean"), threat, protocol, 1, None, batch_size, seed
        )
        common: dict[str, Any] = {
            **dict.fromkeys(RESULT_COLUMNS, ""),
            "schema": 1, "model": model, "backbone": "resnet18", "family": family,
            "weights_sha256": weights, "dataset": "set", "split": "test", "classes": 2, "size_px": 8,
            "n": total, "n_total": total, "kind": kind, "attack": name if attacked else "",
            "options": options, "norm": "linf" if attacked else "", "eps": threat.eps,
            "eps_text": "4/255" if attacked else "0",
            "step_size": 1 / 255 if attacked else float("nan"), "restarts": int(attacked),
            "protocol": protocol, "surrogate": "as-trained" if attacked else "", "seed": seed,
            "corruption": name if corrupted else "", "severity": severity, "preset": 64 if corrupted else 0,
            "store": "exact" if corrupted else "", "batch_size": batch_size, "device": "cpu",
            "torch": "2", "robustglimpse": "0", "forwards": total, "backwards": 0, "seconds": 1.5,
            "cell": cell.key, "status": "ok",
        }  # fmt: skip
        self.keys.append(cell.key)
        if error:
            empty = dict.fromkeys(("steps", "exit", "correct", "total", "accuracy", "ci_low", "ci_high"))
            self.store.fail(cell, {**common, **empty, "status": "failed", "error": error}, "")
            return
        index = np.arange(total)
        rows, columns = [], []
        for k, fate in enumerate(right):
            exit_number = 1 if attacked else k + 1
            estimate = wilson(int(fate.sum()), total)
            for judge in ("last", "worst") if protocol == "paper" else ("worst",) if attacked else ("",):
                rows.append(
                    {
                        **common, "judge": judge, "exit": exit_number, "steps": STEPS[k] if attacked else 0,
                        "correct": estimate.correct, "total": total, "accuracy": estimate.value,
                        "ci_low": estimate.low, "ci_high": estimate.high, "gmacs": 0.25 * exit_number,
                    }
                )  # fmt: skip
            if not attacked:
                columns.append({"index": index, "label": index % 2, "pred": (index + ~fate) % 2})
                columns[-1]["exit"] = np.full(total, exit_number)
        if attacked:
            first = np.select([~fate for fate in right], STEPS[: len(right)], -1)
            columns.append({"index": index, "label": index % 2, "exit": np.ones(total, int)})
            columns[-1] |= {"pred": (index + ~right[-1]) % 2, "first_success_step": first}
            columns[-1] |= {f"pred_at_{s}": (index + ~f) % 2 for s, f in zip(STEPS, right, strict=False)}
        whole = {c: np.concatenate([part[c] for part in columns]) for c in columns[0]}
        self.store.finish(cell, Provenance(weights, "d" * 64), whole, rows)

    def attack(self, model: str, protocol: str, *right: NDArray[np.bool_], **other: Any) -> None:
        """Add a PGD cell."""
        self.add(model, *right, kind="attack", name="pgd", protocol=protocol, **other)

    def corrupt(self, model: str, name: str, severity: int, *right: NDArray[np.bool_], **other: Any) -> None:
        """Add a corrupted cell."""
        self.add(model, *right, kind="corruption", name=name, severity=severity, **other)

    def close(self, command: str = "robustglimpse bench --model a") -> Path:
        """Write results.csv and run.json; return the directory."""
        self.store.add_run(
            {
                "schema": 1, "command": command, "device": "cpu", "versions": {"robustglimpse": "0"},
                "weights": {"a": "a" * 64}, "data": {"set": "d" * 64}, "cells": self.keys,
            }
        )  # fmt: skip
        self.store.write_results()
        return self.store.root


def bench_run(root: Path) -> Path:
    """Return a directory of three models: a and b alike, c lost; c's adaptive cell crashed."""
    grid = Grid(root)
    for model, family, clean, standard, paper in (
        ("a", "ffnet", 95, (90, 80), (94, 93)),
        ("b", "mgnet", 94, (89, 79), (94, 92)),
        ("c", "mgnet", 96, (40, 0), (95, 90)),
    ):
        grid.add(model, first_right(clean), family=family)
        grid.attack(model, "standard", *map(first_right, standard), family=family)
        grid.attack(model, "paper", *map(first_right, paper), family=family)
    grid.attack("c", "adaptive", error="RuntimeError: out of <memory>")
    return grid.close()


def sweep_run(root: Path, *, last_severity: int = 2) -> Path:
    """Return a directory of a (three exits) and b (one) under fog and shot noise at two severities."""
    grid = Grid(root)
    grid.add("a", *map(first_right, (80, 85, 90)))
    grid.add("b", first_right(99), family="ffnet")
    for k, name in enumerate(("fog", "shot_noise")):
        for severity in (1, 2):
            if (name, severity) > ("shot_noise", last_severity):
                continue
            less = 5 * k + 3 * severity
            grid.corrupt("a", name, severity, *(first_right(n - less) for n in (70, 75, 80)))
            grid.corrupt("b", name, severity, first_right(60 - less), family="ffnet")
    return grid.close("robustglimpse corruptions --model a")


def results_csv(root: Path) -> pd.DataFrame:
    """Return results.csv as it lies there."""
    return pd.read_csv(root / "results.csv")
