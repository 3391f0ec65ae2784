"""The one loop: perturb, check the budget, judge, and hand back what happened to every sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustglimpse.attacks import ATTACKS, check_call, options_of
from robustglimpse.attacks.geometry import ROUNDING, distance
from robustglimpse.attacks.gradient import Iterates
from robustglimpse.attacks.loss import margin
from robustglimpse.records import PROTOCOLS, Batch, Channels, Classifier, Protocol, Threat, UserError
from robustglimpse.registry import Call, find, parse_call, resolve
from robustglimpse.rng import KeyedDraws

Columns = dict[str, NDArray[np.generic]]
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
    parts: the plans that are run in turn instead, where there are any.
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
    parts: tuple[Plan, ...] = ()


def make_plan(
    text: Call,
    *,
    protocol: str,
    threat: Threat,
    normalisation: tuple[Channels, Channels],
    restarts: int,
    seed: int,
    all_exits: bool,
) -> Plan:
    """Return the plan of an attack's call string under a protocol. Raises UserError for what cannot be."""
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
    if row.iterative:
        options.setdefault("random_start", chosen.random_start)
    if row.runs_long:  # its own defaults are part of its name
        known = options_of(row)
        options = {key: options.get(key, known[key]) for key in known}
    parts = tuple(
        make_plan(
            parse_call(part), protocol=protocol, threat=threat, normalisation=normalisation,
            restarts=restarts, seed=seed, all_exits=all_exits,
        )
        for part in row.parts
    )  # fmt: skip
    call = Call(text.name, tuple(sorted(options.items())))
    keeps_last = "last" in chosen.judges and not row.runs_long
    return Plan(
        call, threat, chosen, steps, restarts, seed, all_exits, keeps_last, row.may_leave, parts
    )  # fmt: skip


def steps_of(value: Any) -> tuple[int, ...]:
    """Return the step counts in a call's `steps`: one or several whole numbers from 1, sorted."""
    values = value if isinstance(value, list | tuple) else (value,)
    if not values or not all(isinstance(s, int) and s >= 1 for s in values):
        raise UserError(
            f"steps must be whole numbers from 1 up, got {value!r}; for example --steps 1,2,4,8,16"
        )
    return tuple(sorted(set(values)))


def judge_clean(classifier: Classifier, batch: Batch, *, device: str, all_exits: bool) -> Columns:
    """Return the outcome columns of a batch that nobody perturbs."""
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
    }


def attack(classifier: Classifier, batch: Batch, plan: Plan, *, device: str) -> Columns:
    """Return the outcome columns of a batch under attack.

    Samples that are wrong before are not attacked and count as fooled at step 0.  Raises ValueError
    when an attack leaves its ball: that is a bug in it, never a result.
    """
    trial = _Trial(classifier, batch, plan.steps if plan.keeps_last else (), device, plan.all_exits)
    for part in plan.parts or (plan,):
        restarts = plan.restarts if part.attack.get("random_start") else 1  # without a start all are alike
        for restart in range(restarts):
            for surrogate in plan.protocol.surrogates:
                watched = _Watched(classifier.surrogates[surrogate])
                trial.run(part, watched, f"restart {restart} {surrogate}")
                part = replace(part, keeps_last=False)  # noqa: PLW2901 - the last iterate is the first run's
    return trial.columns()


class _Watched:
    """A surrogate that counts its passes and remembers the images and the exits of the last one."""

    def __init__(self, surrogate: Any) -> None:
        self._surrogate = surrogate
        self.forwards = self.backwards = 0
        self.x: Tensor | None = None
        self._exits: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        exits = self._surrogate.exits(x)
        self.forwards += 1
        self.backwards += int(exits.requires_grad)
        self.x, self._exits = x.detach(), exits.detach()
        picked: Tensor = self._surrogate.pick(exits)
        return picked

    def exits_on(self, x: Tensor) -> Tensor:
        """Return the exits' logits on x, from the last pass where that was on x, else from a new one."""
        if self.x is None or not torch.equal(self.x, x):
            with torch.no_grad():
                self(x)
        assert self._exits is not None
        return self._exits


