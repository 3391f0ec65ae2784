"""README, --help and code tell one story: every command they show parses, and the cheap ones run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from robustglimpse import cli, recipes
from robustglimpse.models import is_from_outside, models

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
GATE = (ROOT / "docs" / "gate.md").read_text()
# What keeps a documented command short enough for a test; the last of a repeated flag counts.
SHORT = {
    "bench": ["--limit", "4", "--steps", "1", "--out", "run", "--device", "cpu"],
    "corruptions": ["--limit", "3", "--severity", "1", "--out", "run", "--device", "cpu"],
    "corrupt": ["--severity", "1", "--size", "16"],
    "compare": ["--limit", "2", "--steps", "1", "--out", "run", "--device", "cpu"],
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


@pytest.mark.parametrize("command", documented())
def test_a_documented_command_works(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, kind, *arguments = shlex.split(command)
    (tmp_path / "results").symlink_to(ROOT / "results")
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    Image.new("RGB", (40, 30), (90, 120, 60)).save(tmp_path / "photos" / "cat" / "one.png")
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


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.S))
def test_readme_python_runs(code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    "target", re.findall(r"\]\(((?!http)[^)]+)\)", re.sub(r"```.*?```", "", README, flags=re.S))
)
def test_readme_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


@pytest.mark.parametrize("command", [c.callback.__name__ for c in cli.app.registered_commands])
def test_every_option_and_command_says_what_it_is(command: str) -> None:
    import typer

    group = typer.main.get_command(cli.app)
    for name, sub in group.commands.items():  # type: ignore[attr-defined]
        assert sub.help, name
        for option in sub.params:
            assert getattr(option, "help", None), f"{name} {option.name}"


def test_readme_has_the_two_lines() -> None:
    lines = [line.strip() for line in README.splitlines() if line.startswith("    python3 -m venv")]
    assert len(lines) == 2
    assert "robustglimpse bench --model ffnet-r50 --model mgnet-r50" in lines[0]
    assert lines[1].endswith(".venv/bin/tox")
