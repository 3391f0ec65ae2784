"""Somebody else's code runs fenced, also where several threads are at it, and all is put back behind it."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from robustglimpse.models import load_model
from robustglimpse.models.guard import fenced, random_state_kept


class Bomb:
    """Pickled, it makes a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture
def bomb(tmp_path: Path) -> Path:
    """A file that makes `marker` beside itself where it is unpickled."""
    torch.save({"weights": Bomb(tmp_path / "marker")}, tmp_path / "bomb.pth")
    return tmp_path / "bomb.pth"


@pytest.mark.parametrize("home", [torch, torch.serialization])
def test_inside_nothing_is_unpickled_whatever_is_asked(bomb: Path, home: Any) -> None:
    own = home.load
    with fenced(), pytest.raises(pickle.UnpicklingError):
        home.load(bomb, weights_only=False)
    assert not (bomb.parent / "marker").exists()
    assert home.load is own
    home.load(bomb, weights_only=False)
    assert (bomb.parent / "marker").exists(), "outside, torch's own does what it is told"


def test_a_thread_that_comes_later_stays_fenced_when_the_first_has_left(bomb: Path) -> None:
    """With a flag of the whole process the first to leave would take the fence of the second with it."""
    own, environment = torch.load, dict(os.environ)
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))
    failures: list[str] = []

    def first() -> None:
        with fenced():
            first_is_in.set()
            second_is_in.wait(10)
        first_is_out.set()

    def second() -> None:
        first_is_in.wait(10)
        with fenced():
            second_is_in.set()
            first_is_out.wait(10)
            try:
                torch.load(bomb, weights_only=False)
            except Exception as error:
                failures.append(str(error))

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "Weights only load failed" in failures[0]
    assert not (bomb.parent / "marker").exists()
    assert torch.load is own
    assert dict(os.environ) == environment


def test_a_thread_outside_is_not_fenced(bomb: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def outside() -> None:
        torch.load(bomb, weights_only=False)
        sys.stdout.write("data\n")

    with fenced():
        sys.stdout.write("chatter\n")
        thread = threading.Thread(target=outside)
        thread.start()
        thread.join()
    assert (bomb.parent / "marker").exists()
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("data\n", "chatter\n")


def test_output_warnings_and_random_state_are_put_back() -> None:
    state, output, filters = torch.random.get_rng_state(), sys.stdout, list(warnings.filters)
    with pytest.raises(ValueError, match="theirs"), fenced():
        torch.manual_seed(3)
        warnings.warn("something that nobody here can mend", stacklevel=1)
        raise ValueError("theirs")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sys.stdout is output
    assert warnings.filters == filters


def test_the_random_state_is_kept_however_threads_overlap() -> None:
    state = torch.random.get_rng_state()
    both, drawn = threading.Barrier(2), threading.Event()

    def draw(leaves_first: bool) -> None:
        with random_state_kept():
            both.wait(10)
            torch.rand(3)
            if not leaves_first:
                drawn.wait(10)
        drawn.set()

    threads = [threading.Thread(target=draw, args=(first,)) for first in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(torch.random.get_rng_state(), state)


FACTORY = """
import threading
import torch
from torch import nn

entered, left = threading.Event(), threading.Event()


def slow():
    entered.wait(10)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 2))


def loading(path):
    entered.set()
    left.wait(10)
    torch.load(path, weights_only=False)
"""


def test_models_that_load_at_once_do_not_lift_each_others_fence(
    bomb: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bomb.parent / "at_once.py").write_text(FACTORY)
    monkeypatch.chdir(bomb.parent)
    monkeypatch.setattr(sys, "path", [*sys.path])
    raised: list[str] = []

    def load(text: str) -> None:
        try:
            load_model(text)
        except Exception as error:
            raised.append(str(error))
        if "slow" in text:
            sys.modules["at_once"].left.set()

    threads = [
        threading.Thread(target=load, args=(text,))
        for text in ("at_once:slow(size_px=8)", "at_once:loading(path='bomb.pth', size_px=8)")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(raised) == 1
    assert "UnpicklingError" in raised[0]
    assert not (bomb.parent / "marker").exists()
