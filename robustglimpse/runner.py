"""The grid: which cells there are, which are done, and the loop that does the rest.

A cell is clean, attacked, or corrupted; `bench` plans the first two, sweep.py the third.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import robustglimpse
from robustglimpse import cost, evaluate, machine
from robustglimpse.arguments import device_here
from robustglimpse.attacks import ATTACKS, adapted_defaults, canonical
from robustglimpse.corruptions import corrupt
from robustglimpse.data import Dataset
from robustglimpse.models.preflight import better_preparation
from robustglimpse.notes import LOG, tell
from robustglimpse.pairs import data_name, load_pairs
from robustglimpse.progress import Progress, progress
from robustglimpse.records import (
    PROTOCOLS,
    SCHEMA,
    Batch,
    Cell,
    Classifier,
    Estimate,
    Norm,
    Threat,
    UserError,
)
from robustglimpse.registry import Call, find, fraction_text, options_text, parse_call, parse_fraction
from robustglimpse.request import check_asked, understood
from robustglimpse.rng import KeyedDraws
from robustglimpse.stats import wilson
from robustglimpse.store import Columns, Provenance, Row, Store, is_correct, tells_of
from robustglimpse.surroundings import own_surroundings

CLEAN = "clean"
EPS_PARTS = 8  # of a sweep over eps that names the largest alone
ASKED_AGAIN = 64  # images on which other preparations are tried
UNSEEN = "are its weights trained, its images prepared as in training, its classes in this order?"
LOST = 0.1  # the share of gradients that may be lost on what stands without a word


@understood
@dataclass(frozen=True)
class Bench:
    """What `robustglimpse bench` is asked for; every field is also a flag.

    models: names, .safetensors files, calls of models.SOURCES, or Classifiers (models.sources.wrap makes one
        of any nn.Module).
    eps, step_size: in pixel units of [0,1], as text ("4/255") so that tables can show what was typed.
    curve: "eps" attacks at every eps of a sweep, the largest of which is the threat: those that eps spells
        ("1/255,2/255,4/255"), or eight equal parts of the one that it is.
    data: a data set's name, or a Dataset (data.from_tensors); None takes the one that the models were
        trained on.
    """

    models: tuple[str | Classifier, ...]
    attacks: tuple[str, ...] = ("pgd",)
    steps: tuple[int, ...] = (1, 2, 4, 8, 16)
    eps: str = "4/255"
    step_size: str = "1/255"
    curve: str = ""
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
    all_exits: bool = False
    classes_of_data: bool = False


@dataclass(frozen=True)
class Corruption:
    """What a corrupted cell shows instead of its images.

    preset: 0, and texture "", where the set was corrupted and saved by others.
    texture: where the frost comes from, for frost alone.
    """

    name: str
    severity: int
    preset: int = 0
    store: str = "exact"
    texture: str = ""
    frost_dir: Path | None = None

    def shown(self, batch: Batch, seed: int, device: str) -> Batch:
        """Return the batch with its images corrupted, each by draws of its own."""
        if not self.preset:
            return batch
        images = corrupt(
            batch.images.to(device), self.name, self.severity, draws=KeyedDraws(seed, batch.index),
            preset=self.preset, store=self.store, frost_dir=self.frost_dir,
        )  # fmt: skip
        return replace(batch, images=images)


@dataclass(frozen=True)
class Work:
    """A cell with everything it needs at hand; neither plan nor corruption for a clean one.

    clean: the clean cell of the same images, whose predictions a corrupted one is set beside.
    judge: makes the outcome columns of a batch instead of the loop's own verdicts.
    """

    cell: Cell
    classifier: Classifier
    dataset: Dataset
    provenance: Provenance
    plan: evaluate.Plan | None = None
    corruption: Corruption | None = None
    clean: Cell | None = None
    judge: Callable[[Work, Batch, str], Columns] | None = None

    @property
    def note(self) -> str:
        """What a progress bar says of it."""
        severity = str(self.corruption.severity) if self.corruption else ""
        return " ".join([self.cell.model, call_name(self.cell), self.cell.protocol, severity]).strip()


def call_name(cell: Cell) -> str:
    """Return the name in a cell's call string: "clean", "pgd", "fog"."""
    return cell.perturb.partition("(")[0]


