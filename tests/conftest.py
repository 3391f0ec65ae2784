"""What several tests share: the reference folder, a cache of their own, digits and two small networks."""

from __future__ import annotations

import json
import os
import runpy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robustglimpse.data import Dataset, load_data
from robustglimpse.models import zoo
from robustglimpse.models.mgnet import Architecture, MGNet
from robustglimpse.records import Classifier


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep decoded images and fetched files out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTGLIMPSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data, $ROBUSTGLIMPSE_SHARED or beside the checkout: see CONTRIBUTING.md."""
    named = os.environ.get("ROBUSTGLIMPSE_SHARED")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        if named:
            pytest.fail(f"ROBUSTGLIMPSE_SHARED names {folder}, and there is no such folder; mend or unset it")
        pytest.skip(f"no reference data at {folder}; set ROBUSTGLIMPSE_SHARED to run this test")
    return folder


@dataclass(frozen=True)
class Reference:
    """The authors' network on made-up weights, and what their own code answered.

    images: [0,1].  arrays: as vectors/README.md lists them.
    """

    architecture: Architecture
    weights: Mapping[str, Tensor]
    images: Tensor
    labels: Tensor
    arrays: Mapping[str, Tensor]


@pytest.fixture(scope="session")
def references(shared: Path) -> dict[str, Reference]:
    """The cases of ../shared/vectors/mgnet.npz by name."""
    folder = shared / "vectors"
    make = runpy.run_path(str(folder / "fill.py"))
    cases = json.loads((folder / "mgnet.json").read_text())
    with np.load(folder / "mgnet.npz") as stored:
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    return {name: _reference(name, case, make, arrays) for name, case in cases.items()}


def _reference(
    name: str, case: Mapping[str, Any], make: Mapping[str, Any], arrays: Mapping[str, Tensor]
) -> Reference:
    downsample = str(Fraction(case["scale"]).limit_denominator(100))
    return Reference(
        Architecture(case["arch"], case["glimpses"], downsample, case["classes"], case["s"]),
        {key: torch.from_numpy(value) for key, value in make["fill"](case["shapes"]).items()},
        torch.from_numpy(make["images"](4, case["side"])),
        torch.arange(4) % case["classes"],
        {key.removeprefix(f"{name}/"): value for key, value in arrays.items() if key.startswith(f"{name}/")},
    )


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """The first 64 test images of glimpse-digits."""
    return load_data("glimpse-digits", limit=64)


@cache
def make_classifier(family: str) -> Classifier:
    """Return an untrained ResNet-18 of the family "mgnet" (T=3, M=2) or "ffnet" for 64 px digits.

    Weights come from a seed, batch-norm statistics from 64 digits: so its answers differ between images.
    """
    glimpses, downsample = {"mgnet": (3, "2"), "ffnet": (1, "1")}[family]
    data = load_data("glimpse-digits", limit=64)
    card = zoo.Card(
        Architecture("resnet18", glimpses, downsample, 10, 0.02), data.classes, 64, dataset="glimpse-digits"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MGNet(card.architecture)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain mean over what it sees, which is these digits once
    with torch.no_grad():
        mean, std = (torch.tensor(c)[:, None, None] for c in (card.mean, card.std))
        network.train()((torch.from_numpy(data.images) / 255 - mean) / std)
    return zoo.classifier(network, card, name=f"tiny-{family}", sha256=family)


@pytest.fixture(scope="session")
def mgnet() -> Classifier:
    """An untrained MGNet: three glimpses of 32 px."""
    return make_classifier("mgnet")


@pytest.fixture(scope="session")
def ffnet() -> Classifier:
    """An untrained FF-Net: one glimpse of 64 px."""
    return make_classifier("ffnet")


@pytest.fixture(scope="session", params=["mgnet", "ffnet"])
def small_classifier(request: pytest.FixtureRequest) -> Classifier:
    """Both untrained networks in turn."""
    return make_classifier(request.param)
