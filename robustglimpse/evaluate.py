"""The one loop: perturb, check the budget, judge, and hand back what happened to every sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustglimpse.attacks import (
    ATTACKS,
    attack_function,
    can_start,
    canonical,
    check_call,
    check_threat,
    options_of,
    takes,
)
from robustglimpse.attacks.geometry import ROUNDING, ball, distance
from robustglimpse.attacks.gradient import Iterates
from robustglimpse.attacks.loss import margin
from robustglimpse.models.surrogates import surrogate_of
from robustglimpse.records import PROTOCOLS, Batch, Channels, Classifier, Protocol, Threat, UserError
from robustglimpse.registry import Call, find, parse_call
from robustglimpse.rng import KeyedDraws
from robustglimpse.watched import Watched

Columns = dict[str, NDArray[np.generic]]
FRESH = 10  # passes that a model which answers at random is judged by
SURE = 90  # passes by which it is judged again where those said wrong: of many iterates some win ten by luck
STANDING = 2**62  # first success of an exit that never fell: later than any step
TO_THE_END = 2**31  # more steps than any attack takes: one that decides itself when it is done


@dataclass(frozen=True)
class Plan:
    """An attack with everything decided but the samples.

    steps: the step counts to report, increasing; one run of the largest gives them all.  TO_THE_END
        alone for an attack that has no such curve.
    all_exits: judge every exit of the network, not only the last.
    keeps_last: report the iterate after exactly so many steps, which every sample must then reach.
    may_leave: iterates outside the ball are passed over, not an error.
    is_adapted: a library's attack: what it returns is drawn back into the ball before it is judged.
    parts: the plans that are run in turn instead, where there are any.
    radii: an increasing sweep of eps up to the threat's own, instead of that alone.
    """

    attack: Call
    threat: Threat
    protocol: Protocol
    steps: tuple[int, ...]
    restarts: int
    seed: int
    all_exits: bool
    keeps_last: bool
    may_leave: bool = False
    is_adapted: bool = False
    parts: tuple[Plan, ...] = ()
    radii: tuple[float, ...] = ()

    def at(self, eps: float) -> Plan:
        """Return the plan in a smaller ball, with a step as much smaller."""
        share = eps / self.threat.eps
        options = dict(self.attack.arguments)
        if "step_size" in options:
            options["step_size"] *= share
        call = Call(self.attack.name, tuple(sorted(options.items())))
        parts = tuple(part.at(eps) for part in self.parts)
        return replace(self, attack=call, threat=replace(self.threat, eps=eps), parts=parts, radii=())


def make_plan(
    text: Call,
    *,
    protocol: str,
    threat: Threat,
    normalisation: tuple[Channels, Channels],
    restarts: int,
    seed: int,
    all_exits: bool,
    radii: tuple[float, ...] = (),
) -> Plan:
    """Return the plan of an attack's call string under a protocol. Raises UserError for what cannot be.

    radii: see Plan; of an attack's step counts only the largest is then run, and every iterate counts.
    """
    text = canonical(text)
    row = check_call(text, threat.norm)
    chosen = find(PROTOCOLS, protocol, kind="protocol", listing="protocols")
    if restarts < 1:
        raise UserError(f"restarts must be at least 1, got {restarts}")
    options = dict(text.arguments)
    steps: tuple[int, ...] = (TO_THE_END,) if row.runs_long else (1,)
    if row.iterative:
        steps = steps_of(options.pop("steps", 1))
    if chosen.normalised and threat.scale is None:
        threat = Threat(threat.norm, threat.eps, scale=normalisation[1], bounds=None)
    check_threat(row, threat)
    if row.iterative and "random_start" in options_of(row):
        options.setdefault("random_start", chosen.random_start)
    if row.runs_long and not row.is_adapted:  # its own defaults are part of its name
        known = options_of(row)
        options = {key: options.get(key, known[key]) for key in known}
    parts = tuple(
        make_plan(
            parse_call(part), protocol=protocol, threat=threat, normalisation=normalisation,
            restarts=restarts, seed=seed, all_exits=all_exits,
        )
        for part in row.parts
    )  # fmt: skip
    usual = dict(row.options).get("random_start")
    if not (parts or options.get("random_start", usual) or row.is_random):
        restarts = 1  # all would be alike
    call = Call(text.name, tuple(sorted(options.items())))
    keeps_last = "last" in chosen.judges and not (row.runs_long or radii)
    steps = steps[-1:] if radii else steps
    return Plan(
        call, threat, chosen, steps, restarts, seed, all_exits, keeps_last, row.may_leave, row.is_adapted,
        parts, radii,
    )  # fmt: skip


def steps_of(value: Any) -> tuple[int, ...]:
    """Return the step counts in a call's `steps`: one or several whole numbers from 1, sorted."""
    values = value if isinstance(value, list | tuple) else (value,)
    if not values or not all(isinstance(s, int) and not isinstance(s, bool) and s >= 1 for s in values):
        raise UserError(
            f"steps must be whole numbers from 1 up, got {value!r}; for example --steps 1,2,4,8,16"
        )
    return tuple(sorted(set(values)))


