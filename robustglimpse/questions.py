"""What the gate asks of two networks' outcomes on the same images, and how it answers. Loads no torch.

Three levels: all cells jointly; groups of them (a model, its corruptions, one corruption over its
severities, one attack); single cells.  Each question is asked for a drop (one-sided; Holm within a level,
alpha shared equally among the levels that there are) and for the proof that a drop is below the margin.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from robustglimpse.policy import Limits, Policy, Subject, Verdict
from robustglimpse.stats import (
    Interval,
    drop_p_value,
    holm,
    mcnemar,
    paired_difference,
    sign_flip,
    table_difference,
    table_p_value,
    unseen,
)

Level = Literal["cell", "group", "joint"]
MOST_SAMPLES = 10_000_000


@dataclass(frozen=True)
class Compared:
    """One cell at one exit, before and after the weights changed.

    before, after: bool [N], whether each image is classified correctly.
    images: which images these are; only cells of the same ones are averaged.  place: "" or "exit 2".
    is_known: its drop is acknowledged, so that it takes no part in a mean.
    """

    label: str
    subject: Subject
    limits: Limits
    before: NDArray[np.bool_]
    after: NDArray[np.bool_]
    images: Hashable = ""
    place: str = ""
    is_known: bool = False


@dataclass(frozen=True)
class Question:
    """Whether accuracy fell in the mean over some cells, images being the unit.

    members: the cells' places.
    decides: whether having no answer keeps a run from passing.
    """

    level: Level
    label: str
    subject: Subject
    limits: Limits
    members: tuple[int, ...]
    decides: bool


@dataclass(frozen=True)
class Answer:
    """p_drop: of a drop, adjusted for all that was asked.  level: what its own p-value had to reach."""

    verdict: Verdict
    p_drop: float
    level: float


def questions(cells: Sequence[Compared], policy: Policy) -> list[Question]:
    """Return all that is asked of the cells: each of them first, then groups, then what is joint.

    A mean of one cell is not asked for: the cell answers; nor is one of the same cells asked twice.
    """
    means = _means(cells, policy)
    joined = {k for mean in means if mean.level == "joint" for k in mean.members}
    is_each = policy.prove == "each"
    singles = [
        Question("cell", c.label, c.subject, c.limits, (k,), is_each or k not in joined)
        for k, c in enumerate(cells)
    ]
    return singles + means


def _means(cells: Sequence[Compared], policy: Policy) -> list[Question]:
    sets: dict[tuple[str, Hashable], list[int]] = {}
    for k, one in enumerate(cells):
        if not one.is_known:
            sets.setdefault((one.place, one.images), []).append(k)
    found: dict[tuple[int, ...], Question] = {}
    images = list(dict.fromkeys(key[1] for key in sets))
    for (place, which), members in sets.items():
        more = f", {place}" if place else ""
        more += f" (images {images.index(which) + 1} of {len(images)})" if len(images) > 1 else ""
        for level, label, subject, chosen in _candidates(cells, members):
            key = tuple(chosen)
            if len(key) < 2 or key in found:
                continue
            is_mean = subject.name == "mean"
            limits = policy.limits_for(subject) if is_mean else _mean_limits(cells[k].limits for k in key)
            decides = level == "joint" and policy.prove == "joint"
            found[key] = Question(level, label + more, subject, limits, key, decides)
    return list(found.values())


def _candidates(
    cells: Sequence[Compared], members: Sequence[int]
) -> list[tuple[Level, str, Subject, list[int]]]:
    """Return the means over cells of the same images, the joint one first; some are of the same cells."""
    models: dict[str, list[int]] = {}
    named: dict[tuple[str, str, str], list[int]] = {}
    for k in members:
        subject = cells[k].subject
        models.setdefault(subject.model, []).append(k)
        named.setdefault((subject.model, subject.kind, subject.name), []).append(k)
    means: list[tuple[Level, str, Subject, list[int]]] = []
    for model, own in models.items():
        corrupted = [k for k in own if cells[k].subject.kind == "corruption"]
        label = f"{model}, mean of {len(corrupted)} corruptions"
        means.append(("group", label, Subject(model, "mean", "mean", ""), corrupted))
        label = f"{model}, all {len(own)} cells"
        means.append(("group", label, Subject(model, "joint", "joint", ""), own))
    for (model, kind, name), own in named.items():
        means.append(("group", f"{model}, {name} ({len(own)} cells)", Subject(model, kind, name, ""), own))
    whole = f"all {len(members)} cells of {len(models)} models"
    joint: tuple[Level, str, Subject, list[int]] = (
        "joint",
        whole,
        Subject("", "joint", "joint", ""),
        list(members),
    )
    # Where a model's cells or its corruptions are all there is, the joint mean goes by that name.
    same = [mean for mean in means if mean[3] == joint[3]]
    return [("joint", *same[0][1:]) if same else joint, *means]


def _mean_limits(limits: Iterable[Limits]) -> Limits:
    """Return the limits of a mean: the means of its cells'. max_drop is for single cells."""
    columns = zip(*((one.margin, one.min_effect, one.excused) for one in limits), strict=True)
    margin, effect, excused = (sum(values) / len(values) for values in columns)
    return Limits(margin, effect, tolerated=excused)


