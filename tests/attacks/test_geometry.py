"""Balls around images of one channel and two pixels, where every answer can be read off."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustglimpse.attacks.geometry import ROUNDING, ball, distance
from robustglimpse.records import Norm, Threat
from robustglimpse.rng import KeyedDraws

NORMS: list[Norm] = ["linf", "l2"]


def image(*pixels: float) -> Tensor:
    """One image [1,1,1,W]."""
    return torch.tensor(pixels).view(1, 1, 1, -1)


def colour(red: float, green: float, blue: float) -> Tensor:
    """One pixel of three channels [1,3,1,1]."""
    return torch.tensor([red, green, blue]).view(1, 3, 1, 1)


def test_distance_is_the_norm_of_the_difference() -> None:
    x, moved = image(0.1, 0.2), image(0.4, 0.6)
    assert distance(moved, x, Threat("linf", 1)).item() == pytest.approx(0.4)
    assert distance(moved, x, Threat("l2", 1)).item() == pytest.approx(0.5)


def test_scale_makes_distance_that_of_normalised_pixels() -> None:
    scale, delta = (0.5, 0.25, 1.0), colour(0.1, 0.1, 0.1)  # in normalised pixels: 0.2, 0.4, 0.1
    assert distance(delta, 0 * delta, Threat("linf", 1, scale)).item() == pytest.approx(0.4)
    assert distance(delta, 0 * delta, Threat("l2", 1, scale)).item() == pytest.approx(0.21**0.5)


def test_linf_projection_clamps_each_pixel_to_the_cube_and_the_bounds() -> None:
    allowed = ball(Threat("linf", 0.1), image(0.5, 0.5, 0.95, 0.02))
    found = allowed.project(image(0.9, 0.45, 2.0, -1.0))
    torch.testing.assert_close(found, image(0.6, 0.45, 1.0, 0.0))


def test_without_bounds_a_pixel_may_leave_the_valid_range() -> None:
    allowed = ball(Threat("linf", 0.1, bounds=None), image(0.95, 0.02))
    torch.testing.assert_close(allowed.project(image(2.0, -1.0)), image(1.05, -0.08))


def test_l2_projection_draws_back_to_the_sphere() -> None:
    allowed = ball(Threat("l2", 0.1), image(0.5, 0.5))
    torch.testing.assert_close(allowed.project(image(0.8, 0.9)), image(0.56, 0.58))  # 3-4-5


def test_l2_projection_leaves_the_inside_alone_and_clips_to_the_bounds() -> None:
    torch.testing.assert_close(
        ball(Threat("l2", 1), image(0.5, 0.5)).project(image(0.8, 0.9)), image(0.8, 0.9)
    )
    found = ball(Threat("l2", 0.5), image(0.9, 0.5)).project(image(1.9, 0.5))
    torch.testing.assert_close(found, image(1.0, 0.5))


def test_l2_projection_is_round_in_scaled_pixels() -> None:
    allowed = ball(Threat("l2", 0.5, (0.5, 0.25, 1.0), None), colour(0.0, 0.0, 0.0))
    # (0.3, 0.2, 0) is (0.6, 0.8, 0) when scaled: length 1, halved to 0.5.
    torch.testing.assert_close(allowed.project(colour(0.3, 0.2, 0.0)), colour(0.15, 0.1, 0.0))


def test_linf_step_follows_the_sign_by_the_scaled_size() -> None:
    allowed = ball(Threat("linf", 1, (0.5, 0.25, 1.0), None), colour(0.0, 0.0, 0.0))
    found = allowed.step(colour(0.0, 0.0, 0.0), colour(1e-9, -70.0, 0.0), 0.1)
    torch.testing.assert_close(found, colour(0.05, -0.025, 0.0))


def test_l2_step_has_the_asked_length_along_the_gradient() -> None:
    x = image(0.5, 0.5)
    torch.testing.assert_close(ball(Threat("l2", 1), x).step(x, image(30.0, -40.0), 0.1), image(0.56, 0.42))


def test_l2_step_is_the_steepest_in_scaled_pixels() -> None:
    zero = colour(0.0, 0.0, 0.0)
    allowed = ball(Threat("l2", 1, (0.5, 0.25, 1.0), None), zero)
    # Of scaled pixels the gradient (6, 16, 0) is (3, 4, 0): a unit step is (0.6, 0.8, 0), times scale.
    torch.testing.assert_close(allowed.step(zero, colour(6.0, 16.0, 0.0), 1.0), colour(0.3, 0.2, 0.0))


@pytest.mark.parametrize("norm", NORMS)
def test_no_gradient_is_no_step(norm: Norm) -> None:
    x = image(0.3, 0.7)
    assert torch.equal(ball(Threat(norm, 1), x).step(x, image(0.0, 0.0), 0.1), x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [None, (0.229, 0.224, 0.225)])
def test_projection_lands_in_the_ball_and_stays_there(norm: Norm, scale: tuple[float, ...] | None) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, 3, 4, 4, generator=generator)
    threat = Threat(norm, 0.3, scale, None)  # type: ignore[arg-type]
    far = x + torch.randn(64, 3, 4, 4, generator=generator)
    assert float(distance(far, x, threat).min()) > 0.3
    near = ball(threat, x).project(far)
    torch.testing.assert_close(distance(near, x, threat), torch.full((64,), 0.3), atol=ROUNDING, rtol=0)
    torch.testing.assert_close(ball(threat, x).project(near), near)


def test_linf_starts_are_uniform_in_the_box_that_is_left() -> None:
    x = image(0.5, 1.0).expand(4000, -1, -1, -1)  # boxes [0.4, 0.6] and, cut at 1, [0.9, 1]
    starts = ball(Threat("linf", 0.1), x).random_start(KeyedDraws(0, torch.arange(4000)))
    low, high = starts.amin((0, 1, 2)), starts.amax((0, 1, 2))
    torch.testing.assert_close(low, torch.tensor([0.4, 0.9]), atol=1e-3, rtol=0)
    torch.testing.assert_close(high, torch.tensor([0.6, 1.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(starts.mean((0, 1, 2)), torch.tensor([0.5, 0.95]), atol=5e-3, rtol=0)


def test_l2_starts_are_uniform_in_the_disc() -> None:
    x = image(0.5, 0.5).expand(4000, -1, -1, -1)
    starts = ball(Threat("l2", 0.1), x).random_start(KeyedDraws(0, torch.arange(4000)))
    radius = distance(starts, x, Threat("l2", 0.1))
    assert 0.0995 < float(radius.max()) <= 0.1 + 1e-6
    # Half of a disc's area lies within eps / sqrt(2); four standard errors of a share are 0.03.
    assert float((radius < 0.1 / 2**0.5).float().mean()) == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(starts.mean((0, 1, 2)), torch.tensor([0.5, 0.5]), atol=4e-3, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_kept_samples_keep_their_ball(norm: Norm) -> None:
    x, keep = torch.rand(6, 3, 2, 2), torch.tensor([True, False, True, False, False, True])
    whole, draws = ball(Threat(norm, 0.1), x), KeyedDraws(0, torch.arange(6))
    torch.testing.assert_close(whole[keep].random_start(draws[keep]), whole.random_start(draws)[keep])
    torch.testing.assert_close(whole[keep].project(0 * x[keep]), whole.project(0 * x)[keep])


@pytest.mark.parametrize("eps", [-0.1, float("nan"), float("inf")])
def test_a_radius_that_is_none_is_refused(eps: float) -> None:
    with pytest.raises(ValueError, match="eps must be finite"):
        Threat("linf", eps)


@pytest.mark.parametrize("share", [1e-30, 1e-20, 1e20])
def test_an_l2_step_has_its_length_however_small_the_gradient(share: float) -> None:
    allowed = ball(Threat("l2", 1.0, bounds=None), torch.zeros(2, 3, 4, 4))
    gradient = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    step = allowed.step(torch.zeros(2, 3, 4, 4), gradient * share, 0.5)
    torch.testing.assert_close(step.flatten(1).norm(dim=1), torch.full((2,), 0.5))
    torch.testing.assert_close(step, allowed.step(torch.zeros(2, 3, 4, 4), gradient, 0.5))
