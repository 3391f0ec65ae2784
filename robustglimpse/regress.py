"""The gate: two results of the same cells -> a verdict on each. Reads no model, loads no torch.

Weights that are the same must answer the same, but for a few samples (processors round differently).
Where the weights changed, the two runs are paired sample by sample.  The mean over all cells must be proven
to have dropped by less than the margin; without that proof the run is incomplete: no news is no pass.  Groups
of cells and single cells are then looked at for drops beyond chance (see questions).
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import robustglimpse
from robustglimpse.policy import (
    GOOD,
    Acknowledgement,
    Policy,
    Rule,
    Subject,
    Target,
    Verdict,
    describe,
)
from robustglimpse.power import Power, simulate, smallest_found
from robustglimpse.questions import (
    Answer,
    Compared,
    Evidence,
    Level,
    Question,
    decide,
    levels_of,
    questions,
    samples_needed,
)
from robustglimpse.records import PROTOCOLS, UserError
from robustglimpse.registry import parse_call
from robustglimpse.stats import Interval, mcnemar, unseen
from robustglimpse.store import Curve, Outcome, Row, read_failures, read_outcomes, write_baseline
from robustglimpse.texts import safe

# What the command exits with, by verdict; the first that occurs counts.
EXIT_CODES: dict[int, tuple[Verdict, ...]] = {
    1: ("regressed",),
    4: ("not-comparable", "evaluator-drift", "suspicious-gain"),
    3: ("missing", "inconclusive"),
}
NOTHING_SELECTED = 5
SUMMARY = {
    0: "pass", 1: "regressed", 3: "incomplete", 4: "not comparable", NOTHING_SELECTED: "nothing selected",
}  # fmt: skip


@dataclass(frozen=True)
class Selection:
    """Which cells are looked at: globs, one of each kind must fit; none for any.

    attacks, corruptions: naming one kind alone leaves the other out; "clean" counts as an attack.
    """

    models: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    corruptions: tuple[str, ...] = ()

    def has(self, outcome: Outcome) -> bool:
        """Return whether the cell is selected."""
        names = self.corruptions if kind_of(outcome) == "corruption" else self.attacks
        name = parse_call(outcome.cell["perturb"]).name
        is_named = any(fnmatchcase(name, glob) for glob in names)
        return _any_fits(outcome.cell["model"], self.models) and (
            is_named or not (self.attacks or self.corruptions)
        )


def _any_fits(text: str, globs: Sequence[str]) -> bool:
    return not globs or any(fnmatchcase(text, glob) for glob in globs)


@dataclass(frozen=True)
class Finding:
    """The verdict on one cell (at one exit), or on the mean over several.

    before, after: accuracies, None where there is none.
    lost, gained: samples right before and wrong now, and the other way round; for a mean, samples with
        fewer cells right than before, and with more.
    change: after - before with its interval at confidence 1 - 2 alpha; None with the same weights.
    p_value: of a drop, adjusted for all that was tested.
    acknowledged: until when and why it does not fail, "" where it does.
    decides: False where there is no answer and a joint test decides instead.
    level: a cell, the mean over a group of them, or that over all of one set of images.  cells: how many.
    """

    label: str
    subject: Subject
    verdict: Verdict
    total: int = 0
    before: float | None = None
    after: float | None = None
    lost: int = 0
    gained: int = 0
    change: Interval | None = None
    p_value: float | None = None
    margin: float | None = None
    note: str = ""
    acknowledged: str = ""
    decides: bool = True
    level: Level = "cell"
    cells: int = 1


@dataclass(frozen=True)
class Judgement:
    """What the gate says of a run. notes: what a reader should know beside the verdicts."""

    baseline: str
    run: str
    findings: tuple[Finding, ...]
    policy: Policy
    notes: tuple[str, ...] = ()

    def fails(self, finding: Finding) -> bool:
        """Return whether the finding keeps the run from passing."""
        is_excused = finding.verdict == "inconclusive" and self.policy.allow_inconclusive
        return finding.decides and not (finding.verdict in GOOD or finding.acknowledged or is_excused)

    @property
    def exit_code(self) -> int:
        """0 pass, 1 regressed, 3 incomplete, 4 not comparable, 5 nothing selected."""
        if not self.findings:
            return NOTHING_SELECTED
        failing = {finding.verdict for finding in self.findings if self.fails(finding)}
        return next((code for code, verdicts in EXIT_CODES.items() if failing & set(verdicts)), 0)

    @property
    def summary(self) -> str:
        """The exit code in words."""
        return SUMMARY[self.exit_code]


@dataclass(frozen=True)
class Detectable:
    """What the gate can see in a cell of a baseline before anything is run; fractions, None for nothing.

    certain: the smallest drop found 9 times in 10 where nothing is gained.
    likely: the same where the policy's share of samples differs.
    provable: the smallest margin that the cell alone stays within where no sample differs.
    """

    label: str
    total: int
    accuracy: float
    certain: float | None
    likely: float | None
    provable: float
    margin: float


def kind_of(outcome: Outcome) -> str:
    """Return clean, attack or corruption."""
    if outcome.cell["protocol"]:
        return "attack"
    return "clean" if parse_call(outcome.cell["perturb"]).name == "clean" else "corruption"


def compare(
    baseline: Path,
    run: Path,
    policy: Policy | None = None,
    *,
    chosen: Selection | None = None,
    today: datetime.date | None = None,
) -> Judgement:
    """Return the verdicts on a run, cell by cell against a baseline or another run.

    Cells are matched by their description; the batch size counts where a library makes the attack.
    Raises UserError for what cannot be read.
    """
    chosen = chosen or Selection()
    before, after = ([one for one in read_outcomes(path) if chosen.has(one)] for path in (baseline, run))
    found = judge(before, after, policy, failures=read_failures(run), today=today)
    return replace(found, baseline=str(baseline), run=str(run))


def judge(
    baseline: Sequence[Outcome],
    run: Sequence[Outcome],
    policy: Policy | None = None,
    *,
    failures: Sequence[Row] = (),
    today: datetime.date | None = None,
) -> Judgement:
    """Return the verdicts on the outcomes of a run against those of a baseline.

    failures: rows of results.csv on cells that crashed, which explain what is missing.
    """
    policy = policy or Policy()
    before, after = ({_key(one): one for one in outcomes} for outcomes in (baseline, run))
    labels = _labels({**after, **before})
    pairs = {
        key: _Pair(labels[key], before[key], after[key])
        for key in before
        if key in after and _match(before[key], after[key])
    }
    free = {key: one for key, one in after.items() if key not in before}
    unpaired = {key: one for key, one in before.items() if key not in pairs}
    absent, used = _explain_absent(unpaired, after, free, labels, failures)
    today = today or _today()
    findings = [*_judge(list(pairs.values()), policy, today), *absent]
    findings = [_acknowledge(f, policy.acknowledged, today) for f in findings]
    notes = _unused(policy, findings)
    new = [labels[key] for key in free if key not in used]
    if new and before:
        more = f"; and {len(new) - 3} more" if len(new) > 3 else ""
        notes.append(f"not in the baseline, add with --update: {'; '.join(new[:3])}{more}")
    return Judgement("", "", tuple(findings), policy, tuple(notes))


def _today() -> datetime.date:
    return datetime.datetime.now(tz=datetime.UTC).date()


def _key(outcome: Outcome) -> str:
    """Return a key of what the cell's outcomes depend on."""
    return hashlib.sha256(json.dumps(_said(outcome), sort_keys=True).encode()).hexdigest()[:16]


