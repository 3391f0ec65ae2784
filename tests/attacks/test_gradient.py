"""Following the gradient where f32 has hardly any left."""

from __future__ import annotations

import torch
from torch import Tensor

from robustglimpse.attacks.gradient import fgsm, input_gradient
from robustglimpse.records import Threat
from robustglimpse.rng import KeyedDraws

WEIGHT = torch.linspace(-1, 1, 192).view(3, 8, 8)


def sure(x: Tensor, gain: float) -> Tensor:
    """Two classes that differ by gain in the middle of the pixel range, and hardly by what is around it."""
    score = ((x - 0.5) * WEIGHT).flatten(1).sum(1) * 1e-12 + gain / 2
    return torch.stack([score, -score], 1)


def test_a_gradient_below_the_normal_range_keeps_its_sign() -> None:
    x, y = torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, dtype=torch.int64)
    found = input_gradient(lambda v: sure(v, 80.0), x, y)
    plain = x.clone().requires_grad_()
    (lost,) = torch.autograd.grad(torch.nn.functional.cross_entropy(sure(plain, 80.0), y), plain)
    assert (lost.sign() != -WEIGHT.sign()).float().mean() > 0.5, "without raising it there is hardly a sign"
    assert torch.equal(found[0].sign(), -WEIGHT.sign())


def test_fgsm_moves_every_pixel_of_an_image_that_the_model_is_sure_of() -> None:
    x, y = torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, dtype=torch.int64)
    draws = KeyedDraws(0, torch.arange(1))
    (x_adv,) = fgsm(lambda v: sure(v, 80.0), x, y, Threat("linf", 0.1), draws)
    torch.testing.assert_close(x_adv[0], 0.5 - 0.1 * WEIGHT.sign())


def test_half_precision_is_not_raised_out_of_its_range() -> None:
    x, y = torch.full((1, 3, 8, 8), 0.5, dtype=torch.float16), torch.zeros(1, dtype=torch.int64)
    assert input_gradient(lambda v: sure(v.float(), 0.0).half(), x, y).isfinite().all()