@own_surroundings()
def bench(asked: Bench, out: Path, *, command: str = "") -> pd.DataFrame:
    """Run every cell that out does not hold yet; return the rows asked for, as in out/results.csv.

    out/results.csv holds the rows of every cell ever run into out.  All that is asked for is checked
    before the first cell runs.  A cell that crashes becomes a row with its error and no accuracy, and
    the others go on.  Raises UserError for what cannot be asked.
    """
    check_asked(asked, Bench, "bench(Bench(models='mgnet-r18'), 'runs/mine')")
    device = choose_device(asked.device)
    work = list(plan_work(asked, device, at_equal_tries=True))
    store = Store(out)
    store.add_run(run_info(asked, work, device, command))
    run_all([[w] for w in work], store, device, title="bench")
    return store.results({w.cell.key for w in work})


def run_all(groups: Sequence[Sequence[Work]], store: Store, device: str, *, title: str) -> None:
    """Run what store does not hold yet and write its results.csv, crashed cells in it as holes.

    groups: cells that look at the same images; what is shown is made once for all of them.
    """
    todo = [[w for w in group if not store.is_done(w.cell, w.provenance)] for group in groups]
    total = sum(len(group[0].dataset.labels) * len(group) for group in todo if group)
    with progress(max(total, 1), title) as report:
        done = 0
        for group in filter(None, todo):
            note = ", ".join(dict.fromkeys(w.note for w in group))
            try:
                at = partial(_tell, report, done, note)
                first = group[0]
                if first.plan is None or first.judge is not None:
                    _run_group(group, store, device, at)
                else:  # shown to nobody else: every attack makes its own images
                    _run_attack(first, first.plan, store, device, at)
            except UserError:
                raise
            except Exception as error:  # a crash is a hole in the table, never a survival
                for w in group:
                    if not store.is_done(w.cell, w.provenance):
                        store.fail(w.cell, _failed_row(w, device, error), traceback.format_exc())
                where = f"its traceback: {store.root / 'failures'}, or --debug"
                tell(f"{note}: {type(error).__name__}: {error} ({where})")
                LOG.debug("%s", traceback.format_exc())
            done += len(group[0].dataset.labels) * len(group)
            report(done, note)  # an attack that leaves nobody standing skips the parts behind it
    store.write_results()


def choose_device(name: str) -> str:
    """Return the torch device for a --device: "auto" is the GPU where there is one.

    On a GPU convolutions are told to keep f32: by default theirs have TF32's ten bits.
    """
    name = device_here(name)
    if name.startswith("cuda"):
        torch.backends.cudnn.allow_tf32 = False
    return name


def plan_work(asked: Bench, device: str, *, at_equal_tries: bool = False) -> Iterator[Work]:
    """Yield the clean cell and the attack cells of every model, all arguments checked.

    at_equal_tries: add cells that make as many tries as the protocol that makes most (see _tries).
    """
    radii = radii_of(asked)
    threat = Threat(asked.norm, radii[-1] if radii else _positive(asked.eps, "eps"))
    for what, value in (("eps", threat.eps), ("step size", _positive(asked.step_size, "step size"))):
        if asked.norm == "linf" and value > 1:
            raise UserError(
                f"linf {what} must be at most 1, in [0,1] pixel units, got {value:g}; "
                f"did you mean {value:g}/255?"
            )
    evaluate.steps_of(asked.steps)
    calls = [with_defaults(parse_call(text), asked) for text in asked.attacks]
    for name, classifier, dataset, provenance in load_pairs(asked, device):
        data = data_name(asked, classifier)
        exits = "all" if asked.all_exits else "last"
        cell = Cell(
            name, data, dataset.split, CLEAN, threat, "", 1, asked.limit, asked.batch_size, asked.seed, exits,
            asked.classes_of_data,
        )  # fmt: skip
        clean = replace(cell, threat=Threat("linf", 0.0), seed=0)  # nothing is drawn, nothing is perturbed
        yield Work(clean, classifier, dataset, provenance)
        keys = set()
        for call in calls:
            for protocol, tries in _tries(asked, at_equal_tries):
                told = _as_protocol_starts(call, protocol)
                plan = evaluate.make_plan(
                    told, protocol=protocol, threat=threat, normalisation=classifier.normalisation,
                    restarts=tries, seed=asked.seed, all_exits=asked.all_exits, radii=radii,
                )  # fmt: skip
                swept = Call(told.name, (*told.arguments, ("radii", list(radii)))) if radii else told
                attacked = replace(
                    cell, perturb=str(swept), threat=plan.threat, protocol=protocol, restarts=plan.restarts
                )
                if attacked.key not in keys:  # where nothing is drawn, more tries are one
                    yield Work(attacked, classifier, dataset, provenance, plan)
                keys.add(attacked.key)


