"""Progress on stderr: a bar with the time left on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

T = TypeVar("T")
LOG_EVERY_S = 15.0


class Progress(Protocol):
    """What long work reports to: how far it is, and what it is at."""

    def __call__(self, done: float, note: str = "") -> None:
        """done: how many of the total are finished."""


@contextmanager
def progress(total: float, title: str) -> Iterator[Progress]:
    """Yield a function to report to; shows a bar where stderr is a terminal, else a line every 15 s."""
    if sys.stderr.isatty():
        with _bar(total, title) as report:
            yield report
    else:
        yield _Log(total, title)


def track(items: Sequence[T], title: str) -> Iterator[T]:
    """Yield the items and report each one finished."""
    with progress(len(items), title) as report:
        for i, item in enumerate(items):
            yield item
            report(i + 1)


@contextmanager
def _bar(total: float, title: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )  # fmt: skip
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, note="")

        def report(done: float, note: str = "") -> None:
            bar.update(task, completed=done, note=note)

        yield report


class _Log:
    """Writes `title: 40% (12 s left) note` to stderr, at most every 15 seconds."""

    def __init__(self, total: float, title: str) -> None:
        self._total, self._title = total, title
        self._start = self._last = time.monotonic()

    def __call__(self, done: float, note: str = "") -> None:
        now = time.monotonic()
        if now - self._last < LOG_EVERY_S:
            return
        self._last = now
        left = f" ({(now - self._start) * (self._total - done) / done:.0f} s left)" if done else ""
        print(f"{self._title}: {done / self._total:.0%}{left} {note}".rstrip(), file=sys.stderr, flush=True)
