"""Training recipes, one TOML file each."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the names of the bundled recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(name: str) -> str:
    """Return the text of a bundled recipe."""
    return (FOLDER / f"{name}.toml").read_text()
