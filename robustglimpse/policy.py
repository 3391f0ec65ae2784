"""The gate's policy: how large a drop may be, where, and which changes are acknowledged. Loads no torch."""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

from robustglimpse.files import read_file
from robustglimpse.records import UserError
from robustglimpse.registry import find, unknown
from robustglimpse.texts import LONGEST, one_line, shortened

Verdict = Literal[
    "pass", "improved", "regressed", "inconclusive", "missing", "not-comparable", "evaluator-drift",
    "suspicious-gain", "machine-drift",
]  # fmt: skip
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
GOOD: tuple[Verdict, ...] = ("pass", "improved", "machine-drift")
EXITS = ("last", "all")
PROOFS = ("joint", "each")
MOST_BYTES = 1_000_000  # of a policy


@dataclass(frozen=True)
class Subject:
    """What the gate judges. kind: clean, attack, corruption, mean (over a model's corruptions), or joint.

    name: pgd, fog; clean, mean and joint are called so.  protocol: "" where nothing attacks.
    """

    model: str
    kind: str
    name: str
    protocol: str


@dataclass(frozen=True)
class Target:
    """Which subjects a rule is for: globs, an empty one for any. An attack's never fit corruptions, or back.

    attack: an attack's name, or "clean".  corruption: a corruption's name, or "mean".
    """

    model: str = ""
    attack: str = ""
    corruption: str = ""
    protocol: str = ""

    def fits(self, subject: Subject) -> bool:
        """Return whether the subject is meant; never a mean over cells of several kinds."""
        if subject.kind == "joint":
            return False
        is_corrupted = subject.kind in ("corruption", "mean")
        if self.corruption if not is_corrupted else self.attack:
            return False
        globs = (self.model, self.attack or self.corruption, self.protocol)
        texts = (subject.model, subject.name, subject.protocol)
        return all(not glob or fnmatchcase(text, glob) for glob, text in zip(globs, texts, strict=True))


@dataclass(frozen=True)
class Limits:
    """How large a drop may be, as fractions: 0.01 is one point.

    margin: a drop must be proven smaller to pass.
    min_effect: a smaller one is no regression, however significant.
    max_drop: an observed drop of so much in a cell is one, however few the samples; None for no such limit.
        Its false alarms are not counted in alpha.
    tolerated: a drop beyond chance is no regression where it is proven smaller; None for the margin, which
        is the most that it can be.
    """

    margin: float = 0.025
    min_effect: float = 0.005
    max_drop: float | None = None
    tolerated: float | None = None

    @property
    def excused(self) -> float:
        """The drop that tolerated means."""
        return self.margin if self.tolerated is None else min(self.margin, self.tolerated)


# What counts where the policy says nothing of the margin.
DEFAULT_LIMITS = Limits(tolerated=0.02)


@dataclass(frozen=True)
class Rule:
    """Other limits for some cells; None leaves the general one. A margin alone is tolerated as well."""

    target: Target
    margin: float | None = None
    min_effect: float | None = None
    max_drop: float | None = None
    tolerated: float | None = None


@dataclass(frozen=True)
class Acknowledgement:
    """A change that the team knows of: it is shown and does not fail, until it expires.

    Cells of an acknowledged regression are left out of the means over several cells, and may be inconclusive.
    verdicts: which ones it covers.  max_drop: how large a drop; None for any.
    expires: the last day on which it holds.
    """

    target: Target
    reason: str
    expires: datetime.date
    verdicts: tuple[Verdict, ...] = ("regressed",)
    max_drop: float | None = None


@dataclass(frozen=True)
class Policy:
    """What the gate decides by; every key of the TOML file is a field here.

    alpha: the largest chance of one false alarm or more in a whole run, and that of a false pass.
    prove: what must be proven to have dropped by less than its margin: "joint", the mean over all cells, or
        "each" cell.
    exits: judge the last exit of each network, or "all".
    drift_share, drift_samples: with the same weights, as many samples may differ, the larger of the two:
        where a gradient is almost zero, rounding changes its sign.
    machine_share: the same where the two runs were made on different machines, whose kernels round otherwise;
        and neither direction may outweigh the other beyond chance.
    discordant: the share of samples that differ between two trainings, for --plan.
    """

    alpha: float = 0.05
    limits: Limits = DEFAULT_LIMITS
    prove: str = "joint"
    exits: str = "last"
    allow_inconclusive: bool = False
    drift_share: float = 0.005
    drift_samples: int = 2
    machine_share: float = 0.05
    discordant: float = 0.04
    rules: tuple[Rule, ...] = ()
    acknowledged: tuple[Acknowledgement, ...] = ()

    def limits_for(self, subject: Subject) -> Limits:
        """Return the limits of a subject: of the rules that fit, later ones win.

        An effect above the margin could neither pass nor regress, so min_effect is the margin at most.
        """
        limits = self.limits
        for rule in self.rules:
            if rule.target.fits(subject):
                known = {f.name: getattr(rule, f.name) for f in fields(Limits)}
                limits = _with(limits, {k: v for k, v in known.items() if v is not None})
        return replace(limits, min_effect=min(limits.min_effect, limits.margin))

    def drift_allowed(self, total: int) -> int:
        """Return how many of total samples may differ between two runs of the same weights."""
        return max(self.drift_samples, int(self.drift_share * total))


def _with(limits: Limits, given: Mapping[str, Any]) -> Limits:
    """Return the limits with some of them given; a margin without what is tolerated says that too."""
    if "margin" in given and "tolerated" not in given:
        limits = replace(limits, tolerated=None)
    return replace(limits, **given)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