def _tries(asked: Bench, at_equal_tries: bool) -> Iterator[tuple[str, int]]:
    """Yield every protocol with its random starts; at_equal_tries: one of fewer tries also with as many.

    `adaptive` goes through three gradients, each from a start of its own: beside `standard` with one try,
    what the gradients do and what more tries do could not be told apart.
    """
    protocols = dict.fromkeys(asked.protocols)
    rows = {name: find(PROTOCOLS, name, kind="protocol", listing="protocols") for name in protocols}
    most = max(len(row.surrogates) for row in rows.values())
    for name, row in rows.items():
        yield name, asked.restarts
        if at_equal_tries and row.random_start and len(row.surrogates) < most:
            yield name, asked.restarts * most


def _as_protocol_starts(call: Call, protocol: str) -> Call:
    """Return the call; a library's that leaves its start open begins at the image where the protocol does."""
    starts = find(PROTOCOLS, protocol, kind="protocol", listing="protocols").random_start
    return call if starts else adapted_defaults(call, random_start=False)


def steps_unused(asked: Bench) -> list[str]:
    """Return a line for every attack that `steps` is not for, where somebody asked for some."""
    lines = []
    for call in map(canonical, map(parse_call, asked.attacks)):
        row = ATTACKS.get(call.name)
        if row is not None and row.runs_long and asked.steps != Bench.steps and call.get("steps") is None:
            instead = "has its own numbers of steps" if row.parts else f"takes its own: {call.name}(steps=N)"
            lines.append(f"{call.name}: --steps is for attacks whose every step is reported; it {instead}")
    return lines


def radii_of(asked: Bench) -> tuple[float, ...]:
    """Return the increasing radii of a sweep over eps, none where there is no sweep."""
    if not asked.curve:
        return ()
    if asked.curve != "eps":
        raise UserError(f"a curve is over eps, got {asked.curve!r}; curves over steps come with --steps")
    radii = sorted({_positive(part, "eps") for part in asked.eps.split(",")})
    return (
        tuple(radii) if len(radii) > 1 else tuple(radii[0] * k / EPS_PARTS for k in range(1, EPS_PARTS + 1))
    )


def with_defaults(call: Call, asked: Bench) -> Call:
    """Return the call by our names, with --steps and --step-size where the attack takes them and it has none.

    An attack of a library takes the largest of the steps.
    """
    call = canonical(call)
    step_size = _positive(asked.step_size, "step size")
    row = ATTACKS.get(call.name)
    options = dict(call.arguments)
    if row is None:
        call = adapted_defaults(call, steps=evaluate.steps_of(asked.steps)[-1], step_size=step_size)
    elif row.iterative:
        call = Call(
            call.name, tuple(sorted({"steps": list(asked.steps), "step_size": step_size, **options}.items()))
        )
        _positive(str(call.get("step_size")), "step size")
    return call


def _positive(text: str, what: str) -> float:
    value = parse_fraction(text, what=what)
    if value <= 0:
        raise UserError(f"{what} must be above 0, got {text!r}; give it in [0,1] pixel units, such as 4/255")
    return value


def _tell(report: Progress, before: int, note: str, finished: float, detail: str = "") -> None:
    report(before + finished, f"{note}{detail}")


