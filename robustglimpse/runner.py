"""The grid: which cells there are, which are done, and the loop that does the rest.

A cell is clean, attacked, or corrupted; `bench` plans the first two, sweep.py the third.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch

import robustglimpse
from robustglimpse import cost, evaluate
from robustglimpse.attacks import ATTACKS, adapted_defaults, canonical
from robustglimpse.corruptions import corrupt
from robustglimpse.data import DATASETS, Dataset, load_data
from robustglimpse.models import is_from_outside, load_model
from robustglimpse.models.preflight import PROBES, check_model, right_if_prepared
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
from robustglimpse.rng import KeyedDraws
from robustglimpse.stats import wilson
from robustglimpse.store import Columns, Provenance, Row, Store, is_correct

CLEAN = "clean"
EPS_PARTS = 8  # of a sweep over eps that names the largest alone
CHANCE_BATCH = 64  # images on which another preparation is tried
LOST = 0.1  # the share of gradients that may be lost on what stands without a word


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


def bench(asked: Bench, out: Path, *, command: str = "") -> pd.DataFrame:
    """Run every cell that out does not hold yet; return the rows asked for, as in out/results.csv.

    out/results.csv holds the rows of every cell ever run into out.  All that is asked for is checked
    before the first cell runs.  A cell that crashes becomes a row with its error and no accuracy, and
    the others go on.  Raises UserError for what cannot be asked.
    """
    device = choose_device(asked.device)
    work = list(plan_work(asked, device))
    store = Store(out)
    store.add_run(run_info(asked, work, device, command))
    failed = run_all([[w] for w in work], store, device, title="bench")
    return store.results({w.cell.key for w in work}, failed)


def run_all(groups: Sequence[Sequence[Work]], store: Store, device: str, *, title: str) -> list[Row]:
    """Run what store does not hold yet and write its results.csv; return the rows of cells that crashed.

    groups: cells that look at the same images; what is shown is made once for all of them.
    """
    todo = [[w for w in group if not store.is_done(w.cell, w.provenance)] for group in groups]
    failed: list[Row] = []
    total = sum(len(group[0].dataset.labels) * len(group) for group in todo if group)
    with progress(max(total, 1), title) as report:
        done = 0
        for group in filter(None, todo):
            note = ", ".join(dict.fromkeys(w.note for w in group))
            try:
                tell = partial(_tell, report, done, note)
                first = group[0]
                if first.plan is None or first.judge is not None:
                    _run_group(group, store, device, tell)
                else:  # shown to nobody else: every attack makes its own images
                    _run_attack(first, first.plan, store, device, tell)
            except UserError:
                raise
            except Exception as error:  # a crash is a hole in the table, never a survival
                crashed = [w for w in group if not store.is_done(w.cell, w.provenance)]
                failed += [_failed_row(w, device, error) for w in crashed]
                print(f"{note}: {type(error).__name__}: {error}", file=sys.stderr)
            done += len(group[0].dataset.labels) * len(group)
            report(done, note)  # an attack that leaves nobody standing skips the parts behind it
    store.write_results(failed)
    return failed


def choose_device(name: str) -> str:
    """Return the torch device for a --device: "auto" is the GPU where there is one.

    On a GPU convolutions are told to keep f32: by default theirs have TF32's ten bits.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    else:
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            raise UserError(
                f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try --device cpu"
            ) from None
    if name.startswith("cuda"):
        torch.backends.cudnn.allow_tf32 = False
    return name


def plan_work(asked: Bench, device: str) -> Iterator[Work]:
    """Yield the clean cell and the attack cells of every model, all arguments checked."""
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
    for name, classifier, dataset in load_pairs(asked, device):
        provenance = Provenance(classifier.sha256, dataset.fingerprint)
        data = data_name(asked, classifier)
        exits = "all" if asked.all_exits else "last"
        cell = Cell(
            name, data, dataset.split, CLEAN, threat, "", 1, asked.limit, asked.batch_size, asked.seed, exits
        )
        clean = replace(cell, threat=Threat("linf", 0.0), seed=0)  # nothing is drawn, nothing is perturbed
        yield Work(clean, classifier, dataset, provenance)
        for call in calls:
            for protocol in dict.fromkeys(asked.protocols):
                told = _as_protocol_starts(call, protocol)
                plan = evaluate.make_plan(
                    told, protocol=protocol, threat=threat, normalisation=classifier.normalisation,
                    restarts=asked.restarts, seed=asked.seed, all_exits=asked.all_exits, radii=radii,
                )  # fmt: skip
                swept = Call(told.name, (*told.arguments, ("radii", list(radii)))) if radii else told
                attacked = replace(
                    cell, perturb=str(swept), threat=plan.threat, protocol=protocol, restarts=plan.restarts
                )
                yield Work(attacked, classifier, dataset, provenance, plan)


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