def _said(outcome: Outcome) -> dict[str, Any]:
    """Return the cell's description, without the batch size where outcomes do not depend on it.

    A library draws its random numbers per batch; ours belong to the samples.
    """
    is_adapted = ":" in parse_call(outcome.cell["perturb"]).name  # "torchattacks:PGD"
    return {k: v for k, v in outcome.cell.items() if is_adapted or k != "batch_size"}


# Names


def _label(outcome: Outcome) -> str:
    cell, call, kind = outcome.cell, parse_call(outcome.cell["perturb"]), kind_of(outcome)
    if kind == "clean":
        return f"{cell['model']}, clean"
    if kind == "corruption":
        return f"{cell['model']}, {call.name} {call.get('severity', '')}".rstrip()
    norm = "" if cell["threat"]["norm"] == "linf" else f" {cell['threat']['norm']}"
    steps = max(curve.steps for curve in outcome.curves)
    many = f", {steps} step{'s' if steps > 1 else ''}"
    return f"{cell['model']}, {call.name}{norm} {outcome.eps_text}, {cell['protocol']}{many}"


def _labels(outcomes: dict[str, Outcome]) -> dict[str, str]:
    """Return a label for every key; those of one label are told apart by the fields that differ."""
    plain = {key: _label(outcome) for key, outcome in outcomes.items()}
    labels = {}
    for key, label in plain.items():
        alike = [_flat(outcomes[k]) for k in plain if plain[k] == label]
        own = _flat(outcomes[key])
        differing = [name for name in own if len({str(flat.get(name)) for flat in alike}) > 1]
        extra = ", ".join(f"{name} {own[name]}" for name in differing)
        labels[key] = f"{label} ({extra})" if extra else label
    return labels


