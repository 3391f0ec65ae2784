"""What people type in Python: each value as the type that it stands for, or refused in one line. No torch.

A number may be Python's, numpy's, torch's or text; a boolean is none.  Several values are in any container
that lists them, or one alone, or a text with commas between, as on the command line.
"""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

from robustglimpse.records import Norm, UserError
from robustglimpse.registry import Call, fraction_text, parse_fraction

T = TypeVar("T")

SEEDS = 2**32  # of a seed the random numbers take 32 bits
MOST = 100_000  # values in one argument: an endless generator is no list
LONGEST = 60  # of a value that an error repeats, in characters
WRAP = "of a module wrap makes one: robustglimpse.wrap(module, name='mine', size_px=...)"
NORMS: Mapping[str, Norm] = {
    "inf": "linf", "infinity": "linf", "infty": "linf", "∞": "linf", "2": "l2", "2.0": "l2",
}  # fmt: skip


def shown(value: Any) -> str:
    """Return a value as an error names it: short ones as typed, arrays by shape, others by type."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"{with_article(type(value).__name__)} of shape {list(shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, str | bytes | Real | list | tuple | dict | set | os.PathLike | None):
        short = repr(value)
        if len(short) <= LONGEST and short.isprintable():
            return short
    return with_article(type(value).__name__)


def with_article(noun: str) -> str:
    """Return "a Bench", "an ExitStudy"."""
    return f"{'an' if noun[:1].lower() in 'aeio' or noun == 'ndarray' else 'a'} {noun}"


def _scalar(value: Any) -> Any:
    """Return the one value in an array or a tensor without dimensions, other things as they are."""
    if isinstance(value, str) or getattr(value, "shape", None) != ():
        return value
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    return value[()] if hasattr(value, "dtype") else value


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or getattr(value, "dtype", None) == bool  # noqa: E721 - numpy's own


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not _is_flag(value)


def _plain(value: str) -> str:
    """Return the text of a subclass of str, such as numpy's or a member of an Enum."""
    return str.__str__(value)


def loaded_already(value: Any, function: str) -> UserError:
    """Return the error of a function that loads by name, given what it would return."""
    kind = with_article(type(value).__name__)
    return UserError(f"{function} takes a name, got {kind}; it is loaded already: use it as it is")


def whole(value: Any, what: str, *, example: str = "") -> int:
    """Return a whole number; floats that are one are taken.  example: of what to give instead, for errors."""
    found = _scalar(value)
    try:
        if isinstance(found, str):
            return int(found)
        if _is_number(found) and found == int(found):
            return int(found)
    except (ValueError, OverflowError):  # text that is none; NaN; infinite
        pass
    cure = f"; for example {example}" if example else ""
    raise UserError(f"{what} must be a whole number, got {shown(value)}{cure}")


def number(value: Any, what: str, *, example: str = "") -> float:
    """Return a finite number."""
    found = _scalar(value)
    try:
        if isinstance(found, str):
            return parse_fraction(found, what=what)
        if _is_number(found) and math.isfinite(found):
            return float(found)
    except (UserError, OverflowError):
        pass
    cure = f"; for example {example}" if example else ""
    raise UserError(f"{what} must be a number, got {shown(value)}{cure}")


def seed(value: Any, what: str = "seed") -> int:
    """Return a seed, a whole number of 32 bits."""
    found = whole(value, what, example="0")
    if not 0 <= found < SEEDS:
        raise UserError(f"{what} must be from 0 to 2**32 - 1, got {found}; for example 0")
    return found


def flag(value: Any, what: str) -> bool:
    """Return a boolean."""
    found = _scalar(value)
    if not _is_flag(found):
        raise UserError(f"{what} must be True or False, got {shown(value)}; give one of them")
    return bool(found)


def text(value: Any, what: str, *, example: str) -> str:
    """Return a text, also one of numpy's."""
    if not isinstance(value, str):
        raise UserError(f"{what} must be text, got {shown(value)}; for example {example}")
    return _plain(value)