def judge_clean(
    classifier: Classifier, batch: Batch, *, device: str, all_exits: bool, key: str = ""
) -> Columns:
    """Return the outcome columns of a batch that nobody perturbs.  key: see own_draws."""
    with own_draws(classifier, batch, key):
        return _Trial(classifier, batch, (), device, all_exits).columns()


def beside_clean(columns: Columns, shown: Batch, clean: Batch | None, clean_pred: Any) -> Columns:
    """Return judge_clean's columns of corrupted images, set beside the images before.

    clean: the images before, or None where they are not at hand: their distances are then NaN.
    clean_pred: i64 [E,B], the predictions on them, or None: then -1.
    first_success_step tells, as under attack, 0: wrong before, 1: wrong now, -1: right both times.
    """
    size = len(shown.labels)
    is_right = columns["pred"] == columns["label"]
    before = np.full(len(is_right), -1) if clean_pred is None else clean_pred.reshape(-1)
    was_wrong = np.zeros(len(is_right), bool) if clean_pred is None else before != columns["label"]
    linf = l2 = np.full(size, np.nan, np.float32)
    if clean is not None:
        delta = (shown.images.cpu().float() - clean.images.float()).flatten(1) / 255
        linf, l2 = delta.abs().amax(1).numpy(), torch.linalg.vector_norm(delta, dim=1).numpy()
    exits = len(is_right) // size
    return {
        **columns,
        "clean_pred": before,
        "linf": np.tile(linf, exits),
        "l2": np.tile(l2, exits),
        "first_success_step": np.where(was_wrong, 0, np.where(is_right, -1, 1)),
        "nearest": np.full(len(is_right), np.nan, np.float32),
    }