def _flat(outcome: Outcome) -> dict[str, Any]:
    """Return a cell's description on one level, the arguments of its call as well."""
    call = parse_call(outcome.cell["perturb"])
    flat = {k: v for k, v in _said(outcome).items() if k not in ("threat", "perturb")}
    threat = {k: v for k, v in outcome.cell["threat"].items() if k != "eps"}
    return {"perturb": call.name, "eps": outcome.eps_text, **flat, **threat, **dict(call.arguments)}


# Pairs


@dataclass(frozen=True)
class _Pair:
    label: str
    before: Outcome
    after: Outcome

    @property
    def is_same_model(self) -> bool:
        return self.before.provenance.weights_sha256 == self.after.provenance.weights_sha256

    @property
    def subject(self) -> Subject:
        return _subject(self.before)


def _subject(outcome: Outcome) -> Subject:
    cell = outcome.cell
    return Subject(cell["model"], kind_of(outcome), parse_call(cell["perturb"]).name, cell["protocol"])


def _match(before: Outcome, after: Outcome) -> bool:
    """Return whether two cells of one description saw the same samples and were judged alike."""
    judged = [{(curve.judge, curve.steps) for curve in outcome.curves} for outcome in (before, after)]
    exits = [{curve.exit for curve in outcome.curves} for outcome in (before, after)]
    if before.provenance.weights_sha256 == after.provenance.weights_sha256 and exits[0] != exits[1]:
        return False  # of another network they may be others
    same_data = before.provenance.data_sha256 == after.provenance.data_sha256
    return same_data and judged[0] == judged[1] and np.array_equal(before.index, after.index)


def _explain_absent(
    absent: dict[str, Outcome],
    after: dict[str, Outcome],
    free: dict[str, Outcome],
    labels: dict[str, str],
    failures: Sequence[Row],
) -> tuple[list[Finding], set[str]]:
    """Return a finding for each cell of the baseline without a partner, and the keys that look like one.

    A cell of the same model, attack or corruption, and protocol is what became of it: not comparable.
    free: the cells of the run that the baseline does not know.
    """
    findings: list[Finding] = []
    used: set[str] = set()
    for key, outcome in absent.items():
        near = [k for k, other in free.items() if k not in used and _slot(other) == _slot(outcome)]
        verdict: Verdict = "not-comparable"
        if key in after:
            note = _other_data(outcome, after[key])
        elif near:
            changes = {k: _changes(outcome, free[k]) for k in near}
            nearest = min(near, key=lambda k: len(changes[k]))
            used.add(nearest)
            note = f"set up otherwise: {', '.join(changes[nearest])}"
        else:
            verdict, note = "missing", _why_missing(outcome, failures)
        before = _headline(outcome)
        findings.append(Finding(labels[key], _subject(outcome), verdict, before=before, note=note))
    return findings, used


def _other_data(before: Outcome, after: Outcome) -> str:
    ours, theirs = (outcome.provenance.data_sha256[:8] for outcome in (before, after))
    if ours != theirs:
        return f"other images: data {ours} in the baseline, {theirs} now"
    return "other samples, exits, verdicts or step counts than the baseline holds"


def _slot(outcome: Outcome) -> tuple[Any, ...]:
    cell, call = outcome.cell, parse_call(outcome.cell["perturb"])
    return cell["model"], call.name, call.get("severity"), cell["protocol"]