def path(value: Any, what: str) -> Path:
    """Return a path, a leading ~ replaced by the home folder."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise UserError(f"{what} must be a path, got {shown(value)}; give it as text or a Path")
    try:
        return Path(value).expanduser()
    except (RuntimeError, TypeError):  # there is no such user; a path of bytes
        raise UserError(f"{what}: whose home folder is in {shown(value)}? Give the whole path") from None


def paths(given: Iterable[Any], what: str, *, example: str) -> tuple[Path, ...]:
    """Return the paths that a function was given, one by one or in lists. Raises UserError for none."""
    found = tuple(each for part in given for each in several(part, what, partial(path, what=what)))
    if not found:
        raise UserError(f"{what} must be one or more, got none; for example {example}")
    return found


def several(value: Any, what: str, each: Callable[[Any], T], *, splits: bool = False) -> tuple[T, ...]:
    """Return each of several values in their order, of a set sorted; one value is a tuple of itself.

    splits: whether a text stands for those between its commas.
    """
    value = _scalar(value)
    if isinstance(value, Mapping):
        raise UserError(
            f"{what} must be a list, got {with_article(type(value).__name__)}; give a list of its values"
        )
    if isinstance(value, str):
        return tuple(each(part.strip()) for part in value.split(",")) if splits else (each(value),)
    if isinstance(value, set | frozenset):
        value = sorted(value, key=lambda part: (0, part) if _is_number(part) else (1, str(part)))
    if isinstance(value, bytes | bytearray) or not isinstance(value, Iterable):
        return (each(value),)
    found = tuple(each(part) for part in islice(value, MOST + 1))
    if len(found) > MOST:
        raise UserError(f"{what} must be at most {MOST} values, got more; give fewer")
    return found


def radius(value: Any, what: str) -> str:
    """Return a number of pixel units as the text that tables show, "8/255"; it reads back to the same float.

    Several make one text with commas between: the radii of a sweep.  Text stays as it is.
    """
    if isinstance(value, str):
        return _plain(value)
    return ",".join(several(value, what, lambda part: _radius(part, what)))


def _radius(value: Any, what: str) -> str:
    if isinstance(value, str):
        return _plain(value)
    found: Any = _scalar(value)
    if not _is_number(found):
        raise UserError(
            f"{what} must be a number such as 4/255 or 0.0157, got {shown(value)}; "
            "give it in [0,1] pixel units"
        )
    exact = number(found, what, example="4/255")
    if exact == int(exact):
        return str(int(exact))
    texts = [fraction_text(exact), repr(exact)]
    if hasattr(found, "dtype") and found.dtype.itemsize < 8:  # a float32 stands for what it was rounded from
        as_typed = [f"{round(exact * 1020) / 4:g}/255", str(found)]
        texts = [each for each in as_typed if found.dtype.type(parse_fraction(each, what=what)) == found]
        return texts[0]
    return min((each for each in texts if parse_fraction(each, what=what) == exact), key=len)


def norm(value: Any, what: str = "norm") -> Norm:
    """Return "linf" or "l2", which have several names: "Linf", "L_2", "inf", 2."""
    found = _scalar(value)
    if isinstance(found, str) or _is_number(found):
        name = (_plain(found) if isinstance(found, str) else str(found)).strip().casefold()
        known = NORMS.get(re.sub("^l[_-]?", "", name))
        if known:
            return known
    raise UserError(f"{what} must be 'linf' or 'l2', got {shown(value)}; give one of them")


def device(value: Any, what: str = "device") -> str:
    """Return a device as text: "auto", or one of torch's, also as a torch.device."""
    if type(value).__name__ == "device" and type(value).__module__ == "torch":
        value = str(value)
    return text(value, what, example="'auto', 'cpu' or 'cuda:0'")


def device_here(value: Any) -> str:
    """Return a device that torch can use here as text; "auto" is the GPU where there is one. Loads torch."""
    import torch

    name = device(value)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try --device cpu"
        ) from None
    return name


def call(value: Any, what: str, *, example: str, listing: str) -> str:
    """Return a name or a call as text."""
    if isinstance(value, Call):
        return str(value)
    if not isinstance(value, str):
        raise UserError(
            f"{what} must be names, or calls as text such as {example}, got {shown(value)}; "
            f"list them: robustglimpse list {listing}"
        )
    return _plain(value)


def data_name(value: Any, what: str) -> str:
    """Return the name of a data set as text; a path stands for the folder of images there."""
    if isinstance(value, os.PathLike):
        return f"imagefolder:{path(value, what)}"
    if isinstance(value, str):
        return _plain(value)
    raise UserError(f"{what} must be a name, a folder or a Dataset, got {shown(value)}; {_maker(value)}")


def _maker(value: Any) -> str:
    """Return what makes a data set of what was given in its place."""
    if isinstance(value, tuple | list | Mapping) or hasattr(value, "shape"):
        return "make one: robustglimpse.from_tensors(images, labels, name='mine')"
    if hasattr(value, "__getitem__"):
        return "make one: robustglimpse.from_loader(torch.utils.data.DataLoader(dataset, 64), name='mine')"
    if isinstance(value, Iterable):
        return "make one: robustglimpse.from_loader(loader, name='mine')"
    return "list them: robustglimpse list data"


def model_name(value: Any, what: str) -> str:
    """Return a model's name, file or call as text, a leading ~ of a file replaced by the home folder."""
    if isinstance(value, os.PathLike) or (isinstance(value, str) and value.startswith("~")):
        return str(path(value, what))
    if isinstance(value, str):
        return _plain(value)
    got = f"the function {value.__name__}" if inspect.isroutine(value) else shown(value)
    mend = WRAP if callable(value) or isinstance(value, Mapping) else "list them: robustglimpse list models"
    raise UserError(f"{what} must be a name, a file or a Classifier, got {got}; {mend}")
