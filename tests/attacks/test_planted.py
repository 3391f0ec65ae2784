"""Networks with an adversarial planted where it is known, and networks that hide it from gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hand_made import NORMALISATION, attacked, classifier_of
from torch import Tensor
from torch.nn import functional as F

from robustglimpse.attacks import ATTACKS, options_of
from robustglimpse.attacks.loss import LOSSES
from robustglimpse.records import Batch, Classifier, Norm, Threat
from robustglimpse.registry import Call, parse_call

Logits = Callable[[Tensor], Tensor]
Lead = Callable[[Tensor, Tensor], Tensor]
N, SIZE, CLASSES = 12, 8, 10
UNIT = 1 / 255  # of the perturbations below, in pixels
# Two patterns, left against right in the upper and in the lower half.  An image that is its own mirror image
# has no share of either; adding UNIT times a pattern makes its share 1.
HALVES = torch.tensor([1.0] * 4 + [-1.0] * 4).expand(3, SIZE, SIZE)
UPPER = HALVES * (torch.arange(SIZE) < 4)[:, None]
LOWER = HALVES - UPPER
PIXELS = float(UPPER.abs().sum())

CALLS: dict[str, dict[str, Any]] = {
    "apgd": {"steps": 20},
    "apgd_t": {"steps": 20, "targets": 3},
    "fab_t": {"steps": 20, "targets": 3},
    "square": {"steps": 500, "rescale": False},  # small squares come too soon for a pattern of large ones
}
# How far out a search by scores is asked for. In L2 Square moves bumps, of which the patterns are no sum.
BREAKS_AT: dict[Norm, float] = {"linf": 1.5, "l2": 3.0}


def call_of(name: str, eps: float, **options: Any) -> str:
    """Return the call of an attack; one that is not in CALLS has its defaults, or 20 steps of eps / 5."""
    steps = {"steps": 20, "step_size": eps / 5} if ATTACKS[name].iterative else {}
    return str(Call(name, tuple({**steps, **CALLS.get(name, {}), **options}.items())))


@pytest.fixture(autouse=True)
def _short_autoattack(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ATTACKS["autoattack"]
    calls = map(parse_call, row.parts)
    parts = tuple(call_of(call.name, 0, **dict(call.arguments)) for call in calls)
    monkeypatch.setitem(ATTACKS, "autoattack", replace(row, parts=parts))


def pairs(names: list[str]) -> pytest.MarkDecorator:
    """Every named attack in each of its norms."""
    return pytest.mark.parametrize(
        ("name", "norm"), [(name, norm) for name in names for norm in ATTACKS[name].norms]
    )


GRADIENTS = [name for name, row in ATTACKS.items() if row.needs == "gradients"]
SCORES = [name for name, row in ATTACKS.items() if "scores" in row.needs]
assert {*GRADIENTS, *SCORES} == set(ATTACKS)


def shares(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return how much of either pattern x [B,3,8,8] has, [B] each."""
    upper, lower = ((x * pattern).flatten(1).sum(1) / (PIXELS * UNIT) for pattern in (UPPER, LOWER))
    return upper, lower


def radius(p: Tensor, q: Tensor, norm: Norm) -> Tensor:
    """Return the size of the smallest perturbation that has the shares p and q."""
    return UNIT * (torch.maximum(p.abs(), q.abs()) if norm == "linf" else (PIXELS * (p**2 + q**2)).sqrt())


@cache
def nearest(lead: Lead, norm: Norm) -> tuple[float, float, float]:
    """Return the shares of the smallest perturbation for which lead is above 0, and its size.

    Read off a grid of 0.005.
    """
    grid = torch.linspace(-2, 2, 801, dtype=torch.float64)
    p, q = (axis.flatten() for axis in torch.meshgrid(grid, grid, indexing="ij"))
    sizes = torch.where(lead(p, q) > 1e-3, radius(p, q, norm), torch.inf)
    at = int(sizes.argmin())
    return float(p[at]), float(q[at]), float(sizes[at])


def distance_to(lead: Lead, norm: Norm) -> float:
    return nearest(lead, norm)[2]


FIRST = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
LAST = torch.randn(CLASSES, 16, generator=torch.Generator().manual_seed(1))


def random_network(x: Tensor) -> Tensor:
    """Return the logits [B,10] of a network of random weights that looks at the mean colour."""
    return torch.relu((x.mean((2, 3)) - 0.5) @ FIRST.T) @ LAST.T


def planted(lead: Lead) -> Logits:
    """Return the random network with its likeliest class read out anew: 10 times -lead above the next one.

    Where that class stays the likeliest, its margin depends on an image's shares alone.
    """

    def logits(x: Tensor) -> Tensor:
        plain = random_network(x)
        following = plain.topk(2, 1).values[:, 1]
        read_out = following - 10 * lead(*shares(x))
        return plain.scatter(1, plain.argmax(1, keepdim=True), read_out[:, None])

    return logits