def _changes(before: Outcome, after: Outcome) -> list[str]:
    """Return "seed 0 -> 1" for every field in which two descriptions differ."""
    ours, theirs = _flat(before), _flat(after)
    names = dict.fromkeys([*ours, *theirs])
    return [f"{n} {ours.get(n)} -> {theirs.get(n)}" for n in names if ours.get(n) != theirs.get(n)]


def _why_missing(outcome: Outcome, failures: Sequence[Row]) -> str:
    subject = _subject(outcome)
    for row in failures:
        named = row["attack"] or row["corruption"] or "clean"
        if (row["model"], named, row["protocol"]) == (subject.model, subject.name, subject.protocol):
            return f"it crashed: {row['error']}"
    return "the run has no such cell; run it, or take it out of the baseline with --update"


def _headline(outcome: Outcome) -> float:
    return float(_quoted(outcome, "last")[-1].is_correct.mean())


def _quoted(outcome: Outcome, exits: str) -> list[Curve]:
    """Return the curves that a cell is judged by: its protocol's first verdict, the most steps.

    exits: "last" for the last exit alone, or "all".
    """
    protocol = PROTOCOLS.get(outcome.cell["protocol"])
    judges = {curve.judge for curve in outcome.curves}
    judge = protocol.judges[0] if protocol and protocol.judges[0] in judges else min(judges)
    of_judge = [curve for curve in outcome.curves if curve.judge == judge]
    steps, last = max(curve.steps for curve in of_judge), max(curve.exit for curve in of_judge)
    found = [c for c in of_judge if c.steps == steps and (exits == "all" or c.exit == last)]
    return sorted(found, key=lambda curve: curve.exit)


# Verdicts


def _judge(pairs: Sequence[_Pair], policy: Policy, today: datetime.date) -> list[Finding]:
    """Return the findings on all pairs, cell by cell, the means over several of them behind."""
    rising = _rising(pairs, policy)
    findings: list[Finding] = []
    cells: list[Compared] = []
    for pair in pairs:
        if pair.is_same_model:
            findings += _same_weights(pair, policy, rising.get(id(pair), ""))
            continue
        shared = _shared(pair, policy.exits)
        if not shared:
            note = "other exits than the baseline holds"
            was = _headline(pair.before)
            findings.append(Finding(pair.label, pair.subject, "not-comparable", before=was, note=note))
        for before, after in shared:
            if id(pair) in rising:
                finding = _counted(pair, before, after, policy)
                findings.append(replace(finding, verdict="suspicious-gain", note=rising[id(pair)]))
            else:
                cells.append(_compared(pair.label, pair.before, before, after, policy, today))
    return [*findings, *_ask(cells, policy)]


def _compared(
    label: str, outcome: Outcome, before: Curve, after: Curve, policy: Policy, today: datetime.date
) -> Compared:
    """Return a cell of the baseline at an exit, with what became of it."""
    subject = _subject(outcome)
    place = f"exit {after.exit}" if policy.exits == "all" else ""
    is_known = any(
        "regressed" in one.verdicts and today <= one.expires and one.target.fits(subject)
        for one in policy.acknowledged
    )
    return Compared(
        f"{label}, {place}" if place else label, subject, policy.limits_for(subject), before.is_correct,
        after.is_correct, (outcome.provenance.data_sha256, outcome.index.tobytes()), place, is_known,
    )  # fmt: skip


def _ask(cells: Sequence[Compared], policy: Policy) -> list[Finding]:
    """Return a finding for every question on the cells."""
    asked = questions(cells, policy)
    differences = [one.after.astype(np.int8) - one.before.astype(np.int8) for one in cells]
    evidence = [Evidence([differences[k] for k in question.members]) for question in asked]
    answers = decide(asked, evidence, policy)
    return [
        _finding(question, found, answer, cells, policy)
        for question, found, answer in zip(asked, evidence, answers, strict=True)
    ]


