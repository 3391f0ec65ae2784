"""Following the gradient where f32 has hardly any left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from robustglimpse.attacks.apgd import apgd, apgd_t
from robustglimpse.attacks.fab import fab_t
from robustglimpse.attacks.gradient import Logits, fgsm, mifgsm, pgd, slope
from robustglimpse.attacks.loss import cross_entropy, dlr, log_odds
from robustglimpse.records import Threat
from robustglimpse.rng import KeyedDraws

WEIGHT = torch.linspace(-1, 1, 192).view(3, 8, 8)


def sure(x: Tensor, gain: float) -> Tensor:
    """Two classes that differ by gain in the middle of the pixel range, and hardly by what is around it."""
    score = ((x - 0.5) * WEIGHT).flatten(1).sum(1) * 1e-12 + gain / 2
    return torch.stack([score, -score], 1)


def ascent(logits: Logits, x: Tensor, y: Tensor, **options: Any) -> Tensor:
    return slope(logits, x, y, log_odds, **options)[1]


def test_a_gradient_below_the_normal_range_keeps_its_sign() -> None:
    x, y = torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, dtype=torch.int64)
    found = ascent(lambda v: sure(v, 80.0), x, y)
    plain = x.clone().requires_grad_()
    (lost,) = torch.autograd.grad(torch.nn.functional.cross_entropy(sure(plain, 80.0), y), plain)
    assert (lost.sign() != -WEIGHT.sign()).float().mean() > 0.5, "cross-entropy has hardly a sign left"
    assert torch.equal(found[0].sign(), -WEIGHT.sign())


def test_fgsm_moves_every_pixel_of_an_image_that_the_model_is_sure_of() -> None:
    x, y = torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, dtype=torch.int64)
    draws = KeyedDraws(0, torch.arange(1))
    (x_adv,) = fgsm(lambda v: sure(v, 80.0), x, y, Threat("linf", 0.1), draws)
    torch.testing.assert_close(x_adv[0], 0.5 - 0.1 * WEIGHT.sign())


def test_half_precision_stays_in_its_range() -> None:
    x, y = torch.full((1, 3, 8, 8), 0.5, dtype=torch.float16), torch.zeros(1, dtype=torch.int64)
    assert ascent(lambda v: sure(v.float(), 0.0).half(), x, y).isfinite().all()


def test_a_loss_without_gradient_is_replaced_for_the_samples_that_lack_one() -> None:
    # The first sample's true class ranks third, where the DLR is 1 whatever the logits.
    def logits(v: Tensor) -> Tensor:
        score = (v * WEIGHT).flatten(1).sum(1)
        shift = torch.tensor([[0.0, 9.0, 8.0, -9.0], [5.0, 1.0, 0.0, -9.0]])
        return torch.stack([score, -score, 0 * score, 0 * score], 1) + shift

    x, y = torch.full((2, 3, 8, 8), 0.5), torch.zeros(2, dtype=torch.int64)
    passes = []

    def watched(v: Tensor) -> Tensor:
        passes.append(len(v))
        return logits(v)

    value, gradient = slope(watched, x, y, dlr)
    assert value[0] == 1
    assert passes == [2], "nobody is asked again: what a sample costs does not depend on its batch"
    torch.testing.assert_close(gradient[0], -2 * WEIGHT)  # of the lead: what was missing
    v = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(dlr(logits(v), y).sum(), v)
    assert not plain[0].any()
    assert torch.equal(gradient[1], plain[1]), "the other keeps its own"


def test_eot_is_the_mean_over_passes() -> None:
    x, y = torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, dtype=torch.int64)
    signs = iter([1.0, 1.0, -1.0, 1.0])

    def moody(v: Tensor) -> Tensor:
        score = (v * WEIGHT).flatten(1).sum(1) * next(signs)
        return torch.stack([score, 0 * score], 1)

    torch.testing.assert_close(ascent(moody, x, y, eot=4)[0], -WEIGHT / 2)


def test_eot_changes_nothing_where_nothing_is_random() -> None:
    x, y = torch.rand(3, 3, 8, 8), torch.zeros(3, dtype=torch.int64)
    draws = KeyedDraws(0, torch.arange(3))

    def logits(v: Tensor) -> Tensor:
        score = (v**2 * WEIGHT).flatten(1).sum(1)
        return torch.stack([score, -score, score / 2], 1)

    for attack, options in (
        (pgd, {"steps": 3, "step_size": 0.02}),
        (mifgsm, {"steps": 3, "step_size": 0.02}),
        (fgsm, {}),
        (apgd, {"steps": 6}),
        (apgd_t, {"steps": 3}),
        (fab_t, {"steps": 3}),
    ):
        once, often = (
            list(attack(logits, x, y, Threat("linf", 0.1), draws, eot=n, **options)) for n in (1, 4)
        )
        for a, b in zip(once, often, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("decay", "expected"), [(1.0, [1, 2, 3, 3]), (0.9, [1, 2, 3, 2]), (0.0, [1, 2, 1, 0])]
)
def test_momentum_is_a_decaying_sum_of_gradients_of_one_size(decay: float, expected: list[int]) -> None:
    # Of unit mean the gradients are 1, 1, -1 and -1 in every pixel: with decay 1 they add up to 1, 2, 1 and
    # 0, with 0.9 to 1, 1.9, 0.71 and -0.361.
    sizes = iter([1.0, 100.0, -1.0, -1.0])

    def logits(x: Tensor) -> Tensor:
        score = (x.sum((1, 2, 3)) - 96) * next(sizes)
        return torch.stack([-score / 2, score / 2], 1)

    x, y = torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, dtype=torch.int64)
    run = mifgsm(
        logits, x, y, Threat("linf", 0.3), KeyedDraws(0, torch.arange(1)), steps=4, step_size=0.0625,
        decay=decay,
    )  # fmt: skip
    found = [float(x_adv.mean() - 0.5) / 0.0625 for x_adv in run]
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_gradient_for_its_direction_alone_is_raised_by_a_power_of_two_into_f32s_range() -> None:
    x, y = torch.rand(3, 3, 8, 8), torch.zeros(3, dtype=torch.int64)
    sure = torch.tensor([1.0, 12.0, 40.0])[:, None]  # how far the true class leads
    faint = torch.tensor([1.0, 1e-20, 1e-38])[:, None, None, None]

    def logits(v: Tensor) -> Tensor:
        score = (v * WEIGHT * faint).flatten(1).sum(1)
        return torch.stack([-score, score], 1) + torch.cat([sure, -sure], 1) / 2

    _, sized = slope(logits, x, y, cross_entropy)
    _, raised = slope(logits, x, y, cross_entropy, is_sized=False)
    factor = (raised / sized)[:2].flatten(1)
    assert (factor == factor[:, :1]).all()
    assert torch.frexp(factor[:, 0]).mantissa.tolist() == [0.5, 0.5], "a power of two"
    tiny = torch.finfo(torch.float32).tiny
    assert (sized[2].abs() < tiny).all()
    assert (raised[2].abs() > tiny / 100).any()
    assert torch.equal(raised[2].sign(), WEIGHT.sign())
    # Never to more than a slope of log-odds: half precision holds that.
    assert float(raised[0].abs().max()) <= 4 * float(WEIGHT.abs().max())


def test_half_precision_is_not_driven_out_of_its_range() -> None:
    x, y = torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)

    def logits(v: Tensor) -> Tensor:
        score = (v.half() * WEIGHT.half()).flatten(1).sum(1)
        return torch.stack([-score, score], 1).float()

    _, gradient = slope(logits, x, y, cross_entropy, is_sized=False)
    assert (gradient.abs() > 0).all()
