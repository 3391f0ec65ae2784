"""PGD here against PGD in torchattacks and foolbox: the same images from the same network, sample by sample.

Needs either library (robustglimpse[torchattacks] or [foolbox]); without one its tests are skipped.
Labels are the network's own predictions, so that no sample is wrong before and all are attacked.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustglimpse.attacks.gradient import pgd
from robustglimpse.data import load_data
from robustglimpse.models import load_model, model_row, zoo
from robustglimpse.models.mgnet import Architecture, MGNet
from robustglimpse.records import Classifier, Threat, UserError
from robustglimpse.rng import KeyedDraws

# 32 and not 30: torchattacks averages the loss where we sum it, which is exact for a power of two alone.
N, STEPS = 32, 10
EPS, STEP = 4 / 255, 1 / 255
N_L2, EPS_L2, STEP_L2 = 8, 0.5, 0.1

RANDOM = {
    "random-ffnet": Architecture("resnet18", 1, "1", 10, 0.02),
    "random-mgnet": Architecture("resnet18", 3, "2", 10, 0.02),
}
BUNDLED = ("ffnet-r18", "mgnet-r18")

# foolbox imports gaussian_filter from a scipy namespace that scipy has deprecated.
foolbox_warns = pytest.mark.filterwarnings("ignore:Please import `gaussian_filter`:DeprecationWarning")


class AsModule(nn.Module):
    """A function of images as the nn.Module that both peers ask for."""

    def __init__(self, logits: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(PlainGradient.apply(x))


class PlainGradient(torch.autograd.Function):
    """The identity, whose gradient is contiguous: torchattacks' PGDL2 takes a view of it and raises else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous()


def random_network(name: str) -> tuple[MGNet, zoo.Card]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MGNet(RANDOM[name])
    return network, zoo.Card(RANDOM[name], tuple("0123456789"), 64)


def images(count: int) -> Tensor:
    return torch.from_numpy(load_data("glimpse-digits", limit=count).images.copy()).float() / 255


def predict(classifier: Classifier, x: Tensor) -> Tensor:
    with torch.no_grad():
        return classifier.logits(x).argmax(1)


def last_iterate(classifier: Classifier, x: Tensor, y: Tensor, threat: Threat, step_size: float) -> Tensor:
    draws = KeyedDraws(0, torch.arange(len(x)))
    attack = pgd(classifier.logits, x, y, threat, draws, steps=STEPS, step_size=step_size, random_start=False)
    *_, x_adv = attack
    return x_adv


Attacked = tuple[Classifier, Tensor, Tensor, Tensor]


# Asked for before the attacked images, so that nothing is computed where a peer is missing.
@pytest.fixture(scope="module")
def torchattacks() -> ModuleType:
    return pytest.importorskip("torchattacks", reason="compares with torchattacks: not installed")


@pytest.fixture(scope="module")
def foolbox() -> ModuleType:
    return pytest.importorskip("foolbox", reason="compares with foolbox: not installed")


@pytest.fixture(scope="module", params=[*RANDOM, *BUNDLED])
def linf(request: pytest.FixtureRequest) -> Attacked:
    """A classifier, images, its predictions of them and what our PGD made of them."""
    name = request.param
    if name in RANDOM:
        network, card = random_network(name)
        classifier = zoo.classifier(network, card, name=name, sha256="")
    else:
        try:
            model_row(name)
        except UserError as error:
            pytest.skip(f"the manifest has no row for it yet: {error}")
        classifier = load_model(name)
    x = images(N)
    y = predict(classifier, x)
    return classifier, x, y, last_iterate(classifier, x, y, Threat("linf", EPS), STEP)


@pytest.fixture(scope="module", params=RANDOM)
def l2(request: pytest.FixtureRequest) -> Attacked:
    """As linf, in the Euclidean norm and in double precision.

    An l2 step moves every pixel in proportion to its gradient, so f32 rounding is not hidden behind a sign:
    ten steps carry it to 5e-3 in a few pixels.  In f64 what is left of a difference is one of method.
    """
    network, card = random_network(request.param)
    classifier = zoo.classifier(network.double(), card, name=request.param, sha256="")
    x = images(N_L2).double()
    y = predict(classifier, x)
    return classifier, x, y, last_iterate(classifier, x, y, Threat("l2", EPS_L2), STEP_L2)


def assert_same(attacked: Attacked, theirs: Tensor, *, share: float) -> None:
    """Assert equal predictions everywhere and pixels equal to 1e-6, but for a share at most."""
    classifier, x, _, ours = attacked
    pred = predict(classifier, ours)
    assert (ours - x).abs().amax() > 0.9 * STEP, "no pixel moved: the attack did nothing to compare"
    assert torch.equal(pred, predict(classifier, theirs))
    differs = ((ours - theirs).abs() > 1e-6).double().mean().item()
    assert differs <= share, f"{differs:.3%} of the pixels differ"


def test_linf_agrees_with_torchattacks(torchattacks: ModuleType, linf: Attacked) -> None:
    classifier, x, y, _ = linf
    attack = torchattacks.PGD(
        AsModule(classifier.logits), eps=EPS, alpha=STEP, steps=STEPS, random_start=False
    )
    assert_same(linf, attack(x, y), share=1e-3)


@foolbox_warns
def test_linf_agrees_with_foolbox(foolbox: ModuleType, linf: Attacked) -> None:
    classifier, x, y, _ = linf
    model = foolbox.PyTorchModel(AsModule(classifier.logits).eval(), bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS, random_start=False)
    theirs = attack.run(model, x, foolbox.criteria.Misclassification(y), epsilon=EPS)
    assert_same(linf, theirs, share=1e-3)


def test_l2_agrees_with_torchattacks(torchattacks: ModuleType, l2: Attacked) -> None:
    classifier, x, y, _ = l2
    attack = torchattacks.PGDL2(
        AsModule(classifier.logits), eps=EPS_L2, alpha=STEP_L2, steps=STEPS, random_start=False
    )
    assert_same(l2, attack(x, y), share=0)


@foolbox_warns
def test_l2_agrees_with_foolbox(foolbox: ModuleType, l2: Attacked) -> None:
    classifier, x, y, _ = l2
    model = foolbox.PyTorchModel(AsModule(classifier.logits).eval(), bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.L2PGD(abs_stepsize=STEP_L2, steps=STEPS, random_start=False)
    theirs = attack.run(model, x, foolbox.criteria.Misclassification(y), epsilon=EPS_L2)
    assert_same(l2, theirs, share=0)
