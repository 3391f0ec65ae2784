"""FAB's step to a hyperplane against the exact answer, and the attack where the distance is known."""

from __future__ import annotations

import pytest
import torch

from robustglimpse.attacks.fab import boundary_step
from robustglimpse.records import Norm, Threat


def draw(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(5, 3, 4, 4, generator=generator), torch.randn(5, 3, 4, 4, generator=generator)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_bounds_the_step_is_the_dual_norms(norm: Norm, sign: int) -> None:
    x, gradient = draw()
    missing = sign * torch.arange(1.0, 6)
    step = boundary_step(x, missing, gradient, Threat(norm, 1, bounds=None))
    torch.testing.assert_close((step * gradient).sum((1, 2, 3)), missing)
    flat, dual = step.flatten(1), gradient.flatten(1)
    size, expected = (
        (flat.abs().amax(1), missing.abs() / dual.abs().sum(1))
        if norm == "linf"
        else (flat.norm(dim=1), missing.abs() / dual.norm(dim=1))
    )
    torch.testing.assert_close(size, expected)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_inside_the_bounds_no_shorter_step_arrives(norm: Norm) -> None:
    x, gradient = draw(1)
    missing = torch.tensor([0.5, -3.0, 4.0, -2.0, 5.0])
    step = boundary_step(x, missing, gradient, Threat(norm, 1))
    assert (x + step).min() >= -1e-6
    assert (x + step).max() <= 1 + 1e-6
    torch.testing.assert_close((step * gradient).sum((1, 2, 3)), missing, rtol=1e-4, atol=1e-4)
    # Optimality: a pixel with room left moves as far as the norm's rule says, and no pixel moves farther.
    for one, slope, pixels in zip(step.flatten(1), gradient.flatten(1), x.flatten(1), strict=True):
        has_room = ((pixels + one) > 1e-5) & ((pixels + one) < 1 - 1e-5)
        level = one.abs() if norm == "linf" else one.abs() / slope.abs()
        torch.testing.assert_close(level[has_room], level[has_room][:1].expand(int(has_room.sum())))
        assert (level[~has_room] <= level[has_room][0] + 1e-5).all()


def test_what_cannot_be_reached_is_gone_towards_as_far_as_there_is_room() -> None:
    x, gradient = draw(2)
    step = boundary_step(x, torch.full((5,), 1e6), gradient, Threat("linf", 1))
    assert torch.equal((x + step) > 0.5, gradient > 0)
    assert ((x + step).abs() < 1e-6).logical_or((x + step - 1).abs() < 1e-6).all()


def test_a_flat_function_is_no_direction() -> None:
    x, gradient = draw()
    step = boundary_step(x, torch.ones(5), torch.zeros_like(gradient), Threat("linf", 1))
    assert not step.any()


def test_channel_scales_measure_the_step() -> None:
    x, gradient = draw()
    threat = Threat("linf", 1, scale=(1.0, 2.0, 0.5), bounds=None)
    step = boundary_step(x, torch.ones(5), gradient, threat)
    sizes = step.abs().amax((0, 2, 3)) / torch.tensor(threat.scale)
    torch.testing.assert_close(sizes, sizes[:1].expand(3))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_pixel_that_nobody_reads_stops_nothing(norm: Norm) -> None:
    x, gradient = draw(2)
    gradient[:, 0, 0, 0] = 0
    seen = gradient != 0
    for missing in (1.0, 1e3, 1e6):
        step = boundary_step(x, torch.full((5,), missing), gradient, Threat(norm, 1))
        gained = (step * gradient).sum((1, 2, 3))
        most = torch.where(gradient > 0, (1 - x) * gradient, -x * gradient).sum((1, 2, 3))
        torch.testing.assert_close(gained, most.clamp_max(missing), rtol=1e-4, atol=1e-4)
    assert not step[~seen].any()
