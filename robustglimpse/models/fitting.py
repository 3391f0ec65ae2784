"""Which tensors of a file are a module's weights: found where they fit it exactly, put in, or refused."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustglimpse.models.checkpoints import Contents, Entry, Stored, read_contents, read_tensor
from robustglimpse.models.kinds import shown
from robustglimpse.pickles import Inert
from robustglimpse.records import UserError

# Where a checkpoint usually keeps its weights, for what is said where none fit.
USUAL_KEYS = ("state_dict", "model_state_dict", "model", "net")
# Prefixes that say nothing: of Lightning, DataParallel and torch.compile.
WRAPPERS = frozenset(("model", "net", "network", "module", "_orig_mod"))
AVERAGES = frozenset(("ema", "swa", "averaged", "averaging", "average", "avg", "shadow"))
N_AVERAGED = "n_averaged"  # the counter of torch's AveragedModel
COUNTERS = "num_batches_tracked"  # of batch norms, which do not use it in eval mode
PROFILED = ("total_ops", "total_params")  # what thop leaves in a module
LOSSES = ("criterion.", "loss.", "loss_fn.", "loss_func.", "loss_function.", "train_loss.", "val_loss.")
DEPTH, MOST_PLACES = 3, 1000  # how many dicts deep weights are looked for, and in how many
LONGEST_NAME = 500
MOST_HEADS = 6  # tensors whose first dimension is the number of classes: weight and bias, auxiliary heads


@dataclass(frozen=True)
class Place:
    """One dict of a file that holds tensors: key says where, "" for the whole file.

    others: names in it that hold no tensor, and what they hold instead.
    """

    key: str
    tensors: Mapping[str, Entry]
    others: Mapping[str, str]


@dataclass(frozen=True)
class Fit:
    """The tensors of a place below a prefix, under the module's names.

    foreign: the file's names below the prefix that the module has not.  beside: those that lie elsewhere.
    left_out: leftovers that change no answer, without the counters of batch norms.
    """

    place: Place
    prefix: str
    state: Mapping[str, Entry]
    foreign: tuple[str, ...]
    beside: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def is_wrapped(self) -> bool:
        """Whether the prefix is made of what wrappers leave."""
        return set(self.prefix.split(".")[:-1]) <= WRAPPERS

    @property
    def is_average(self) -> bool:
        """Whether these weights are an average of those of training, by what they are called."""
        return _names_average(f"{self.place.key}.{self.prefix}") or self.counter is not None

    @property
    def counter(self) -> Entry | None:
        """How many updates AveragedModel took in, where these are its weights."""
        inside, _, _ = self.prefix.rpartition("module.")
        return self.place.tensors.get(f"{inside}{N_AVERAGED}") if "module." in self.prefix else None


def fill_(module: nn.Module, path: Path, *, key: str | None = None, hint: str) -> tuple[str, ...]:
    """Put a file's weights into the module, every one of its names; return notes for the user.

    They may lie in a dict of the file and below a prefix, which is found: what is left without it must fit
    the module exactly.  Of plain and averaged weights (EMA, SWA) the plain ones are taken, where both are.
    key: the dict, or the prefix, to take.  hint: what to look at where nothing fits.
    Raises UserError where nothing fits, or several do; the module is unchanged then.
    """
    expected = shapes(module, path)
    fit, notes = find_weights(read_contents(path), expected, path, key=key, hint=hint)
    load_weights_(module, read_state(fit, path), path, hint=hint)
    return notes


def shapes(module: nn.Module, path: Path) -> dict[str, torch.Size]:
    """Return the shape of every weight and buffer of a module. Raises UserError where one has none."""
    expected = {}
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, Tensor) or nn.parameter.is_lazy(tensor):
            raise UserError(
                f"{path}: the module's {name!r} is no tensor of a known shape (it is quantised, or was never "
                "run); load the weights where the module is made: package.module:factory"
            )
        expected[name] = tensor.shape
    return expected


def read_state(fit: Fit, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a fit."""
    return {name: read_tensor(entry, name, path) for name, entry in fit.state.items()}