class Source(Protocol):
    """The parts of a request that say which models look at which images."""

    @property
    def models(self) -> tuple[str | Classifier, ...]: ...
    @property
    def data(self) -> str | Dataset | None: ...
    @property
    def split(self) -> str | None: ...
    @property
    def data_dir(self) -> Path | None: ...
    @property
    def size_px(self) -> int | None: ...
    @property
    def download(self) -> bool: ...
    @property
    def limit(self) -> int | None: ...
    @property
    def batch_size(self) -> int: ...


def load_pairs(asked: Source, device: str) -> Iterator[tuple[str, Classifier, Dataset]]:
    """Yield every model's name, the model and its data, labels as it numbers them; each set is read once."""
    check_counts(asked)
    datasets: dict[tuple[str, int | None], Dataset] = {}
    for name, classifier in each_model(asked.models, device):
        if isinstance(asked.data, Dataset):
            yield name, *checked(classifier, asked.data.first(asked.limit), device)
            continue
        data = data_name(asked, classifier)
        size_px = asked.size_px or (classifier.size_px if has_sizes(data) else None)
        if (data, size_px) not in datasets:
            datasets[data, size_px] = load_data(
                data, split=asked.split, data_dir=asked.data_dir, limit=asked.limit, size_px=size_px,
                download=asked.download,
            )  # fmt: skip
        yield name, *checked(classifier, datasets[data, size_px], device)


def checked(classifier: Classifier, dataset: Dataset, device: str) -> tuple[Classifier, Dataset]:
    """Return the model, once it has answered the first images as a model should, and its data."""
    dataset = match_classes(dataset, classifier)
    images = next(dataset.batches(PROBES)).images
    return check_model(classifier, images.to(device).float() / 255), dataset


def check_counts(asked: Source) -> None:
    """Raise UserError unless the batch size, limit and size are numbers from 1 up, where they are given."""
    for what, value in (("batch size", asked.batch_size), ("limit", asked.limit), ("size", asked.size_px)):
        if value is not None and value < 1:
            raise UserError(f"{what} must be at least 1, got {value}")


def has_sizes(data: str) -> bool:
    """Return whether a data set is read at the size that a model asks for."""
    row = DATASETS.get(data)
    return data.startswith("imagefolder") or (row is not None and row.is_corrupted)


def each_model(models: Sequence[str | Classifier], device: str) -> Iterator[tuple[str, Classifier]]:
    """Yield every model once, with what it is called in the tables; its notes go to stderr.

    Raises UserError where two have one name.
    """
    seen: set[str] = set()
    for model in models:
        if isinstance(model, str) and model in seen:
            continue
        classifier = load_model(model, device=device) if isinstance(model, str) else model
        name = model if isinstance(model, str) and not is_from_outside(model) else classifier.name
        if name in seen:
            raise UserError(f"two models are called {name!r}; give them names of their own (name='...')")
        seen |= {name, model} if isinstance(model, str) else {name}
        for note in classifier.meta.get("notes", ()):
            print(note, file=sys.stderr)
        yield name, classifier


def data_name(asked: Source, classifier: Classifier) -> str:
    """Return the name of the data that a model is to be judged on. Raises UserError where there is none."""
    if isinstance(asked.data, Dataset):
        return asked.data.name
    data = asked.data or classifier.meta["dataset"]
    if not data:
        raise UserError(f"{classifier.name} does not say what it was trained on; name a data set with --data")
    return str(data)


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


def _tell(report: Progress, before: int, note: str, finished: float, detail: str = "") -> None:
    report(before + finished, f"{note}{detail}")


def _run_group(group: Sequence[Work], store: Store, device: str, tell: Callable[[float], None]) -> None:
    """Run the cells' missing batches, then write outcomes and rows; tell how many images are done.

    All look at the same images, so each batch is made ready once.
    """
    parts = [store.parts(w.cell, w.provenance) for w in group]
    clean = [_clean_predictions(w, store) for w in group]
    for batch in group[0].dataset.batches(group[0].cell.batch_size):
        at = 0, int(batch.index[0])
        missing = [k for k, done in enumerate(parts) if at not in done]
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
        tell((at[1] + len(batch.labels)) * len(group))
    for w, done in zip(group, parts, strict=True):
        batches = [done[at][0] for at in sorted(done)]
        whole = {name: np.concatenate([columns[name] for columns in batches]) for name in batches[0]}
        _finish(w, store, whole, sum(seconds for _, seconds in done.values()), device)


