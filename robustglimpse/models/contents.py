"""What a model is made of, hashed: weights, plain settings, and code, alike in every process."""

from __future__ import annotations

import argparse
import dis
import hashlib
import inspect
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustglimpse.models.own_code import is_own, own_code

PLAIN = (
    type(None), bool, int, float, complex, str, bytes, type(...), range, slice, torch.dtype, torch.Size,
    torch.memory_format, torch.layout,
)  # fmt: skip
RECORDS = (SimpleNamespace, argparse.Namespace)
# What nn.Module keeps for itself.
INTERNAL = set(vars(nn.Module())) | {"_compiled_call_impl", "_is_full_backward_hook", "_initializing", "_c"}
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# In the code of scripted modules: what numbers a class in this process, and an attribute.
MANGLED, NAMED = re.compile(r"___torch_mangle_\d+\."), re.compile(r"\.(\w+)\b")
LOOKUPS = ("LOAD_GLOBAL", "LOAD_NAME")  # co_names has attributes too
MOST_PARTS = 100_000  # of a container: beyond that it is data


@dataclass
class Contents:
    """What a model is made of, by where it is: "layer1.0.conv1.weight".

    weights: parameters, buffers, code.  settings: other values that its parts hold; a pass may change some.
    modules: the names of Python modules whose code it runs.
    """

    weights: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)

    def digest(self, *, also: str, without: Iterable[str] = (), code: Iterable[str] = ()) -> str:
        """Return the SHA-256 of everything but the settings in `without`.  also: what else decides."""
        left_out = set(without)
        kept = {place: value for place, value in self.settings.items() if place not in left_out}
        table = [also, *code, *_lines(self.weights), *_lines(kept)]
        return hashlib.sha256("\n".join(table).encode()).hexdigest()


def _lines(table: Mapping[str, str]) -> Iterator[str]:
    return (f"{place!r} {value}" for place, value in sorted(table.items()))


def contents(model: Any, *, with_weights: bool = True) -> Contents:
    """Return what a module, or any callable, is made of.  with_weights: False leaves those out, for speed."""
    walk = _Walk(with_weights)
    walk.value("", model)
    return walk.found


def changing(before: Contents, after: Contents) -> frozenset[str]:
    """Return the settings that passes have changed: counters and caches, which are no part of a model."""
    places = before.settings.keys() | after.settings.keys()
    return frozenset(p for p in places if before.settings.get(p) != after.settings.get(p))


def hash_model(
    model: Any, *, settings: str, modules: Iterable[str] = (), without: Iterable[str] = ()
) -> tuple[str, list[str]]:
    """Return the SHA-256 of a model, its code and settings; and which of its files have changed since import.

    modules: Python modules that made it.  without: see changing.
    Raises UserError where Python runs an older compiled copy of a file.
    """
    found = contents(model)
    code, changed = own_code([*found.modules, *modules])
    return found.digest(also=settings, without=without, code=code), changed


