"""Statistics of robustness: numbers in, Estimate out. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd, log, sqrt
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from robustglimpse.records import Estimate

# AlexNet's mean error over the five severities of each corruption of ImageNet-C, by name, and its clean
# error: Hendrycks & Dietterich 2019, as listed in AugMix's evaluation code; torchvision's AlexNet.
ALEXNET_ERROR = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640,
    "defocus_blur": 0.819880, "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360,
    "snow": 0.866816, "frost": 0.826572, "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204,
    "elastic_transform": 0.646056, "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip
ALEXNET_CLEAN_ERROR = 0.43478


# Above so many additions a sign-flip test takes the normal law that its sum then follows closely.
EXACT_COST = 300_000_000


@dataclass(frozen=True)
class Interval:
    """A number with its confidence interval."""

    value: float
    low: float
    high: float


def wilson(correct: int, total: int, *, confidence: float = 0.95) -> Estimate:
    """Return the proportion correct/total with Wilson's score interval.

    The interval never leaves [0,1] and has a width at 0 of n and n of n, where the normal
    approximation claims certainty.  Raises ValueError unless 0 <= correct <= total and total >= 1.
    Source: Wilson 1927; Brown, Cai & DasGupta 2001.
    """
    if not 0 <= correct <= total or total < 1:
        raise ValueError(f"expected 0 <= correct <= total and total >= 1, got {correct} of {total}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    return Estimate(correct, total, correct / total, *_wilson_bounds(correct, total, z))


def _wilson_bounds(correct: float, total: float, z: float) -> tuple[float, float]:
    p = correct / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    # At the ends one bound is exact; the formula gives it only up to rounding.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == total else min(1.0, centre + half)
    return low, high


def mean_corruption_error(
    errors: Mapping[str, float],
    baseline: Mapping[str, float],
    *,
    clean: float = 0.0,
    baseline_clean: float = 0.0,
) -> float:
    """Return mCE as a fraction: the mean over corruptions of error / baseline error, each pair by name.

    errors, baseline: mean error over the same severities, so that each quotient is one of sums.
    clean, baseline_clean: the clean errors; with them it is the relative mCE, of what corruption adds.
    Raises ValueError where the baseline lacks a corruption or has nothing to divide by.
    Source: Hendrycks & Dietterich 2019, section 4.
    """
    missing = [name for name in errors if name not in baseline]
    if missing or not errors:
        raise ValueError(f"the baseline must have every corruption, it lacks {missing or 'all'}")
    quotients = []
    for name, error in errors.items():
        added = baseline[name] - baseline_clean
        if added <= 0:
            raise ValueError(f"the baseline's error on {name} must be above {baseline_clean}")
        quotients.append((error - clean) / added)
    return sum(quotients) / len(quotients)


def paired_p_value(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the two-sided p-value of Student's paired t-test that a and b, f64 [N], have one mean.

    Images are the unit: whatever was averaged within an image does not count as more data.
    1 where no image differs.  Raises ValueError unless both hold the same two or more images.
    """
    from scipy.special import stdtr

    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise ValueError(f"expected two f64 [N] with N >= 2, got {a.shape} and {b.shape}")
    d = a - b
    spread = float(d.std(ddof=1))
    if spread == 0:
        return 1.0 if d[0] == 0 else 0.0
    t = abs(float(d.mean())) / (spread / sqrt(len(d)))
    return float(2 * stdtr(len(d) - 1, -t))


def mcnemar(lost: int, gained: int, *, alternative: Literal["two-sided", "worse"] = "two-sided") -> float:
    """Return McNemar's exact p-value that as many samples are lost as gained; the others say nothing.

    lost: right before, wrong now.  gained: the other way round.
    alternative: "worse" asks only whether more are lost, with all of the error on that side.
    1 where no sample differs.  Raises ValueError for a negative count.
    Source: McNemar 1947; a binomial test of the discordant pairs.
    """
    from scipy.special import bdtr

    if min(lost, gained) < 0:
        raise ValueError(f"expected counts from 0 up, got {lost} lost and {gained} gained")
    # As many gained as seen or fewer, out of all that differ, by the toss of a coin.
    fewer = gained if alternative == "worse" else min(lost, gained)
    sides = 1 if alternative == "worse" else 2
    return min(1.0, sides * float(bdtr(fewer, lost + gained, 0.5)))