def _run_attack(w: Work, plan: evaluate.Plan, store: Store, device: str, tell: Callable[..., None]) -> None:
    """Run what is missing of an attack's turns, then write outcomes and rows; tell how many images are done.

    Each part of an attack counts as its share of them, whoever it still has to try.
    """
    done = store.parts(w.cell, w.provenance)
    total = len(w.dataset.labels)
    seconds = share = 0.0

    def run(turn: evaluate.Turn) -> Columns:
        nonlocal seconds, share
        at = turn.part, int(turn.rows[0])
        if at not in done:
            start = time.perf_counter()
            columns = evaluate.attack(
                w.classifier, w.dataset.batch(turn.rows), turn.plan, device=device,
                at_once=w.cell.batch_size, before=turn.before,
                on_step=lambda step: tell(total * share, f", {turn.plan.attack.name} step {step}"),
            )  # fmt: skip
            done[at] = columns, time.perf_counter() - start
            store.save_part(w.cell, w.provenance, at, *done[at])
        seconds += done[at][1]
        share = turn.done
        tell(total * share)
        return done[at][0]

    columns = evaluate.in_turns(plan, total, w.cell.batch_size, run)
    _finish(w, store, columns, seconds, device)


def _finish(w: Work, store: Store, columns: Columns, seconds: float, device: str) -> None:
    """Write a cell's outcomes and rows."""
    order = np.lexsort((columns["index"], columns["exit"]))
    columns = {name: column[order] for name, column in columns.items()}
    store.finish(w.cell, w.provenance, columns, result_rows(w, columns, seconds, device))
    if w.plan is None and w.corruption is None:
        _warn_of_chance(w, columns, device)
        if w.classifier.meta.get("is_random"):
            print(
                f"{w.cell.model}: answers at random; judged by the vote of {evaluate.FRESH} passes, and of "
                f"{evaluate.SURE} more where those are wrong",
                file=sys.stderr,
            )
    if w.plan is not None:
        _warn_of_lost_gradients(w, columns)


def _warn_of_lost_gradients(w: Work, columns: Columns) -> None:
    """Say on stderr where images stand that an attack had hardly a gradient for."""
    standing = columns["first_success_step"] == -1
    backwards, lost = (int(columns[name][standing].sum()) for name in ("backwards", "zero_gradients"))
    if lost > LOST * backwards:
        print(
            f"{w.note}: {lost / backwards:.0%} of the gradients on what stands were zero or no number "
            "(zero_gradients); that is no robustness: try --attack square, or --protocol adaptive",
            file=sys.stderr,
        )


def _warn_of_chance(w: Work, columns: Columns, device: str) -> None:
    """Say on stderr where a model is no better than guessing, and which preparation would mend that."""
    right = (columns["pred"] == columns["label"])[columns["exit"] == columns["exit"].max()]
    labels, total = w.dataset.labels, len(right)
    classes = len(np.unique(labels))  # one answer for all is right for one of them
    chance = 1 / (classes if total >= 2 * classes else len(w.classifier.classes))
    if wilson(int(right.sum()), total).low > chance:
        return
    batch = next(w.dataset.batches(CHANCE_BATCH))
    found = right_if_prepared(w.classifier, batch.images.to(device).float() / 255, batch.labels.to(device))
    best = max(found, key=lambda text: found[text])
    cause = "are its weights trained, its images prepared as in training, its classes in this order?"
    if wilson(found[best], len(batch.labels)).low > chance:
        cause = f"with {best} it gets {found[best]} of {len(batch.labels)}: are they its own?"
    print(
        f"{w.cell.model}: {right.sum()} of {total} clean images right, no better than chance ({chance:.2g}); "
        f"{cause}",
        file=sys.stderr,
    )


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
    columns = evaluate.judge_clean(w.classifier, shown, device=device, all_exits=all_exits)
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
    gmacs = _gmacs(w.classifier, _input_px(w))
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
                    "gmacs": gmacs[exit_number - 1] if gmacs else float("nan"),
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
        "classes": len(np.unique(w.dataset.labels)),
        "size_px": _input_px(w),
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
    size = call.get("step_size")
    return float(eps if call.name == "fgsm" else "nan") if size is None else float(size)


def _input_px(w: Work) -> int:
    """Return the side of what the network gets: of the images, unless it resizes them."""
    return int(w.classifier.meta.get("input_px", w.dataset.size_px))


def _gmacs(classifier: Classifier, size_px: int) -> tuple[float, ...]:
    architecture = classifier.meta.get("architecture")
    return cost.gmacs_per_exit(architecture, size_px) if architecture is not None else ()


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
