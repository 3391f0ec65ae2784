"""README, --help and code tell one story: every command they show parses, and the cheap ones run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from robustglimpse import cli, recipes
from robustglimpse.models import models

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
# What keeps a documented bench short enough for a test; the last of a repeated flag counts.
SHORT = ["--limit", "4", "--steps", "1", "--out", "run", "--device", "cpu"]


def documented() -> list[str]:
    """Return every robustglimpse command in README's blocks and in the commands' docstrings."""
    texts = [README] + [
        re.sub(r"\n +--", " --", c.callback.__doc__ or "") for c in cli.app.registered_commands
    ]
    found = [m for text in texts for m in re.findall(r"^ {4,}(?:.*&& \S*/)?(robustglimpse .*)$", text, re.M)]
    return sorted(set(found))


def test_there_are_documented_commands_of_every_kind() -> None:
    kinds = {shlex.split(command)[1] for command in documented()}
    assert kinds == {sub.name or sub.callback.__name__ for sub in cli.app.registered_commands}


@pytest.mark.parametrize("command", documented())
def test_a_documented_command_works(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, kind, *arguments = shlex.split(command)
    if kind == "list":
        result = CliRunner().invoke(cli.app, [kind, *arguments], catch_exceptions=False)
    elif kind == "train":
        assert arguments[0] in recipes.names()
        result = CliRunner().invoke(cli.app, [kind, *arguments, "--help"], catch_exceptions=False)
    elif kind == "bench" and "runs/train" not in command:
        result = CliRunner().invoke(cli.app, [kind, *arguments, *SHORT], catch_exceptions=False)
    else:  # needs a file that is not here: its flags at least must exist
        result = CliRunner().invoke(cli.app, [kind, *arguments, "--help"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for name in re.findall(r"--model (\S+)", command):
        assert name.endswith(".safetensors") or f"{name}@glimpse-digits" in models()


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
    assert "robustglimpse bench --model ffnet-r18 --model mgnet-r18" in lines[0]
    assert lines[1].endswith(".venv/bin/tox")
