"""What the logits of a model from outside mean: their names, their number, or how names are ordered."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from robustglimpse.data.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES
from robustglimpse.records import UserError

Order = Literal["sorted", "natural"]
WELL_KNOWN = ("cifar10", "cifar100", "imagenet", "imagenet100")
EXPECTED = (
    "classes must be a number, a list of names, a file of names ('names.txt', one a line), "
    f"{', '.join(map(repr, WELL_KNOWN))}, or how data's folders are numbered: 'sorted', 'natural'"
)


@dataclass(frozen=True)
class Naming:
    """What classes= says.

    names: of the logits in their order.  count: how many there are, where they have no names.  Both None:
    one for each logit.  order: how names of folders become places among the logits, where somebody says so.
    """

    names: tuple[str, ...] | None = None
    count: int | None = None
    order: Order | None = None

    @property
    def size(self) -> int | None:
        """How many classes there are, None where the model tells."""
        return self.count if self.names is None else len(self.names)


def read_naming(value: Any, who: str) -> Naming:
    """Return what classes= says; None says nothing.

    value: names in any sequence, or the mapping from names to numbers that torchvision calls class_to_idx, or
    from numbers to names; how many there are; a file with a name a line; a well-known set; or "sorted",
    "natural".  Raises UserError, beginning with `who`, for others, empty names and names that stand twice.
    """
    if value is None or isinstance(value, Naming):
        return value or Naming()
    if isinstance(value, Path) or (isinstance(value, str) and value.endswith(".txt")):
        return Naming(_distinct(_in_file(Path(value).expanduser(), who), who))
    if isinstance(value, str):
        return _by_word(value, who)
    count = _count(value)
    if count is not None and count >= 1:
        return Naming(count=count)
    if isinstance(value, Mapping):
        value = _in_order(value, who)
    if isinstance(value, Iterable) and not isinstance(value, set | frozenset | bytes):
        names = list(value)
        if names and all(isinstance(name, str) or _count(name) is not None for name in names):
            return Naming(_distinct([str(name) for name in names], who))
    raise UserError(f"{who}: {EXPECTED}, got {_shown(value)}")


def numbers(count: int) -> tuple[str, ...]:
    """Return names for classes that have none."""
    return tuple(str(k) for k in range(count))


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """Return the 1000 classes of ImageNet in order, by WordNet id: among their names some stand twice."""
    return tuple((Path(__file__).parent / "imagenet_wnids.txt").read_text().split())


def _by_word(word: str, who: str) -> Naming:
    if word == "sorted":
        return Naming(order="sorted")
    if word == "natural":
        return Naming(order="natural")
    if word in ("imagenet", "imagenet100"):
        return Naming(imagenet_wnids()[: 100 if word == "imagenet100" else None])
    if word == "cifar10":
        return Naming(CIFAR10_CLASSES)
    if word == "cifar100":
        return Naming(CIFAR100_CLASSES)
    raise UserError(f"{who}: {EXPECTED}, got {_shown(word)}")


def _count(value: Any) -> int | None:
    """Return a whole number of whatever library, None for what is none."""
    if isinstance(value, bool | str):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _in_file(path: Path, who: str) -> Sequence[str]:
    """Return the lines of a file of names. Raises UserError where it cannot be read or a line is empty."""
    if path.suffix != ".txt":
        raise UserError(f"{who}: a file of class names ends in .txt and has a name a line, got {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(
            f"{who}: the file of class names {path} cannot be read ({reason}); give one with a name a line"
        ) from None
    lines = [line.strip() for line in text.rstrip().splitlines()]
    empty = next((k for k, line in enumerate(lines, 1) if not line), None)
    if empty is not None or not lines:
        what = "is empty" if not lines else f"has no name on line {empty}"
        raise UserError(f"{who}: the file of class names {path} {what}; expected a name a line")
    return lines


def _in_order(names: Mapping[Any, Any], who: str) -> Sequence[Any]:
    """Return the names of {name: number} or {number: name} by number, which go from 0 up."""
    pairs = [(k, v) if _count(v) is not None else (v, k) for k, v in names.items()]
    places = {_count(place): name for name, place in pairs}
    if set(places) != set(range(len(names))):
        raise UserError(
            f"{who}: classes= as a mapping must give each name a number of its own, 0 to {len(names) - 1}, "
            f"got {_shown(dict(names))}"
        )
    return [places[k] for k in range(len(names))]


def _distinct(names: Sequence[str], who: str) -> tuple[str, ...]:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        first = names.index(twice)
        cure = "; ImageNet's are told apart by WordNet id: classes='imagenet'" if len(names) == 1000 else ""
        raise UserError(
            f"{who}: classes= names {twice!r} twice, as logits {first} and {names.index(twice, first + 1)}; "
            f"names must differ{cure}"
        )
    if not all(name.strip() for name in names):
        raise UserError(f"{who}: class {[bool(name.strip()) for name in names].index(False)} has no name")
    return tuple(names)


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:80]}..."
