"""Our own draws against the law that the reference draws from: its stream of two seeds is the yardstick."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from robustglimpse.corruptions import CORRUPTIONS, SEVERITIES, blur, corrupt
from robustglimpse.data import Dataset
from robustglimpse.rng import Draws, KeyedDraws, LegacyDraws

# What chance may do over 64 images: dB of the mean PSNR, levels of the mean.  Two seeds of the reference
# are as far apart as the figures behind; noise has one draw per value, motion but one per image.
GATES = {
    "gaussian_noise": (0.15, 0.25),  # .01 dB, .1 level
    "shot_noise": (0.15, 0.25),  # .02, .1
    "impulse_noise": (0.15, 0.25),  # .05, .1
    "speckle_noise": (0.15, 0.25),  # .01, .1
    "glass_blur": (0.15, 0.25),  # .07, .1
    "motion_blur": (0.4, 0.25),  # .38, .1
    "snow": (0.4, 1.0),  # .05, .2
    "spatter": (0.4, 0.4),  # .25, .2
    "frost": (1.0, 4.0),  # .2, 1.6
    "fog": (1.0, 4.0),  # .3, 2.4
    "elastic_transform": (1.0, 1.0),  # .2, .5
}
LOOSEST = (1.0, 4.0)


@pytest.fixture(scope="module")
def images(digits: Dataset) -> Tensor:
    """The 64 digits, u8 [64,3,64,64]."""
    return torch.from_numpy(digits.images.copy())


def psnr_and_mean(images: Tensor, name: str, severity: int, draws: Draws) -> Tensor:
    """Return f64 [2]: the images' mean PSNR to the clean ones in dB, and their mean level."""
    found = corrupt(images, name, severity, draws=draws).double()
    error = (found - images.double()).square().mean((1, 2, 3))
    return torch.stack([(10 * torch.log10(255**2 / error)).mean(), found.mean()])


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", [name for name, row in CORRUPTIONS.items() if row.is_random])
def test_own_draws_corrupt_as_much_as_the_references(images: Tensor, name: str, severity: int) -> None:
    own = psnr_and_mean(images, name, severity, KeyedDraws(0, torch.arange(64)))
    one, other = (psnr_and_mean(images, name, severity, LegacyDraws(range(k, k + 64))) for k in (0, 1000))
    psnr, mean = (own - (one + other) / 2).abs().tolist()
    most_psnr, most_mean = GATES.get(name, LOOSEST)
    assert psnr <= most_psnr
    assert mean <= most_mean


@pytest.mark.parametrize("photons", [3, 12, 60, 250, 500])
@pytest.mark.parametrize("level", [1, 20, 128, 255])
def test_photon_counts_follow_poissons_law(level: int, photons: int) -> None:
    images, pixels = 8, 25_000
    rates = np.arange(256) / 255.0 * photons
    levels = np.full((images, pixels), level, np.uint8)
    counts = KeyedDraws(5, torch.arange(images)).poisson("counts", levels, rates, photons)
    # Counts from the full level on all show as white, and may come back as any of them.
    found = np.bincount(np.minimum(counts, photons).ravel(), minlength=photons + 1)
    law = stats.poisson(rates[level])
    expected = np.append(law.pmf(np.arange(photons)), law.sf(photons - 1)) * counts.size
    assert_follows(found, expected)


def test_no_light_is_no_photon() -> None:
    levels = np.zeros((2, 10_000), np.uint8)
    assert not KeyedDraws(5, torch.arange(2)).poisson("counts", levels, np.arange(256) / 255.0, 1).any()


def test_each_pixel_counts_at_its_own_rate() -> None:
    levels = np.tile(np.array([10, 200], np.uint8), (4, 25_000))
    rates = np.arange(256) / 255.0 * 60
    counts = KeyedDraws(5, torch.arange(4)).poisson("counts", levels, rates, 200)
    for level, column in ((10, counts[:, ::2]), (200, counts[:, 1::2])):
        # 100 000 counts: four standard errors of their mean
        assert column.mean() == pytest.approx(rates[level], abs=4 * (rates[level] / 1e5) ** 0.5)
    assert abs(np.corrcoef(counts[:, ::2].ravel(), counts[:, 1::2].ravel())[0, 1]) < 0.013