class _Walk:
    """Goes through a model once, in an order that is the same in every process."""

    def __init__(self, with_weights: bool) -> None:
        self.found = Contents()
        self.with_weights = with_weights
        self._seen: dict[int, Any] = {}  # holds them, so that no other object gets their id

    def value(self, place: str, value: Any) -> None:
        """Enter a value of any type; of what is no part of an answer, its type alone."""
        if isinstance(value, PLAIN):
            self._note(place, repr(value))
        elif isinstance(value, Enum):
            self._note(place, f"{type(value).__qualname__}.{value.name}")
        elif isinstance(value, np.generic):
            self._note(place, f"{value.dtype} {value.item()!r}")
        elif id(value) in self._seen:
            self._note(place, "as before")
        else:
            self._seen[id(value)] = value
            self._part(place, value)

    def _note(self, place: str, text: str) -> None:
        self.found.settings[place] = text

    def _part(self, place: str, value: Any) -> None:
        if isinstance(value, Tensor):
            self._note(place, hash_tensor(value))
        elif isinstance(value, np.ndarray):
            is_plain = value.dtype.kind in "biufcSU"
            of_bytes = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest() if is_plain else ""
            self._note(place, f"{value.dtype} {value.shape} {of_bytes}")
        elif isinstance(value, nn.Module):
            self._module(place, value)
        elif isinstance(value, Mapping):
            plain = {repr(k): v for k, v in value.items() if isinstance(k, PLAIN)}
            self._container(
                place, value, [f"[{k}]" for k in sorted(plain)], [plain[k] for k in sorted(plain)]
            )
        elif isinstance(value, list | tuple | deque):
            self._container(place, value, [f"[{k}]" for k in range(len(value))], list(value))
        elif isinstance(value, set | frozenset):
            self._note(place, str(sorted(repr(each) for each in value if isinstance(each, PLAIN))))
        else:
            self._code_or_record(place, value)

    def _container(self, place: str, value: Any, names: Sequence[str], values: Sequence[Any]) -> None:
        if all(isinstance(each, PLAIN) for each in values):
            self._note(place, f"{type(value).__name__} {list(zip(names, values, strict=True))!r}")
        elif len(values) <= MOST_PARTS:
            self._note(place, f"{type(value).__name__} of {len(values)}")
            for name, each in zip(names, values, strict=True):
                self.value(f"{place}{name}", each)

    def _code_or_record(self, place: str, value: Any) -> None:
        if isinstance(value, torch.jit.ScriptFunction):
            self._note(place, str(value.code))
        elif isinstance(value, FunctionType):
            self._function(place, value)
        elif isinstance(value, MethodType):
            self.value(f"{place}.__self__", value.__self__)
            self.value(place, value.__func__)
        elif isinstance(value, partial):
            self.value(place, (value.func, value.args, value.keywords))
        elif isinstance(value, type):
            self._note(place, value.__qualname__)
            self._kind(value)
        elif isinstance(value, BuiltinFunctionType):
            self._note(place, value.__qualname__)
        else:
            self._note(place, type(value).__qualname__)
            if _is_record(value):
                self._kind(type(value))
                for name, each in sorted(_attributes(value).items()):
                    self.value(f"{place}.{name}", each)

    def _function(self, place: str, function: FunctionType) -> None:
        """Enter a function: its code, what it closes over, its defaults, and the globals that it names."""
        self._note(place, function.__qualname__)
        if not _is_users(function.__module__):
            return
        self.found.modules.add(function.__module__)
        self.found.weights[f"{place}()"] = _hash_code(function.__code__)
        self.value(f"{place}.defaults", (function.__defaults__, function.__kwdefaults__))
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                self.value(f"{place}.<{name}>", cell.cell_contents)
            except ValueError:  # not filled yet
                continue
        for name in sorted(_names(function.__code__) & function.__globals__.keys()):
            value = function.__globals__[name]
            if not inspect.ismodule(value):
                self.value(f"{place}.<{name}>", value)

    def _kind(self, kind: type) -> None:
        """Enter a class of the user's: where its code is, and its functions."""
        for base in kind.__mro__:
            if base is object or not _is_users(base.__module__) or id(base) in self._seen:
                continue
            self._seen[id(base)] = base
            self.found.modules.add(base.__module__)
            for name, value in sorted(vars(base).items()):
                inside = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
                is_value = isinstance(inside, (*PLAIN, Tensor)) and not name.startswith("__")
                if is_value or isinstance(inside, FunctionType):
                    self.value(f"class {base.__qualname__}.{name}", inside)

    def _module(self, place: str, module: nn.Module) -> None:
        kind = type(module)
        self._note(place, kind.__qualname__)
        self._kind(kind)
        is_whole = kind._save_to_state_dict is nn.Module._save_to_state_dict
        tensors = {**dict(_items(module._parameters)), **dict(_items(module._buffers))}
        for name, tensor in sorted(tensors.items()):
            if name in module._non_persistent_buffers_set:  # as often a cache as a part of the model
                self.value(f"{place}.{name}", tensor)
            elif self.with_weights and tensor is not None:
                self.found.weights[f"{place}.{name}"] = hash_tensor(tensor)
        for name, each in _compiled(module):
            self.value(f"{place}.{name}", each)
        if not is_whole:  # quantised layers keep theirs in objects of their own
            for name, each in sorted(module.state_dict().items()):
                if "." not in name and name not in tensors:
                    self.value(f"{place}.{name}", each)
        for name, each in sorted(_attributes(module).items()):
            is_internal = name in INTERNAL or (name.startswith("_") and not _is_users(kind.__module__))
            if not is_internal:
                self.value(f"{place}.{name}", each)
        for name in HOOKS:
            for k, hook in enumerate(vars(module).get(name, {}).values()):
                self.value(f"{place}.{name}[{k}]", hook)
        for name, child in module.named_children():
            self.value(f"{place}.{name}" if place else name, child)


