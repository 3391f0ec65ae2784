"""Requests from Python: every field as its type says, whatever stands for that, or refused in one line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial, wraps
from os import PathLike
from typing import Any, TypeVar

from robustglimpse.arguments import (
    WRAP,
    call,
    data_name,
    device,
    flag,
    model_name,
    norm,
    number,
    path,
    radius,
    seed,
    several,
    shown,
    text,
    whole,
    with_article,
)
from robustglimpse.data import Dataset
from robustglimpse.records import Classifier, UserError
from robustglimpse.registry import unknown

T = TypeVar("T")

Reader = Callable[[Any, str], Any]  # a value and its field's name -> the value that the field holds


def understood(cls: type[T]) -> type[T]:
    """Return the dataclass of a request, whose fields then take more than their types say.

    Lists, arrays, ranges and single values stand for tuples, floats for eps, text for paths: see READERS.
    Raises UserError for a field that there is not, and for a value that stands for nothing.
    """
    made = cls.__init__
    signature = inspect.signature(made)

    @wraps(made)
    def init(self: Any, *given: Any, **named: Any) -> None:
        known = [field.name for field in fields(self)]
        for name in named:
            if name not in known:
                raise unknown(name, known, kind=f"field of {cls.__name__}")
        try:
            signature.bind(self, *given, **named)
        except TypeError as error:
            raise UserError(f"{cls.__name__}: {error}; its fields are {', '.join(known)}") from None
        made(self, *given, **named)
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None or "None" not in str(field.type):
                value = READERS[field.name](value, field.name)
            object.__setattr__(self, field.name, value)  # frozen for everybody else
        _check_together(self)

    cls.__init__ = init  # type: ignore[method-assign]
    return cls


def _check_together(asked: Any) -> None:
    """Raise UserError for fields that do not go together, or that leave nothing to do."""
    for name in ("protocols", "severities"):
        if getattr(asked, name, None) == ():
            raise UserError(f"{name} must be one or more, got none; leave it out for the usual ones")
    radii = getattr(asked, "eps", "")
    if "," in radii and not getattr(asked, "curve", ""):
        is_swept = hasattr(asked, "curve")
        mend = "curve='eps' (--curve eps) attacks at each" if is_swept else "run one after the other"
        raise UserError(f"eps must be a number such as 4/255, got {radii!r}; {mend}")


def check_asked(asked: Any, kind: type[Any], call: str) -> None:
    """Raise UserError unless what a function was asked for is its kind of request; call: how it is asked."""
    if not isinstance(asked, kind):
        raise UserError(
            f"{call.partition('(')[0]} takes {with_article(kind.__name__)}, got {shown(asked)}; "
            f"for example {call}"
        )


def _model(value: Any, what: str) -> str | Classifier:
    return value if isinstance(value, Classifier) else model_name(value, what)


def _models(value: Any, what: str) -> tuple[str | Classifier, ...]:
    if isinstance(value, Mapping):
        raise UserError(f"{what} must be a list, got {shown(value)}; {WRAP}")
    if isinstance(value, PathLike | Classifier) or callable(value):  # a module may be iterable
        return (_model(value, what),)
    return several(value, what, partial(_model, what=what))


def _data(value: Any, what: str) -> str | Dataset:
    return value if isinstance(value, Dataset) else data_name(value, what)


def _texts(example: str) -> Reader:
    return lambda value, what: several(value, what, partial(text, what=what, example=example))


def _wholes(value: Any, what: str) -> tuple[int, ...]:
    return several(value, what, partial(whole, what=what, example=f"{what}=(1, 2)"), splits=True)


def _numbers(value: Any, what: str) -> tuple[float, ...]:
    return several(value, what, partial(number, what=what, example=f"{what}=(0.8, 0.9)"), splits=True)


def _call(value: Any, what: str) -> str:
    return call(value, what, example="'pgd(steps=40)'", listing="attacks")


def _calls(value: Any, what: str) -> tuple[str, ...]:
    return several(value, what, partial(_call, what=what))


READERS: Mapping[str, Reader] = {
    "models": _models,
    "model": _model,
    "attacks": _calls,
    "attack": _call,
    "corruptions": _texts("'fog'"),
    "protocols": _texts("'standard'"),
    "protocol": partial(text, example="'standard'"),
    "steps": _wholes,
    "severities": _wholes,
    "sizes": _wholes,
    "indices": _wholes,
    "thresholds": _numbers,
    "eps": radius,
    "step_size": radius,
    "curve": partial(text, example="'eps'"),
    "norm": norm,
    "data": _data,
    "split": partial(text, example="'test'"),
    "data_dir": path,
    "frost_dir": path,
    "store": partial(text, example="'exact'"),
    "pick": partial(text, example="'saved'"),
    "device": device,
    "seed": seed,
    **dict.fromkeys(("restarts", "size_px", "limit", "batch_size", "preset", "count"), whole),
    **dict.fromkeys(("download", "all_exits", "classes_of_data", "extras", "against_rule"), flag),
}
