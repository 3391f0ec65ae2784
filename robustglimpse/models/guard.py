"""Somebody else's code, fenced: it unpickles tensors alone, prints to stderr, warns nobody and draws in vain.

What has to be changed for that is the whole process's: torch.load, sys.stdout, the filters of warnings, the
random state.  The first thread inside changes it, the last puts it back; threads outside see torch.load and
sys.stdout as they were.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TextIO

import torch

_is_inside: ContextVar[bool] = ContextVar("is_inside", default=False)


@contextmanager
def fenced() -> Iterator[None]:
    """Run somebody else's code: see the module.

    torch.load reads weights alone, even where it is called with weights_only=False: libraries do that, and
    would run what lies in their caches.
    """
    with _FENCE, _RANDOM:
        token = _is_inside.set(True)
        try:
            yield
        finally:
            _is_inside.reset(token)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave torch's random state on the CPU as it was, however many threads draw meanwhile."""
    with _RANDOM:
        yield


class _Shared:
    """A context that several threads are in at once: entered by the first of them, left by the last."""

    def __init__(self, context: Callable[[], AbstractContextManager[None]]) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._inside = 0
        self._stack = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._stack.enter_context(self._context())
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._stack.close()


@contextmanager
def _fence() -> Iterator[None]:
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore")
        for home in (torch, torch.serialization):
            stack.enter_context(_replaced(home, "load", _weights_only))
        stack.enter_context(_replaced(sys, "stdout", _Routed))
        yield


@contextmanager
def _random() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


_FENCE, _RANDOM = _Shared(_fence), _Shared(_random)


@contextmanager
def _replaced(home: Any, name: str, by: Callable[[Any], Any]) -> Iterator[None]:
    """Replace an attribute by what is made of it, and put it back unless somebody changed it since."""
    own = getattr(home, name)
    ours = by(own)
    setattr(home, name, ours)
    try:
        yield
    finally:
        if getattr(home, name) is ours:
            setattr(home, name, own)


def _weights_only(load: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(load)
    def guarded(*arguments: Any, **options: Any) -> Any:
        if _is_inside.get():
            options["weights_only"] = True
        return load(*arguments, **options)

    return guarded


class _Routed:
    """A standard output that writes to stderr for threads inside; all else is the output's own."""

    def __init__(self, own: TextIO) -> None:
        self._own = own

    def _stream(self) -> TextIO:
        return sys.stderr if _is_inside.get() else self._own

    def write(self, text: str) -> int:
        return self._stream().write(text)

    def flush(self) -> None:
        self._stream().flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)