def attack(
    classifier: Classifier,
    batch: Batch,
    plan: Plan,
    *,
    device: str,
    key: str = "",
    at_once: int | None = None,
    before: Columns | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Columns:
    """Return the outcome columns of a batch under attack.

    key: see own_draws.
    on_step: told after each step how many are done.
    at_once: the most images in a pass where an attack goes several ways side by side; None for a batch.
    before: the columns that an attack before this one left; it is judged together with it.
    Samples that are wrong before are not attacked and count as fooled at step 0.  Raises ValueError
    when an attack leaves its ball: that is a bug in it, never a result.
    """
    last_at = plan.steps if plan.keeps_last else ()
    with own_draws(classifier, batch, key):
        trial = _Trial(classifier, batch, last_at, device, plan.all_exits, at_once, before)
        trial.on_step = on_step
        if plan.radii:
            trial.sweep(plan)
        else:
            trial.run_all(plan)
    return trial.columns()


@contextmanager
def own_draws(classifier: Classifier, batch: Batch, key: str) -> Iterator[None]:
    """Let a model that answers at random draw alike whenever it is asked the same: a run can then resume.

    key: of the cell, with the part of its attack where it has some: all that decides the draws beside the
    samples.
    """
    if not classifier.meta.get("is_random"):
        yield
        return
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(crc32(f"{key} {batch.index.tolist()}".encode()))
        yield


@dataclass(frozen=True)
class Turn:
    """What is to be attacked next: the samples `rows`, i64 [B], by the plan, which is part `part` of a whole.

    before: their columns after the parts before it, None in the first.
    done: the share of the whole that is done once they are.
    """

    part: int
    plan: Plan
    rows: NDArray[np.int64]
    before: Columns | None
    done: float


def in_turns(plan: Plan, count: int, batch_size: int, run: Callable[[Turn], Columns]) -> Columns:
    """Return the columns of `count` samples under attack, batch_size of them a turn; run gives a turn's.

    An attack of parts goes over all samples part by part: what one leaves standing makes full batches for
    the next.  In a batch of its own the few that stand cost almost as much as a whole one.
    """
    whole: Columns = {}
    rows = np.arange(count)
    parts = (plan,) if plan.radii else plan.parts or (plan,)
    for k, part in enumerate(parts):
        standing = np.zeros(count, bool)
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            before = {name: column[:, some].reshape(-1) for name, column in whole.items()} if k else None
            done = (k + (start + len(some)) / len(rows)) / len(parts)
            columns = run(Turn(k, part, some, before, done))
            if whole and columns.keys() != whole.keys():
                raise ValueError(f"{part.attack}: a batch has other columns than those before it")
            for name, column in columns.items():
                table = column.reshape(-1, len(some))
                whole.setdefault(name, np.empty((len(table), count), column.dtype))[:, some] = table
            standing[some] = (whole["first_success_step"][:, some] == -1).any(0)
        rows = np.flatnonzero(standing)
    return {name: column.reshape(-1) for name, column in whole.items()}


def attack_images(
    classifier: Classifier, batch: Batch, plan: Plan, *, device: str, key: str = ""
) -> tuple[Columns, Tensor]:
    """Return attack's columns of the last exit, and the images that they tell of, f32 [B,3,H,W].

    The image behind the protocol's headline verdict: the one that fooled a sample, else the newest; where
    the last iterate is judged, that.  A sample that was wrong before keeps its image.
    """
    plan = replace(plan, all_exits=False)
    with own_draws(classifier, batch, key):
        trial = _Trial(classifier, batch, plan.steps if plan.keeps_last else (), device, False)
        trial.kept = trial.x.clone()
        trial.run_all(plan)
    return trial.columns(), trial.kept


def predicted(logits: Tensor) -> Tensor:
    """Return the class of the largest logit, i64 [E,B] of [E,B,K]; -1, which is wrong, where one is NaN."""
    return torch.where(logits.isnan().any(2), -1, logits.argmax(2))


class _Trial:
    """A batch on trial: how each sample stands, per judged exit, while attacks go over it.

    first: i64 [E,B], the first step that fooled the exit; 0 wrong without attack, STANDING if none did.
    nearest: f32 [E,B], the distance of the nearest image that fooled it, inside the ball or not; inf if none.
    pred_at: i64 [S,E,B], the prediction on exactly the iterate after each step count of last_at.
    """

    def __init__(
        self,
        classifier: Classifier,
        batch: Batch,
        last_at: tuple[int, ...],
        device: str,
        all_exits: bool,
        at_once: int | None = None,
        before: Columns | None = None,
    ) -> None:
        self.batch, self.last_at = batch, last_at
        self.at_once = max(at_once or 0, len(batch.labels))
        # Of a sweep over eps: where each exit fell, each sample's best iterate yet, and where to begin.
        self.fell_at: Tensor | None = None
        self.best_x: Tensor | None = None
        self.best_margin: Tensor | None = None
        self.start: Tensor | None = None
        self.on_step: Callable[[int], None] | None = None
        self.kept: Tensor | None = None  # the images that the columns tell of, where somebody wants them
        self.x = batch.images.to(device).float() / 255
        self.y = batch.labels.to(device)
        self.classifier = classifier
        self.is_random = bool(classifier.meta.get("is_random"))
        if before is None:
            self._begin(all_exits)
        else:
            self._go_on(before)

    def _begin(self, all_exits: bool) -> None:
        """Judge the images before anybody perturbs them."""
        with torch.no_grad():
            logits = self.classifier.exits(self.x)
        self.exits = range(1, len(logits) + 1) if all_exits else range(len(logits), len(logits) + 1)
        logits = self._judged(logits)
        shape = logits.shape[:2]
        self.clean_pred = predicted(logits)
        self.margin = torch.stack([margin(exit_logits, self.y) for exit_logits in logits])
        if self.is_random:
            self.clean_pred, self.margin, votes = self._by_vote(self.x, self.y)
        self.pred = self.clean_pred.clone()
        self.first = torch.where(self.pred == self.y, STANDING, 0)
        self.nearest = torch.where(self.pred == self.y, torch.inf, 0.0)
        self.pred_at = self.clean_pred.expand(len(self.last_at), *shape).clone()
        self.linf, self.l2, self.excess = torch.zeros(3, *shape, device=self.x.device)
        self.forwards = torch.ones_like(self.y) + (votes if self.is_random else 0)
        self.backwards = torch.zeros_like(self.y)
        self.flat = torch.zeros_like(self.y)

    def _go_on(self, before: Columns) -> None:
        """Take over how the samples stood at the end of an earlier trial, from its columns."""
        exits = np.unique(before["exit"])
        self.exits = range(int(exits[0]), int(exits[-1]) + 1)
        told = {
            name: torch.from_numpy(column.reshape(len(exits), -1)).to(self.x.device)
            for name, column in before.items()
        }
        self.clean_pred, self.pred, self.margin = told["clean_pred"], told["pred"], told["margin"]
        self.first = torch.where(told["first_success_step"] < 0, STANDING, told["first_success_step"])
        self.nearest = told["nearest"].nan_to_num(torch.inf)
        self.pred_at = self.clean_pred.expand(0, *self.pred.shape)
        self.linf, self.l2, self.excess = told["linf"], told["l2"], told["excess"]
        self.forwards, self.backwards = told["forwards"][0], told["backwards"][0]
        self.flat = told["zero_gradients"][0]

    def _judged(self, exits: Tensor) -> Tensor:
        return exits[self.exits.start - 1 :].float()

    def _by_vote(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return predictions i64 [E,B], margins [E,B] and passes i64 [B] of a model that answers at random.

        By FRESH new passes; what those call wrong, at any exit, by SURE more alone.
        """
        pred, margins = self._vote(x, y, FRESH)
        passes = torch.full_like(y, FRESH)
        some = (pred != y).any(0)
        if some.any():
            pred[:, some], margins[:, some] = self._vote(x[some], y[some], SURE)
            passes[some] += SURE
        return pred, margins, passes

    def _vote(self, x: Tensor, y: Tensor, passes: int) -> tuple[Tensor, Tensor]:
        """Return predictions i64 [E,B] and mean margins [E,B] over so many passes.

        The true class where at least half of the passes say it, else the class that most of them say.
        """
        counts = margins = torch.zeros(())
        for _ in range(passes):
            with torch.no_grad():
                logits = self._judged(self.classifier.exits(x))
            margins = margins + torch.stack([margin(of_exit, y) for of_exit in logits]) / passes
            counts = counts + torch.nn.functional.one_hot(predicted(logits) + 1, logits.shape[2] + 1)
        true = y.expand(counts.shape[:2])[..., None] + 1
        is_right = counts.gather(2, true)[..., 0] >= passes / 2
        return torch.where(is_right, y, counts.scatter(2, true, -1).argmax(2) - 1), margins

    def sweep(self, plan: Plan) -> None:
        """Go through the plan's radii from the smallest: who fell stays fallen, the others are tried again.

        At each radius they are attacked twice: from the best iterate of the radius before, drawn out to the
        new one, and afresh.
        """
        self.fell_at = torch.where(self.first == STANDING, torch.inf, 0.0).double()  # compared with radii
        before = 0.0
        for k, eps in enumerate(plan.radii):
            now = plan.at(eps)
            best = self.best_x
            self.best_margin = torch.full_like(self.x[:, 0, 0, 0], torch.inf)
            self.best_x = self.x.clone()
            if best is not None:
                self.start = self.x + (best - self.x) * (eps / before)
                self.run_all(replace(now, restarts=1), f"eps {k} warm ")
                self.start = None
            self.run_all(now, f"eps {k} ")
            self.fell_at[(self.first != STANDING) & self.fell_at.isinf()] = eps
            before = eps

    def run_all(self, plan: Plan, stream: str = "") -> None:
        """Run the plan's parts, each as often as it asks, on what is left standing."""
        for part in plan.parts or (plan,):
            if self.start is not None and not can_start(part.attack):
                continue
            for restart in range(min(plan.restarts, part.restarts)):
                for surrogate in plan.protocol.surrogates:
                    watched = Watched(surrogate_of(self.classifier, surrogate))
                    self.run(part, watched, f"{stream}restart {restart} {surrogate}")
                    part = replace(part, keeps_last=False)  # noqa: PLW2901 - the last iterate is the first run's

    def run(self, plan: Plan, watched: Watched, stream: str) -> None:
        """Take every sample whose outcome can still change through one run of the attack."""
        rows = torch.nonzero(self._budget(plan) > 0)[:, 0]
        if not len(rows):
            return
        draws = KeyedDraws(plan.seed, self.batch.index, stream)[rows]
        start = None if self.start is None else self.start[rows]
        iterates = start_attack(plan, watched, self.x[rows], self.y[rows], draws, start, self.at_once)
        before: Tensor | None = None
        keep: Tensor | None = None
        step = 0
        while True:
            spent = watched.forwards, watched.backwards
            watched.remembers = 0 if before is None else before.shape[: before.ndim - 3].numel()
            try:
                now = iterates.send(keep)
            except StopIteration:
                break
            # The pass that a step makes on the iterate before it is that iterate's verdict: no pass is
            # made for judging alone, but for the last one. A start that already fools counts as step 1.
            # What a library asked last is no iterate, and may be of some of the samples alone.
            earlier = watched.last if before is None and not plan.is_adapted else before
            if earlier is not None:
                self._judge_ways(rows, earlier, watched, max(step, 1), plan, step > 0)
            if plan.is_adapted:
                now = self._drawn_back(rows, now, plan.threat, watched)
            self._charge(rows, watched, spent, ways=now.shape[1:-3].numel())
            step += 1
            if self.on_step is not None:
                self.on_step(step)
            staying = self._budget(plan)[rows] >= step
            if staying.all():
                keep, before = None, now
            else:
                keep, before, rows = staying, now[staying], rows[staying]
            if not len(rows):
                iterates.close()
                return
        if not step:
            raise ValueError(f"{plan.attack} made no image")
        if before is not None:
            spent = watched.forwards, watched.backwards
            watched.forget()  # a pass even where no sample has moved: charges must not depend on the batch
            self._judge_ways(rows, before, watched, step, plan, True)
            self._charge(rows, watched, spent)

    def _drawn_back(self, rows: Tensor, found: Tensor, threat: Threat, watched: Watched) -> Tensor:
        """Return a library's images as near as the ball allows, having entered where they were before."""
        x = self.x[rows]
        found = found.detach().to(x)
        if found.shape != x.shape or not found.isfinite().all():
            raise ValueError(f"expected finite images {list(x.shape)}, got {list(found.shape)}")
        far = distance(found, x, threat)
        self.excess[:, rows] = (far - threat.eps).clamp_min(0).expand(len(self.exits), -1)
        allowed = ball(threat, x).project(found)
        valid = found if threat.bounds is None else found.clamp(*threat.bounds)
        if not torch.equal(allowed, valid):
            is_wrong = predicted(self._judged(watched.exits_on(valid, self.at_once))) != self.y[rows]
            if self.is_random and is_wrong.any():
                pred, _, votes = self._by_vote(valid, self.y[rows])
                is_wrong = pred != self.y[rows]
                self.forwards[rows] += votes
            nearest, far = self.nearest[:, rows], distance(valid, x, threat)
            self.nearest[:, rows] = torch.where(is_wrong, torch.minimum(nearest, far), nearest)
        return allowed

    def _budget(self, plan: Plan) -> Tensor:
        """Return how many steps, at most, could change a reported number of each sample, i64 [B].

        An exit fooled at step s matters only to the reported counts below s.  Where the last iterate
        is reported, whoever was right before goes to the end.
        """
        budget = torch.zeros_like(self.first)
        for steps in plan.steps:
            open_still = self.first > (0 if plan.keeps_last else steps)
            budget = torch.where(open_still, steps, budget)
        return budget.amax(0)

    def _judge_ways(
        self, rows: Tensor, x_adv: Tensor, watched: Watched, step: int, plan: Plan, is_iterate: bool
    ) -> None:
        """Enter the verdict on [B,3,H,W]; or on [B,L,3,H,W], as if one way had come after the other."""
        if x_adv.ndim == 4:
            self._judge(rows, x_adv, watched.exits_on(x_adv, self.at_once), step, plan, is_iterate)
            return
        exits = watched.exits_on(x_adv.flatten(0, 1), self.at_once)
        exits = exits.view(len(exits), *x_adv.shape[:2], -1)
        for way in range(x_adv.shape[1]):
            self._judge(rows, x_adv[:, way], exits[:, :, way], step, plan, is_iterate)

    def _judge(
        self, rows: Tensor, x_adv: Tensor, exits: Tensor, step: int, plan: Plan, is_iterate: bool
    ) -> None:
        """Enter the verdict on the iterate x_adv of the samples `rows` after `step` steps."""
        delta = (x_adv - self.x[rows]).flatten(1)
        far = distance(x_adv, self.x[rows], plan.threat)
        excess = (far - plan.threat.eps).clamp_min(0)
        # Not a plain >: NaN is no member of the ball either.
        is_inside = excess <= ROUNDING * max(1.0, plan.threat.eps)
        if not (plan.may_leave or is_inside.all()):
            raise ValueError(f"{plan.attack} left the ball of radius {plan.threat.eps} by {excess.max()}")
        if plan.threat.bounds is not None:
            low, high = plan.threat.bounds
            if float(x_adv.min()) < low or float(x_adv.max()) > high:
                raise ValueError(f"{plan.attack} left the valid pixel range {plan.threat.bounds}")
        exits, y, first = self._judged(exits), self.y[rows], self.first[:, rows]
        pred = predicted(exits)
        margins = torch.stack([margin(logits, y) for logits in exits])
        is_wrong, nearest = pred != y, self.nearest[:, rows]
        is_told = plan.keeps_last and is_iterate and step in plan.steps
        if self.is_random:  # one draw is luck: ask again where it would count
            asked = is_wrong & (((step < first) & is_inside) | (far < nearest))
            some = (asked | ((first > 0) & is_told)).any(0)
            pred, margins = pred.clone(), margins.clone()
            if some.any():
                pred[:, some], margins[:, some], votes = self._by_vote(x_adv[some], y[some])
                self.forwards[rows[some]] += votes
            is_wrong = (pred != y) & some
        is_first = is_wrong & (step < first) & is_inside
        self.nearest[:, rows] = torch.where(is_wrong, torch.minimum(nearest, far), nearest)
        # Until an exit falls its columns tell of the newest iterate, from then on of the one that did it.
        changed = is_first | ((first == STANDING) & is_inside)
        self.first[:, rows] = torch.where(is_first, step, first)
        new = {"pred": pred, "margin": margins, "linf": delta.abs().amax(1)}
        new["l2"] = torch.linalg.vector_norm(delta, dim=1)
        if not plan.is_adapted:  # of a library's images it was entered before they were drawn back
            new["excess"] = excess
        for name, value in new.items():
            column = getattr(self, name)
            column[:, rows] = torch.where(changed, value, column[:, rows])
        if self.best_x is not None and self.best_margin is not None:
            is_best = (margins[-1] < self.best_margin[rows]) & is_inside
            self.best_margin[rows] = torch.where(is_best, margins[-1], self.best_margin[rows])
            self.best_x[rows[is_best]] = x_adv[is_best]
        if self.kept is not None:
            is_end = plan.keeps_last and is_iterate and step == plan.steps[-1]
            told = changed[-1] if not self.last_at else (first[-1] > 0) & is_end
            self.kept[rows[told]] = x_adv[told]
        if is_told:
            at = plan.steps.index(step)
            was_right = first > 0
            self.pred_at[at][:, rows] = torch.where(was_right, pred, self.pred_at[at][:, rows])

    def _charge(self, rows: Tensor, watched: Watched, spent: tuple[int, int], ways: int = 1) -> None:
        self.forwards[rows] += -(-(watched.forwards - spent[0]) // len(rows))
        self.backwards[rows] += -(-(watched.backwards - spent[1]) // len(rows))
        self.flat[rows] += watched.take_flat(len(rows), ways)

    def columns(self) -> Columns:
        """Return the outcome columns, one row per sample and judged exit, exit by exit."""
        shape = self.first.shape
        first = torch.where(self.first == STANDING, -1, self.first)
        table = {
            "index": self.batch.index.expand(shape),
            "label": self.y.expand(shape),
            "exit": torch.tensor(self.exits)[:, None].expand(shape),
            "clean_pred": self.clean_pred,
            "pred": self.pred,
            "margin": self.margin,
            "linf": self.linf,
            "l2": self.l2,
            "excess": self.excess,
            "first_success_step": first,
            "forwards": self.forwards.expand(shape),
            "backwards": self.backwards.expand(shape),
            "zero_gradients": self.flat.expand(shape),
            "nearest": torch.where(self.nearest.isinf(), torch.nan, self.nearest),
        }
        if self.fell_at is not None:
            table["fell_at"] = self.fell_at
        for steps, pred in zip(self.last_at, self.pred_at, strict=True):
            table[f"pred_at_{steps}"] = pred
        return {name: column.cpu().numpy().reshape(-1) for name, column in table.items()}


def start_attack(
    plan: Plan,
    logits: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    draws: KeyedDraws,
    start: Tensor | None = None,
    at_once: int | None = None,
) -> Iterates:
    """Return the attack's generator over x [B,3,H,W], y [B], ready for its first step.

    start: images to begin at instead of where it would.  at_once: see attack.
    """
    options = dict(plan.attack.arguments)
    row = ATTACKS.get(plan.attack.name)
    if row is not None and row.iterative:
        options["steps"] = plan.steps[-1]
    if start is not None:
        options["start"] = start
    if takes(plan.attack, "at_once"):
        options["at_once"] = at_once
    iterates: Iterates = attack_function(plan.attack)(logits, x, y, plan.threat, draws, **options)
    return iterates
