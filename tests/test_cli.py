"""Bad input: one line that says what was expected, exit code 2, nothing lost."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from robustglimpse import cli, models
from robustglimpse.exits import ExitStudy
from robustglimpse.glimpses import Sheet
from robustglimpse.runner import Bench
from robustglimpse.sweep import Sweep

WEIGHTS = models.WEIGHTS / "mgnet-r18-glimpse-digits.safetensors"


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Return a function that runs a command in tmp_path and returns the one line that it is refused with."""
    monkeypatch.chdir(tmp_path)

    def refuse(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["robustglimpse", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capfd.readouterr()
        assert stop.value.code == 2, out + err
        assert out == ""
        assert len(err.splitlines()) == 1, err
        assert not (tmp_path / "runs").exists()
        return err

    return refuse


Refused = Callable[..., str]
# What a request calls otherwise than the command's flag does.
FLAGS = {
    "models": "model", "attacks": "attack", "protocols": "protocol", "corruptions": "corruption",
    "severities": "severity", "indices": "index", "size_px": "size", "all_exits": "exits",
}  # fmt: skip


@pytest.mark.parametrize(
    "request_class, command",
    [(Bench, cli.bench), (Sweep, cli.corruptions), (ExitStudy, cli.exits_), (Sheet, cli.glimpses_)],
)
def test_every_field_of_a_request_is_a_flag(request_class: Any, command: Callable[..., None]) -> None:
    flags = set(signature(command).parameters)
    assert {FLAGS.get(field.name, field.name) for field in fields(request_class)} <= flags


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "mgnet-r81"], "did you mean 'mgnet-r18'?"),
        (["--model", "mgnet-r18", "--attack", "pdg"], "did you mean 'pgd'?"),
        (["--model", "mgnet-r18", "--attack", "pgd(step=3)"], "no argument 'step'"),
        (["--model", "mgnet-r18", "--attack", "pgd(__import__('os'))"], "expected a call like"),
        (["--model", "mgnet-r18", "--eps", "4/0"], "eps must be a number such as 4/255"),
        (["--model", "mgnet-r18", "--eps", "nan"], "eps must be a number"),
        (["--model", "mgnet-r18", "--steps", "0"], "steps must be whole numbers from 1 up"),
        (["--model", "mgnet-r18", "--steps", "1,x"], "steps must be whole numbers"),
        (["--model", "mgnet-r18", "--protocol", "papr"], "did you mean 'paper'?"),
        (["--model", "mgnet-r18", "--data", "digits"], "did you mean 'glimpse-digits'?"),
        (["--model", "mgnet-r18", "--split", "val"], "splits train, test"),
        (["--model", "mgnet-r18", "--data", "cifar10"], "--data-dir"),
        (["--model", "mgnet-r18", "--device", "warp"], "device 'warp'"),
        (["--model", "nowhere.safetensors"], "no such checkpoint"),
    ],
)
def test_bench_refuses_in_one_line(arguments: list[str], says: str, refused: Refused) -> None:
    assert says in refused("bench", *arguments)


def test_a_checkpoint_with_one_byte_changed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytearray(WEIGHTS.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / WEIGHTS.name).write_bytes(content)
    monkeypatch.setattr(models, "WEIGHTS", tmp_path)
    from robustglimpse.models import load_model
    from robustglimpse.records import UserError

    with pytest.raises(UserError, match=r"expected sha256 [0-9a-f]{64}, got [0-9a-f]{64}"):
        load_model("mgnet-r18")


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open, (str(self.marker), "w")  # type: ignore[return-value]


def test_a_pickle_bomb_is_refused_and_not_run(tmp_path: Path, refused: Refused) -> None:
    marker = tmp_path / "exploded"
    (tmp_path / "bomb.ckpt").write_bytes(pickle.dumps({"state_dict": Bomb(marker)}))
    line = refused(
        "import-checkpoint", "bomb.ckpt", "--backbone", "resnet18", "--glimpses", "4", "--downsample", "7/3",
        "--out", "mine.safetensors",
    )  # fmt: skip
    assert "bomb.ckpt: refused" in line
    assert not marker.exists()
    assert not (tmp_path / "mine.safetensors").exists()


def test_a_text_file_named_jpg_is_named(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "photos" / "0").mkdir(parents=True)
    (tmp_path / "photos" / "0" / "note.jpg").write_text("not an image")
    line = refused("bench", "--model", "mgnet-r18", "--data", "imagefolder:photos")
    assert "0/note.jpg is not an image" in line


def test_classes_that_the_model_lacks_are_named(tmp_path: Path, refused: Refused) -> None:
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "pets" / name / "one.png")
    line = refused("bench", "--model", "mgnet-r18", "--data", "imagefolder:pets")
    assert "has 10 logits without names, imagefolder:pets 2 classes (the first is 'cat'); name the" in line


def test_an_out_that_cannot_be_written_is_refused(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("in the way")
    line = refused("bench", "--model", "mgnet-r18", "--out", "file/run")
    assert "cannot write results there" in line


def test_bench_prints_its_table_and_leaves_its_files(tmp_path: Path) -> None:
    flags = "--model mgnet-r18 --limit 8 --steps 1,2 --protocol paper --out run"
    command = [sys.executable, "-m", "robustglimpse", "bench", *flags.split()]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| mgnet-r18 | pgd 4/255 | paper" in done.stdout
    for name in ("results.csv", "run.json", "figure4.png", "figure4.svg"):
        assert (tmp_path / "run" / name).stat().st_size > 0
