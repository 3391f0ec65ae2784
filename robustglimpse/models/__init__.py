"""Models by name. Reads the manifest, and loads torch only when a model is asked for."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from robustglimpse.registry import unknown

if TYPE_CHECKING:
    from robustglimpse.records import Classifier

MANIFEST = Path(__file__).parent / "manifest.toml"
DEFAULT_DATASET = "glimpse-digits"


@dataclass(frozen=True)
class ModelRow:
    """One checkpoint of the manifest; the file's own card repeats what is needed to build the network.

    accuracy: clean test accuracy after each exit, measured on the file as it is.
    url: where the file can be fetched from when it is neither bundled nor cached; may be empty.
    """

    name: str
    backbone: str
    glimpses: int
    downsample: str
    dataset: str
    classes: int
    size_px: int
    file: str
    sha256: str
    bytes: int
    recipe: str
    accuracy: tuple[float, ...]
    url: str = ""


@cache
def models() -> Mapping[str, ModelRow]:
    """Return the manifest's rows by full name, such as "mgnet-r18@glimpse-digits"."""
    table = tomllib.loads(MANIFEST.read_text())
    return {
        name: ModelRow(**{**row, "name": name, "accuracy": tuple(row["accuracy"])})
        for name, row in table.items()
    }


def model_row(name: str) -> ModelRow:
    """Return the manifest's row; "@glimpse-digits" may be left out. Raises UserError for others."""
    rows = models()
    full = name if "@" in name else f"{name}@{DEFAULT_DATASET}"
    if full in rows:
        return rows[full]
    short = [n.removesuffix(f"@{DEFAULT_DATASET}") for n in rows]
    raise unknown(name, short, kind="model", listing="models")


def load_model(name: str, *, device: str = "cpu") -> Classifier:
    """Return a frozen classifier in eval mode: a manifest name, or a path to a .safetensors file.

    It takes f32 images in [0,1] of any memory layout, normalises inside, and runs channels-last.
    Raises UserError for an unknown name, a missing file, a wrong hash or weights that do not fit.
    """
    from robustglimpse.models import zoo

    if name.endswith(".safetensors"):
        return zoo.load_file(Path(name), name=Path(name).stem, device=device)
    return zoo.load_row(model_row(name), device=device)