def find_weights(
    contents: Contents,
    expected: Mapping[str, torch.Size],
    path: Path,
    *,
    key: str | None,
    hint: str,
    optional: Sequence[str] = (),
    may_lie_beside: bool = False,
) -> tuple[Fit, tuple[str, ...]]:
    """Return the tensors that fit the expected names and shapes exactly, and notes; see fill_.

    optional: beginnings of names that may be in the file, and are left out without a word.
    may_lie_beside: whether tensors outside the prefix are left out with a note, else refused.
    """
    places = find_places(contents)
    if not places:
        raise UserError(f"{path}: {_without_tensors(contents.content)}")
    if key is not None:
        places = [_chosen(places, key, path)]
    fits = [fit for place in places for fit in _fits(place, expected, optional)]
    whole = _distinct([fit for fit in fits if not fit.foreign and not _wrong_shapes(fit, expected)])
    if not whole:
        best = max(fits, key=lambda fit: (len(fit.state), fit.place.key in USUAL_KEYS))
        raise UserError(f"{path}: {explain(best, expected, hint)}")
    fit, notes = _one_of(whole, path, is_chosen=key is not None)
    beside = _beside(fit, whole)
    strange = [name for name in beside if not may_lie_beside and not _names_average(name)]
    if strange:
        raise UserError(
            f"{path}: the model's weights lie below {fit.prefix!r}, and beside them is {shown(strange[0])!r} "
            f"({len(strange)} in all), which the model has not; if it may be left out: "
            f"key={fit.prefix.rstrip('.')!r}"
        )
    if key is None and not fit.is_wrapped:
        notes = (*notes, f"its weights lie below {shown(fit.prefix)!r}")
    notes = (*notes, *_told(fit, beside, contents))
    return fit, tuple(f"{path.name}: {note}" for note in notes)


def find_places(contents: Contents) -> list[Place]:
    """Return the dicts of a file that hold tensors."""
    return list(islice(_places(contents.content), MOST_PLACES))


def _without_tensors(content: Any) -> str:
    """Return what is wrong with a file in which no dict holds tensors."""
    whole = next((v for _, v in _dicts(content) if isinstance(v, Inert) and v.is_module), None)
    if whole is not None:
        return (
            f"holds a whole module ({shown(whole.name)}), which only its own code can build; where that is, "
            "save its weights alone: torch.save(model.state_dict(), FILE)"
        )
    return (
        f"expected a state dict of tensors{_instead(content)}; save one: torch.save(model.state_dict(), FILE)"
    )


def _places(content: Any) -> Iterator[Place]:
    known: dict[int, tuple[dict[str, Entry], dict[str, str]]] = {}
    for key, found in _dicts(content):
        if id(found) not in known:
            inside = _entries(found)
            tensors = {name: entry for name, entry in inside.items() if isinstance(entry, Stored | Tensor)}
            known[id(found)] = tensors, {n: _type(value) for n, value in inside.items() if n not in tensors}
        tensors, others = known[id(found)]
        if tensors:
            yield Place(key, tensors, others)