def sign_flip(differences: NDArray[Any]) -> float:
    """Return the one-sided p-value that whole differences i64 [N], after - before, sum to so little.

    Under the null hypothesis every image's difference could as well have had the other sign; the law of
    the sum over all 2^N choices is exact, so few discordant images don't look like many.  For differences
    of -1, 0 and 1 this is McNemar's test.  For very many images the sum's normal law is used.
    Source: Fisher 1935, section 21.
    """
    steps = np.abs(differences[differences != 0]).astype(np.int64)
    if not len(steps):
        return 1.0
    steps = np.sort(steps // gcd(*steps.tolist()))
    scale = int(np.abs(differences).sum()) // int(steps.sum())
    whole, total = int(steps.sum()), int(differences.sum()) // scale
    if len(steps) * whole > EXACT_COST:
        return NormalDist().cdf((total + 0.5) / sqrt(float((steps.astype(float) ** 2).sum())))
    # chance[k]: that the positive differences sum to k.
    chance = np.zeros(whole + 1)
    chance[0], reach = 1.0, 0
    for step in steps.tolist():
        chance[step : reach + step + 1] += chance[: reach + 1]
        chance[: reach + step + 1] /= 2
        reach += step
    return float(min(1.0, chance[: (whole + total) // 2 + 1].sum()))


def newcombe(
    both: float, lost: float, gained: float, neither: float, *, confidence: float = 0.95
) -> Interval:
    """Return the paired difference of two proportions, after - before, with Newcombe's score interval.

    both, neither: right or wrong both times.  lost: right before, wrong now.  gained: the other way round.
    The Wilson intervals of the two proportions are joined through their correlation, made smaller for
    continuity where it is positive.  Raises ValueError for negative counts or none at all.
    Source: Newcombe 1998, Statistics in Medicine 17, 2635-2650, method 10.
    """
    total = both + lost + gained + neither
    if min(both, lost, gained, neither) < 0 or total <= 0:
        raise ValueError(f"expected counts from 0 up, got {both}, {lost}, {gained}, {neither}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    after, before = both + gained, both + lost
    p, q = after / total, before / total
    low_p, high_p = _wilson_bounds(after, total, z)
    low_q, high_q = _wilson_bounds(before, total, z)
    spread = after * (total - after) * before * (total - before)
    product = both * neither - lost * gained
    product = max(product - total / 2, 0.0) if product > 0 else product
    phi = product / sqrt(spread) if spread > 0 else 0.0
    down, up = p - low_p, high_q - q
    below = sqrt(max(0.0, down * down - 2 * phi * down * up + up * up))
    down, up = q - low_q, high_p - p
    above = sqrt(max(0.0, down * down - 2 * phi * down * up + up * up))
    return Interval(p - q, max(-1.0, p - q - below), min(1.0, p - q + above))


def unseen(total: int, *, alpha: float = 0.05) -> float:
    """Return the largest share of all samples that none of total may show by chance alpha: some 3/total.

    Source: the exact one-sided bound at 0 of n; Hanley & Lippman-Hand 1983.
    """
    return float(1 - alpha ** (1 / total))


def mean_difference(differences: NDArray[Any], *, confidence: float = 0.95) -> Interval:
    """Return the mean of differences f64 [N], after - before per image, with Student's interval.

    It is never narrower than what N images that all agree leave open (see unseen): the spread of a few
    discordant images, or of none, says too little.  Raises ValueError for fewer than two images.
    """
    from scipy.special import stdtrit

    total = len(differences)
    if total < 2:
        raise ValueError(f"expected two or more images, got {total}")
    mean = float(differences.mean())
    t = float(stdtrit(total - 1, 0.5 + confidence / 2))
    half = t * float(differences.std(ddof=1)) / sqrt(total)
    half = max(half, unseen(total, alpha=(1 - confidence) / 2))
    return Interval(mean, max(-1.0, mean - half), min(1.0, mean + half))


def mcnemar_power(drop: float, *, total: int, discordant: float, alpha: float = 0.05) -> float:
    """Return how often the one-sided exact test finds a true drop among total samples.

    discordant: the share of samples that differ; lost and gained are apart by the drop.  A drop above it
    means that all that differ are lost.
    """
    from scipy.special import bdtr, gammaln

    share = max(drop, discordant)
    if share >= 1:
        return float(0.5**total <= alpha)
    mean, spread = total * share, sqrt(total * share * (1 - share))
    first, last = max(0, int(mean - 8 * spread)), min(total, int(mean + 8 * spread) + 2)
    counts = np.arange(first, last + 1)
    chance = np.exp(
        gammaln(total + 1) - gammaln(counts + 1) - gammaln(total - counts + 1)
        + counts * log(share) + (total - counts) * np.log1p(-share)
    )  # fmt: skip
    critical = np.array([_most_gained(int(count), alpha) for count in counts])
    found = np.where(critical < 0, 0.0, bdtr(np.maximum(critical, 0), counts, (share - drop) / 2 / share))
    return float((chance * found).sum())


@lru_cache(maxsize=100_000)
def _most_gained(count: int, alpha: float) -> int:
    """Return how many of count discordant samples may be gained in a significant loss, -1 where none may."""
    from scipy.special import bdtr

    return int((bdtr(np.arange(count // 2 + 1), count, 0.5) <= alpha).sum()) - 1


@lru_cache(maxsize=1000)
def smallest_drop(
    total: int, *, discordant: float = 0.0, alpha: float = 0.05, power: float = 0.9
) -> float | None:
    """Return the smallest true drop that mcnemar_power finds with the power, or None where none is found.

    To a tenth of a sample.
    """
    low, high = 0.0, 1.0
    if mcnemar_power(high, total=total, discordant=discordant, alpha=alpha) < power:
        return None
    while high - low > 0.1 / total:
        middle = (low + high) / 2
        is_found = mcnemar_power(middle, total=total, discordant=discordant, alpha=alpha) >= power
        low, high = (low, middle) if is_found else (middle, high)
    return high


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for their number by Holm's step-down method, in the same order.

    Source: Holm 1979.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, k in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[k]))
        adjusted[k] = running
    return adjusted
