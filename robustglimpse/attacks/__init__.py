"""Attacks by name. An attack sees a callable, tensors and a threat; it never judges itself.

"pgd" and "native:pgd" are ours; "torchattacks:PGD" is the attack of that name in that library, which is
imported when it is asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any

from robustglimpse.records import Threat, UserError
from robustglimpse.registry import Call, find, resolve

if TYPE_CHECKING:
    from robustglimpse.attacks.adapters import Adapted
    from robustglimpse.attacks.gradient import Iterates


@dataclass(frozen=True)
class AttackRow:
    """One line of the table of attacks.

    norms: those it is defined for.  iterative: takes `steps` and `step_size`, so that one run is a
    whole curve.  needs: what it reads of the model, "gradients" or "scores".
    cost: forwards + backwards per sample, in steps and targets: "(steps + 1) + steps".
    runs_long: takes many steps that are no curve, to its own end; judged once, by its worst iterate.
    is_random: another restart is another attack even where it has no random_start.
    step_is_eps: its one step is as long as eps.
    may_leave: its iterates may lie outside the ball, and only those inside count (minimal-norm attacks).
    parts: calls that are run in turn instead, each on what the ones before left standing.
    is_adapted: another library's.  options: what it takes and the defaults, where no function of ours tells.
    """

    target: str
    norms: tuple[str, ...]
    iterative: bool
    needs: str
    cost: str
    source: str
    runs_long: bool = False
    may_leave: bool = False
    is_adapted: bool = False
    is_random: bool = False
    step_is_eps: bool = False
    parts: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()


ATTACKS: dict[str, AttackRow] = {
    "fgsm": AttackRow(
        "robustglimpse.attacks.gradient:fgsm", ("linf", "l2"), False, "gradients", "2 + 1",
        "Goodfellow et al. 2015", step_is_eps=True,
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
        "robustglimpse.attacks.apgd:apgd", ("linf", "l2"), False, "gradients", "(steps + 1) + steps",
        "Croce & Hein 2020", True,
    ),
    "apgd_t": AttackRow(
        "robustglimpse.attacks.apgd:apgd_t", ("linf", "l2"), False, "gradients",
        "(1 + targets x (steps + 1)) + targets x steps", "Croce & Hein 2020", True,
    ),
    "fab_t": AttackRow(
        "robustglimpse.attacks.fab:fab_t", ("linf", "l2"), False, "gradients",
        "(1 + targets x (2 steps + 1)) + targets x steps", "Croce & Hein 2020 (FAB)", True, True,
    ),
    "square": AttackRow(
        "robustglimpse.attacks.square:square", ("linf", "l2"), False, "scores", "steps + 0",
        "Andriushchenko et al. 2020", True, is_random=True,
    ),
    "autoattack": AttackRow(
        "", ("linf", "l2"), False, "gradients and scores", "7821 + 1900 if nothing breaks it",
        "Croce & Hein 2020", True, True, parts=("apgd", "apgd_t", "fab_t", "square(rescale=False)"),
    ),
}  # fmt: skip


def _is_anything(_: Any) -> bool:
    return True


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


# What the arguments of our attacks may be.
LOSS_NAMES = ("ce", "dlr", "margin")
VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "decay": (lambda v: _is_number(v) and v >= 0, "a number from 0 up"),
    "eot": (_is_count, "a whole number from 1 up"),
    "loss": (lambda v: v in LOSS_NAMES, f"one of {', '.join(LOSS_NAMES)}"),
    "p": (lambda v: _is_number(v) and 0 < v <= 1, "a share above 0, at most 1"),
    "random_start": (lambda v: isinstance(v, bool), "True or False"),
    "rescale": (lambda v: isinstance(v, bool), "True or False"),
    "step_size": (lambda v: _is_number(v) and v >= 0, "a number from 0 up, in the units of eps"),
    "steps": (_is_count, "a whole number from 1 up"),
    "targets": (_is_count, "a whole number from 1 up"),
}

# Arguments that the loop gives an attack that has them: they are no part of its call.
TOLD = ("start", "at_once")

# What any attack NAME of a library is before its name is known: `list attacks` imports no library.
LIBRARIES: dict[str, AttackRow] = {
    name: AttackRow("", ("linf", "l2"), False, "NAME's own", cost, source, True, True, is_adapted=True)
    for name, cost, source in (
        ("torchattacks", "NAME's own", "Kim 2020"),
        ("foolbox", "NAME's own", "Rauber et al. 2017, 2020"),
        ("pyautoattack", "standard: about 7900 + 1900", "Croce & Hein 2020"),
    )
}


def table() -> dict[str, AttackRow]:
    """Return every row that `list attacks` and README show, by name; a library's attacks are one row."""
    return ATTACKS | {f"{name}:NAME": row for name, row in LIBRARIES.items()}


