"""Random numbers belong to a sample: the same in any batch, others for any other name."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from robustglimpse.rng import KeyedDraws, LegacyDraws

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


RATES = np.arange(256) / 255.0 * 30


def test_integers_and_counts_are_a_samples_own_too() -> None:
    low, high = np.arange(10), np.arange(10) + 50
    levels = np.arange(10 * 48, dtype=np.uint8).reshape(10, *SHAPE)
    integers = ALL.integers("moves", SHAPE, low, high)
    counts = ALL.poisson("counts", levels, RATES, 30)
    for index in [3, 4, 5], [9, 0, 3], [6]:
        part = KeyedDraws(7, torch.tensor(index), "restart 0")
        assert torch.equal(part.integers("moves", SHAPE, low[index], high[index]), integers[index])
        assert np.array_equal(part.poisson("counts", levels[index], RATES, 30), counts[index])


def test_integers_lie_in_the_bounds_of_their_sample() -> None:
    low, high = np.arange(10), np.arange(10) + 3
    numbers = ALL.integers("moves", (500,), low, high)
    assert numbers.dtype == torch.int64
    assert [row.unique().tolist() for row in numbers] == [[k, k + 1, k + 2] for k in range(10)]
    assert ALL.integers("moves", (2, 3), -4, -3).unique().tolist() == [-4]
    assert ALL.integers("texture", (), 0, 5).shape == (10,)


def test_a_count_depends_on_its_level() -> None:
    levels = np.zeros((10, 2000), np.uint8)
    levels[:, 1000:] = 85
    counts = ALL.poisson("counts", levels, RATES, 100)
    assert counts.dtype == np.int64
    assert not counts[:, :1000].any()
    # 10 000 counts of rate 10: four standard errors of the mean, and of the variance
    assert counts[:, 1000:].mean() == pytest.approx(10, abs=4 * (10 / 1e4) ** 0.5)
    assert counts[:, 1000:].var() == pytest.approx(10, abs=4 * (210 / 1e4) ** 0.5)


@pytest.mark.parametrize("most", [1, 3, 4, 30])
def test_counts_above_the_most_still_come_as_often(most: int) -> None:
    counts = ALL.poisson("counts", np.full((10, 2000), 85, np.uint8), RATES, most)
    # the chance of a Poisson count of rate 10 to stay below: exp(-10) times the sum of 10^k / k!
    below = np.exp(-10) * np.cumsum(10.0 ** np.arange(most) / np.cumprod([1.0, *range(1, most)]))[-1]
    assert (counts < most).mean() == pytest.approx(below, abs=4 * (below * (1 - below) / 2e4) ** 0.5)


def test_a_name_makes_a_source_of_its_own() -> None:
    fog, snow = ALL.named("fog 3"), ALL.named("snow 3")
    start = fog.uniform("start", SHAPE)
    assert torch.equal(ALL.named("fog 3").uniform("start", SHAPE), start)
    for other in (ALL, snow, ALL.named("fog 4"), KeyedDraws(7, ALL.index, "restart 1").named("fog 3")):
        assert not torch.isclose(other.uniform("start", SHAPE), start).all(dim=1).any()
    assert torch.equal(fog[torch.tensor([2, 5])].uniform("start", SHAPE), start[[2, 5]])


def test_length_is_the_number_of_samples() -> None:
    assert len(ALL) == len(ALL.named("fog 3")) == 10
    assert len(ALL[torch.arange(3)]) == 3
    assert len(LegacyDraws([4, 4])) == len(LegacyDraws([4, 4]).named("fog 3")) == 2


def test_no_sample_draws_nothing() -> None:
    none = ALL[torch.arange(0)]
    assert none.uniform("start", SHAPE).shape == none.normal("start", SHAPE).shape == (0, *SHAPE)
    assert none.integers("moves", SHAPE, 0, 2).shape == (0, *SHAPE)
    assert none.integers("texture", (), np.zeros(0, int), np.zeros(0, int)).dtype == torch.int64
    assert none.poisson("counts", np.zeros((0, *SHAPE), np.uint8), RATES, 30).shape == (0, *SHAPE)


SEEDS = (0, 1003, 2**32 - 1)


@pytest.fixture
def _numpys_own_stream() -> Iterator[None]:
    """Give numpy's global stream back as it was."""
    before = np.random.get_state()
    yield
    np.random.set_state(before)


@pytest.mark.usefixtures("_numpys_own_stream")
def test_legacy_draws_are_numpys_global_stream_after_seed() -> None:
    low, high = np.array([0, -3, 5]), np.array([2, 3, 1000])
    levels = np.arange(3 * 24, dtype=np.uint8).reshape(3, 2, 12)
    draws = LegacyDraws(SEEDS)
    found = [
        draws.normal("", (3, 5)),  # an odd number: the stream keeps the second half of a pair
        draws.uniform("", (), -45, 45),
        draws.integers("", (4, 2), low, high),
        draws.normal("", (2,)),
        draws.poisson("", levels, RATES, 30),
        draws.uniform("", (3, 2), -0.5, 0.5),
        draws.integers("", (), 0, 5),
    ]
    for k, seed in enumerate(SEEDS):
        np.random.seed(seed)
        expected = [
            np.random.normal(size=(3, 5)),
            np.random.uniform(-45, 45),
            np.random.randint(low[k], high[k], size=(4, 2)),
            np.random.normal(size=2),
            np.random.poisson(RATES[levels[k]]),
            np.random.uniform(-0.5, 0.5, (3, 2)),
            np.random.randint(5),
        ]
        for ours, theirs in zip(found, expected, strict=True):
            assert np.array_equal(np.asarray(ours[k]), theirs)


@pytest.mark.usefixtures("_numpys_own_stream")
def test_legacy_draws_leave_numpys_global_stream_alone() -> None:
    np.random.seed(5)
    LegacyDraws(SEEDS).normal("", SHAPE)
    assert np.random.randint(2**30) == np.random.RandomState(5).randint(2**30)


def test_legacy_draws_move_on_whatever_the_label_and_a_name_starts_again() -> None:
    draws = LegacyDraws(SEEDS)
    first, second = draws.uniform("start", (4,)), draws.uniform("start", (4,))
    assert first.dtype == torch.float64
    assert not torch.isclose(first, second).any()
    again = draws.named("fog 3")
    assert torch.equal(again.uniform("end", (8,)), torch.cat([first, second], 1))
    assert not torch.isclose(draws.uniform("start", (4,)), first).any(), "a name leaves its source alone"