# A key of the file -> what it must be, in words and as a check.
FRACTION = ("a fraction between 0 and 1, such as 0.01 for one point", lambda v: _number(v) and 0 < v < 1)
LEVEL = ("a fraction above 0 and below 0.5, such as 0.05", lambda v: _number(v) and 0 < v < 0.5)
SHARE = ("a fraction from 0 up to 1", lambda v: _number(v) and 0 <= v < 1)
COUNT = ("a whole number from 0 up", lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 0)
YES_NO = ("true or false", lambda v: isinstance(v, bool))
TEXT = ("a text in quotes", lambda v: isinstance(v, str) and bool(v.strip()))
DATE = ("a date such as 2027-01-31, without quotes", lambda v: type(v) is datetime.date)
WHICH = (f"one of {', '.join(EXITS)}", lambda v: v in EXITS)
PROVEN = (f"one of {', '.join(PROOFS)}", lambda v: v in PROOFS)
RULES = ("tables, each under its own [[...]]", _tables)
COVERED = (
    f"a list of verdicts among {', '.join(v for v in VERDICTS if v not in GOOD)}",
    lambda v: isinstance(v, list) and bool(v) and all(x in VERDICTS and x not in GOOD for x in v),
)
LIMITS = {"margin": FRACTION, "min_effect": SHARE, "max_drop": FRACTION, "tolerated": FRACTION}
TARGET = {"model": TEXT, "attack": TEXT, "corruption": TEXT, "protocol": TEXT}
TOP = {
    "alpha": LEVEL, **LIMITS, "prove": PROVEN, "exits": WHICH, "allow_inconclusive": YES_NO,
    "drift_share": SHARE, "drift_samples": COUNT, "machine_share": SHARE, "discordant": SHARE,
    "margins": RULES, "acknowledged": RULES,
}  # fmt: skip
ACKNOWLEDGED = {**TARGET, "reason": TEXT, "expires": DATE, "verdicts": COVERED, "max_drop": FRACTION}


def load_policy(path: Path | None, overrides: Mapping[str, Any] | None = None) -> Policy:
    """Return the policy in a TOML file, or the default one, with some of its keys set otherwise.

    Raises UserError for what cannot be read, for an unknown key and for a value that cannot be.
    """
    table: dict[str, Any] = {}
    if path is not None:
        try:
            table = tomllib.loads(read_file(path, most=MOST_BYTES).decode())
        except UserError as error:
            reason = str(error).removeprefix(f"{path}: ")
            raise UserError(f"{path}: the policy cannot be read ({reason}); check --policy") from None
        except (ValueError, RecursionError) as error:  # also what is no UTF-8, and numbers without end
            reason = one_line(str(error))[:LONGEST] or type(error).__name__
            raise UserError(f"{path}: not TOML ({reason}); see docs/gate.md for an example") from None
    return parse_policy({**table, **(overrides or {})}, where=str(path or "policy"))


def parse_policy(table: Mapping[str, Any], *, where: str = "policy") -> Policy:
    """Return the policy that a TOML table spells. Raises UserError naming where and the key."""
    _check(table, TOP, where)
    plain = {k: v for k, v in table.items() if k not in ("margins", "acknowledged", *LIMITS)}
    limits = _with(DEFAULT_LIMITS, {k: v for k, v in table.items() if k in LIMITS})
    rules = [_rule(item, f"{where}: margins") for item in table.get("margins", [])]
    known = [_acknowledgement(item, f"{where}: acknowledged") for item in table.get("acknowledged", [])]
    return Policy(**plain, limits=limits, rules=tuple(rules), acknowledged=tuple(known))


def _check(table: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    for key, value in table.items():
        try:
            words, is_right = find(known, key, kind="key")
        except UserError:
            raise UserError(f"{where}: {unknown(key, known, kind='key')}") from None
        if not is_right(value):
            raise UserError(f"{where}: {key} must be {words}, got {shortened(value)}")


def _target(item: Mapping[str, Any], where: str) -> Target:
    found = Target(**{k: v for k, v in item.items() if k in TARGET})
    if found.attack and found.corruption:
        raise UserError(f"{where}: expected attack or corruption, got both; make two rules of it")
    return found


def _rule(item: Mapping[str, Any], where: str) -> Rule:
    _check(item, {**TARGET, **LIMITS}, where)
    if not set(item) & set(LIMITS):
        raise UserError(f"{where}: expected one of {', '.join(LIMITS)}, got {', '.join(item) or 'nothing'}")
    return Rule(_target(item, where), **{k: v for k, v in item.items() if k in LIMITS})


def _acknowledgement(item: Mapping[str, Any], where: str) -> Acknowledgement:
    _check(item, ACKNOWLEDGED, where)
    lacking = [key for key in ("reason", "expires") if key not in item]
    if lacking:
        raise UserError(f"{where}: lacks {' and '.join(lacking)}; every acknowledged change ends some day")
    given = {k: v for k, v in item.items() if k not in (*TARGET, "verdicts")}
    return Acknowledgement(
        _target(item, where), verdicts=tuple(item.get("verdicts", ("regressed",))), **given
    )


def describe(rules: Sequence[Rule | Acknowledgement], unused: Sequence[int]) -> list[str]:
    """Return a line for each of the rules, by place, that fits no cell: a glob with a slip, most likely."""
    lines = []
    for k in unused:
        target = rules[k].target
        globs = {f.name: getattr(target, f.name) for f in fields(Target) if getattr(target, f.name)}
        text = ", ".join(f"{name} = {glob!r}" for name, glob in globs.items())
        lines.append(f"the policy's rule for {text or 'any cell'} fits no cell")
    return lines
