"""README, --help and code tell one story: every command they show parses, and the cheap ones run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torchvision
import typer
from PIL import Image
from typer.testing import CliRunner

from robustglimpse import cli, recipes
from robustglimpse.models import is_from_outside, models
from robustglimpse.models.mgnet import Architecture, MGNet
from robustglimpse.regress import update
from robustglimpse.runner import Bench, bench

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
GATE = (ROOT / "docs" / "gate.md").read_text()
# What keeps a documented command short enough for a test; the last of a repeated flag counts.
SHORT = {
    "bench": ["--limit", "4", "--steps", "1", "--out", "run", "--device", "cpu"],
    "corruptions": ["--limit", "3", "--severity", "1", "--out", "run", "--device", "cpu"],
    "corrupt": ["--severity", "1", "--size", "16"],
    "compare": ["--limit", "2", "--steps", "1", "--out", "run", "--device", "cpu"],
    "isolate": ["--limit", "2", "--steps", "1", "--out", "run", "--device", "cpu"],
    "profile": ["--size", "64", "--repeats", "1", "--batch-size", "1", "--device", "cpu"],
    "exits": ["--limit", "2", "--steps", "1", "--out", "run", "--device", "cpu"],
    "glimpses": ["--limit", "2", "--steps", "1", "--out", "sheet.png", "--device", "cpu"],
    "doctor": ["numpy"],  # not whatever else is installed where the tests run
}


def documented() -> list[str]:
    """Return every robustglimpse command in README's blocks and in the commands' docstrings."""
    texts = [README, GATE] + [
        re.sub(r"\n +--", " --", c.callback.__doc__ or "") for c in cli.app.registered_commands
    ]
    found = [m for text in texts for m in re.findall(r"^ {4,}(?:.*&& \S*/)?(robustglimpse .*)$", text, re.M)]
    return sorted(set(found))


def test_there_are_documented_commands_of_every_kind() -> None:
    kinds = {shlex.split(command)[1] for command in documented()}
    assert kinds == {sub.name or sub.callback.__name__ for sub in cli.app.registered_commands}


def there(arguments: list[str]) -> bool:
    """Return whether all files that a command reads are here."""
    paths = [a for a in arguments if a.endswith((".safetensors", ".ckpt", ".toml", ".zip"))]
    paths += [a for a in arguments if a.startswith(("results/", "runs/"))]
    paths += [b for a, b in pairwise(arguments) if a == "--data-dir"]
    libraries = re.findall(r"(torchattacks|foolbox|pyautoattack):", " ".join(arguments))
    if not all(find_spec(library) for library in libraries):
        return False
    for call in (b for a, b in pairwise(arguments) if a == "--model" and is_from_outside(b)):
        files = re.findall(r"weights='([^']+\.\w+)'", call)
        if not files and "weights=None" not in call:
            return False  # a library would fetch them
        paths += files
    return all(Path(path).exists() for path in paths)


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the documented commands read: photos, weights, a run, its baseline, a policy.

    The results of this repository are links, but for results/baseline, which is of that small run.
    """
    house, large = tmp_path_factory.mktemp("house"), tmp_path_factory.mktemp("large")
    for name in ("cat", "dog"):
        (house / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (40, 30), (90, 120, 60)).save(house / "photos" / name / "one.png")
    torch.save(torchvision.models.resnet18(num_classes=2).state_dict(), large / "mine.pth")
    authors = MGNet(Architecture("resnet18", 4, "7/3", 100, 0.02)).state_dict()
    torch.save({"state_dict": {f"model.{key}": t for key, t in authors.items()}}, large / "FILE.ckpt")
    for file in large.iterdir():
        (house / file.name).symlink_to(file)
    (house / "results").mkdir()
    for kept in (ROOT / "results").iterdir():
        if kept.name != "baseline":
            (house / "results" / kept.name).symlink_to(kept)
    run = house / "runs" / "gate"
    bench(Bench(("mgnet-r18",), steps=(1, 4), limit=4, device="cpu"), run)
    shutil.copytree(run, house / "results" / "run")
    update(house / "results" / "baseline", run, reason="first")
    (house / "gate.toml").write_text(re.findall(r"```toml\n(.*?)```", GATE, re.S)[0])
    return house


@pytest.mark.parametrize("command", documented())
def test_a_documented_command_works(
    command: str, house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(house, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    _, kind, *arguments = shlex.split(command)
    if kind == "train":
        assert arguments[0] in recipes.names()
    if kind == "train" or not there(arguments):  # its flags at least must exist
        arguments, short = [*arguments, "--help"], []
    else:
        short = SHORT.get(kind, [])
    result = CliRunner().invoke(cli.app, [kind, *arguments, *short], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for name in (b for a, b in pairwise(arguments) if a == "--model"):
        is_file = name.endswith(".safetensors")
        assert is_file or is_from_outside(name) or name in models() or f"{name}@glimpse-digits" in models()


@pytest.mark.parametrize("told", ["README.md", "docs/bring.md", "bench", "corruptions", "exits", "profile"])
def test_naming_a_factory_is_said_to_run_its_code(told: str) -> None:
    if told.endswith(".md"):
        text = (ROOT / told).read_text()
    else:
        text = CliRunner().invoke(cli.app, [told, "--help"], env={"COLUMNS": "400"}).output
    assert "package.module:factory imports and runs that code with your rights" in re.sub(
        r"\s+", " ", text.replace("`", "")
    )


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.S))
def test_readme_python_runs(code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def links() -> list[tuple[str, str]]:
    """Return every link to a file in this repository's pages, as the page and what it names."""
    pages = [page for where in ("*.md", "docs/**/*.md", "results/**/*.md") for page in ROOT.glob(where)]
    return [
        (page.relative_to(ROOT).as_posix(), target.partition("#")[0])
        for page in sorted(pages)
        for target in re.findall(
            r"\]\(((?!https?:|#)[^)]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        )
    ]


@pytest.mark.parametrize("page, target", links())
def test_links_lead_somewhere(page: str, target: str) -> None:
    assert (ROOT / page).parent.joinpath(target).exists()


COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_and_command_says_what_it_is(name: str) -> None:
    assert COMMANDS[name].help
    for option in COMMANDS[name].params:
        assert getattr(option, "help", None), option.name


def test_readme_has_the_two_lines() -> None:
    lines = [line.strip() for line in README.splitlines() if line.startswith("    python3 -m venv")]
    assert len(lines) == 2
    assert "robustglimpse bench --model ffnet-r50 --model mgnet-r50" in lines[0]
    assert lines[1].endswith(".venv/bin/tox")