class Evidence:
    """What the images say on one question.

    values, counts: i64 [V], the distinct sums over the cells of an image's differences, and their numbers.
    """

    def __init__(self, differences: Sequence[NDArray[np.int8]]) -> None:
        self.cells = len(differences)
        sums = differences[0].astype(np.int64)
        for one in differences[1:]:
            sums += one
        counts = np.bincount(sums + self.cells, minlength=2 * self.cells + 1)
        seen = np.flatnonzero(counts)
        self.values, self.counts = seen - self.cells, counts[seen]
        self.total = len(sums)
        self.lost = int(self.counts[self.values < 0].sum())
        self.gained = int(self.counts[self.values > 0].sum())
        self.change = float((self.values * self.counts).sum()) / self.total / self.cells

    @cached_property
    def differences(self) -> NDArray[np.int64]:
        """Return i64 [N], the images' sums in the order of their size."""
        return np.repeat(self.values, self.counts)

    def p_values(self, *, is_exact: bool) -> tuple[float, float]:
        """Return the one-sided p-values of a drop and of a gain.

        McNemar's for a cell, the sign-flip test for a mean; is_exact=False: for that, its normal law.
        """
        if self.cells == 1:
            lost, gained = self.lost, self.gained
            return mcnemar(lost, gained, alternative="worse"), mcnemar(gained, lost, alternative="worse")
        if is_exact:
            return sign_flip(self.differences), sign_flip(-self.differences)
        spread = sqrt(float((self.values.astype(float) ** 2 * self.counts).sum()))
        z = self.change * self.total * self.cells / spread if spread else 0.0
        return NormalDist().cdf(z), NormalDist().cdf(-z)

    def is_within(self, margin: float, alpha: float) -> bool:
        """Return whether a drop of the margin or more is refused at alpha."""
        if self.cells == 1:
            return table_p_value(self.lost, self.gained, self.total, margin=margin) <= alpha
        return drop_p_value(self.values, self.counts, margin=margin, cells=self.cells) <= alpha

    def interval(self, alpha: float) -> Interval:
        """Return the change with its interval, each end wrong with probability alpha or less."""
        if self.cells == 1:
            return table_difference(self.lost, self.gained, self.total, alpha=alpha)
        return paired_difference(self.values, self.counts, alpha=alpha, cells=self.cells)


def levels_of(asked: Sequence[Question], alpha: float) -> dict[Level, float]:
    """Return what the smallest p-value of each level must reach: alpha shared, then Bonferroni."""
    sizes: dict[Level, int] = {}
    for question in asked:
        sizes[question.level] = sizes.get(question.level, 0) + 1
    return {level: alpha / len(sizes) / size for level, size in sizes.items()}