def _items(table: Any) -> Iterable[tuple[str, Any]]:
    return [] if table is None else table.items()


def _attributes(value: Any) -> dict[str, Any]:
    found = getattr(value, "__dict__", {})
    names = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) or ()]
    return {**dict(found), **{name: getattr(value, name) for name in names if hasattr(value, name)}}


def _is_record(value: Any) -> bool:
    """Return whether what an object holds may decide an answer: the user's own, settings, a transform."""
    kind = type(value)
    is_transform = kind.__module__.startswith("torchvision.transforms")
    return isinstance(value, RECORDS) or is_dataclass(kind) or is_transform or _is_users(kind.__module__)


def _is_users(name: Any) -> bool:
    """Return whether the user wrote a module, which has a file or is what is being typed."""
    if not isinstance(name, str):
        return False
    module = sys.modules.get(name)
    return is_own(name) or (name == "__main__" and not hasattr(module, "__file__"))


def _compiled(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the code of a scripted, traced or exported module, and the values that it names."""
    if isinstance(module, torch.jit.ScriptModule):
        try:
            code, constants = module.code_with_constants
        except (RuntimeError, AttributeError):  # it has no forward of its own
            return
        yield "code", MANGLED.sub("", code)
        yield from sorted(constants.const_mapping.items())
        own = {
            *dict(_items(module._parameters)),
            *dict(_items(module._buffers)),
            *dict(_items(module._modules)),
        }
        for name in sorted(set(NAMED.findall(code)) - own):
            if module._c.hasattr(name):
                yield name, getattr(module, name)
    elif isinstance(module, torch.fx.GraphModule):
        yield "code", module.code


def _names(code: CodeType) -> set[str]:
    """Return the global names that code looks up, in the functions inside it too."""
    inner = [_names(each) for each in code.co_consts if isinstance(each, CodeType)]
    own = {str(each.argval) for each in dis.get_instructions(code) if each.opname in LOOKUPS}
    return own.union(*inner)


def _hash_code(code: CodeType) -> str:
    """Return the SHA-256 of what code does, wherever it stands."""
    consts = [_hash_code(c) if isinstance(c, CodeType) else _shown_const(c) for c in code.co_consts]
    parts = (code.co_code.hex(), consts, code.co_names, code.co_varnames, code.co_freevars)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _shown_const(value: Any) -> str:
    return str(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def hash_tensor(tensor: Tensor) -> str:
    """Return the type, shape and SHA-256 of a tensor, sparse and quantised ones as what they stand for."""
    if nn.parameter.is_lazy(tensor) or tensor.device.type == "meta":
        return f"{tensor.dtype} without values"
    tensor = tensor.detach()
    kind = f"{tuple(tensor.shape)} {tensor.dtype}"
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    plain = tensor.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return f"{kind} {hashlib.sha256(plain.view(torch.uint8).numpy().data).hexdigest()}"