class _Trial:
    """A batch on trial: how each sample stands, per judged exit, while attacks go over it.

    first: i64 [E,B], the first step that fooled the exit; 0 wrong without attack, STANDING if none did.
    pred_at: i64 [S,E,B], the prediction on exactly the iterate after each step count of last_at.
    """

    def __init__(
        self,
        classifier: Classifier,
        batch: Batch,
        last_at: tuple[int, ...],
        device: str,
        all_exits: bool,
    ) -> None:
        self.batch, self.last_at = batch, last_at
        self.x = batch.images.to(device).float() / 255
        self.y = batch.labels.to(device)
        with torch.no_grad():
            logits = classifier.exits(self.x)
        self.exits = range(1, len(logits) + 1) if all_exits else range(len(logits), len(logits) + 1)
        logits = self._judged(logits)
        shape = logits.shape[:2]
        self.clean_pred = logits.argmax(2)
        self.pred = self.clean_pred.clone()
        self.margin = torch.stack([margin(exit_logits, self.y) for exit_logits in logits])
        self.first = torch.where(self.pred == self.y, STANDING, 0)
        self.pred_at = self.clean_pred.expand(len(last_at), *shape).clone()
        self.linf, self.l2, self.excess = torch.zeros(3, *shape, device=self.x.device)
        self.forwards = torch.ones_like(self.y)
        self.backwards = torch.zeros_like(self.y)

    def _judged(self, exits: Tensor) -> Tensor:
        return exits[self.exits.start - 1 :]

    def run(self, plan: Plan, watched: _Watched, stream: str) -> None:
        """Take every sample whose outcome can still change through one run of the attack."""
        rows = torch.nonzero(self._budget(plan) > 0)[:, 0]
        if not len(rows):
            return
        draws = KeyedDraws(plan.seed, self.batch.index, stream)[rows]
        iterates = start_attack(plan, watched, self.x[rows], self.y[rows], draws)
        before: Tensor | None = None
        keep: Tensor | None = None
        step = 0
        while True:
            spent = watched.forwards, watched.backwards
            try:
                now = iterates.send(keep)
            except StopIteration:
                break
            # The pass that a step makes on the iterate before it is that iterate's verdict: no pass is
            # made for judging alone, but for the last one. A start that already fools counts as step 1.
            earlier = watched.x if before is None else before
            if earlier is not None:
                self._judge(rows, earlier, watched.exits_on(earlier), max(step, 1), plan, step > 0)
            self._charge(rows, watched, spent)
            step += 1
            staying = self._budget(plan)[rows] >= step
            if staying.all():
                keep, before = None, now
            else:
                keep, before, rows = staying, now[staying], rows[staying]
            if not len(rows):
                iterates.close()
                return
        if before is not None:
            spent = watched.forwards, watched.backwards
            self._judge(rows, before, watched.exits_on(before), step, plan, True)
            self._charge(rows, watched, spent)

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

    def _judge(
        self, rows: Tensor, x_adv: Tensor, exits: Tensor, step: int, plan: Plan, is_iterate: bool
    ) -> None:
        """Enter the verdict on the iterate x_adv of the samples `rows` after `step` steps."""
        delta = (x_adv - self.x[rows]).flatten(1)
        excess = (distance(x_adv, self.x[rows], plan.threat) - plan.threat.eps).clamp_min_(0)
        is_inside = excess <= ROUNDING  # not a plain >: NaN is no member of the ball either
        if not (plan.may_leave or is_inside.all()):
            raise ValueError(f"{plan.attack} left the ball of radius {plan.threat.eps} by {excess.max()}")
        if plan.threat.bounds is not None:
            low, high = plan.threat.bounds
            if float(x_adv.min()) < low or float(x_adv.max()) > high:
                raise ValueError(f"{plan.attack} left the valid pixel range {plan.threat.bounds}")
        exits, y, first = self._judged(exits), self.y[rows], self.first[:, rows]
        pred = exits.argmax(2)
        margins = torch.stack([margin(logits, y) for logits in exits])
        is_first = (pred != y) & (step < first) & is_inside
        # Until an exit falls its columns tell of the newest iterate, from then on of the one that did it.
        changed = is_first | ((first == STANDING) & is_inside)
        self.first[:, rows] = torch.where(is_first, step, first)
        new = {"pred": pred, "margin": margins, "linf": delta.abs().amax(1), "excess": excess}
        new["l2"] = torch.linalg.vector_norm(delta, dim=1)
        for name, value in new.items():
            column = getattr(self, name)
            column[:, rows] = torch.where(changed, value, column[:, rows])
        if plan.keeps_last and is_iterate and step in plan.steps:
            at = plan.steps.index(step)
            was_right = first > 0
            self.pred_at[at][:, rows] = torch.where(was_right, pred, self.pred_at[at][:, rows])

    def _charge(self, rows: Tensor, watched: _Watched, spent: tuple[int, int]) -> None:
        self.forwards[rows] += watched.forwards - spent[0]
        self.backwards[rows] += watched.backwards - spent[1]

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
        }
        for steps, pred in zip(self.last_at, self.pred_at, strict=True):
            table[f"pred_at_{steps}"] = pred
        return {name: column.cpu().numpy().reshape(-1) for name, column in table.items()}


def start_attack(
    plan: Plan, logits: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, draws: KeyedDraws
) -> Iterates:
    """Return the attack's generator over x [B,3,H,W], y [B], ready for its first step."""
    row = ATTACKS[plan.attack.name]
    options = dict(plan.attack.arguments)
    if row.iterative:
        options["steps"] = plan.steps[-1]
    iterates: Iterates = resolve(row)(logits, x, y, plan.threat, draws, **options)
    return iterates
