"""What early exits keep and cost: accuracy per exit against GMACs, exit by confidence; clean and attacked.

Every exit is judged on one image per sample: the one made against the last exit, as a system that stops
early would meet it.  So one attack answers for every threshold; against_rule attacks each rule itself.
Which image that is depends on the protocol: an attack that stops at the first one that fools leaves it at
the border between two classes, where no exit is sure; one that goes on to its last iterate moves it past.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from robustglimpse import evaluate
from robustglimpse.data import Dataset
from robustglimpse.models.exits import by_confidence, check_threshold, confidence, first_sure
from robustglimpse.models.resized import at_size
from robustglimpse.notes import tell
from robustglimpse.pairs import each_model
from robustglimpse.records import Batch, Classifier, Norm, UserError
from robustglimpse.request import check_asked, understood
from robustglimpse.runner import Bench, Work, choose_device, plan_work, run_all, run_info
from robustglimpse.stats import mean_difference, wilson
from robustglimpse.store import Columns, Store
from robustglimpse.surroundings import own_surroundings

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
LAST_EXIT, RULE = "last exit", "rule"  # what an attack was made against
CONDITION = ["condition", "attack", "options", "norm", "eps_text", "steps", "protocol"]
POINT_COLUMNS = (
    "model", "family", "dataset", "exit", "size_px", *CONDITION, "gmacs", "correct", "n", "accuracy",
    "ci_low", "ci_high",
)  # fmt: skip
RULE_COLUMNS = (
    "model", "family", "dataset", *CONDITION, "against", "threshold", "mean_gmacs", "more_gmacs", "more_low",
    "more_high", "correct", "n", "accuracy", "ci_low", "ci_high",
)  # fmt: skip


@understood
@dataclass(frozen=True)
class ExitStudy:
    """What `robustglimpse exits` is asked for; every field is also a flag, most of them those of Bench.

    sizes: inputs, in px, at which the networks with one exit are run; () for their own alone.
    thresholds: confidences at which a sample leaves.  against_rule: attack the rule itself too, at each.
    attacks: () for the clean images alone.
    """

    models: tuple[str | Classifier, ...]
    sizes: tuple[int, ...] = ()
    thresholds: tuple[float, ...] = THRESHOLDS
    against_rule: bool = False
    attacks: tuple[str, ...] = ()
    steps: tuple[int, ...] = (16,)
    eps: str = "4/255"
    step_size: str = "1/255"
    norm: Norm = "linf"
    restarts: int = 1
    protocols: tuple[str, ...] = ("standard",)
    data: str | Dataset | None = None
    split: str | None = None
    data_dir: Path | None = None
    size_px: int | None = None
    download: bool = False
    limit: int | None = None
    batch_size: int = 64
    seed: int = 0
    device: str = "auto"
    classes_of_data: bool = False


@own_surroundings()
def study_exits(asked: ExitStudy, out: Path, *, command: str = "") -> pd.DataFrame:
    """Run every cell that out does not hold yet; return the rows asked for, as in out/results.csv.

    An attacked cell has, beside the verdict on its last exit, a row for each exit before, judged on the
    same images (judge "image").  Two columns are added: network, the model whatever its size, and threshold,
    NaN but where a rule was attacked.  Raises UserError for what cannot be asked, before anything is run.
    """
    check_asked(asked, ExitStudy, "study_exits(ExitStudy(models='mgnet-r18'), 'runs/mine')")
    for threshold in asked.thresholds:
        check_threshold(threshold)
    if not asked.thresholds:
        raise UserError("expected a threshold or more, got none; for example --thresholds 0.8,0.9")
    device = choose_device(asked.device)
    shared = {field.name: getattr(asked, field.name) for field in fields(Bench) if hasattr(asked, field.name)}
    models = tuple(_at_sizes(asked, device))
    work = [
        each
        for planned in plan_work(Bench(**{**shared, "models": models}), device)
        for each in _with_rules(planned, asked)
    ]
    store = Store(out)
    store.add_run(run_info(asked, work, device, command))
    run_all([[w] for w in work], store, device, title="exits")
    results = store.results({w.cell.key for w in work})
    networks = {w.cell.key: w.classifier.meta.get("network", w.cell.model) for w in work}
    rules = {w.cell.key: float(w.classifier.meta.get("threshold", nan)) for w in work}
    return results.assign(network=results["cell"].map(networks), threshold=results["cell"].map(rules))


def _at_sizes(asked: ExitStudy, device: str) -> Iterator[Classifier]:
    """Yield the models, those with one exit once per size, named as in the tables, their notes told."""
    for name, loaded in each_model(asked.models, device):
        classifier = replace(loaded, name=name, meta={**loaded.meta, "notes": ()})
        own = asked.size_px or classifier.size_px
        if not asked.sizes or classifier.meta.get("exits", 1) > 1:
            yield classifier
            continue
        for size_px in dict.fromkeys(asked.sizes):
            yield classifier if size_px == own else at_size(classifier, size_px)


def _with_rules(planned: Work, asked: ExitStudy) -> Iterator[Work]:
    """Yield a planned cell judged at every exit, and behind an attacked one the attacks on the rules."""
    yield replace(planned, cell=replace(planned.cell, exits="image"), judge=_judge_image)
    if not asked.against_rule or planned.plan is None:
        return
    if planned.classifier.meta.get("exits", 1) == 1:
        tell(f"{planned.cell.model}: it has one exit, so there is no rule to attack")
        return
    plan = planned.plan
    if not plan.keeps_last:  # who leaves early has no gradient into later exits: follow these in turn as well
        gradients = dict.fromkeys((*plan.protocol.surrogates, "last-exit", "mean-exits"))
        plan = replace(plan, protocol=replace(plan.protocol, surrogates=tuple(gradients)))
    for threshold in sorted(set(asked.thresholds)):
        ruled = by_confidence(planned.classifier, threshold)
        cell = replace(planned.cell, model=ruled.name)
        yield replace(planned, cell=cell, classifier=ruled, plan=plan, judge=_judge_rule)


def _judge_image(w: Work, batch: Batch, device: str) -> Columns:
    """Return the outcome columns of every exit on one image per sample, with the exit's confidence on it."""
    key = w.cell.key
    columns = evaluate.judge_clean(w.classifier, batch, device=device, all_exits=True, key=key)
    shown = batch.images.to(device).float() / 255
    count = len(columns["index"]) // len(batch.labels)
    if w.plan is not None:
        last, shown = evaluate.attack_images(w.classifier, batch, w.plan, device=device, key=f"{key} image")
        if w.plan.keeps_last:
            last = {**last, "pred": last[f"pred_at_{w.plan.steps[-1]}"]}
    with torch.no_grad(), evaluate.own_draws(w.classifier, batch, f"{key} exits"):
        exits = w.classifier.exits(shown)
    if w.plan is not None:
        columns = _beside_last(columns, last, exits.argmax(2).flatten().cpu().numpy(), count)
    return {**columns, "confidence": confidence(exits).flatten().cpu().numpy()}