def _dicts(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield the dicts of a file and what stands for objects, each with its key, level by level.

    What lies in one that was met before is not yielded again: two dicts full of each other have no end.
    """
    level, met = [("", content)], set()
    for _ in range(DEPTH + 1):
        below = []
        for key, found in level:
            yield key, found
            if id(found) not in met:
                met.add(id(found))
                inside = _entries(found).items()
                below += [
                    (f"{key}.{n}" if key else n, value)
                    for n, value in inside
                    if isinstance(value, dict | Inert)
                ]
        level = below


def _entries(content: Any) -> dict[str, Any]:
    """Return what a dict holds by name; nothing for other things, and nothing for whole modules."""
    items = content.items if isinstance(content, Inert) else content
    if not isinstance(items, dict) or (isinstance(content, Inert) and content.is_module):
        return {}
    return {
        name: value for name, value in items.items() if isinstance(name, str) and len(name) < LONGEST_NAME
    }


def _type(value: Any) -> str:
    if isinstance(value, Inert):
        return shown(value.name)
    return "tensor" if isinstance(value, Stored | Tensor) else type(value).__name__


def _instead(content: Any) -> str:
    inside = [f"{shown(name)!r} ({_type(value)})" for name, value in _entries(content).items()]
    if inside:
        return f", got {', '.join(inside[:3])}{', ...' if len(inside) > 3 else ''}"
    return "" if isinstance(content, dict) else f", got a {_type(content)}"


def _chosen(places: Sequence[Place], key: str, path: Path) -> Place:
    """Return the place that key= names, or the tensors below the prefix that it is."""
    for place in places:
        if place.key == key:
            return place
    prefix = f"{key.rstrip('.')}."
    for place in places:
        below = {name: entry for name, entry in place.tensors.items() if name.startswith(prefix)}
        if below:
            return Place(place.key, below, {})
    known = ", ".join(repr(shown(place.key)) for place in places if place.key) or "none: it is one state dict"
    raise UserError(f"{path}: has no weights at key={shown(key)!r}; its keys of weights: {known}")


# What fits


def _fits(place: Place, expected: Mapping[str, torch.Size], optional: Sequence[str]) -> list[Fit]:
    """Return what lies below each prefix that gives the module all its names; else the nearest to that."""
    counts = _prefixes(place.tensors, expected)
    needed = sum(not name.endswith(COUNTERS) for name in expected)
    full = [prefix for prefix, count in counts.items() if count >= needed]
    if not full:
        full = [max(counts, key=counts.__getitem__)] if counts else [""]
    return [_below(place, prefix, expected, optional) for prefix in full]


def _prefixes(tensors: Mapping[str, Entry], expected: Mapping[str, torch.Size]) -> Counter[str]:
    """Return for each prefix how many of the expected names the file has below it, counters aside."""
    counts: Counter[str] = Counter()
    for name in tensors:
        starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
        counts.update(
            name[:start] for start in starts if name[start:] in expected and not name.endswith(COUNTERS)
        )
    return counts


def _below(place: Place, prefix: str, expected: Mapping[str, torch.Size], optional: Sequence[str]) -> Fit:
    state: dict[str, Entry] = {}
    foreign: list[str] = []
    beside: list[str] = []
    left_out: list[str] = []
    for name, entry in place.tensors.items():
        inside = name.removeprefix(prefix) if name.startswith(prefix) else None
        if inside is not None and inside in expected:
            state[inside] = entry
        elif name.endswith(COUNTERS) or (inside or "").startswith(tuple(optional) or "\0"):
            continue
        elif name.rpartition(".")[2] in (*PROFILED, N_AVERAGED) or name.startswith(LOSSES):
            left_out.append(name)
        else:
            (beside if inside is None else foreign).append(name)
    missing = [n for n in expected if n not in state and not n.endswith(COUNTERS)]
    if missing:  # then what lies elsewhere tells what the file calls them
        foreign, beside = [*foreign, *beside], []
    return Fit(place, prefix, state, tuple(foreign), tuple(beside), tuple(left_out))


def _wrong_shapes(fit: Fit, expected: Mapping[str, torch.Size]) -> list[str]:
    """Return the expected names that are missing or of another shape in a fit, counters aside."""
    return [
        name
        for name, shape in expected.items()
        if (name not in fit.state and not name.endswith(COUNTERS))
        or (name in fit.state and fit.state[name].shape != shape)
    ]


def _distinct(fits: Sequence[Fit]) -> list[Fit]:
    """Return the fits without those that are the same tensors under another key."""
    return list({tuple(map(id, fit.state.values())): fit for fit in reversed(fits)}.values())[::-1]


def _one_of(fits: Sequence[Fit], path: Path, *, is_chosen: bool) -> tuple[Fit, tuple[str, ...]]:
    """Return the one fit that is meant, and a note where there was a choice."""
    keys = [fit.place.key for fit in fits]
    is_told_by_key = len(set(keys)) == len(fits) and all(keys)
    labels = {
        id(f): shown(f.place.key if is_told_by_key else f.prefix.rstrip(".") or f.place.key) for f in fits
    }
    plain = [fit for fit in fits if not fit.is_average] or list(fits)
    fit = plain[0]
    if len(plain) > 1:
        names = [labels[id(each)] for each in plain]
        raise UserError(
            f"{path}: holds several sets of weights that fit, {', '.join(map(repr, names))}; "
            f"choose one: key={next(filter(None, names), '')!r}"
        )
    notes = []
    if len(fits) > 1:
        others = ", ".join(f"key={labels[id(each)]!r}" for each in fits if each is not fit)
        notes.append(f"the weights taken are {labels[id(fit)]!r}; averaged ones: {others}")
    elif fit.is_average and not is_chosen:
        notes.append(f"the weights taken are averaged ones ({labels[id(fit)]!r}); no others in it fit")
    if fit.counter is not None and not int(read_tensor(fit.counter, N_AVERAGED, path).sum()):
        notes.append(f"its {N_AVERAGED} is 0: no weights of training were averaged yet")
    return fit, tuple(notes)


def _beside(fit: Fit, fits: Sequence[Fit]) -> list[str]:
    """Return the names outside a fit that belong to none of the other fits of its place."""
    others = tuple(each.prefix for each in fits if each.place is fit.place and each is not fit)
    return [name for name in fit.beside if not name.startswith(others)]


def _told(fit: Fit, beside: Sequence[str], contents: Contents) -> list[str]:
    """Return notes on what was left out."""
    notes = []
    for names, what in (
        ([name for name in fit.left_out if name.rpartition(".")[2] != N_AVERAGED], "weights of the model"),
        (beside, "weights of the model"),
        ([] if fit.place.key else list(fit.place.others), "tensors"),
    ):
        if names:
            notes.append(f"left out, as no {what}: {shown(names[0])!r}{_and_more(names)}")
    if contents.unknown:
        first = f"{contents.unknown[0]}{_and_more(contents.unknown)}"
        notes.append(f"only tensors are read; what else it holds was not built: {first}")
    return notes


def _names_average(name: str) -> bool:
    return bool(AVERAGES & set(re.split(r"[._]", name.lower())))


def _and_more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


# What does not


def explain(fit: Fit, expected: Mapping[str, torch.Size], hint: str) -> str:
    """Return why a fit is none: the first name that is missing, left over or of another shape."""
    missing = [name for name in expected if name not in fit.state and not name.endswith(COUNTERS)]
    if missing:
        other = fit.place.others.get(f"{fit.prefix}{missing[0]}")
        near = difflib.get_close_matches(missing[0], fit.foreign[:1000], 1, 0) or fit.foreign[:1]
        has = f"; it is a {other} there" if other else f"; the file has {shown(near[0])!r}" if near else ""
        return f"lacks {missing[0]!r} ({len(missing)} of {len(expected)} in all){has}; {hint}"
    if fit.foreign:
        name = fit.foreign[0]
        inside = name.removeprefix(fit.prefix)
        near = difflib.get_close_matches(inside, list(expected)[:1000], 1, 0)
        beside = f"; the nearest expected is {near[0]!r}" if near else ""
        return f"has an unexpected {shown(inside)!r} ({len(fit.foreign)} in all){beside}; {hint}"
    return _explain_shapes(fit.state, expected, hint)


def _explain_shapes(state: Mapping[str, Entry], expected: Mapping[str, torch.Size], hint: str) -> str:
    wrong = [name for name, shape in expected.items() if name in state and state[name].shape != shape]
    found, wanted = state[wrong[0]].shape, expected[wrong[0]]
    heads = {
        (state[name].shape[:1], expected[name][:1], state[name].shape[1:] == expected[name][1:])
        for name in wrong
    }
    cure = ""
    if len(wrong) <= MOST_HEADS and len(heads) == 1 and next(iter(heads))[2] and len(found):
        cure = f"if the file is of {found[0]} classes, say classes={found[0]}; "
    return f"{wrong[0]!r} is {list(found)}, expected {list(wanted)}; {cure}{hint}"


def load_weights_(module: nn.Module, state: Mapping[str, Tensor], path: Path, *, hint: str) -> None:
    """Put tensors into the module, each under its name; a counter of a batch norm may be missing.

    Weights on the meta device become the tensors themselves; others take their values.
    Raises UserError naming the first that is missing, left over, of another shape or of another kind.
    """
    expected = module.state_dict()
    sizes = shapes(module, path)
    fit = _below(Place("", state, {}), "", sizes, ())
    fit = replace(fit, foreign=(*fit.foreign, *fit.left_out))
    if fit.foreign or _wrong_shapes(fit, sizes):
        raise UserError(f"{path}: {explain(fit, sizes, hint)}")
    whole = {}
    for name, own in expected.items():
        tensor = state.get(name)
        if tensor is None:
            whole[name] = torch.zeros_like(own, device="cpu")
            continue
        is_other = (
            own.is_floating_point() != tensor.is_floating_point() or own.is_complex() != tensor.is_complex()
        )
        if is_other and not name.endswith(COUNTERS):
            raise UserError(
                f"{path}: {name!r} holds {tensor.dtype}, expected {own.dtype}; is the file quantised? {hint}"
            )
        whole[name] = tensor.to(own.dtype)
    is_meta = any(own.is_meta for own in expected.values())
    module.load_state_dict(whole, strict=True, assign=is_meta)
