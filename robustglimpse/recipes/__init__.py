"""Training recipes, one TOML file each."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from robustglimpse.records import UserError

FOLDER = Path(__file__).parent
# What the hours in a recipe's comment are reckoned with, in multiply-accumulates a second.
GPU_RATE = 4e12  # of a V100 in f32: ResNet-50 trained on 330 images a second
CORE_RATE = 40e9  # of a core with AVX2, in f32, by benchmarks/speed/inference.py

# An epoch is as many passes over the images as a comment says: 3 for forward and backward, and 2 for every
# step of a recipe's attack.
COST = re.compile(
    r"^# Cost: ([\d.]+) GMACs x ([\d ]+) images x (\d+) epochs x (\d+) = ([\d.e]+) MACs:\n"
    r"# ([\d. ]+) GPU-hours at 4 TMAC/s, ([\d. ]+) core-hours at 40 GMAC/s\.$",
    re.M,
)


@dataclass(frozen=True)
class Summary:
    """What a bundled recipe makes, and what that takes; the numbers of its comment.

    gmacs: of one image through the network.  passes: forward passes that an image of an epoch costs.
    """

    name: str
    model: str
    dataset: str
    epochs: int
    gmacs: float
    images: int
    passes: int
    macs: float
    gpu_hours: float
    core_hours: float


def names() -> list[str]:
    """Return the names of the bundled recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(name: str) -> str:
    """Return the text of a bundled recipe."""
    return (FOLDER / f"{name}.toml").read_text()


def summaries() -> list[Summary]:
    """Return what every bundled recipe makes and takes, by name."""
    return [summary(name, read(name)) for name in names()]


def summary(name: str, text: str) -> Summary:
    """Return what the recipe in text makes and takes. Raises UserError where its comment does not say."""
    table, found = tomllib.loads(text), COST.search(text)
    if found is None:
        raise UserError(f"{name}: its comment has no line '# Cost: ...'; write one as in {names()[0]}.toml")
    gmacs, images, _, passes, macs, gpu, core = (float(part.replace(" ", "")) for part in found.groups())
    model, _, dataset = table["model"].partition("@")
    return Summary(name, model, dataset, table["epochs"], gmacs, int(images), int(passes), macs, gpu, core)