def _run_group(group: Sequence[Work], store: Store, device: str, at_image: Callable[[float], None]) -> None:
    """Run the cells' missing batches, then write outcomes and rows; tell how many images are done.

    All look at the same images, so each batch is made ready once.
    """
    parts = [store.parts(w.cell, w.provenance) for w in group]
    clean = [_clean_predictions(w, store) for w in group]
    visited = []
    for batch in group[0].dataset.batches(group[0].cell.batch_size):
        at = 0, int(batch.index[0])
        visited.append(at)
        index = batch.index.numpy()
        missing = [k for k, w in enumerate(group) if not _is_kept(w, parts[k], at, index)]
        if missing:
            start = time.perf_counter()
            shown = _shown(group[0], batch, device)
            share = (time.perf_counter() - start) / len(missing)
        for k in missing:
            start = time.perf_counter()
            columns = _run_batch(group[k], batch, shown, clean[k], device)
            seconds = time.perf_counter() - start + share
            store.save_part(group[k].cell, group[k].provenance, at, columns, seconds)
            parts[k][at] = columns, seconds
        at_image((at[1] + len(batch.labels)) * len(group))
    for w, done in zip(group, parts, strict=True):
        batches = [done[at][0] for at in visited]
        whole = {name: np.concatenate([columns[name] for columns in batches]) for name in batches[0]}
        _finish(w, store, whole, sum(done[at][1] for at in visited), device)


def _is_kept(
    w: Work, done: Mapping[tuple[int, int], tuple[Columns, float]], at: tuple[int, int], index: Any
) -> bool:
    """Return whether a batch is there from an earlier run, and of these samples, i64 [B]; tell where not."""
    if at not in done:
        return False
    if tells_of(done[at][0], index):
        return True
    tell(f"{w.note}: a batch that was kept is not the one from sample {at[1]} on; it is made again")
    return False


def _run_attack(
    w: Work, plan: evaluate.Plan, store: Store, device: str, at_image: Callable[..., None]
) -> None:
    """Run what is missing of an attack's turns, then write outcomes and rows; tell how many images are done.

    Each part of an attack counts as its share of them, whoever it still has to try.
    """
    done = store.parts(w.cell, w.provenance)
    total = len(w.dataset.labels)
    seconds = share = 0.0

    def run(turn: evaluate.Turn) -> Columns:
        nonlocal seconds, share
        at = turn.part, int(turn.rows[0])
        if not _is_kept(w, done, at, turn.rows):
            start = time.perf_counter()
            columns = evaluate.attack(
                w.classifier, w.dataset.batch(turn.rows), turn.plan, device=device,
                key=f"{w.cell.key} part {turn.part}", at_once=w.cell.batch_size, before=turn.before,
                on_step=lambda step: at_image(total * share, f", {turn.plan.attack.name} step {step}"),
            )  # fmt: skip
            done[at] = columns, time.perf_counter() - start
            store.save_part(w.cell, w.provenance, at, *done[at])
        seconds += done[at][1]
        share = turn.done
        at_image(total * share)
        return done[at][0]

    columns = evaluate.in_turns(plan, total, w.cell.batch_size, run)
    _finish(w, store, columns, seconds, device)


def _finish(w: Work, store: Store, columns: Columns, seconds: float, device: str) -> None:
    """Write a cell's outcomes and rows."""
    order = np.lexsort((columns["index"], columns["exit"]))
    columns = {name: column[order] for name, column in columns.items()}
    store.finish(w.cell, w.provenance, columns, result_rows(w, columns, seconds, device))
    if w.plan is None and w.corruption is None:
        _warn_of_accuracy(w, columns, device)
        if w.classifier.meta.get("is_random"):
            tell(
                f"{w.cell.model}: answers at random; judged by the vote of {evaluate.FRESH} passes, and of "
                f"{evaluate.SURE} more where those are wrong"
            )
    if w.plan is not None:
        _warn_of_lost_gradients(w, columns)


def _warn_of_lost_gradients(w: Work, columns: Columns) -> None:
    """Say on stderr where images stand that an attack had hardly a gradient for."""
    standing = columns["first_success_step"] == -1
    backwards, lost = (int(columns[name][standing].sum()) for name in ("backwards", "zero_gradients"))
    if lost > LOST * backwards:
        tell(
            f"{w.note}: {lost / backwards:.0%} of the gradients on what stands were zero or no number "
            "(zero_gradients); that is no robustness: try --attack square, or --protocol adaptive"
        )


