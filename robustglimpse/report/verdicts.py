"""The gate's verdict in text: Markdown, JUnit XML, GitHub annotations, JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from xml.etree import ElementTree

from robustglimpse.policy import GOOD, VERDICTS, Verdict
from robustglimpse.power import Power
from robustglimpse.regress import Detectable, Finding, Judgement
from robustglimpse.report.tables import markdown, percent
from robustglimpse.stats import Interval, wilson
from robustglimpse.texts import one_line, safe

# The worst first.
ORDER: tuple[Verdict, ...] = (
    "regressed", "suspicious-gain", "evaluator-drift", "not-comparable", "missing", "inconclusive",
    "improved", "machine-drift", "pass",
)  # fmt: skip
# What to do about each verdict that fails.
ADVICE = {
    "regressed": "mend the model, acknowledge the change in the policy, or accept it with --update",
    "inconclusive": "run more samples, allow a larger margin, or pass --allow-inconclusive",
    "missing": "run the missing cells with the commands in run.json, or drop them with --update",
    "not-comparable": "run with the baseline's data and settings, or make a new baseline with --update",
    "evaluator-drift": "the code, a library or the machine changed the numbers; find which before trusting "
    "them",
    "suspicious-gain": "look at the attack before celebrating: robustness does not come for free",
}


def to_markdown(judgement: Judgement) -> str:
    """Return what a researcher needs to read: the verdict, what fails and why, the rest in a line each.

    Corruptions of a model share a line where one would say what the other says.
    """
    findings = sorted(judgement.findings, key=lambda f: ORDER.index(f.verdict))
    lines = [
        f"### Robustness gate: {judgement.summary.upper()} (exit code {judgement.exit_code})",
        "",
        f"{_code(judgement.run)} against {_code(judgement.baseline)}: {_counts(judgement)}.",
    ]
    joint = [f"- {safe(_joint(finding), 'markdown')}" for finding in _joints(judgement)]
    if joint:
        lines += ["", *joint]
    alike = _alike(judgement, findings)
    rows = [
        _line(judgement, group[0]) if len(group) == 1 else _line_for_many(judgement, group) for group in alike
    ]
    if rows:
        lines += ["", markdown(HEADER, rows)]
    failing = dict.fromkeys(f.verdict for f in findings if judgement.fails(f))
    todo = [f"- {verdict}: {ADVICE[verdict]}." for verdict in failing]
    notes = [f"- {safe(note, 'markdown')}" for note in judgement.notes]
    if todo or notes:
        lines += ["", *todo, *notes]
    if any(f.change for f in findings):
        lines += ["", _legend(judgement)]
    return "\n".join(lines)


def _joints(judgement: Judgement) -> list[Finding]:
    return [finding for finding in judgement.findings if finding.level == "joint"]


def _joint(finding: Finding) -> str:
    """Return the verdict on all cells together in one sentence."""
    margin = f"{100 * (finding.margin or 0):g} points"
    told = {
        "pass": finding.note or f"a drop proven smaller than {margin}",
        "improved": "more robust beyond chance",
        "regressed": "a drop beyond chance",
        "inconclusive": f"not proven to have dropped by less than {margin}; {finding.note}",
    }
    why = told.get(finding.verdict, finding.note)
    return f"Jointly, {finding.label}: {_change(finding)} points, {finding.verdict} ({why})."


def _code(path: str) -> str:
    """Return a path as code in Markdown, which nothing in it ends."""
    return f"`{one_line(path).replace('`', ' ')}`"


def _alike(judgement: Judgement, findings: Sequence[Finding]) -> list[list[Finding]]:
    """Return the findings in groups that take a line each: one by one, but for corruptions of a model.

    Those share a line where they are more than two with the same to say: nothing beyond chance, or the
    same reason to fail.  Means over several cells with nothing to say share one line, and of two or one too.
    """
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for k, finding in enumerate(findings):
        is_quiet = not (judgement.fails(finding) or finding.acknowledged or finding.verdict == "improved")
        is_absent = finding.after is None
        key: tuple[object, ...] = (k,)
        if finding.level == "group" and is_quiet:
            key = ("group",)
        elif finding.level == "cell" and finding.subject.kind == "corruption" and (is_quiet or is_absent):
            shared = (finding.verdict, finding.note, finding.acknowledged) if is_absent else ("quiet",)
            key = (finding.subject.model, *shared)
        groups.setdefault(key, []).append(finding)
    return [
        part
        for group in groups.values()
        for part in ([group] if len(group) > 2 else [[finding] for finding in group])
    ]


def _line_for_many(judgement: Judgement, group: Sequence[Finding]) -> list[str]:
    """Return one line for several corruptions of a model, with the means of their accuracies."""
    first = group[0]
    if first.level == "group":
        verdicts = "/".join(dict.fromkeys(f.verdict for f in group))
        label = f"{len(group)} means over several cells (a model, an attack, a corruption)"
        return [verdicts, label, "-", "-", "-", "-", "-", "one by one, no drop beyond chance"]
    label = f"{first.subject.model}, {len(group)} corruptions (mean)"
    before = sum(f.before or 0 for f in group) / len(group)
    if first.after is None:
        cells = [_verdict(judgement, first), label, f"{100 * before:.1f}", "-", "-", "-", "-"]
        return [*cells, _why(first)]
    after = sum(f.after or 0 for f in group) / len(group)
    verdicts = "/".join(dict.fromkeys(f.verdict for f in group))
    why = "same weights" if all(f.change is None for f in group) else "one by one, no change beyond chance"
    change = f"{100 * (after - before):+.1f}"
    return [verdicts, label, f"{100 * before:.1f}", f"{100 * after:.1f}", change, "-", "-", why]


HEADER = ("verdict", "cell", "baseline", "now", "change, points", "lost / gained", "p", "why")


def _counts(judgement: Judgement) -> str:
    found = Counter(finding.verdict for finding in judgement.findings)
    if not found:
        return "no cell to compare; check the selection, or make a baseline with --update"
    counts = ", ".join(f"{found[v]} {v}" for v in ORDER if v in found)
    many, means = len(judgement.findings), sum(f.level != "cell" for f in judgement.findings)
    of_means = f" ({means} of means over several cells)" if means else ""
    return f"{many} comparison{'s' if many > 1 else ''}{of_means}, {counts}"


def _line(judgement: Judgement, finding: Finding) -> list[str]:
    compared = finding.after is not None
    return [
        _verdict(judgement, finding),
        finding.label,
        _accuracy(finding.before, finding.total),
        _accuracy(finding.after, finding.total),
        _change(finding) if compared else "-",
        f"{finding.lost} / {finding.gained} of {finding.total}" if compared else "-",
        "-" if finding.p_value is None else _p(finding.p_value),
        _why(finding),
    ]


def _verdict(judgement: Judgement, finding: Finding) -> str:
    return f"**{finding.verdict}**" if judgement.fails(finding) else finding.verdict


def _why(finding: Finding) -> str:
    acknowledged = f"acknowledged {finding.acknowledged}" if finding.acknowledged else ""
    return "; ".join(filter(None, [acknowledged, finding.note]))


def _accuracy(share: float | None, total: int) -> str:
    """Return "81.4"; at zero what was learned is the upper bound, and it is said."""
    if share is None:
        return "-"
    if share == 0 and total:
        bound = wilson(0, total)
        return percent(0, bound.low, bound.high)
    return f"{100 * share:.1f}"


def _change(finding: Finding) -> str:
    if finding.change is None:
        return f"{100 * ((finding.after or 0) - (finding.before or 0)):+.1f}"
    return points(finding.change)


def points(change: Interval) -> str:
    """Return "-2.0 [-3.1, -0.9]"."""
    return f"{100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.2g}"


def _legend(judgement: Judgement) -> str:
    alpha = judgement.policy.alpha
    proven = "each cell" if judgement.policy.prove == "each" else "the mean over all cells"
    return (
        f"Accuracies in %. Change: paired, with its {100 * (1 - 2 * alpha):g} % interval; a drop is proven "
        f"small where all of the interval lies above minus the margin ("
        f"{100 * judgement.policy.limits.margin:g} points unless the policy says otherwise), which {proven} "
        f"must be. p: of a drop, one-sided, adjusted for all comparisons; in any cell or mean, a drop counts "
        f"from p <= {alpha:g} and {100 * judgement.policy.limits.min_effect:g} points."
    )


def to_json(judgement: Judgement) -> str:
    """Return the whole judgement for programs: shares as fractions, null where there is nothing."""
    content = {
        "verdict": judgement.summary,
        "exit_code": judgement.exit_code,
        "baseline": judgement.baseline,
        "run": judgement.run,
        "joint": [
            {
                "label": f.label,
                "cells": f.cells,
                "verdict": f.verdict,
                "margin": f.margin,
                "change": asdict(f.change) if f.change else None,
                "fails": judgement.fails(f),
            }
            for f in _joints(judgement)
        ],
        "findings": [
            {**asdict(f), **asdict(f.subject), "fails": judgement.fails(f)} for f in judgement.findings
        ],
        "notes": list(judgement.notes),
        "policy": asdict(judgement.policy),
    }
    return json.dumps(content, indent=1, default=str) + "\n"


def to_junit(judgement: Judgement) -> str:
    """Return JUnit XML, a test case per finding, the means over several cells among them.

    What regressed or is inconclusive is a failure, what could not be compared an error.

    What is acknowledged, allowed or decided elsewhere is skipped, with the reason.
    """
    suite = ElementTree.Element("testsuite", name="robustglimpse regress")
    counts = {"failure": 0, "error": 0, "skipped": 0}
    for finding in judgement.findings:
        told = {"classname": safe(finding.subject.model, "xml"), "name": safe(finding.label, "xml")}
        case = ElementTree.SubElement(suite, "testcase", told)
        if finding.verdict in GOOD:
            continue
        kind = "error" if finding.verdict in ("missing", "not-comparable") else "failure"
        if not judgement.fails(finding):
            kind = "skipped"
        why = f"acknowledged {finding.acknowledged}" if finding.acknowledged else finding.note
        entry = ElementTree.SubElement(case, kind, message=safe(f"{finding.verdict}: {why}", "xml"))
        if kind != "skipped":
            entry.set("type", finding.verdict)
            entry.text = safe(_sentence(finding), "xml")
        counts[kind] += 1
    if not judgement.findings:
        case = ElementTree.SubElement(suite, "testcase", classname="robustglimpse", name="selection")
        ElementTree.SubElement(case, "error", message="nothing selected", type="nothing-selected")
        counts["error"] = 1
    suite.set("tests", str(max(1, len(judgement.findings))))
    for name, plural in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(plural, str(counts[name]))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    text: str = ElementTree.tostring(root, encoding="unicode", xml_declaration=True)
    return text + "\n"


def _sentence(finding: Finding) -> str:
    """Return one line: what was, what is, why it matters."""
    parts = [finding.label]
    if finding.after is not None:
        before, after = (_accuracy(share, finding.total) for share in (finding.before, finding.after))
        counts = f"{finding.lost} lost, {finding.gained} gained of {finding.total}"
        parts.append(f"{before} % -> {after} %, {_change(finding)} points ({counts})")
    return "; ".join(filter(None, [*parts, finding.note]))


def to_github(judgement: Judgement) -> str:
    """Return workflow commands that GitHub shows as annotations; the worst first, as it shows ten of each.

    Source: docs.github.com, "Workflow commands for GitHub Actions".
    """
    lines = []
    for finding in sorted(judgement.findings, key=lambda f: ORDER.index(f.verdict)):
        if finding.level != "joint" and (not finding.decides or finding.verdict == "pass"):
            continue
        level = "error" if judgement.fails(finding) else "notice"
        of_all = " jointly" if finding.level == "joint" else ""
        title = safe(f"robustness: {finding.verdict}{of_all}", "github title")
        acknowledged = f" (acknowledged {finding.acknowledged})" if finding.acknowledged else ""
        lines.append(f"::{level} title={title}::{safe(_sentence(finding) + acknowledged, 'github')}")
    if not judgement.findings:
        lines.append("::error title=robustness%3A nothing selected::no cell to compare")
    return "\n".join(lines)


def plan_markdown(rows: Sequence[Detectable], power: Power | None = None) -> str:
    """Return the plan as tables; in points, and a dash where not even losing everything would show."""

    def said(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    header = ("cell", "samples", "now %", "drop seen", "with churn", "margin provable", "margin")
    lines = [
        [r.label, str(r.total), _accuracy(r.accuracy, r.total), said(r.certain), said(r.likely),
         f"{100 * r.provable:.2f}", f"{100 * r.margin:g}" + (" (!)" if r.provable >= r.margin else "")]
        for r in rows
    ]  # fmt: skip
    legend = (
        "In points, for changed weights. Drop seen: the smallest true drop found 9 times in 10 where no "
        "sample is gained; with churn: where some are lost and some gained, as between two trainings (the "
        "policy's `discordant`). Margin provable: what a cell alone would prove where no sample differs; (!) "
        "where that is not within the margin: take more samples or a larger margin."
    )
    if not lines:
        return "no cell is selected"
    whole = f"{_power(power)}\n\n" if power else ""
    return f"{whole}{markdown(header, lines)}\n\n{legend}"


def _power(power: Power) -> str:
    """Return the power of the whole gate as a table with its assumptions."""
    lines = [
        [s.truth, *(f"{100 * share:.0f} %" for share in (s.passes, s.regresses, s.incomplete))]
        for s in power.scenarios
    ]
    table = markdown(
        ("the whole gate, with other weights, where", "passes", "regressed", "incomplete"), lines
    )
    single = "not found, however large" if power.single is None else f"{100 * power.single:.1f} points"
    return (
        f"{table}\n\n{power.runs} simulated runs each, so that a share is known to some "
        f"{100 * power.runs**-0.5:.0f} points; {100 * power.discordant:g} % of the samples differ in every "
        f"cell (the policy's `discordant`), in two cells of a model with correlation 0.5. A drop in one cell "
        f"alone is found with 80 % where it is: {single}."
    )


assert set(ORDER) == set(VERDICTS)
