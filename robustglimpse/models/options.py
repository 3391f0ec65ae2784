"""What a call string tells us about a model from outside, beside what its library is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from robustglimpse.data.folders import CIFAR10_CLASSES
from robustglimpse.records import Channels, UserError
from robustglimpse.registry import Call

# Options that are ours: they are not handed on to a library.
OURS = ("channels_last", "classes", "data", "mean", "name", "output", "random", "size_px", "std")
# Ours as well, and where weights come from: neither is part of what a model is called.
UNNAMED = {*OURS, "model_dir", "progress"}
# What the weights' own hash tells, or does not matter to it.
UNHASHED = {*UNNAMED, "weights", "pretrained", "dataset", "threat_model"}
WEIGHT_ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")
KINDS: Mapping[str, tuple[Any, str]] = {
    "name": (str, "name='mine'"),
    "data": (str, "data='cifar10'"),
    "size_px": (int, "size_px=32"),
    "output": (int | str, "output='logits'"),
    "random": (bool, "random=True"),
    "channels_last": (bool, "channels_last=False"),
}


@dataclass(frozen=True)
class Said:
    """What a call string tells us, not its library, about a model; None where it does not.

    name: what the model is called in the tables; the call itself, shortened, where none is given.
    data: the data set to judge it on where no other is asked for.  random: it is, whatever we see of it.
    """

    name: str
    classes: tuple[str, ...] | None = None
    size_px: int | None = None
    mean: Channels | None = None
    std: Channels | None = None
    output: int | str | None = None
    data: str | None = None
    random: bool = False
    channels_last: bool | None = None


def read_options(call: Call) -> Said:
    """Return our own options of a call, checked."""
    shown = [(k, _without_folder(v) if k == "weights" else v) for k, v in call.arguments if k not in UNNAMED]
    for key, (kind, example) in KINDS.items():
        value = call.get(key)
        if value is not None and not isinstance(value, kind):
            raise UserError(f"{call.name}: {key} must not be {value!r}; for example {example}")
    size_px = call.get("size_px")
    if size_px is not None and size_px < 1:
        raise UserError(f"{call.name}: size_px must be at least 1, got {size_px}")
    return Said(
        name=call.get("name", str(Call(call.name, tuple(shown)))),
        classes=_classes(call),
        size_px=size_px,
        mean=_channels(call, "mean"),
        std=_channels(call, "std"),
        output=call.get("output"),
        data=call.get("data"),
        random=bool(call.get("random")),
        channels_last=call.get("channels_last"),
    )


def _without_folder(weights: Any) -> Any:
    return Path(weights).name if is_file(weights) else weights


def is_file(weights: Any) -> bool:
    """Return whether weights= gives a file and not the name of a library's own."""
    return isinstance(weights, str) and weights.endswith(WEIGHT_ENDINGS)


def _classes(call: Call) -> tuple[str, ...] | None:
    """Return the names in classes=, which may also be their number or the name of a well-known set."""
    value = call.get("classes")
    if value is None:
        return None
    if isinstance(value, int) and value >= 1:
        return numbers(value)
    if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    if value in ("imagenet", "cifar10"):
        return imagenet_wnids() if value == "imagenet" else CIFAR10_CLASSES
    raise UserError(
        f"{call.name}: classes must be a number, a list of names, 'imagenet' or 'cifar10', got {value!r}"
    )


def _channels(call: Call, what: str) -> Channels | None:
    """Return the three numbers of mean= or std=."""
    value = call.get(what)
    if value is None:
        return None
    try:
        red, green, blue = (float(part) for part in value)
    except (TypeError, ValueError):
        raise UserError(
            f"{call.name}: {what} must be three numbers like [0.5, 0.5, 0.5], got {value!r}"
        ) from None
    if what == "std" and min(red, green, blue) <= 0:
        raise UserError(f"{call.name}: std must be above 0, got {value!r}")
    return red, green, blue


def numbers(count: int) -> tuple[str, ...]:
    """Return names for classes that have none."""
    return tuple(str(k) for k in range(count))


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """Return the 1000 classes of ImageNet in order, by WordNet id: among their names some stand twice."""
    return tuple((Path(__file__).parent / "imagenet_wnids.txt").read_text().split())
