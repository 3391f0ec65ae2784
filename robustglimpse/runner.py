"""The grid: which cells there are, which are done, and the loop that does the rest."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import robustglimpse
from robustglimpse import cost, evaluate
from robustglimpse.attacks import ATTACKS
from robustglimpse.data import Dataset, load_data
from robustglimpse.models import load_model
from robustglimpse.progress import progress
from robustglimpse.records import SCHEMA, Batch, Cell, Classifier, Estimate, Norm, Threat, UserError
from robustglimpse.registry import Call, parse_call, parse_fraction
from robustglimpse.stats import wilson
from robustglimpse.store import Columns, Provenance, Row, Store

CLEAN = "clean"


@dataclass(frozen=True)
class Bench:
    """What `robustglimpse bench` is asked for; every field is also a flag.

    eps, step_size: in pixel units of [0,1], as text ("4/255") so that tables can show what was typed.
    data: a data set's name; None takes the one that the models were trained on.
    """

    models: tuple[str, ...]
    attacks: tuple[str, ...] = ("pgd",)
    steps: tuple[int, ...] = (1, 2, 4, 8, 16)
    eps: str = "4/255"
    step_size: str = "1/255"
    norm: Norm = "linf"
    restarts: int = 1
    protocols: tuple[str, ...] = ("standard",)
    data: str | None = None
    split: str | None = None
    data_dir: Path | None = None
    size_px: int | None = None
    download: bool = False
    limit: int | None = None
    batch_size: int = 64
    seed: int = 0
    device: str = "auto"
    all_exits: bool = False


@dataclass(frozen=True)
class _Work:
    """A cell with everything it needs at hand. plan: None for the clean cell."""

    cell: Cell
    classifier: Classifier
    dataset: Dataset
    provenance: Provenance
    plan: evaluate.Plan | None


def bench(asked: Bench, out: Path, *, command: str = "") -> pd.DataFrame:
    """Run every cell that out does not hold yet; return the rows asked for, as in out/results.csv.

    out/results.csv holds the rows of every cell ever run into out.  All that is asked for is checked
    before the first cell runs.  A cell that crashes becomes a row with its error and no accuracy, and
    the others go on.  Raises UserError for what cannot be asked.
    """
    device = choose_device(asked.device)
    work = list(_plan_work(asked, device))
    store = Store(out)
    store.add_run(_run_info(asked, work, device, command))
    todo = [w for w in work if not store.is_done(w.cell, w.provenance)]
    failed: list[Row] = []
    total = sum(len(w.dataset.labels) for w in todo)
    with progress(max(total, 1), "bench") as report:
        done = 0
        for w in todo:
            note = f"{w.cell.model} {w.cell.perturb.partition('(')[0]} {w.cell.protocol}".rstrip()
            try:
                for finished in _run_cell(w, store, device):
                    report(done + finished, note)
            except UserError:
                raise
            except Exception as error:  # a crash is a hole in the table, never a survival
                failed.append(_failed_row(w, device, error))
                print(f"{note}: {type(error).__name__}: {error}", file=sys.stderr)
            done += len(w.dataset.labels)
    store.write_results(failed)
    return store.results({w.cell.key for w in work}, failed)


def choose_device(name: str) -> str:
    """Return the torch device for a --device: "auto" is the GPU where there is one."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try --device cpu"
        ) from None
    return name


