"""The power of the whole gate: simulated runs of known truth on a baseline's outcomes. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from robustglimpse.policy import Policy
from robustglimpse.questions import Compared, Evidence, Question, decide, levels_of, questions
from robustglimpse.stats import proof_power, smallest_drop

# How many outcomes a scenario draws, and how many runs it has at least and at most.
OUTCOMES, FEWEST, MOST = 2_000_000, 30, 100
# How often an image's chance is that of all of a model's cells: what differs in one then differs in another
# with correlation SHARED squared, about 0.5.
SHARED = 0.7


@dataclass(frozen=True)
class Scenario:
    """How often runs of one truth end in each way; fractions that sum to 1."""

    truth: str
    passes: float
    regresses: float
    incomplete: float


@dataclass(frozen=True)
class Power:
    """The power of the gate. runs: simulated for each scenario.  discordant: samples that differ, a share.

    single: the largest over the cells of the smallest drop in a cell alone that is found with 80 %, None
        where none is; exact, and some less where a group shows it as well.
    """

    runs: int
    discordant: float
    scenarios: tuple[Scenario, ...]
    single: float | None


def simulate(cells: Sequence[Compared], policy: Policy, *, seed: int = 0, runs: int | None = None) -> Power:
    """Return the power of the gate on cells of which only the outcomes before are looked at.

    runs: of each scenario; None for as many as take about a second or two.
    """
    asked = questions(cells, policy)
    total = sum(len(one.before) for one in cells)
    runs = runs or int(np.clip(OUTCOMES // total, FEWEST, MOST))
    margins = np.array([one.limits.margin for one in cells])
    truths = {
        "nothing changed": 0 * margins,
        "a drop of the margin in every cell": margins,
        "a drop of twice the margin in every cell": 2 * margins,
    }
    group = _largest_group(asked)
    if group:
        is_member = np.isin(np.arange(len(cells)), group.members)
        truths[f"a drop of twice the margin in {group.label}, nothing else"] = 2 * margins * is_member
    rng = np.random.default_rng(seed)
    scenarios = [_scenario(truth, cells, asked, drops, policy, rng, runs) for truth, drops in truths.items()]
    level = levels_of(asked, policy.alpha)["cell"]
    sizes = {(len(one.before), one.limits.excused) for one in cells}
    single = [
        smallest_found(
            many, discordant=policy.discordant, level=level, tolerated=drop, alpha=policy.alpha, often=0.8
        )
        for many, drop in sizes
    ]
    known = [drop for drop in single if drop is not None]
    return Power(runs, policy.discordant, tuple(scenarios), max(known) if len(known) == len(single) else None)


@lru_cache(maxsize=1000)
def smallest_found(
    total: int, *, discordant: float, level: float, tolerated: float, alpha: float, often: float = 0.9
) -> float | None:
    """Return the smallest true drop in a cell that the gate finds so often, or None where none is.

    It must be beyond chance at the level, and must not be proven smaller than what is tolerated.
    """
    seen = smallest_drop(total, discordant=discordant, alpha=level, power=often)
    if seen is None:
        return None
    low, high = 0.0, min(1.0, 2 * tolerated)

    def is_hidden(drop: float) -> bool:
        found = proof_power(drop, total=total, discordant=discordant, margin=tolerated, alpha=alpha)
        return found > 1 - often

    if not is_hidden(seen):
        return seen
    while high - low > 0.1 / total:
        middle = (low + high) / 2
        low, high = (middle, high) if is_hidden(middle) else (low, middle)
    return max(seen, high)


def _largest_group(asked: Sequence[Question]) -> Question | None:
    """Return the group of most cells that has one attack or corruption."""
    groups = [q for q in asked if q.level == "group" and q.subject.kind in ("attack", "corruption")]
    return max(groups, key=lambda q: len(q.members), default=None)


def _scenario(
    truth: str,
    cells: Sequence[Compared],
    asked: Sequence[Question],
    drops: NDArray[np.float64],
    policy: Policy,
    rng: np.random.Generator,
    runs: int,
) -> Scenario:
    codes = [run_once(cells, asked, draw(cells, drops, policy.discordant, rng), policy) for _ in range(runs)]
    return Scenario(truth, *(float(np.mean([code == wanted for code in codes])) for wanted in (0, 1, 3)))


def run_once(
    cells: Sequence[Compared],
    asked: Sequence[Question],
    differences: Sequence[NDArray[np.int8]],
    policy: Policy,
) -> int:
    """Return what a run with these differences exits with: 0 pass, 1 regressed, 3 incomplete."""
    evidence = [Evidence([differences[k] for k in question.members]) for question in asked]
    answers = decide(asked, evidence, policy, is_exact=False)
    # What is acknowledged neither fails nor holds up a run.
    open_ones = [
        (question, answer)
        for question, answer in zip(asked, answers, strict=True)
        if not (question.level == "cell" and cells[question.members[0]].is_known)
    ]
    if any(answer.verdict == "regressed" for _, answer in open_ones):
        return 1
    unanswered = any(q.decides and answer.verdict == "inconclusive" for q, answer in open_ones)
    return 3 if unanswered and not policy.allow_inconclusive else 0


def draw(
    cells: Sequence[Compared],
    drops: NDArray[np.float64],
    discordant: float,
    rng: np.random.Generator,
    *,
    shared: float = SHARED,
) -> list[NDArray[np.int8]]:
    """Return i8 [N] for every cell: -1 an image lost, 1 one gained, at random.

    drops: f64 [C], how far each cell's accuracy falls on average.
    discordant: the share of all images that are lost or gained, the drop's at least.  Only images that
    were right can be lost, and only wrong ones gained: with fewer of either, fewer differ.
    shared: how often an image has one chance for all cells of a model, else one for each.
    """
    found: list[NDArray[np.int8]] = []
    common: dict[object, NDArray[np.float32]] = {}
    for one, drop in zip(cells, drops, strict=True):
        total = len(one.before)
        right = np.count_nonzero(one.before) / total
        gained = min(max(0.0, discordant - drop) / 2, 1 - right)
        lost = min(gained + drop, right)
        key = (one.images, one.subject.model)
        if key not in common:
            common[key] = rng.random(total, dtype=np.float32)
        chance = rng.random(total, dtype=np.float32)
        # One draw says both whether the image's chance is its own and, stretched, what that is.
        own = (chance - shared) / max(1 - shared, 1e-9)
        chance = np.where(chance < shared, common[key], own)
        is_lost = one.before & (chance < (lost / right if right else 0.0))
        is_gained = ~one.before & (chance >= 1 - (gained / (1 - right) if right < 1 else 0.0))
        found.append(is_gained.astype(np.int8) - is_lost.astype(np.int8))
    return found