def decide(
    asked: Sequence[Question], evidence: Sequence[Evidence], policy: Policy, *, is_exact: bool = True
) -> list[Answer]:
    """Return the answers; all false alarms together have probability alpha at most, but for max_drop's.

    is_exact=False is for simulations: means go by the normal law, and a proof that changes nothing for
    the run is left out.
    """
    if not asked:
        return []
    reach = levels_of(asked, policy.alpha)
    adjusted: dict[int, tuple[float, float]] = {}
    for level in reach:
        places = [k for k, question in enumerate(asked) if question.level == level]
        raw = [evidence[k].p_values(is_exact=is_exact) for k in places]
        drops, gains = ([min(1.0, p * len(reach)) for p in holm(side)] for side in zip(*raw, strict=True))
        adjusted |= dict(zip(places, zip(drops, gains, strict=True), strict=True))
    answers = []
    for k, question in enumerate(asked):
        drop, gain = adjusted[k]
        limits, is_beyond = question.limits, drop <= policy.alpha
        is_proven = (is_exact or question.decides) and evidence[k].is_within(limits.margin, policy.alpha)
        is_excused = is_beyond and evidence[k].is_within(limits.excused, policy.alpha)
        verdict = verdict_on(evidence[k].change, is_proven, is_excused, drop, gain, limits, policy.alpha)
        answers.append(Answer(verdict, drop, reach[question.level]))
    return answers


def verdict_on(
    change: float,
    is_proven: bool,
    is_excused: bool,
    p_drop: float,
    p_gain: float,
    limits: Limits,
    alpha: float,
) -> Verdict:
    """Return the verdict on a change, after - before.

    is_proven, is_excused: whether a drop of the margin, or of what is tolerated, or more is refused.
    In this order: a drop of max_drop fails whatever its p-value; a gain beyond chance is one; a drop
    beyond chance fails unless it is excused; a drop proven smaller than the margin passes.
    """
    if limits.max_drop is not None and -change >= limits.max_drop - 1e-12:
        return "regressed"
    if p_gain <= alpha and change >= limits.min_effect:
        return "improved"
    if p_drop <= alpha and -change >= limits.min_effect and not is_excused:
        return "regressed"
    return "pass" if is_proven else "inconclusive"


def samples_needed(evidence: Evidence, limits: Limits, level: float, alpha: float) -> int | None:
    """Return about how many samples like these would give an answer, to two digits, or None for no number.

    level: what the p-value of a drop must reach.
    """
    if evidence.cells > 1:
        return _samples_for_mean(evidence, limits, level, alpha)
    lost, gained, total = evidence.lost, evidence.gained, evidence.total

    def is_settled(factor: float) -> bool:
        many = [round(count * factor) for count in (lost, gained, total)]
        if table_p_value(*many, margin=limits.margin) <= alpha:
            return True
        p = mcnemar(many[0], many[1], alternative="worse")
        return lost - gained >= limits.min_effect * total and p <= level

    return _smallest(is_settled, total)


def _samples_for_mean(evidence: Evidence, limits: Limits, level: float, alpha: float) -> int | None:
    """Return the same for a mean over cells, by the normal law."""
    scaled = evidence.differences / evidence.cells
    mean, spread, total = float(scaled.mean()), float(scaled.std()), len(scaled)

    def is_settled(factor: float) -> bool:
        error = spread / (total * factor) ** 0.5
        reach = max(-NormalDist().inv_cdf(alpha) * error, unseen(round(total * factor), alpha=alpha))
        is_beyond = spread > 0 and NormalDist().cdf(mean / error) <= level
        return mean - reach > -limits.margin or (-mean >= limits.min_effect and is_beyond)

    return _smallest(is_settled, total)


def _smallest(is_settled: Callable[[float], bool], total: int) -> int | None:
    """Return total times the smallest factor that settles it, to two digits, or None up to MOST_SAMPLES."""
    high = 1.0
    while not is_settled(high):
        high *= 2
        if total * high > 2 * MOST_SAMPLES:
            return None
    low = high / 2
    for _ in range(6):
        middle = (low + high) / 2
        low, high = (low, middle) if is_settled(middle) else (middle, high)
    factor = high
    digits = len(str(int(total * factor))) - 2
    step = 10 ** max(0, digits)
    return int(-(-total * factor // step) * step)