def _plan_work(asked: Bench, device: str) -> Iterator[_Work]:
    """Yield the clean cell and the attack cells of every model, all arguments checked."""
    threat = Threat(asked.norm, _positive(asked.eps, "eps"))
    evaluate.steps_of(asked.steps)
    calls = [_with_defaults(parse_call(text), asked) for text in asked.attacks]
    if asked.batch_size < 1:
        raise UserError(f"batch size must be at least 1, got {asked.batch_size}")
    datasets: dict[tuple[str, int | None], Dataset] = {}
    for name in dict.fromkeys(asked.models):
        classifier = load_model(name, device=device)
        data = asked.data or classifier.meta["dataset"]
        if not data:
            raise UserError(f"{name} does not say what it was trained on; name a data set with --data")
        size_px = asked.size_px or (classifier.size_px if data.startswith("imagefolder") else None)
        if (data, size_px) not in datasets:
            datasets[data, size_px] = load_data(
                data, split=asked.split, data_dir=asked.data_dir, limit=asked.limit, size_px=size_px,
                download=asked.download,
            )  # fmt: skip
        dataset = match_classes(datasets[data, size_px], classifier)
        provenance = Provenance(classifier.sha256, dataset.fingerprint)
        exits = "all" if asked.all_exits else "last"
        cell = Cell(
            name, data, dataset.split, CLEAN, threat, "", 1, asked.limit, asked.batch_size, asked.seed, exits
        )
        clean = replace(cell, threat=Threat("linf", 0.0), seed=0)  # nothing is drawn, nothing is perturbed
        yield _Work(clean, classifier, dataset, provenance, None)
        for call in calls:
            for protocol in dict.fromkeys(asked.protocols):
                plan = evaluate.make_plan(
                    call, protocol=protocol, threat=threat, normalisation=classifier.normalisation,
                    restarts=asked.restarts, seed=asked.seed, all_exits=asked.all_exits,
                )  # fmt: skip
                attacked = replace(
                    cell, perturb=str(call), threat=plan.threat, protocol=protocol, restarts=asked.restarts
                )
                yield _Work(attacked, classifier, dataset, provenance, plan)


def _with_defaults(call: Call, asked: Bench) -> Call:
    """Return the call with --steps and --step-size filled in where the attack takes them and it has none."""
    row = ATTACKS.get(call.name)
    options = dict(call.arguments)
    if row is not None and row.iterative:
        options.setdefault("steps", list(asked.steps))
        options.setdefault("step_size", _positive(asked.step_size, "step size"))
        _positive(str(options["step_size"]), "step size")
    return Call(call.name, tuple(sorted(options.items())))


def _positive(text: str, what: str) -> float:
    value = parse_fraction(text, what=what)
    if value <= 0:
        raise UserError(f"{what} must be above 0, got {text!r}; give it in [0,1] pixel units, such as 4/255")
    return value


def match_classes(dataset: Dataset, classifier: Classifier) -> Dataset:
    """Return the data set with its labels renumbered to the classifier's classes, matched by name.

    A model that only numbers its classes takes a set of equally many, in order.  Raises UserError otherwise.
    """
    ours, theirs = classifier.classes, dataset.classes
    if theirs == ours:
        return dataset
    numbered = ours == tuple(str(k) for k in range(len(ours)))
    if numbered and len(ours) == len(theirs):
        return replace(dataset, classes=ours)
    missing = [name for name in theirs if name not in ours]
    if missing or numbered:
        raise UserError(
            f"{classifier.name} has {len(ours)} classes, {dataset.name} has {len(theirs)}, "
            f"among them {(missing or list(theirs))[0]!r} that the model lacks; "
            "choose a model trained on this data"
        )
    place = np.array([ours.index(name) for name in theirs])
    return replace(dataset, labels=place[dataset.labels], classes=ours)


def _run_cell(w: _Work, store: Store, device: str) -> Iterator[int]:
    """Run the cell's missing batches, then write its outcomes and rows; yield how many samples are done."""
    parts = store.parts(w.cell, w.provenance)
    for batch in w.dataset.batches(w.cell.batch_size):
        first = int(batch.index[0])
        if first not in parts:
            start = time.perf_counter()
            columns = _run_batch(w, batch, device)
            seconds = time.perf_counter() - start
            store.save_part(w.cell, w.provenance, first, columns, seconds)
            parts[first] = columns, seconds
        yield first + len(batch.labels)
    whole = {name: np.concatenate([parts[first][0][name] for first in sorted(parts)]) for name in parts[0][0]}
    order = np.lexsort((whole["index"], whole["exit"]))
    whole = {name: column[order] for name, column in whole.items()}
    seconds = sum(part[1] for part in parts.values())
    store.finish(w.cell, w.provenance, whole, result_rows(w, whole, seconds, device))


def _run_batch(w: _Work, batch: Batch, device: str) -> Columns:
    if w.plan is None:
        all_exits = w.cell.exits == "all"
        return evaluate.judge_clean(w.classifier, batch, device=device, all_exits=all_exits)
    return evaluate.attack(w.classifier, batch, w.plan, device=device)


