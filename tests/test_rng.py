"""Random numbers belong to a sample: the same in any batch, others for any other name."""

from __future__ import annotations

import pytest
import torch

from robustglimpse.rng import KeyedDraws

SHAPE = (3, 4, 4)
ALL = KeyedDraws(7, torch.arange(10), "restart 0")


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_a_sample_draws_the_same_bits_in_any_batch_and_order(kind: str) -> None:
    whole = getattr(ALL, kind)("start", SHAPE)
    for index in [3, 4, 5], [9, 0, 3], [6]:
        part = getattr(KeyedDraws(7, torch.tensor(index), "restart 0"), kind)("start", SHAPE)
        assert torch.equal(part, whole[index])


@pytest.mark.parametrize(
    "other, label",
    [
        (KeyedDraws(8, ALL.index, ALL.stream), "start"),
        (KeyedDraws(7, ALL.index, "restart 1"), "start"),
        (KeyedDraws(7, ALL.index + 10, ALL.stream), "start"),
        (ALL, "radius"),
    ],
    ids=["seed", "stream", "index", "label"],
)
def test_another_name_draws_other_numbers(other: KeyedDraws, label: str) -> None:
    assert not torch.isclose(other.uniform(label, SHAPE), ALL.uniform("start", SHAPE)).all(dim=1).any()


def test_samples_differ_from_each_other() -> None:
    assert len(ALL.uniform("start", SHAPE).flatten(1).unique(dim=0)) == 10


def test_asking_twice_gives_the_same_numbers_twice() -> None:
    assert torch.equal(ALL.normal("start", SHAPE), ALL.normal("start", SHAPE))


@pytest.mark.parametrize("keep", [torch.arange(10) % 3 == 0, torch.tensor([0, 3, 6, 9])])
def test_kept_samples_keep_their_numbers(keep: torch.Tensor) -> None:
    assert torch.equal(ALL[keep].uniform("start", SHAPE), ALL.uniform("start", SHAPE)[keep])
    assert ALL[keep].stream == ALL.stream


def test_a_longer_draw_begins_with_the_shorter_one() -> None:
    assert torch.equal(ALL.uniform("start", (8,))[:, :5], ALL.uniform("start", (5,)))


def test_uniform_fills_its_interval() -> None:
    numbers = KeyedDraws(0, torch.arange(100)).uniform("start", (1000,), -2, 4)
    assert numbers.dtype == torch.float32
    assert -2 <= float(numbers.min()) < -1.999
    assert 3.999 < float(numbers.max()) <= 4
    # 1e5 numbers: the mean's standard error is 6 / sqrt(12e5) = 0.0055, the variance is 6^2 / 12
    assert float(numbers.mean()) == pytest.approx(1, abs=0.025)
    assert float(numbers.var()) == pytest.approx(3, rel=0.02)


def test_normal_has_the_moments_of_a_standard_normal() -> None:
    numbers = KeyedDraws(0, torch.arange(100)).normal("start", (1000,))
    assert numbers.dtype == torch.float32
    assert float(numbers.mean()) == pytest.approx(0, abs=0.015)
    assert float(numbers.var()) == pytest.approx(1, abs=0.02)
    assert float((numbers.abs() < 1).float().mean()) == pytest.approx(0.6827, abs=0.007)


def test_draws_leave_torchs_own_generator_alone() -> None:
    before = torch.random.get_rng_state()
    ALL.normal("start", SHAPE)
    assert torch.equal(torch.random.get_rng_state(), before)