def _warn_of_accuracy(w: Work, columns: Columns, device: str) -> None:
    """Tell where a model is no better than guessing, and where other preparation would clearly mend it."""
    right = (columns["pred"] == columns["label"])[columns["exit"] == columns["exit"].max()]
    labels, total = w.dataset.labels, len(right)
    classes = len(np.unique(labels))  # one answer for all is right for one of them
    chance = 1 / (classes if total >= 2 * classes else len(w.classifier.classes))
    batch = next(w.dataset.batches(ASKED_AGAIN))
    better = better_preparation(
        w.classifier, batch.images.to(device).float() / 255, batch.labels.to(device),
        is_right=torch.from_numpy(right[: len(batch.labels)]),
    )  # fmt: skip
    mend = f"{better}: is that how it was trained?" if better else ""
    if wilson(int(right.sum()), total).low <= chance:
        tell(
            f"{w.cell.model}: {right.sum()} of {total} clean images right, no better than chance "
            f"({chance:.2g}); {mend or UNSEEN}"
        )
    elif mend:
        tell(f"{w.cell.model}: {right.sum()} of {total} clean images right; {mend}")


def _shown(w: Work, batch: Batch, device: str) -> Batch:
    return w.corruption.shown(batch, w.cell.seed, device) if w.corruption else batch


def _clean_predictions(w: Work, store: Store) -> Any:
    """Return what the clean cell predicted, i64 [E,N] in order, or None where there is no such cell."""
    if w.clean is None:
        return None
    if not store.is_done(w.clean, w.provenance):
        raise RuntimeError("the clean cell of the same images failed; this one would lack its predictions")
    outcomes = store.outcomes(w.clean.key).sort_values(["exit", "index"])
    return outcomes["pred"].to_numpy().reshape(outcomes["exit"].nunique(), -1)


def _run_batch(w: Work, batch: Batch, shown: Batch, clean: Any, device: str) -> Columns:
    all_exits = w.cell.exits == "all"
    if w.judge is not None:
        return w.judge(w, batch, device)
    columns = evaluate.judge_clean(w.classifier, shown, device=device, all_exits=all_exits, key=w.cell.key)
    if w.corruption is None:
        return columns
    before = None if clean is None else clean[:, batch.index.numpy()]
    is_ours = w.corruption.preset > 0
    return evaluate.beside_clean(columns, shown, batch if is_ours else None, before)


def result_rows(w: Work, columns: Columns, seconds: float, device: str) -> list[Row]:
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
    gmacs = _gmacs(w)
    rows = []
    exits = sorted(set(columns["exit"].tolist()))
    for exit_number in exits:
        of_exit = {name: column[columns["exit"] == exit_number] for name, column in columns.items()}
        for judge, steps, eps, right in _verdicts(w, of_exit, is_last=exit_number == exits[-1]):
            estimate = wilson(int(right.sum()), len(right))
            rows.append(
                {
                    **common,
                    **_estimate(estimate),
                    **_radius(common, eps),
                    "judge": judge,
                    "steps": steps,
                    "exit": exit_number,
                    "gmacs": gmacs[exit_number - 1],
                }
            )
    return rows


def _verdicts(
    w: Work, columns: dict[str, Any], *, is_last: bool
) -> Iterator[tuple[str, int, float | None, Any]]:
    """Yield (judge, steps, eps, bool [N]: still correct) for every number that the cell reports of an exit.

    eps: None but for a sweep over it.
    """
    if w.plan is None:
        reported = [("", 0)]
    elif w.cell.exits == "image":  # the last exit's is the usual verdict: the image was made against it
        reported = [(("last" if w.plan.keeps_last else "worst") if is_last else "image", _most_steps(w.plan))]
    elif w.plan.steps == (evaluate.TO_THE_END,):
        reported = [("worst", _most_steps(w.plan))]
    else:
        judges = w.plan.protocol.judges if not w.plan.radii else ("worst",)
        reported = [(judge, steps) for judge in judges for steps in w.plan.steps]
    most = max(steps for _, steps in reported)
    for judge, steps in reported:
        for eps in (w.plan.radii if w.plan else ()) or (None,):
            yield judge, steps, eps, is_correct(columns, judge, steps, most=most, eps=eps)


def _most_steps(plan: evaluate.Plan) -> int:
    if plan.parts:
        return sum(map(_most_steps, plan.parts))
    runs_long = plan.steps == (evaluate.TO_THE_END,)
    return int(plan.attack.get("steps", 1)) if runs_long else plan.steps[-1]


