"""Attacks by name. An attack sees a callable, tensors and a threat; it never judges itself."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from robustglimpse.records import UserError
from robustglimpse.registry import Call, find, resolve


@dataclass(frozen=True)
class AttackRow:
    """One line of the table of attacks.

    norms: those it is defined for.  iterative: takes `steps` and `step_size`, so that one run is a
    whole curve.  needs: what it reads of the model.  cost: forwards + backwards per sample.
    runs_long: takes many steps that are no curve, to its own end; judged once, by its worst iterate.
    may_leave: its iterates may lie outside the ball, and only those inside count (minimal-norm attacks).
    parts: calls that are run in turn instead, each on what the ones before left standing.
    """

    target: str
    norms: tuple[str, ...]
    iterative: bool
    needs: str
    cost: str
    source: str
    runs_long: bool = False
    may_leave: bool = False
    parts: tuple[str, ...] = ()


ATTACKS: dict[str, AttackRow] = {
    "fgsm": AttackRow(
        "robustglimpse.attacks.gradient:fgsm", ("linf", "l2"), False, "gradients", "2 + 1",
        "Goodfellow et al. 2015",
    ),
    "pgd": AttackRow(
        "robustglimpse.attacks.gradient:pgd", ("linf", "l2"), True, "gradients", "(steps + 1) + steps",
        "Madry et al. 2018",
    ),
    "mifgsm": AttackRow(
        "robustglimpse.attacks.gradient:mifgsm", ("linf", "l2"), True, "gradients", "(steps + 1) + steps",
        "Dong et al. 2018",
    ),
    "apgd": AttackRow(
        "robustglimpse.attacks.apgd:apgd", ("linf", "l2"), False, "gradients", "(steps + 2) + (steps + 1)",
        "Croce & Hein 2020", True,
    ),
    "apgd_t": AttackRow(
        "robustglimpse.attacks.apgd:apgd_t", ("linf", "l2"), False, "gradients",
        "targets x ((steps + 2) + (steps + 1))", "Croce & Hein 2020", True,
    ),
    "fab_t": AttackRow(
        "robustglimpse.attacks.fab:fab_t", ("linf", "l2"), False, "gradients",
        "targets x 2 steps + targets x steps", "Croce & Hein 2020 (FAB)", True, True,
    ),
    "square": AttackRow(
        "robustglimpse.attacks.square:square", ("linf", "l2"), False, "scores", "steps + 0",
        "Andriushchenko et al. 2020", True,
    ),
    "autoattack": AttackRow(
        "", ("linf", "l2"), False, "gradients and scores", "about 7900 + 1900 if nothing breaks it",
        "Croce & Hein 2020", True, True, ("apgd", "apgd_t", "fab_t", "square"),
    ),
}  # fmt: skip


def check_call(call: Call, norm: str) -> AttackRow:
    """Return the row of a call. Raises UserError for an unknown attack, argument, or norm."""
    row = find(ATTACKS, call.name, kind="attack", listing="attacks")
    if norm not in row.norms:
        raise UserError(f"{call.name} is defined for {' and '.join(row.norms)}, not {norm!r}")
    known = options_of(row)
    for key, _ in call.arguments:
        if key not in known:
            raise UserError(f"{call.name} has no argument {key!r}; it takes {', '.join(known) or 'none'}")
    return row


def options_of(row: AttackRow) -> dict[str, Any]:
    """Return the keyword arguments an attack takes and their defaults (inspect.Parameter.empty: needed)."""
    if row.parts:
        return {}
    parameters = inspect.signature(resolve(row)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
