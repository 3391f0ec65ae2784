"""PGD here against PGD in torchattacks and foolbox, as users ask for it: image by image, on the same network.

Needs either library (robustglimpse[torchattacks] or [foolbox]); without one its tests are skipped.
Labels are the network's own predictions, so that no sample is wrong before and all are attacked.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from robustglimpse.attacks import adapted_defaults, attack_function, check_call
from robustglimpse.data import load_data
from robustglimpse.models import zoo
from robustglimpse.records import Classifier, Norm, Threat
from robustglimpse.registry import Call
from robustglimpse.rng import KeyedDraws

LOG = logging.getLogger(__name__)  # how many pixels differ: pytest --log-cli-level=INFO
MODELS = ("ffnet-r18", "mgnet-r18")
PEERS = ("torchattacks:PGD", "foolbox:LinfPGD")
PEERS_L2 = ("torchattacks:PGDL2", "foolbox:L2PGD")


@dataclass(frozen=True)
class Job:
    """A comparison: which network, how many images, how far, how long, in which arithmetic.

    In f64 what is left of a difference is of method.  In f32 rounding alone parts two programs: the gradient
    of cross-entropy loses its digits where a network is sure, ours (see log_odds) keeps them, and each step
    carries a pixel's other sign on; an image that ends near a boundary may then end on its other side.
    """

    model: str
    count: int
    steps: int
    norm: Norm = "linf"
    dtype: torch.dtype = torch.float64

    @property
    def eps(self) -> float:
        return {"linf": 4 / 255, "l2": 0.5}[self.norm]

    @property
    def step_size(self) -> float:
        return {"linf": 1 / 255, "l2": 0.1}[self.norm]


def network(job: Job) -> Classifier:
    module, card = zoo.load_network(job.model)
    return zoo.classifier(module.to(job.dtype), card, name=job.model, sha256="")


def images(job: Job) -> Tensor:
    pixels = torch.from_numpy(load_data("glimpse-digits", limit=job.count).images.copy())
    return pixels.to(job.dtype) / 255


def batches(count: int) -> list[int]:
    """Return batch sizes, powers of two: torchattacks averages the loss, which is exact for those alone."""
    sizes = [64] * (count // 64)
    return sizes + [1 << bit for bit in reversed(range(6)) if count % 64 & 1 << bit]


def predict(classifier: Classifier, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([classifier.logits(part).argmax(1) for part in x.split(batches(len(x)))])


def attacked(job: Job, name: str) -> Tensor:
    """Return the images that PGD of that name ends with, from the image itself."""
    classifier, x = network(job), images(job)
    y = predict(classifier, x)
    options: dict[str, Any] = {"steps": job.steps, "step_size": job.step_size, "random_start": False}
    call = adapted_defaults(Call(name), **options)
    check_call(call, job.norm)
    ends, sizes = [], batches(len(x))
    for part, labels, index in zip(
        x.split(sizes), y.split(sizes), torch.arange(len(x)).split(sizes), strict=True
    ):
        *_, x_adv = attack_function(call)(
            classifier.logits, part, labels, Threat(job.norm, job.eps), KeyedDraws(0, index), **options
        )
        ends.append(x_adv)
    return torch.cat(ends)


@cache
def ours(job: Job) -> Tensor:
    return attacked(job, "native:pgd")


def compare(job: Job, name: str, *, share: float) -> None:
    """Assert equal predictions everywhere, and pixels equal to 1e-6 but for a share at most."""
    if find_spec(name.partition(":")[0]) is None:
        pytest.skip(f"compares with {name}: not installed")
    classifier, theirs = network(job), attacked(job, name)
    moved = (ours(job) - images(job)).abs().amax()
    assert moved > 0.1 * job.step_size, "no pixel moved: the attack did nothing to compare"
    disagreements = int((predict(classifier, ours(job)) != predict(classifier, theirs)).sum())
    differs = ((ours(job) - theirs).abs() > 1e-6).double().mean().item()
    LOG.info("%s, %s, %d x %d: %.3f %% of the pixels", job.model, name, job.count, job.steps, 100 * differs)
    assert disagreements == 0, f"{disagreements} of {job.count} predictions differ"
    assert differs <= share, f"{differs:.3%} of the pixels differ"


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("model", MODELS)
def test_linf_agrees_to_the_pixel(model: str, name: str) -> None:
    compare(Job(model, 4, 6), name, share=1e-4)


@pytest.mark.parametrize("name", PEERS_L2)
@pytest.mark.parametrize("model", MODELS)
def test_l2_agrees_to_the_pixel(model: str, name: str) -> None:
    compare(Job(model, 4, 6, "l2"), name, share=0)


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("model", MODELS)
def test_predictions_agree_in_single_precision(model: str, name: str) -> None:
    compare(Job(model, 32, 10, dtype=torch.float32), name, share=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("model", MODELS)
def test_300_images_agree_after_40_steps(model: str, name: str) -> None:
    compare(Job(model, 300, 40), name, share=1e-3)