def _radius(row: Row, eps: float | None) -> Row:
    """Return the columns of a row that differ along a sweep over eps."""
    if eps is None:
        return {}
    return {"eps": eps, "eps_text": fraction_text(eps), "step_size": row["step_size"] * eps / row["eps"]}


def _estimate(estimate: Estimate) -> Row:
    return {
        "correct": estimate.correct,
        "total": estimate.total,
        "accuracy": estimate.value,
        "ci_low": estimate.low,
        "ci_high": estimate.high,
    }


def _description(w: Work, device: str) -> Row:
    """Return the columns that say what was run; those of another kind of cell stay empty."""
    attacked, corruption = w.plan is not None, w.corruption or Corruption("", 0)
    call = parse_call(w.cell.perturb)
    meta = w.classifier.meta
    return {
        "schema": SCHEMA,
        "model": w.cell.model,
        "backbone": meta.get("backbone", ""),
        "family": meta.get("family", ""),
        "weights_sha256": w.classifier.sha256,
        "dataset": w.dataset.name,
        "data_sha256": w.provenance.data_sha256,
        "split": w.dataset.split,
        "labels": _labels_text(w),
        "classes": len(np.unique(w.dataset.labels)),
        "size_px": _input_px(w),
        "preparation": w.dataset.preparation,
        "n": len(w.dataset.labels),
        "n_total": w.dataset.total,
        "kind": "attack" if attacked else "corruption" if w.corruption else CLEAN,
        "attack": call.name if attacked else "",
        "options": options_text(w.cell.perturb) if attacked else "",
        "norm": w.cell.threat.norm if attacked else "",
        "eps": w.cell.threat.eps if attacked else 0.0,
        "eps_text": fraction_text(w.cell.threat.eps) if attacked else "0",
        "step_size": _step_size(call, w.cell.threat.eps) if attacked else float("nan"),
        "restarts": w.cell.restarts if attacked else 0,
        "protocol": w.cell.protocol,
        "surrogate": "+".join(w.plan.protocol.surrogates) if w.plan else "",
        "seed": w.cell.seed,
        "corruption": corruption.name,
        "severity": corruption.severity,
        "preset": corruption.preset,
        "store": corruption.store if corruption.name else "",
        "texture": corruption.texture,
        "batch_size": w.cell.batch_size,
        "device": device,
        "torch": torch.__version__,
        "robustglimpse": robustglimpse.__version__,
        "cell": w.cell.key,
    }


def _step_size(call: Call, eps: float) -> float:
    """Return the size of the steps that a call names, NaN where the attack finds its own."""
    if call.get("rel_stepsize") is not None:  # foolbox's, a share of eps
        return float(call.get("rel_stepsize")) * eps
    size, row = call.get("step_size"), ATTACKS.get(call.name)
    is_eps = row is not None and row.step_is_eps
    return float(eps if is_eps else "nan") if size is None else float(size)


def _labels_text(w: Work) -> str:
    """Return how the data's classes were matched, such as "by name, of 200 of the model's 1000 classes"."""
    every = w.classifier.meta.get("all_classes")
    if every is None:
        return w.dataset.numbering
    return f"{w.dataset.numbering}, of {len(w.classifier.classes)} of the model's {every} classes alone"


def _input_px(w: Work) -> int:
    """Return the side of what the network gets: of the images, unless it resizes them; the height of two."""
    side = w.classifier.meta.get("input_px", w.dataset.size_px)
    return int(side[0] if isinstance(side, tuple) else side)


def _gmacs(w: Work) -> tuple[float, ...]:
    height, width = w.dataset.images.shape[2:]
    return cost.gmacs_of(w.classifier, w.classifier.meta.get("input_px", (height, width)))


def _failed_row(w: Work, device: str, error: Exception) -> Row:
    text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return {**_description(w, device), "status": "failed", "error": text}


def run_info(asked: Any, work: Sequence[Work], device: str, command: str) -> dict[str, Any]:
    """Return what run.json tells of a run: the command, versions, the hashes of weights and data."""
    import platform

    return {
        "schema": SCHEMA,
        "command": command,
        "asked": {field.name: _plain(getattr(asked, field.name)) for field in fields(asked)},
        "device": device,
        "machine": machine.describe(device),
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
    """Return the value as JSON will give it back; models and data sets by name."""
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Classifier | Dataset):
        return value.name
    return str(value) if isinstance(value, Path) else value
