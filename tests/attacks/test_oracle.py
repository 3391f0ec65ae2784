"""Every attack of the table against a linear model, whose exact distances are worked out beside it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hand_made import SIZE, anisotropic_weight, attacked, batch_of, linear, random_batch
from numpy.typing import NDArray

from robustglimpse.attacks import ATTACKS, options_of
from robustglimpse.attacks.gradient import slope
from robustglimpse.attacks.loss import LOSSES, Objective, targeted_dlr, targeted_lead
from robustglimpse.evaluate import Columns
from robustglimpse.records import Batch, Classifier, Norm, Threat
from robustglimpse.registry import parse_call

Array = NDArray[Any]
# free: the box is far away.  boxed: dark images, most pixels run out of room before.  normalised: the ball
# lives in normalised pixels, channels differ in scale and there is no box (the protocol of MGNet's authors).
World = Literal["free", "boxed", "normalised"]
WORLDS: list[World] = ["free", "boxed", "normalised"]
NORMS: list[Norm] = ["linf", "l2"]
N = 32
SCALE = (0.1, 0.2, 0.4)  # of the channels, in the normalised world
WEIGHT = anisotropic_weight()
ABOUT: dict[World, dict[Norm, float]] = {
    "free": {"linf": 0.05, "l2": 0.4},
    "boxed": {"linf": 0.05, "l2": 0.6},
    "normalised": {"linf": 0.2, "l2": 1.6},
}
# Calls that are not run with their defaults and 40 steps of an eighth of eps, {step}.
CALLS = {
    "pgd": ("pgd(steps=100, step_size={step})", "pgd(steps=100, step_size={step}, loss='margin')"),
    "apgd": ("apgd(steps=40)", "apgd(steps=40, loss='dlr')"),
    "apgd_t": ("apgd_t(steps=40)",),
    "fab_t": ("fab_t(steps=10)",),
    "square": ("square(steps={queries})",),
}
SHORT_PARTS = ("apgd(steps=20)", "apgd_t(steps=20)", "fab_t(steps=10)", "square(steps=20)")
# A search by scores alone: at so many times the distance it is to fool nine images of ten. In L2 Square moves
# bumps of three by three pixels and more, which no weights that differ from pixel to pixel are like.
SCORES_SHARE: dict[Norm, float] = {"linf": 1.5, "l2": 2.5}
SQUARE_QUERIES: dict[Norm, int] = {"linf": 1000, "l2": 500}


def calls() -> list[str]:
    found: list[str] = []
    for name, row in ATTACKS.items():
        found += CALLS.get(name, (f"{name}(steps=40, step_size={{step}})" if row.iterative else name,))
    return found


def exact_distance(weight: Array, score: Array, room: Array, norm: Norm) -> Array:
    """Return how far each image is from where its score is 0, f64 [N].

    weight: f64 [D].  score: f64 [N], above 0.  room: f64 [N,D], how far a pixel can go against weight.
    The nearest such image moves pixel i by min(t * rate_i, room_i), of one t (the multiplier of the
    constraint); what that takes off the score rises with t, which is bisected.
    """
    rate = np.ones_like(weight) if norm == "linf" else np.abs(weight)
    low, high = np.zeros(len(score)), np.full(len(score), 1e3)
    for _ in range(60):
        t = (low + high) / 2
        is_short = np.minimum(t[:, None] * rate, room) @ np.abs(weight) < score
        low, high = np.where(is_short, t, low), np.where(is_short, high, t)
    moved = np.minimum(high[:, None] * rate, room)
    return moved.max(1) if norm == "linf" else np.linalg.norm(moved, axis=1)


@cache
def candidates(world: World, norm: Norm) -> tuple[Classifier, Batch, Array]:
    """Return a linear model, images, and their exact distances f64 [B] from its boundary."""
    batch = random_batch(4000, *((0, 12) if world == "boxed" else (100, 156)))
    x = batch.images.flatten(1).numpy() / 255
    weight = WEIGHT.double().flatten().numpy()
    scale = np.repeat(SCALE, SIZE * SIZE) if world == "normalised" else np.ones_like(weight)
    room = np.where(weight > 0, x, 1 - x) if world == "boxed" else np.full_like(x, np.inf)
    # A bias that puts the typical image at about the wanted distance.
    step = np.ones_like(weight) if norm == "linf" else np.abs(weight * scale)
    step *= ABOUT[world][norm] / (1 if norm == "linf" else np.linalg.norm(step))
    bias = float(np.median(np.minimum(step, room / scale) @ np.abs(weight * scale) - x @ weight))
    score = x @ weight + bias
    far = exact_distance(weight * scale, score.clip(0), room / scale, norm)
    return linear(WEIGHT, bias), batch, far


@cache
def at_distance(world: World, norm: Norm) -> tuple[Classifier, Batch, float]:
    """Return a linear model, N images within 0.5 % of one distance from its boundary, and that distance."""
    model, batch, far = candidates(world, norm)
    distance = float(np.median(far))
    off = np.abs(far / distance - 1)
    rows = torch.from_numpy(off.argsort()[:N])
    assert off[rows].max() < 0.005
    return model, batch_of(batch.images[rows], batch.labels[rows]), distance


def attack(model: Classifier, batch: Batch, call: str, threat: Threat, world: World) -> Columns:
    protocol = "paper" if world == "normalised" else "standard"
    return attacked(model, batch, call, threat, protocol=protocol, normalisation=(SCALE, SCALE))


def fooled(call: str, world: World, norm: Norm, share: float) -> int:
    model, batch, distance = at_distance(world, norm)
    eps = share * distance
    call = call.format(step=eps / 8, queries=SQUARE_QUERIES[norm] if share > 1 else 100)
    columns = attack(model, batch, call, Threat(norm, eps), world)
    assert columns["first_success_step"].all(), "some are wrong before"
    return int((columns["first_success_step"] > 0).sum())


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("call", calls())
def test_attacks_reach_the_exact_distance_and_no_further(
    call: str, norm: Norm, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ATTACKS, "autoattack", replace(ATTACKS["autoattack"], parts=SHORT_PARTS))
    row = ATTACKS[parse_call(call.format(step=0, queries=1)).name]
    assert fooled(call, world, norm, 0.98) == 0
    if row.needs == "scores":
        assert fooled(call, world, norm, SCORES_SHARE[norm]) >= 0.9 * N
    elif not (row.step_is_eps and (norm, world) == ("l2", "boxed")):  # its own test is below
        assert fooled(call, world, norm, 1.02) == N


@pytest.mark.parametrize("norm", NORMS)
def test_the_box_is_in_the_way(norm: Norm) -> None:
    model, batch, distance = at_distance("boxed", norm)
    dual = WEIGHT.abs().sum() if norm == "linf" else WEIGHT.norm()
    without = model.logits(batch.images / 255)[:, 1] / dual
    assert (without < 0.95 * distance).all(), "or an attack that ignores the box would pass as well"


def test_one_long_step_in_l2_loses_what_the_box_cuts_off() -> None:
    # FGSM goes eps along the gradient and is clipped, so it arrives late; when is worked out by hand.
    model, batch, _ = candidates("boxed", "l2")
    _, _, distance = at_distance("boxed", "l2")
    x, weight = batch.images.double() / 255, WEIGHT.double()
    score = model.logits(x.float())[:, 1].double()
    shares = []
    for eps in (1.02 * distance, 1.15 * distance):
        end = (x - eps * weight / weight.norm()).clamp(0, 1)
        gone = ((x - end) * weight).flatten(1).sum(1)
        is_clear = ((gone - score).abs() > 1e-4) & (score > 0)
        columns = attacked(model, batch, "fgsm", Threat("l2", eps))
        is_fooled = torch.from_numpy(columns["first_success_step"] > 0)
        assert torch.equal(is_fooled[is_clear], (gone > score)[is_clear])
        shares.append(float(is_fooled.float().mean()))
    assert shares[0] < 0.02, "within 2 % of the distance the other attacks are through"
    assert 0.2 < shares[1] < 0.9


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("norm", NORMS)
def test_the_nearest_image_of_a_minimal_norm_attack_is_at_the_exact_distance(
    norm: Norm, world: World
) -> None:
    model, batch, far = candidates(world, norm)
    batch, far = batch_of(batch.images[:256], batch.labels[:256]), far[:256]
    threat = Threat(norm, 1e-4)  # nobody falls, so everyone goes to the end
    names = [name for name, row in ATTACKS.items() if row.may_leave and not row.parts]
    assert names
    for name in names:
        steps = "(steps=10)" if "steps" in options_of(ATTACKS[name]) else ""
        columns = attack(model, batch, f"{name}{steps}", threat, world)
        is_right = far > 1e-4
        assert (columns["first_success_step"][is_right] == -1).all()
        share = columns["nearest"][is_right] / far[is_right]
        assert share.min() > 1 - 1e-3
        assert share.max() < 1.01
        assert (columns["nearest"][columns["clean_pred"] == 0] == 0).all(), "wrong where it stands"


def tiny_network(x: torch.Tensor) -> torch.Tensor:
    """Five classes of images of any size, f64, smooth."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(8, 3, 3, 3, generator=generator, dtype=x.dtype)
    last = torch.randn(8, 5, generator=generator, dtype=x.dtype)
    return torch.tanh(torch.conv2d(x, first)).mean((2, 3)) @ last


OBJECTIVES: dict[str, Objective] = {**LOSSES, "targeted_lead": targeted_lead, "targeted_dlr": targeted_dlr}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_gradient_is_that_of_finite_differences(objective: str) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(6, 3, 5, 7, generator=generator, dtype=torch.float64)
    labels = tiny_network(x).argmax(1)  # as in an attack; DLR is flat where the label ranks third
    if objective.startswith("targeted"):
        labels = torch.stack([labels, (labels + 2) % 5], 1)
    _, gradient = slope(tiny_network, x, labels, OBJECTIVES[objective])
    for _ in range(5):
        way = torch.randn(x.shape, generator=generator, dtype=x.dtype) * 1e-6
        ahead, behind = (OBJECTIVES[objective](tiny_network(x + sign * way), labels) for sign in (1, -1))
        torch.testing.assert_close((gradient * way).sum((1, 2, 3)), (ahead - behind) / 2, rtol=1e-5, atol=0)
