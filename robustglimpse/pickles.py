"""What a pickle spells out, read without obeying it: nothing it names is imported, and nothing is called.

Python's own reader looks up each global by name and calls what it finds.  Here a global becomes an Inert
that stands for it; only what a caller's table names (tensors and plain containers) is put together, by the
caller's own functions.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

Builders = Mapping[str, Callable[..., Any]]

# A called function from here has no place beside weights.  Nothing in a file runs, so this list protects
# nobody: it is there because a file that asks for such a call was made to do harm, and should be looked at.
RUNS_CODE = frozenset(
    ("os", "posix", "nt", "sys", "subprocess", "commands", "builtins", "importlib", "runpy", "pty", "socket",
     "shutil", "ctypes", "webbrowser", "code", "pip")
)  # fmt: skip
# Functions of these put objects together again; so do functions whose names begin with "_", elsewhere.
REBUILDS = frozenset(
    ("torch", "torchvision", "numpy", "pandas", "scipy", "collections", "copyreg", "_codecs", "functools",
     "datetime")
)  # fmt: skip
PLAIN_TYPES = frozenset(
    f"builtins.{kind.__name__}"
    for kind in (
        bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, slice, range,
        object,
    )
)  # fmt: skip
OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg", "exceptions": "builtins"}
GETATTR, RECONSTRUCTOR = "builtins.getattr", "copyreg._reconstructor"
LITERALS = frozenset(
    ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING",
     "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE",
     "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "FLOAT", "BINFLOAT")
)  # fmt: skip
EMPTY: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list,
}  # fmt: skip
NO_EFFECT = frozenset(("PROTO", "FRAME", "STOP"))


class RunsCodeError(Exception):
    """The pickle calls a function that has no place in a file of weights; str() is its name."""


class MalformedError(ValueError):
    """The bytes are no pickle, or break its rules."""


@dataclass(eq=False)
class Inert:
    """Stands for a global of a pickle, or for an object that it would make of one; it does nothing.

    name: "module.attribute" of the global.  items: what the pickle puts into it as into a dict.
    state: what it would be rebuilt from.
    """

    name: str
    items: dict[Any, Any] = field(default_factory=dict)
    state: Any = None

    @property
    def is_module(self) -> bool:
        """Whether this is a whole torch.nn.Module."""
        return isinstance(self.state, dict) and {"_parameters", "_modules"} <= self.state.keys()


def read_pickle(
    stream: IO[bytes], *, builders: Builders, persistent: Callable[[Any], Any]
) -> tuple[Any, set[str]]:
    """Return what the pickle at the stream's place holds, and the names of the globals in it.

    builders: for a global's name the function of ours that is called where the pickle calls the global.
    persistent: what stands for a persistent id.
    Sets become lists; keys of dicts that are no text, number or None become Inerts.
    Raises RunsCodeError, or MalformedError; builders may raise what they want.
    """
    machine = _Machine(builders, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            machine.take(opcode.name, argument)
        return machine.stack.pop(), machine.names
    except (RunsCodeError, MalformedError):
        raise
    # As a pickle is damaged: opcodes that do not exist, an empty stack, a memo never filled.
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise MalformedError(str(error) or type(error).__name__) from None


class _Machine:
    """The stack machine that a pickle is a program for (see the comments of CPython's pickletools)."""

    def __init__(self, builders: Builders, persistent: Callable[[Any], Any]) -> None:
        self.stack: list[Any] = []
        self.names: set[str] = set()
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._builders = builders
        self._persistent = persistent

    def take(self, name: str, argument: Any) -> None:
        """Do what one opcode says."""
        if name in LITERALS:
            self.stack.append(argument)
        elif name in EMPTY:
            self.stack.append(EMPTY[name]())
        elif name not in NO_EFFECT:
            step = getattr(self, f"_{name.lower()}", None)
            if step is None:
                raise MalformedError(f"opcode {name}")
            step(argument)

    # What moves on the stack

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self.stack))

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        values, self.stack[start:] = self.stack[start:], []
        return values

    def _pop(self, _: Any) -> None:
        if self._marks and self._marks[-1] == len(self.stack):
            self._marks.pop()
        else:
            self.stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._since_mark()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _get(self, place: int) -> None:
        self.stack.append(self._memo[place])

    _binget = _long_binget = _get

    def _put(self, place: int) -> None:
        self._memo[place] = self.stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self.stack[-1]

    # Containers

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _tuple1(self, _: Any) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def _tuple2(self, _: Any) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def _tuple3(self, _: Any) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def _list(self, _: Any) -> None:
        self.stack.append(self._since_mark())

    _frozenset = _list

    def _dict(self, _: Any) -> None:
        values = self._since_mark()
        self.stack.append(as_dict(zip(values[::2], values[1::2], strict=True)))

    def _append(self, _: Any) -> None:
        value = self.stack.pop()
        self._extend([value])

    def _appends(self, _: Any) -> None:
        self._extend(self._since_mark())

    _additems = _appends

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Inert):
            raise MalformedError(f"{type(target).__name__} is no list")

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update({hashable(key): value})

    def _setitems(self, _: Any) -> None:
        values = self._since_mark()
        self._update(as_dict(zip(values[::2], values[1::2], strict=True)))

    def _update(self, pairs: dict[Any, Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.items.update(pairs)
        elif isinstance(target, dict):
            target.update(pairs)
        else:
            raise MalformedError(f"{type(target).__name__} is no dict")

    # Globals, and what would be called

    def _named(self, module: Any, attribute: Any) -> Inert:
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise MalformedError("a global whose name is no text")
        name = f"{OLD_NAMES.get(module, module)}.{attribute}"
        self.names.add(name)
        return Inert(name)

    def _global(self, argument: str) -> None:
        module, _, attribute = argument.partition(" ")
        self.stack.append(self._named(module, attribute))

    def _stack_global(self, _: Any) -> None:
        attribute, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self._named(module, attribute))

    def _ext1(self, code: int) -> None:
        self.stack.append(self._named("copyreg", f"extension_{code}"))

    _ext2 = _ext4 = _ext1

    def _reduce(self, _: Any) -> None:
        arguments, target = self.stack.pop(), self.stack.pop()
        self.stack.append(self._called(target, arguments))

    def _inst(self, argument: str) -> None:
        arguments = tuple(self._since_mark())
        module, _, attribute = argument.partition(" ")
        self.stack.append(self._called(self._named(module, attribute), arguments))

    def _obj(self, _: Any) -> None:
        target, *arguments = self._since_mark()
        self.stack.append(self._called(target, tuple(arguments)))

    def _newobj(self, _: Any) -> None:
        arguments, target = self.stack.pop(), self.stack.pop()
        self.stack.append(self._made(target, arguments))

    def _newobj_ex(self, _: Any) -> None:
        _keywords, arguments, target = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(self._made(target, arguments))

    def _build(self, _: Any) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].state = state

    def _called(self, target: Any, arguments: Any) -> Any:
        """Return what stands for target(*arguments)."""
        if not isinstance(target, Inert) or not isinstance(arguments, tuple):
            raise MalformedError(f"{type(target).__name__} cannot be called")
        name = target.name
        if name not in self._builders:
            if name == GETATTR and len(arguments) == 2 and isinstance(arguments[0], Inert):
                return Inert(f"{arguments[0].name}.{arguments[1]}"[:200])
            if name == RECONSTRUCTOR and arguments and isinstance(arguments[0], Inert):
                return Inert(arguments[0].name)
            if not _puts_together(name):
                raise RunsCodeError(name)
        return self._made(target, arguments)

    def _made(self, target: Any, arguments: Any) -> Any:
        if not isinstance(target, Inert) or not isinstance(arguments, tuple):
            raise MalformedError(f"{type(target).__name__} is no class")
        build = self._builders.get(target.name)
        return Inert(target.name) if build is None else build(*arguments)

    def _persid(self, argument: str) -> None:
        self.stack.append(self._persistent(argument))

    def _binpersid(self, _: Any) -> None:
        self.stack.append(self._persistent(self.stack.pop()))


def hashable(key: Any) -> Any:
    """Return a key itself where it is text, a number or None; else an Inert in its place.

    A tuple that holds itself twice at every level has a hash that takes forever.
    """
    return key if key is None or isinstance(key, str | bytes | int | float) else Inert("key")


def as_dict(pairs: Any = ()) -> dict[Any, Any]:
    """Return a dict of pairs, or of another dict."""
    pairs = pairs.items() if isinstance(pairs, dict) else pairs
    return {hashable(key): value for key, value in pairs}


def _puts_together(name: str) -> bool:
    """Return whether a global that is called is a class, or a function that restores an object."""
    module, _, attribute = name.rpartition(".")
    root = module.partition(".")[0]
    if name in PLAIN_TYPES or root in REBUILDS:
        return True
    return root not in RUNS_CODE and (attribute.startswith("_") or attribute[:1].isupper())
