"""What a user should know and nobody asked for: lines on stderr, each once in a run.

The logger is "robustglimpse"; a Python caller silences it, or sends it elsewhere, as any other.  No torch.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

from robustglimpse.texts import safe

LOG = logging.getLogger("robustglimpse")
_told: ContextVar[set[str] | None] = ContextVar("told", default=None)


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what sys.stderr is when a line comes, not to what it was at import."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        """The process's standard error now."""
        return sys.stderr


if not LOG.handlers:
    LOG.addHandler(_Stderr())
    LOG.propagate = False


@contextmanager
def one_run() -> Iterator[None]:
    """Tell each line once until this ends; a run inside another is part of it."""
    if _told.get() is not None:
        yield
        return
    token = _told.set(set())
    try:
        yield
    finally:
        _told.reset(token)


def tell(line: str) -> None:
    """Log the line as a warning, unless this run has logged it before."""
    told = _told.get()
    if told is not None:
        if line in told:
            return
        told.add(line)
    LOG.warning("%s", safe(line, "terminal"))