def _beside_last(clean: Columns, last: Columns, pred: NDArray[Any], count: int) -> Columns:
    """Return the columns of all exits on the images that an attack on the last one made.

    clean: the exits' columns on the images before.  last: the last exit's under attack.  pred: i64 [T*B].
    first_success_step of an exit before the last is 0: wrong before, 1: wrong now, -1: right both times.
    """
    before = len(pred) - len(pred) // count
    label, was = clean["label"][:before], clean["pred"][:before]
    early: dict[str, Any] = {name: np.tile(column, count - 1) for name, column in last.items()}
    early |= {
        "exit": clean["exit"][:before],
        "clean_pred": was,
        "margin": np.full(before, np.nan, np.float32),
        "nearest": np.full(before, np.nan, np.float32),
        "first_success_step": np.where(was != label, 0, np.where(pred[:before] == label, -1, 1)),
        **{name: pred[:before] for name in last if name == "pred" or name.startswith("pred_at_")},
    }
    return {name: np.concatenate([early[name], column]) for name, column in last.items()}


def _judge_rule(w: Work, batch: Batch, device: str) -> Columns:
    """Return the outcome columns of a rule under attack, and the exit where each sample leaves then."""
    assert w.plan is not None
    key = w.cell.key
    columns, shown = evaluate.attack_images(w.classifier, batch, w.plan, device=device, key=key)
    with torch.no_grad(), evaluate.own_draws(w.classifier, batch, f"{key} exits"):
        left = first_sure(w.classifier.exits(shown)[:-1], w.classifier.meta["threshold"]) + 1
    return {**columns, "exit": np.ones_like(columns["exit"]), "left_at": left.cpu().numpy()}


def exit_points(results: pd.DataFrame) -> pd.DataFrame:
    """Return Figure 3's points: a row per network, size, exit and condition, columns POINT_COLUMNS.

    results: of study_exits.  Accuracies under attack are those on the images made against the last exit.
    """
    rows = results[(results["status"] == "ok") & results["threshold"].isna()]
    rows = rows.assign(model=rows["network"], condition=rows["kind"], n=rows["total"])
    order = ["condition", "attack", "eps", "protocol", "family", "model", "size_px", "exit"]
    rows = rows.sort_values(order, key=_clean_first, kind="stable")
    return rows[list(POINT_COLUMNS)].reset_index(drop=True)