def _finding(
    question: Question, found: Evidence, answer: Answer, cells: Sequence[Compared], policy: Policy
) -> Finding:
    limits, members = question.limits, [cells[k] for k in question.members]
    note = ""
    if answer.verdict == "pass" and answer.p_drop <= policy.alpha:
        note = f"a drop beyond chance, but proven smaller than {100 * limits.excused:g} points"
        if -found.change < limits.min_effect:
            note = "a drop beyond chance, but too small to count"
    elif answer.verdict == "regressed" and answer.p_drop > policy.alpha:
        note = f"a drop of max_drop = {100 * (limits.max_drop or 0):g} points or more; may be chance"
    elif answer.verdict == "inconclusive":
        note = _what_would_settle(question, found, answer, policy)
    return Finding(
        question.label, question.subject, answer.verdict, total=found.total,
        before=float(np.mean([one.before.mean() for one in members])),
        after=float(np.mean([one.after.mean() for one in members])),
        lost=found.lost, gained=found.gained, change=found.interval(policy.alpha), p_value=answer.p_drop,
        margin=limits.margin, note=note, decides=question.decides or answer.verdict != "inconclusive",
        level=question.level, cells=found.cells,
    )  # fmt: skip


def _what_would_settle(question: Question, found: Evidence, answer: Answer, policy: Policy) -> str:
    many = samples_needed(found, question.limits, answer.level, policy.alpha)
    if not question.decides:
        return f"not certain alone: would take about {many:,} samples" if many else "not certain alone"
    if many:
        return f"about {many:,} samples would settle it"
    return "no number of samples would settle it: the drop is as large as the margin"


def _shared(pair: _Pair, exits: str) -> list[tuple[Curve, Curve]]:
    """Return the curves to hold against each other: the last exits, or all that both networks have."""
    ours, theirs = _quoted(pair.before, exits), _quoted(pair.after, exits)
    if exits == "last":
        return list(zip(ours, theirs, strict=True))
    by_exit = {curve.exit: curve for curve in theirs}
    return [(curve, by_exit[curve.exit]) for curve in ours if curve.exit in by_exit]


def _counted(pair: _Pair, before: Curve, after: Curve, policy: Policy) -> Finding:
    """Return a finding with its counts and no verdict yet."""
    lost, gained = _discordant(before, after)
    label = f"{pair.label}, exit {after.exit}" if policy.exits == "all" else pair.label
    return Finding(
        label, pair.subject, "inconclusive", total=len(before.is_correct),
        before=float(before.is_correct.mean()), after=float(after.is_correct.mean()), lost=lost,
        gained=gained, margin=policy.limits_for(pair.subject).margin,
    )  # fmt: skip


def _discordant(before: Curve, after: Curve) -> tuple[int, int]:
    """Return how many samples were lost and gained."""
    lost = int((before.is_correct & ~after.is_correct).sum())
    return lost, int((~before.is_correct & after.is_correct).sum())


def _same_weights(pair: _Pair, policy: Policy, rising: str) -> list[Finding]:
    """Return the findings on a model that did not change: whatever differs, the evaluation did it.

    Every exit, verdict and step count is looked at, not only those that a cell is quoted by.
    """
    there = {(c.exit, c.judge, c.steps): c for c in pair.after.curves}
    differing = [
        (*_discordant(c, there[c.exit, c.judge, c.steps]), c)
        for c in pair.before.curves
        if (c.exit, c.judge, c.steps) in there
    ]
    lost, gained, worst = max(differing, key=lambda item: item[0] + item[1])
    up = max(gained - lost for lost, gained, _ in differing)
    allowed = policy.drift_allowed(len(worst.is_correct))
    machines = _machines(pair) if lost + gained > allowed else ""
    where = f"{lost + gained} of {len(worst.is_correct)} outcomes differ" + _where(pair, worst)
    verdict: Verdict = "pass"
    note = f"same weights; {where}" if lost + gained else "same weights, same outcomes"
    if machines and _is_rounding([counts[:2] for counts in differing], len(worst.is_correct), policy):
        verdict, note = "machine-drift", f"same weights; {where}, neither way more, {machines}"
    elif lost + gained > allowed:
        verdict, note = "evaluator-drift", f"same weights, but {where} (at most {allowed} may)"
        if up > allowed and kind_of(pair.before) != "clean":
            verdict = "suspicious-gain"
            what = "attack" if kind_of(pair.before) == "attack" else "corruption"
            note = f"same weights, yet {up} more samples withstand: the {what} became weaker"
    if rising:
        verdict, note = "suspicious-gain", rising
    return [
        replace(_counted(pair, before, after, policy), verdict=verdict, note=note)
        for before, after in _shared(pair, policy.exits)
    ]


