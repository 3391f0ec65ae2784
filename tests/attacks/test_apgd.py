"""How Auto-PGD sets its steps, on losses written down beforehand: where it must be is worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from robustglimpse.attacks.apgd import apgd
from robustglimpse.records import Threat
from robustglimpse.rng import KeyedDraws

EPS = 0.125


def positions(
    values: Sequence[Sequence[float]], signs: Sequence[Sequence[int]], steps: int
) -> list[list[float]]:
    """Return where each sample is after each step, in eps from where it began; all pixels move alike.

    values, signs: per sample, the loss at the start and after each step, and the sign of its slope.
    """
    script = zip(torch.tensor(values).T, torch.tensor(signs).T, strict=True)

    def logits(x: Tensor) -> Tensor:
        value, sign = next(script)
        total = x.sum((1, 2, 3))
        score = value + sign * (total - total.detach())
        return torch.stack([0 * score, score], 1)

    x, y = torch.full((len(values), 3, 2, 2), 0.5), torch.zeros(len(values), dtype=torch.int64)
    draws = KeyedDraws(0, torch.arange(len(values)))
    run = apgd(logits, x, y, Threat("linf", EPS), draws, steps=steps, random_start=False)
    found = [x_adv for _, x_adv in zip(values[0], run, strict=False)]
    return [[float(x_adv[i, 0, 0, 0] - 0.5) / EPS for x_adv in found] for i in range(len(values))]


def test_steps_are_halved_where_the_loss_stops_rising() -> None:
    # Of ten steps: twice eps at first, a check after two and then after every one. A halved sample goes on
    # from its best point, a quarter of its last move goes with it. Side by side, each for itself.
    values = [
        [0, -1, -1, -0.5, -1, -0.25],  # never better than the start
        [0, -10, -9, -8, -7, -6],  # rises, but the best of the check before was as good
        [0, 1, 2, 3, 4, 5],  # better each time
        [0, 1, 2, 3, 4, 5],
    ]
    signs = [[1] * 6, [1] * 6, [1, 1, 1, -1, -1, -1], [1, 1, 1, 1, 1, 1]]
    found = positions(values, signs, 10)
    assert found[0] == pytest.approx([1, 1, 0.5, 1, 0.25, 0.6875])
    assert found[1] == pytest.approx([1, 1, 0.5, 1, 0.25, 0.6875])
    assert found[2] == pytest.approx([1, 1, 1, -0.5, -1, -1])
    assert found[3] == pytest.approx([1, 1, 1, 1, 1, 1])


def test_checks_come_when_the_source_says() -> None:
    # Nothing ever gains, so each check halves and goes back to the start: the only moves inwards.
    (found,) = positions([[0.0] * 100], [[1] * 100], 100)
    inwards = [k for k in range(1, 100) if found[k] < found[k - 1]]
    # Croce & Hein 2020, sec. 4: 0.22, then gaps that shrink by 0.03, down to 0.06, of 100 steps.
    assert inwards == [22, 41, 57, 70, 80, 87, 93, 99]