def result_rows(w: _Work, columns: Columns, seconds: float, device: str) -> list[Row]:
    """Return the cell's rows of results.csv, from its per-sample outcomes."""
    first_exit = columns["exit"] == columns["exit"][0]
    common = {
        **_description(w, device),
        "forwards": int(columns["forwards"][first_exit].sum()),
        "backwards": int(columns["backwards"][first_exit].sum()),
        "seconds": round(seconds, 3),
        "status": "ok",
        "error": "",
    }
    gmacs = _gmacs(w.classifier, w.dataset.size_px)
    rows = []
    for exit_number in sorted(set(columns["exit"].tolist())):
        of_exit = {name: column[columns["exit"] == exit_number] for name, column in columns.items()}
        for judge, steps, is_correct in _verdicts(w.plan, of_exit):
            estimate = wilson(int(is_correct.sum()), len(is_correct))
            rows.append(
                {
                    **common,
                    **_estimate(estimate),
                    "judge": judge,
                    "steps": steps,
                    "exit": exit_number,
                    "gmacs": gmacs[exit_number - 1] if gmacs else float("nan"),
                }
            )
    return rows


def _verdicts(plan: evaluate.Plan | None, columns: dict[str, Any]) -> Iterator[tuple[str, int, Any]]:
    """Yield (judge, steps, bool [N]: still correct) for every number that the cell reports."""
    if plan is None:
        yield "", 0, columns["clean_pred"] == columns["label"]
        return
    first = columns["first_success_step"]
    for judge in plan.protocol.judges:
        for steps in plan.steps:
            if judge == "last":
                yield judge, steps, columns[f"pred_at_{steps}"] == columns["label"]
            else:
                yield judge, steps, (first == -1) | (first > steps)


def _estimate(estimate: Estimate) -> Row:
    return {
        "correct": estimate.correct,
        "total": estimate.total,
        "accuracy": estimate.value,
        "ci_low": estimate.low,
        "ci_high": estimate.high,
    }


def _description(w: _Work, device: str) -> Row:
    """Return the columns that say what was run; those of another kind of cell stay empty."""
    attacked = w.plan is not None
    call = parse_call(w.cell.perturb)
    meta = w.classifier.meta
    return {
        "schema": SCHEMA,
        "model": w.cell.model,
        "backbone": meta.get("backbone", ""),
        "family": meta.get("family", ""),
        "weights_sha256": w.classifier.sha256,
        "dataset": w.dataset.name,
        "split": w.dataset.split,
        "n": len(w.dataset.labels),
        "n_total": w.dataset.total,
        "kind": "attack" if attacked else CLEAN,
        "attack": call.name if attacked else "",
        "norm": w.cell.threat.norm if attacked else "",
        "eps": w.cell.threat.eps if attacked else 0.0,
        "eps_text": _fraction_text(w.cell.threat.eps) if attacked else "0",
        "step_size": call.get("step_size", w.cell.threat.eps) if attacked else float("nan"),
        "restarts": w.cell.restarts if attacked else 0,
        "protocol": w.cell.protocol,
        "surrogate": "+".join(w.plan.protocol.surrogates) if w.plan else "",
        "seed": w.cell.seed,
        "corruption": "",
        "severity": 0,
        "batch_size": w.cell.batch_size,
        "device": device,
        "torch": torch.__version__,
        "robustglimpse": robustglimpse.__version__,
    }


def _fraction_text(eps: float) -> str:
    """Return eps as k/255 where it is that, else as a decimal."""
    levels = eps * 255
    return f"{levels:.6g}/255" if abs(levels * 4 - round(levels * 4)) < 1e-6 else f"{eps:.6g}"


def _gmacs(classifier: Classifier, size_px: int) -> tuple[float, ...]:
    architecture = classifier.meta.get("architecture")
    return cost.gmacs_per_exit(architecture, size_px) if architecture is not None else ()


def _failed_row(w: _Work, device: str, error: Exception) -> Row:
    text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return {**_description(w, device), "status": "failed", "error": text}


def _run_info(asked: Bench, work: Sequence[_Work], device: str, command: str) -> dict[str, Any]:
    """Return what run.json tells of a run: the command, versions, the hashes of weights and data."""
    import platform

    return {
        "schema": SCHEMA,
        "command": command,
        "asked": {k: _plain(v) for k, v in asdict(asked).items()},
        "device": device,
        "versions": {
            "robustglimpse": robustglimpse.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "pandas": pd.__version__,
        },
        "weights": {w.cell.model: w.classifier.sha256 for w in work},
        "data": {w.cell.data: w.dataset.fingerprint for w in work},
        "cells": [w.cell.key for w in work],
    }


def _plain(value: Any) -> Any:
    """Return the value as JSON will give it back."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