@cache
def images() -> Batch:
    """Return mirror images whose likeliest class under the random network no perturbation here changes."""
    generator = torch.Generator().manual_seed(1)
    cast = torch.randint(20, 140, (4000, 3, 1, 1), generator=generator)
    half = cast + torch.randint(0, 90, (4000, 3, SIZE, SIZE // 2), generator=generator)
    pixels = torch.cat([half, half.flip(3)], 3).to(torch.uint8)
    plain = random_network(pixels / 255)
    y = plain.argmax(1)
    # How fast each logit can come nearer to each other one, per change of the mean colours: an upper bound.
    speed = ((LAST[:, None] - LAST).abs() * FIRST.abs().sum(1)).sum(2)
    reach = max(BREAKS_AT["linf"] * UNIT, BREAKS_AT["l2"] * UNIT * (2 * PIXELS) ** 0.5 / SIZE)
    is_safe = plain.gather(1, y[:, None]) - plain >= speed[y] * reach
    rows = is_safe.all(1).nonzero()[:N, 0]
    assert len(rows) == N
    assert len(y[rows].unique()) > 2
    return Batch(pixels[rows], y[rows], torch.arange(N))


def network(logits: Logits) -> Classifier:
    return classifier_of(logits, CLASSES)


def count_fooled(model: Classifier, name: str, norm: Norm, eps: float) -> int:
    columns = attacked(model, images(), call_of(name, eps), Threat(norm, eps))
    assert columns["first_success_step"].all(), "none is wrong before"
    return int((columns["first_success_step"] > 0).sum())


def saddle(p: Tensor, q: Tensor) -> Tensor:
    """Above 0 where both shares are large, but its slope at no shares leads away from the second."""
    return p - 0.3 * q + 2 * p * q - 2.4


def ramp(p: Tensor, q: Tensor) -> Tensor:
    return p + q - 1.5


def two_hills(p: Tensor, q: Tensor) -> Tensor:
    """A low hill that the slope at no shares leads up to, beyond a valley at 0.03 one that is high enough."""
    return torch.where(p < 0.03, -0.5 - (p + 0.6) ** 2, -0.8969 + 1.5 * (p - 0.03)) + 0 * q


@pytest.mark.parametrize("lead", [saddle, ramp, two_hills])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_planted_image_is_adversarial_and_at_its_distance(norm: Norm, lead: Lead) -> None:
    batch = images()
    p, q, distance = nearest(lead, norm)
    x = batch.images / 255
    delta = UNIT * (p * UPPER + q * LOWER)
    size = delta.abs().max() if norm == "linf" else delta.norm()
    assert float(size) == pytest.approx(distance, rel=1e-5)
    model = network(planted(lead))
    assert (model.logits(x + delta).argmax(1) != batch.labels).all()
    assert (model.logits(x + 0.97 * delta).argmax(1) == batch.labels).all()
    assert 0.5 * UNIT < distance / (1 if norm == "linf" else PIXELS**0.5) < 1.5 * UNIT


@pairs(list(ATTACKS))
def test_every_attack_breaks_a_planted_network_and_none_sooner(name: str, norm: Norm) -> None:
    model, distance = network(planted(saddle)), distance_to(saddle, norm)
    row = ATTACKS[name]
    if not row.parts:  # they are in the table
        assert count_fooled(model, name, norm, 0.97 * distance) == 0
    if row.step_is_eps:  # its one step follows a slope that turns on the way
        assert count_fooled(model, name, norm, 1.05 * distance) == 0
        assert count_fooled(network(planted(ramp)), name, norm, 1.05 * distance_to(ramp, norm)) == N
    elif row.needs == "scores":
        assert count_fooled(model, name, norm, BREAKS_AT[norm] * distance) == N
    else:
        assert count_fooled(model, name, norm, 1.05 * distance) == N


@pairs([name for name, row in ATTACKS.items() if row.iterative])
def test_an_iterate_on_the_way_counts(name: str, norm: Norm) -> None:
    # The second class wins for shares of 0.36 to 0.64. The loss goes on rising as the others come up, to
    # just below the first: the last iterate is right.
    def logits(x: Tensor) -> Tensor:
        p, _ = shares(x)
        plain = random_network(x)
        others = (-4 + 3.98 * p)[:, None].expand_as(plain)
        order = plain.argsort(1, descending=True)
        second = 0.3 - 15 * (p - 0.5) ** 2
        return others.scatter(1, order[:, :2], torch.stack([0 * p, second], 1))

    eps = float(UNIT / np.mean(NORMALISATION[1])) if norm == "linf" else 0.95 * UNIT * PIXELS**0.5
    eps /= 1 if norm == "linf" else float(np.mean(NORMALISATION[1]))
    call = call_of(name, eps, steps=20, step_size=eps / 8)
    columns = attacked(network(logits), images(), call, Threat(norm, eps), protocol="paper")
    assert (columns["pred_at_20"] == columns["label"]).all()
    assert (columns["first_success_step"] > 0).all()


@pairs(["pgd"])  # the first steps of APGD, of twice eps, may carry it across the valley at once
def test_restarts_find_what_one_start_misses(name: str, norm: Norm) -> None:
    model, batch = network(planted(two_hills)), images()
    eps = 1.05 * distance_to(two_hills, norm)
    falls = []
    for restarts in (1, 30):
        columns = attacked(model, batch, call_of(name, eps), Threat(norm, eps), restarts=restarts)
        falls.append(columns["first_success_step"] > 0)
    assert not falls[0].all()
    assert falls[1].all()


@pairs([name for name, row in ATTACKS.items() if row.may_leave and not row.parts])
def test_a_minimal_norm_attack_ends_beside_the_planted_image(name: str, norm: Norm) -> None:
    # In as many steps, steps that the image does not draw to itself end 4.5 % beyond in linf.
    call = call_of(name, 0, steps=20)
    columns = attacked(network(planted(saddle)), images(), call, Threat(norm, UNIT / 100))
    assert (columns["first_success_step"] == -1).all(), "nobody leaves early"
    share = columns["nearest"] / distance_to(saddle, norm)
    assert share.min() > 0.99
    assert share.max() < 1.03


def decoy(x: Tensor) -> Tensor:
    """The third class wins for a share above 0.95; the second, likelier at first, rises the other way."""
    p, _ = shares(x)
    plain = random_network(x)
    order = plain.argsort(1, descending=True)[:, :3]
    return (0 * plain - 9).scatter(1, order, torch.stack([0 * p, -0.5 - 0.3 * p, -4 + 4.2 * p], 1))


@pairs([name for name, row in ATTACKS.items() if "targets" in options_of(row)])
def test_targets_find_what_the_likeliest_wrong_class_hides(name: str, norm: Norm) -> None:
    batch, eps = images(), 1.05 * UNIT * (1 if norm == "linf" else PIXELS**0.5)

    def steps_of_success(call: str) -> list[int]:
        columns = attacked(network(decoy), batch, call, Threat(norm, eps))
        steps: list[int] = columns["first_success_step"].tolist()
        return steps

    assert set(steps_of_success(call_of("pgd", eps))) == {-1}
    assert set(steps_of_success(call_of(name, eps, targets=1))) == {-1}
    steps = {**options_of(ATTACKS[name]), **CALLS.get(name, {})}["steps"]
    assert min(steps_of_success(call_of(name, eps, targets=2))) > steps


def quantised(x: Tensor) -> Tensor:
    return planted(ramp)((x * 255).round() / 255)


def severed(x: Tensor) -> Tensor:
    return planted(ramp)(x.detach())


def misled(x: Tensor) -> Tensor:
    """The branch that decides is detached; a live one that adds 0 leads to where nothing is."""
    aside = (x * UPPER.abs() - x * LOWER.abs()).flatten(1).sum(1) / (PIXELS * UNIT)
    return planted(lambda p, q: ramp(p.detach(), q.detach()) + 3 * (aside - aside.detach()))(x)


def shattered(x: Tensor) -> Tensor:
    ripple = torch.sin(1e7 * x).flatten(1).mean(1)
    return planted(lambda p, q: ramp(p, q) + 0.1 * ripple)(x)


MASKED = [quantised, severed, misled, shattered]


@pytest.mark.parametrize("logits", MASKED)
@pairs(GRADIENTS)
def test_gradients_fail_on_a_network_that_hides_them(name: str, norm: Norm, logits: Logits) -> None:
    batch = images()
    eps = BREAKS_AT[norm] * distance_to(ramp, norm)
    columns = attacked(network(logits), batch, call_of(name, eps), Threat(norm, eps))
    assert (columns["first_success_step"] == -1).all()
    assert (columns["backwards"] > 0).all()
    flat = columns["zero_gradients"]
    assert (flat == (columns["backwards"] if logits in (quantised, severed) else 0)).all(), "the flag"


@pytest.mark.parametrize("logits", MASKED)
@pairs(SCORES)
def test_scores_break_a_network_that_hides_its_gradients(name: str, norm: Norm, logits: Logits) -> None:
    assert count_fooled(network(logits), name, norm, BREAKS_AT[norm] * distance_to(ramp, norm)) == N


def sure(x: Tensor) -> Tensor:
    return 1000 * planted(ramp)(x)


@pairs(list(ATTACKS))
def test_logits_times_1000_are_broken_as_the_plain_ones(name: str, norm: Norm) -> None:
    distance = distance_to(ramp, norm)
    share = BREAKS_AT[norm] if ATTACKS[name].needs == "scores" else 1.05
    assert count_fooled(network(sure), name, norm, share * distance) == N


@pairs([name for name in ATTACKS if dict(options_of(ATTACKS[name])).get("loss") == "ce"])
def test_plain_cross_entropy_cannot_break_logits_times_1000(
    name: str, norm: Norm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOSSES, "ce", lambda logits, y: F.cross_entropy(logits, y, reduction="none"))
    eps = 1.05 * distance_to(ramp, norm)
    columns = attacked(network(sure), images(), call_of(name, eps), Threat(norm, eps))
    assert (columns["first_success_step"] == -1).all()
    assert (columns["zero_gradients"] == columns["backwards"]).all()
    assert (columns["backwards"] > 0).all()
    plain = attacked(network(planted(ramp)), images(), call_of(name, eps), Threat(norm, eps))
    assert (plain["first_success_step"] > 0).all(), "it is no weak attack otherwise"