def assert_follows(found: np.ndarray, expected: np.ndarray) -> None:
    """Assert that counts per cell are likely; cells with fewer than 10 expected are pooled with the next."""
    edges = [0]
    for k in range(1, len(expected) + 1):
        if expected[edges[-1] : k].sum() >= 10 and expected[k:].sum() >= 10:
            edges.append(k)
    pooled = [np.add.reduceat(counts, edges) for counts in (found, expected)]
    assert len(edges) > 1
    assert stats.chisquare(pooled[0], pooled[1] * (found.sum() / expected.sum())).pvalue > 1e-4


def test_normal_draws_follow_the_normal_law_and_know_nothing_of_each_other() -> None:
    rows = KeyedDraws(1, torch.arange(64)).normal("noise", (64, 64)).double().flatten(1).numpy()
    count = rows.size  # 262 144: standard errors of the moments follow
    assert rows.mean() == pytest.approx(0, abs=4 * count**-0.5)
    assert rows.var() == pytest.approx(1, abs=4 * (2 / count) ** 0.5)
    assert stats.skew(rows, axis=None) == pytest.approx(0, abs=4 * (6 / count) ** 0.5)
    assert stats.kurtosis(rows, axis=None) == pytest.approx(0, abs=4 * (24 / count) ** 0.5)
    assert stats.kstest(rows.ravel(), "norm").pvalue > 1e-4
    for lag in (1, 3, 64):  # the next value, the next pixel's channel, the next row
        assert abs((rows[:, lag:] * rows[:, :-lag]).mean()) < 4 * count**-0.5
    between = np.corrcoef(rows)[np.triu_indices(64, 1)]  # 2016 pairs of images
    assert np.abs(between).max() < 4.5 * 4096**-0.5


@pytest.mark.parametrize("reach", [1, 2, 3, 4])
def test_glass_moves_are_uniform_over_their_square(reach: int) -> None:
    draws = KeyedDraws(2, torch.arange(16)).named("glass_blur 5")
    moves = draws.integers("moves", (1, 56, 56, 2), -reach, reach).flatten(0, 3) + reach
    found = np.bincount((moves[:, 0] * 2 * reach + moves[:, 1]).numpy(), minlength=4 * reach**2)
    assert len(found) == 4 * reach**2, "from -reach, and below +reach: the reference leaves the end out"
    assert_follows(found, np.full(4 * reach**2, found.mean()))


@pytest.mark.parametrize("reach, rounds", [(1, 2), (2, 1), (4, 2)])
def test_glass_displaces_pixels_as_far_as_the_reference_does(
    monkeypatch: pytest.MonkeyPatch, reach: int, rounds: int
) -> None:
    monkeypatch.setitem(blur.GLASS, 64, ((0.1, reach, rounds),))  # a sigma of .1 blurs nothing
    places = np.stack([*np.mgrid[0:64, 0:64], np.zeros((64, 64))], -1).astype(np.uint8)
    images = torch.from_numpy(places).expand(100, -1, -1, -1).contiguous()

    def shifts(draws: Draws) -> list[tuple[int, int]]:
        # Neighbours follow each other's pointers: every ninth pixel both ways is all but independent.
        moved = (blur.glass_blur(images, 1, 64, draws).int() - images.int())[:, 10:54:9, 10:54:9, :2]
        return [(y, x) for y, x in moved.reshape(-1, 2).tolist()]

    own, theirs = shifts(KeyedDraws(4, torch.arange(100))), shifts(LegacyDraws(range(100)))
    cells = sorted({*own, *theirs})
    table = np.array([[some.count(cell) for cell in cells] for some in (own, theirs)])
    rare = table.sum(0) < 20
    table = np.column_stack([table[:, ~rare], table[:, rare].sum(1) + 1])
    assert table.shape[1] > 4
    assert stats.chi2_contingency(table).pvalue > 1e-4