def _machines(pair: _Pair) -> str:
    """Return on which different machines two runs were made, "" where it was one or is not known."""
    before, after = pair.before.provenance.machine, pair.after.provenance.machine
    return f"made on {before} and on {after}" if before and after and before != after else ""


def _is_rounding(counts: Sequence[tuple[int, int]], total: int, policy: Policy) -> bool:
    """Return whether so many lost and gained, by curve, are what another machine's rounding makes.

    It falls either way alike: exact two-sided McNemar, by Bonferroni over the curves that differ.
    """
    differing = [(lost, gained) for lost, gained in counts if lost + gained]
    return all(
        lost + gained <= policy.machine_share * total
        and mcnemar(lost, gained) > policy.alpha / len(differing)
        for lost, gained in differing
    )


def _where(pair: _Pair, curve: Curve) -> str:
    """Return where a curve lies, unless it is the one that the cell is quoted by."""
    if any(curve is quoted for quoted in _quoted(pair.before, "last")):
        return ""
    judged = f" {curve.judge}" if curve.judge else ""
    return f" at exit {curve.exit}{judged}" + (f" after {curve.steps} steps" if curve.steps else "")


def _rising(pairs: Sequence[_Pair], policy: Policy) -> dict[int, str]:
    """Return a note on each pair, by id, whose new curve rises with the steps: an attack gone wrong.

    Only a rise beyond chance counts (exact McNemar between neighbours, Bonferroni over all of them) that
    the baseline does not have.
    """
    found = [
        (pair, one, two, *_discordant(one, two))
        for pair in pairs
        for one, two in _neighbours(pair.after.curves)
    ]
    notes = {}
    for pair, one, two, lost, gained in found:
        level = policy.alpha / len(found)
        if mcnemar(gained, lost, alternative="worse") > level:
            continue
        known = [
            _discordant(a, b)
            for a, b in _neighbours(pair.before.curves)
            if (a.exit, a.judge, a.steps, b.steps) == (one.exit, one.judge, one.steps, two.steps)
        ]
        if any(mcnemar(g, l, alternative="worse") <= level for l, g in known):  # noqa: E741
            continue
        rise = f"{100 * one.is_correct.mean():.1f} % to {100 * two.is_correct.mean():.1f} %"
        notes[id(pair)] = f"accuracy rises from {rise} between {one.steps} and {two.steps} steps"
    return notes


def _neighbours(curves: Iterable[Curve]) -> list[tuple[Curve, Curve]]:
    """Return what lies next to each other on the curves that may rise; "worst" cannot."""
    ordered = sorted((c for c in curves if c.judge == "last"), key=lambda c: (c.exit, c.steps))
    return [(a, b) for a, b in pairwise(ordered) if a.exit == b.exit]


def _acknowledge(finding: Finding, known: Sequence[Acknowledgement], today: datetime.date) -> Finding:
    """Return the finding, excused where a change is acknowledged that has not expired.

    Who accepts a regression accepts as well that it cannot be told for certain.
    """
    if finding.verdict in GOOD:
        return finding
    drop = (finding.before or 0) - (finding.after or 0)
    for one in known:
        is_maybe = finding.verdict == "inconclusive" and "regressed" in one.verdicts
        fits = (is_maybe or finding.verdict in one.verdicts) and one.target.fits(finding.subject)
        if not fits or (one.max_drop is not None and drop > one.max_drop):
            continue
        if today <= one.expires:
            return replace(finding, acknowledged=f"until {one.expires}: {one.reason}")
        past = f"acknowledged until {one.expires} only: {one.reason}"
        finding = replace(finding, note="; ".join(filter(None, [finding.note, past])))
    return finding


def _unused(policy: Policy, findings: Sequence[Finding]) -> list[str]:
    """Return a note on each of the policy's rules that is for none of the cells."""

    def is_unused(target: Target) -> bool:
        return not any(target.fits(finding.subject) for finding in findings)

    notes: list[str] = []
    lists: tuple[Sequence[Rule | Acknowledgement], ...] = (policy.rules, policy.acknowledged)
    for rules in lists:
        notes += describe(rules, [k for k, rule in enumerate(rules) if is_unused(rule.target)])
    return notes if findings else []


# Before and after a run