def _clean_first(column: pd.Series) -> pd.Series:
    return column.ne("clean") if column.name == "condition" else column


def threshold_table(results: pd.DataFrame, store: Store, thresholds: Sequence[float]) -> pd.DataFrame:
    """Return what exit by confidence costs and keeps: a row per network, condition and threshold.

    results: of study_exits.  Columns: RULE_COLUMNS, and left_1 to left_T, the share of the images that leave
    at each exit.  against: what the attack was made against, the last exit or the rule; "" for clean images.
    more_gmacs: what an image costs more than it does clean, on average, with its 95 % interval over the
    images; NaN for clean ones, and where there are none.
    """
    ok = results[results["status"] == "ok"]
    found = []
    for _, rows in ok.groupby("network", sort=False):
        exits = rows[rows["threshold"].isna()]
        if len(exits) and exits["exit"].max() > 1:
            found += list(_rules_of_network(rows, store, sorted(set(thresholds))))
    frame = pd.DataFrame(found, columns=None if found else list(RULE_COLUMNS))
    left = [name for name in frame.columns if str(name).startswith("left_")]
    return frame.reindex(columns=[*RULE_COLUMNS, *left])


def _rules_of_network(
    rows: pd.DataFrame, store: Store, thresholds: Sequence[float]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one network, clean ones first."""
    exits = rows[rows["threshold"].isna()].drop_duplicates("exit").sort_values("exit")
    gmacs = exits["gmacs"].to_numpy(float)
    clean: dict[float, NDArray[np.float64]] = {}
    cells = rows.drop_duplicates("cell")
    cells = cells.assign(condition=cells["kind"]).sort_values(
        ["condition", "attack", "eps", "protocol", "threshold"], key=_clean_first, na_position="first"
    )
    for cell in cells.to_dict("records"):
        outcomes = store.outcomes(cell["cell"])
        is_rule = not np.isnan(cell["threshold"])
        for threshold in [cell["threshold"]] if is_rule else thresholds:
            left, is_right = leave_as_kept(outcomes) if is_rule else leave_at(outcomes, threshold)
            spent = gmacs[left]
            if cell["condition"] == "clean":
                clean[threshold] = spent
            before = clean.get(threshold) if cell["condition"] != "clean" else None
            more = np.full(len(spent), nan) if before is None else spent - before
            yield {
                **{name: cell[name] for name in ("family", "dataset", *CONDITION)},
                "model": cell["network"],
                "against": RULE if is_rule else LAST_EXIT if cell["condition"] == "attack" else "",
                "threshold": threshold,
                "mean_gmacs": float(spent.mean()),
                **_more(more, float(gmacs[-1])),
                **_estimate(is_right),
                **{f"left_{t + 1}": float((left == t).mean()) for t in range(len(gmacs))},
            }


def leave_at(outcomes: pd.DataFrame, threshold: float) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return where each sample leaves, 0..T-1, and whether it is right there, both [N] by index.

    outcomes: of a cell that judged every exit on one image per sample.
    """
    rows = outcomes.sort_values(["exit", "index"])
    count = rows["exit"].nunique()
    is_sure = rows["confidence"].to_numpy().reshape(count, -1) >= threshold
    is_right = (rows["pred"] == rows["label"]).to_numpy().reshape(count, -1)
    is_sure[-1] = True
    left = is_sure.argmax(0)
    return left, is_right[left, np.arange(len(left))]


def leave_as_kept(outcomes: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the same of a cell that attacked a rule: its outcomes say where each sample left."""
    rows = outcomes.sort_values("index")
    return rows["left_at"].to_numpy() - 1, (rows["pred"] == rows["label"]).to_numpy()


def _more(difference: NDArray[np.float64], largest: float) -> dict[str, float]:
    """Return the mean of what each image costs more, f64 [N], with its interval."""
    more = {"more_gmacs": float(difference.mean()), "more_low": nan, "more_high": nan}
    if len(difference) < 2 or not np.isfinite(difference).all():
        return more
    interval = mean_difference(difference / largest)  # of shares, which are what it bounds
    return {**more, "more_low": largest * interval.low, "more_high": largest * interval.high}


def _estimate(is_right: NDArray[np.bool_]) -> dict[str, Any]:
    found = wilson(int(is_right.sum()), len(is_right))
    return {
        "correct": found.correct, "n": found.total, "accuracy": found.value, "ci_low": found.low,
        "ci_high": found.high,
    }  # fmt: skip
