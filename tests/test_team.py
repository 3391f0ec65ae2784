"""Several processes train one network: the same weights everywhere, and after a kill as without one."""

from __future__ import annotations

import csv
import json
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from teamwork import TINY

from robustglimpse import train as module
from robustglimpse.data import Dataset
from robustglimpse.models import zoo
from robustglimpse.records import UserError
from robustglimpse.team import Team, gather
from robustglimpse.train import train

CPU = torch.device("cpu")


def test_alone_a_team_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with gather("cpu") as team:
        assert (team.rank, team.size, team.device, team.is_first) == (0, 1, CPU, True)
        module_alone = torch.nn.Linear(1, 1)
        assert team.joined(module_alone, some_unused=False) is module_alone
        assert team.share(torch.arange(5)).tolist() == [0, 1, 2, 3, 4]
        assert team.sum([1.5, 2.0]) == [1.5, 2.0]
        team.wait()
        with team.first_before_others():
            pass


def test_shares_are_disjoint_and_whole() -> None:
    shares = [Team(rank, 3, CPU).share(torch.arange(12)).tolist() for rank in range(3)]
    assert sorted(row for share in shares for row in share) == list(range(12))
    assert [len(share) for share in shares] == [4, 4, 4]


@pytest.mark.parametrize(("batch_size", "processes"), [(16, 3), (4, 4)])
def test_a_batch_that_cannot_be_shared_is_refused(batch_size: int, processes: int) -> None:
    recipe = replace(TINY, batch_size=batch_size)
    with pytest.raises(UserError, match=f"batch_size {batch_size} cannot be shared by {processes} processes"):
        module._check(recipe, Team(0, processes, CPU))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Start two processes; return their folder and what each of them found."""
    folder = tmp_path_factory.mktemp("team")
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(4)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = ",".join(str(each.getsockname()[1]) for each in sockets)
    script = str(Path(__file__).with_name("teamwork.py"))
    members = [
        subprocess.Popen(
            [sys.executable, script, str(rank), "2", str(folder), ports],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [member.communicate(timeout=600)[0] for member in members]
    assert [member.returncode for member in members] == [0, 0], "\n".join(said)
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


Together = tuple[Path, list[dict[str, Any]]]


@pytest.mark.slow
def test_the_gradient_is_the_mean_over_the_whole_batch(together: Together) -> None:
    for found in together[1]:
        assert found["gradient_error"] < 1e-5


@pytest.mark.slow
def test_all_processes_end_with_the_same_weights(together: Together) -> None:
    first, second = (found["weights"] for found in together[1])
    assert first == second
    assert first["straight"] == first["killed"]


@pytest.mark.slow
def test_a_killed_team_resumes_to_the_same_file(together: Together) -> None:
    folder, _ = together
    straight, killed = (zoo.hash_file(folder / out / "model.safetensors") for out in ("straight", "killed"))
    assert straight == killed
    with (folder / "straight" / "log.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(0 <= float(row["accuracy_exit_2"]) <= 1 for row in rows)


@pytest.mark.slow
def test_another_number_of_processes_does_not_go_on(
    together: Together, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = together
    small = replace(digits, images=digits.images[:32, :, ::2, ::2].copy(), labels=digits.labels[:32])
    monkeypatch.setattr(module, "load_data", lambda *_, **__: small)
    with pytest.raises(UserError, match="of a run with 2 processes, not 1"):
        train(TINY, folder / "straight")
