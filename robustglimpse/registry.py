"""Names to things: call strings such as "pgd(steps=40)", and tables that load what they name on demand."""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, TypeVar

from robustglimpse.records import UserError

# Arguments of a call that have columns of their own, the radii of a sweep among them: each has its rows.
TOLD_ELSEWHERE = {"steps", "step_size", "radii", "severity", "preset", "store", "texture"}

RowT = TypeVar("RowT")


@dataclass(frozen=True)
class Call:
    """A parsed call string: a name and its keyword arguments, in canonical order."""

    name: str
    arguments: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        if not self.arguments:
            return self.name
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.arguments)})"

    def get(self, key: str, default: Any = None) -> Any:
        """Return the argument called key, or default."""
        return dict(self.arguments).get(key, default)


class Row(Protocol):
    """What every table row has: where its object lives, as "module:attribute"."""

    @property
    def target(self) -> str: ...


def parse_call(text: str) -> Call:
    """Return the call that text spells: a name, or a name with literal keyword arguments.

    Numbers may be fractions ("eps=4/255").  A name may hold ":", "@", "-", "." and "/", so a library's
    attack ("torchattacks:PGD(steps=10)") and a path parse too.  Raises UserError for anything else:
    nothing in the text is ever evaluated.
    """
    name, bracket, rest = text.strip().partition("(")
    if not bracket:
        return Call(name)
    wrong = UserError(f"expected a call like 'pgd(steps=40)', got {text!r}; give literal keyword arguments")
    if not rest.endswith(")"):
        raise wrong
    try:
        node = ast.parse(f"f({rest}", mode="eval").body
    except SyntaxError:
        raise wrong from None
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)) or node.args:
        raise wrong
    keys = [k.arg for k in node.keywords]
    if None in keys or len(set(keys)) < len(keys):
        raise wrong
    try:
        pairs = {str(k.arg): _literal(k.value) for k in node.keywords}
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        raise wrong from None
    return Call(name.strip(), tuple(sorted(pairs.items())))


def _literal(node: ast.expr) -> Any:
    """Return the literal at node; a division of two numbers is one, in a list too. Raises ValueError else."""
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(part) for part in node.elts]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        top, bottom = ast.literal_eval(node.left), ast.literal_eval(node.right)
        if not all(type(part) in (int, float) for part in (top, bottom)):
            raise ValueError("a fraction of what is no number")
        return _finite(float(top) / float(bottom))
    return _finite(ast.literal_eval(node))


def _finite(value: Any) -> Any:
    """Return the value. Raises ValueError for a number that is none: 1e999."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not finite")
    return value


def parse_fraction(text: str, *, what: str) -> float:
    """Return the number that text spells, such as "4/255", "0.5/255" or "0.03". Raises UserError naming what.

    A fraction is what Python makes of the two numbers.
    """
    try:
        parts = [float(part) for part in text.split("/")]
        if len(parts) > 2 or not all(map(math.isfinite, parts)):
            raise ValueError("neither a number nor a fraction of two")
        return float(_finite(parts[0] / parts[1])) if len(parts) == 2 else parts[0]
    except (ValueError, ZeroDivisionError, OverflowError):
        raise UserError(
            f"{what} must be a number such as 4/255 or 0.0157, got {text!r}; give it in [0,1] pixel units"
        ) from None


def options_text(call: str) -> str:
    """Return "loss='dlr'" of "pgd(loss='dlr', steps=[1, 2])": the arguments that no column tells of."""
    arguments = parse_call(call).arguments
    return ", ".join(f"{name}={value!r}" for name, value in arguments if name not in TOLD_ELSEWHERE)


def fraction_text(value: float) -> str:
    """Return an eps or a step as k/255 where it is that, to a quarter, else as a decimal."""
    levels = value * 255
    return f"{levels:.6g}/255" if abs(levels * 4 - round(levels * 4)) < 1e-6 else f"{value:.6g}"


def find(table: Mapping[str, RowT], name: str, *, kind: str, listing: str = "") -> RowT:
    """Return the row called name. Raises UserError with the nearest name otherwise (see unknown)."""
    try:
        return table[name]
    except KeyError:
        raise unknown(name, table, kind=kind, listing=listing) from None


def unknown(name: str, known: Iterable[str], *, kind: str, listing: str = "") -> UserError:
    """Return the error for a name that no table has, with the nearest one that exists.

    listing: the argument of `robustglimpse list` that shows the table; without one the names are spelled out.
    """
    names = list(known)
    folded = {each.casefold(): each for each in names}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    hint = f"did you mean {folded[near[0]]!r}? " if near else ""
    where = f"list them: robustglimpse list {listing}" if listing else f"known: {', '.join(names)}"
    return UserError(f"unknown {kind} {name!r}; {hint}({where})")


def resolve(row: Row) -> Any:
    """Return the object at the row's target, importing its module now."""
    module, _, attribute = row.target.partition(":")
    return getattr(import_module(module), attribute)