def plan(
    baseline: Path, policy: Policy | None = None, *, chosen: Selection | None = None
) -> list[Detectable]:
    """Return what the gate could see in each cell of a baseline, before anything is run."""
    policy, cells = policy or Policy(), _planned(baseline, policy or Policy(), chosen or Selection())
    # As decide will have it, at the level of the smallest p-value, which Holm's method asks the most of.
    level = levels_of(questions(cells, policy), policy.alpha)["cell"] if cells else policy.alpha

    def smallest(one: Compared, discordant: float) -> float | None:
        return smallest_found(
            len(one.before),
            discordant=discordant,
            level=level,
            tolerated=one.limits.excused,
            alpha=policy.alpha,
        )

    return [
        Detectable(
            one.label, len(one.before), float(one.before.mean()),
            smallest(one, 0.0), smallest(one, policy.discordant),
            unseen(len(one.before), alpha=policy.alpha), one.limits.margin,
        )
        for one in cells
    ]  # fmt: skip


def power(
    baseline: Path, policy: Policy | None = None, *, chosen: Selection | None = None, seed: int = 0
) -> Power | None:
    """Return how often the whole gate would pass and fail runs of known truth; None with nothing selected.

    seed: of the simulated runs.
    """
    policy = policy or Policy()
    cells = _planned(baseline, policy, chosen or Selection())
    return simulate(cells, policy, seed=seed) if cells else None


def _planned(baseline: Path, policy: Policy, chosen: Selection) -> list[Compared]:
    """Return the cells of a baseline as if nothing had changed in them."""
    outcomes = {_key(o): o for o in read_outcomes(baseline) if chosen.has(o)}
    labels = _labels(outcomes)
    return [
        _compared(labels[key], outcome, curve, curve, policy, _today())
        for key, outcome in outcomes.items()
        for curve in _quoted(outcome, policy.exits)
    ]


def update(
    baseline: Path,
    run: Path,
    *,
    reason: str,
    chosen: Selection | None = None,
    today: datetime.date | None = None,
) -> list[str]:
    """Rewrite the baseline from a run; return a line per cell that was added, removed or changed.

    Only the selected cells are touched; of those, the ones that the run lacks leave the baseline.  Reason,
    date, and accuracies before and after go into its log.  Raises UserError where the run has crashed
    cells or nothing to take.
    """
    chosen = chosen or Selection()
    if not reason.strip():
        raise UserError("expected why the baseline changes, got nothing; give it with --reason TEXT")
    failures = read_failures(run)
    if failures:
        raise UserError(
            f"{run}: {len(failures)} of its cells crashed ({failures[0]['error']}); run it again first"
        )
    new = {_key(outcome): outcome for outcome in read_outcomes(run) if chosen.has(outcome)}
    if not new:
        raise UserError(f"{run}: no finished cell is selected; check --model, --attack and --corruption")
    old = {_key(o): o for o in read_outcomes(baseline)} if (baseline / "baseline.json").is_file() else {}
    kept = {key: outcome for key, outcome in old.items() if not chosen.has(outcome)}
    labels = _labels({**old, **new})
    changes = [
        {"cell": labels[key], "was": _share(old.get(key)), "now": _share(new.get(key))}
        for key in dict.fromkeys([*old, *new])
        if key not in kept and not _is_same(old.get(key), new.get(key))
    ]
    entry = {
        "date": str(today or _today()),
        "reason": reason.strip(),
        "robustglimpse": robustglimpse.__version__,
        "changes": changes,
    }
    write_baseline(baseline, {**kept, **new}, entry)
    return [safe(f"{c['cell']}: {_percent(c['was'])} -> {_percent(c['now'])}", "terminal") for c in changes]


def _share(outcome: Outcome | None) -> float | None:
    return None if outcome is None else round(_headline(outcome), 6)


def _percent(share: Any) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _is_same(old: Outcome | None, new: Outcome | None) -> bool:
    """Return whether nothing changed in a cell: neither weights, nor data, nor any outcome."""
    if old is None or new is None or old.provenance.made_from != new.provenance.made_from:
        return False
    pairs = zip(old.curves, new.curves, strict=False)
    return len(old.curves) == len(new.curves) and all(
        np.array_equal(a.is_correct, b.is_correct) for a, b in pairs
    )
