"""What a call string tells us about a model from outside, beside what its library is told."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from robustglimpse.models import WEIGHT_ENDINGS
from robustglimpse.models.naming import Naming, read_naming
from robustglimpse.records import Channels, UserError
from robustglimpse.registry import Call

# Options that are ours: they are not handed on to a library.
OURS = ("channels_last", "classes", "data", "mean", "name", "output", "random", "size_px", "std")
SHARED = {"classes", "size_px"}  # of which a factory is told too, where it takes them
# Ours as well, and where weights come from: neither is part of what a model is called.
UNNAMED = {*OURS, "model_dir", "progress"}
# What the weights' own hash tells, or does not matter to it.
UNHASHED = {*UNNAMED, "weights", "key", "pretrained", "dataset", "threat_model"}
KINDS: Mapping[str, tuple[Any, str]] = {
    "name": (str, "name='mine'"),
    "data": (str, "data='cifar10'"),
    "output": (int | str, "output='logits'"),
    "random": (bool, "random=True"),
    "channels_last": (bool, "channels_last=False"),
}
MOST = 2.0  # of a mean or a deviation of images in [0,1], whatever they are
T = TypeVar("T")


@dataclass(frozen=True)
class Said:
    """What a call string tells us, not its library, about a model; None where it does not.

    name: what the model is called in the tables; the call itself, shortened, where none is given.
    size_px: the side of its images, or height and width.
    data: the data set to judge it on where no other is asked for.  random: it is, whatever we see of it.
    """

    name: str
    classes: Naming | None = None
    size_px: int | tuple[int, int] | None = None
    mean: Channels | None = None
    std: Channels | None = None
    output: int | str | None = None
    data: str | None = None
    random: bool = False
    channels_last: bool | None = None


def read_options(call: Call, theirs: Set[str] = frozenset()) -> Said:
    """Return our own options of a call, checked.

    theirs: those that a factory takes itself.  They are its own, and part of what the model is called; of
    classes and size_px it is told, and so are we, where what is said means something to us.
    """
    own = {k: v for k, v in call.arguments if k not in theirs or k in SHARED}
    shown = [
        (k, _without_folder(v) if k == "weights" else v)
        for k, v in call.arguments
        if k not in UNNAMED or (k in theirs and k not in SHARED)
    ]
    who = str(own.get("name", str(Call(call.name, tuple(shown)))))
    for key, (kind, example) in KINDS.items():
        value = own.get(key)
        if value is not None and (
            not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))
        ):
            raise UserError(f"{call.name}: {key} must not be {value!r}; for example {example}")
    return Said(
        name=who,
        classes=_shared(lambda value: read_naming(value, call.name), own, "classes", theirs),
        size_px=_shared(lambda value: _size(value, call.name), own, "size_px", theirs),
        mean=read_channels(own["mean"], "mean", call.name) if own.get("mean") is not None else None,
        std=read_channels(own["std"], "std", call.name) if own.get("std") is not None else None,
        output=own.get("output"),
        data=own.get("data"),
        random=bool(own.get("random")),
        channels_last=own.get("channels_last"),
    )


def _shared(read: Callable[[Any], T], own: Mapping[str, Any], key: str, theirs: Set[str]) -> T | None:
    """Return what an option says to us, None where nothing, or only something to the factory."""
    if own.get(key) is None:
        return None
    try:
        return read(own[key])
    except UserError:
        if key in theirs:
            return None
        raise


def _without_folder(weights: Any) -> Any:
    return Path(weights).name if is_file(weights) else weights


def is_file(weights: Any) -> bool:
    """Return whether weights= gives a file and not the name of a library's own."""
    return isinstance(weights, str) and (weights.lower().endswith(WEIGHT_ENDINGS) or "/" in weights)


def read_channels(value: Any, what: str, who: str) -> Channels:
    """Return mean= or std= for each channel: three numbers, or one for all, of images in [0,1].

    Raises UserError, beginning with `who`, for others.
    """
    try:
        numbers = [float(each) for each in np.asarray(value, float).reshape(-1)]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not np.isfinite(numbers).all():
        raise UserError(f"{who}: {what} must be three numbers like [0.5, 0.5, 0.5], got {value!r}")
    if what == "std" and min(numbers) <= 0:
        raise UserError(f"{who}: std must be above 0, got {value!r}")
    if max(map(abs, numbers)) > MOST:
        raise UserError(
            f"{who}: {what} is of images in [0,1], got {value!r}; of images from 0 to 255 divide it by 255"
        )
    red, green, blue = numbers
    return red, green, blue


def read_size(value: Any, who: str) -> tuple[int, tuple[int, int] | None]:
    """Return the side of the images that data gives, and what they are resized to where that is no square.

    value: the side in px, or height and width.  Raises UserError, beginning with `who`, for others.
    """
    sides = value if isinstance(value, list | tuple) else [value]
    try:
        found = [operator.index(side) for side in sides if not isinstance(side, bool)]
    except TypeError:
        found = []
    if len(found) != len(sides) or len(found) not in (1, 2):
        raise UserError(f"{who}: size_px must not be {value!r}; for example size_px=32, or [height, width]")
    if min(found) < 1:
        raise UserError(f"{who}: size_px must be at least 1, got {value!r}")
    height, width = found[0], found[-1]
    return max(found), (height, width) if height != width else None


def _size(value: Any, who: str) -> int | tuple[int, int]:
    side, size = read_size(value, who)
    return size or side