def canonical(call: Call) -> Call:
    """Return the call as cells name it: "native:pgd" is "pgd"."""
    return Call(call.name.removeprefix("native:"), call.arguments)


def check_call(call: Call, norm: str) -> AttackRow:
    """Return the row of a call. Raises UserError for what is unknown, missing, or not for this norm."""
    found = _adapted(call)
    if found is not None:
        from robustglimpse.attacks import adapters

        adapters.check(found, call, norm)
        return replace(
            LIBRARIES[found.library],
            norms=found.norms,
            needs=found.needs,
            options=tuple(found.options.items()),
        )
    name = canonical(call).name
    row = find(table() if ":" in name else ATTACKS, name, kind="attack", listing="attacks")
    if norm not in row.norms:
        raise UserError(f"{name} is defined for {' and '.join(row.norms)}, not {norm!r}")
    known = options_of(row)
    for key, value in call.arguments:
        if key not in known:
            raise UserError(f"{name} has no argument {key!r}; it takes {', '.join(known) or 'none'}")
        if key == "steps" and row.iterative:
            continue  # may be several: evaluate.steps_of
        is_good, expected = VALUES.get(key, (_is_anything, ""))
        if not is_good(value):
            raise UserError(f"{name}: {key} must be {expected}, got {value!r}")
    return row


def check_threat(row: AttackRow, threat: Threat) -> None:
    """Raise UserError where a library cannot be told of the threat: it knows pixels in [0,1] alone."""
    if row.is_adapted and (threat.scale is not None or threat.bounds != (0.0, 1.0)):
        raise UserError(
            "an attack of another library runs in pixels in [0,1], not in a model's normalised ones; "
            "use --protocol standard or adaptive"
        )


def options_of(row: AttackRow) -> dict[str, Any]:
    """Return the keyword arguments an attack takes and their defaults (inspect.Parameter.empty: needed)."""
    if row.parts or row.is_adapted:
        return dict(row.options)
    parameters = inspect.signature(resolve(row)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in TOLD}


def can_start(call: Call) -> bool:
    """Return whether the attack can be told which images to begin at (its argument `start`)."""
    return takes(call, "start")


def takes(call: Call, argument: str) -> bool:
    """Return whether the attack has that argument, one of TOLD."""
    return argument in inspect.signature(attack_function(call)).parameters


def adapted_defaults(
    call: Call, *, steps: int | None = None, step_size: float | None = None, random_start: bool | None = None
) -> Call:
    """Return a library's call by our argument names, telling the steps and their size that it has.

    An attack that takes both steps and their size, as our own iterative ones, gets what is given here where
    the call leaves it open; others, and where None is given, the library's own.  A call of ours comes back
    as it is.
    """
    found = _adapted(call)
    if found is None:
        return canonical(call)
    from robustglimpse.attacks import adapters

    return adapters.with_defaults(found, call, steps=steps, step_size=step_size, random_start=random_start)


def defaults_of(call: Call) -> dict[str, Any]:
    """Return the arguments that a call runs with where nobody fills in any, by our names.

    Those without a default and without a value are left out; a step that is a share of eps is text.
    """
    found = _adapted(call)
    if found is not None:
        from robustglimpse.attacks import adapters

        return adapters.defaults(found, call)
    known = options_of(find(ATTACKS, canonical(call).name, kind="attack", listing="attacks"))
    held = {key: value for key, value in known.items() if value is not inspect.Parameter.empty}
    return held | dict(call.arguments)


def attack_function(call: Call) -> Callable[..., Iterates]:
    """Return the attack that a call names: (logits, x, y, threat, draws, **options) -> its iterates."""
    if _library(call) in LIBRARIES:
        from robustglimpse.attacks import adapters

        return partial(adapters.run, call)
    attack: Callable[..., Iterates] = resolve(
        find(ATTACKS, canonical(call).name, kind="attack", listing="attacks")
    )
    return attack


def _library(call: Call) -> str:
    return call.name.partition(":")[0]


def _adapted(call: Call) -> Adapted | None:
    """Return the attack of another library that a call names, None for one of ours."""
    if _library(call) not in LIBRARIES:
        return None
    from robustglimpse.attacks import adapters

    return adapters.find(call.name)
