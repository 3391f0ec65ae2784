"""Statistics of robustness: numbers in, Estimate out. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
# Above so many gained samples the bound on those lost is interpolated.
EXACT_GAINED = 200


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


def drop_p_value(
    values: NDArray[np.int64], counts: NDArray[np.int64], *, margin: float, cells: int = 1
) -> float:
    """Return the p-value of the hypothesis that accuracy fell by the margin or more.

    values, counts: i64 [V], distinct sums of an image's differences (after - before, each -1, 0 or 1) over
    so many cells, and how many images have each.  Images are the unit, so that cells may correlate.
    margin: a fraction above -1 and up to 1 of the mean over images and cells; negative for a gain.

    Of all laws of an image's sum with the mean -margin * cells, the likeliest given the images is taken
    (whatever was not seen is put on the worst sum, -cells), and the chance that images drawn from it sum
    to what was seen or more is exact.  For one cell, that is the exact test at the restricted maximum
    likelihood estimate of Tango's interval; where only losses occur it is the binomial test, and at 0 of
    n it is (1 - margin)^n.  1 where the observed drop is the margin or more.
    Source: Tango 1998 (one cell); Owen 2001, Empirical Likelihood, section 2; Honda & Takemura 2010
    (bounded support); Storer & Kim 1990 (exact law at the estimate).
    """
    total, seen = int(counts.sum()), int((values * counts).sum())
    away = values + cells * margin
    if float((away * counts).sum()) <= 1e-9 * total:
        return 1.0
    law = _nearest_law(away, counts / total, worst=cells * (1 - margin))
    return _upper_tail(np.append(values, -cells), law, total=total, seen=seen)


def _upper_tail(values: NDArray[np.int64], law: NDArray[Any], *, total: int, seen: int) -> float:
    """Return the chance that so many independent values of one law sum to what was seen or more."""
    mean = float((law * values).sum())
    spread = sqrt(total * max(0.0, float((law * (values - mean) ** 2).sum())))
    # The sum's law, on a circle so long that no more than rounding comes round it.
    size = 1 << (int(20 * spread) + 4 * int(np.abs(values).max()) + 60).bit_length()
    one = np.bincount(values % size, weights=law, minlength=size)
    many = np.fft.irfft(np.fft.rfft(one) ** total, size)
    last = round(mean * total) + size // 2
    return min(1.0, max(0.0, float(many[np.arange(seen, last) % size].sum())))


def _nearest_law(away: NDArray[Any], shares: NDArray[Any], *, worst: float) -> NDArray[Any]:
    """Return the likeliest law f64 [V + 1] of mean zero on the values away and on -worst, the last one.

    shares: how often each value was seen; their mean is above zero.  With lambda the multiplier of the
    mean, a value has share / (1 + lambda * away); lambda is 1 / worst at most, and then -worst has the rest.
    """
    from scipy.optimize import brentq

    def mean(multiplier: float) -> float:
        return float((shares * away / (1 + multiplier * away)).sum())

    most = (1 - 1e-12) / worst
    multiplier = most if mean(most) >= 0 else brentq(mean, 0.0, most, xtol=1e-14, rtol=1e-12)
    law = shares / (1 + multiplier * away)
    return np.append(law, max(0.0, 1 - float(law.sum())))


def paired_difference(
    values: NDArray[np.int64], counts: NDArray[np.int64], *, alpha: float, cells: int = 1
) -> Interval:
    """Return the mean difference over images and cells, after - before; each end errs in alpha or less.

    values, counts, cells: as in drop_p_value, whose test the interval turns round: its lower end is above
    minus a margin where that margin's p-value is below alpha.
    """
    value = float((values * counts).sum()) / int(counts.sum()) / cells
    total = int(counts.sum())
    reach = 4 / total + 2 * sqrt(float((values**2 * counts).sum())) / total / cells

    def drops(margin: float) -> float:
        return drop_p_value(values, counts, margin=margin, cells=cells)

    def gains(margin: float) -> float:
        return drop_p_value(-values[::-1], counts[::-1], margin=margin, cells=cells)

    return Interval(value, -_largest(drops, -value, reach, alpha), _largest(gains, value, reach, alpha))


def _largest(p_value: Callable[[float], float], seen: float, reach: float, alpha: float) -> float:
    """Return the largest margin, from the drop seen on, that is not refused at alpha: about reach further."""
    from scipy.optimize import brentq
    from scipy.special import ndtri

    def excess(margin: float) -> float:  # close to a straight line
        return float(ndtri(min(0.6, max(1e-12, p_value(margin))))) - wanted

    wanted, most, low = float(ndtri(alpha)), 1 - 1e-9, seen
    if seen >= most:
        return 1.0
    high = min(most, seen + reach)
    while excess(high) > 0:
        if high == most:
            return 1.0
        low, high = high, min(most, high + reach)
    return float(brentq(excess, low, high, xtol=1e-7, rtol=1e-10))


@lru_cache(maxsize=100_000)
def table_p_value(lost: int, gained: int, total: int, *, margin: float) -> float:
    """Return drop_p_value of one cell, lost and gained of total samples, whose likeliest law is Tango's."""
    values, _ = _table(lost, gained, total)
    if lost - gained >= margin * total * (1 - 1e-9):
        return 1.0
    # The share gained, of which the share lost is the margin ahead, solves a x^2 + b x + c = 0.
    a, b = 2 * total, (2 * total - lost + gained) * margin - lost - gained
    c = -gained * margin * (1 - margin)
    up = max(0.0, (sqrt(b * b - 4 * a * c) - b) / (2 * a))
    law = np.array([max(0.0, up + margin), max(0.0, 1 - 2 * up - margin), up])
    return _upper_tail(values, law, total=total, seen=gained - lost)


@lru_cache(maxsize=100_000)
def table_difference(lost: int, gained: int, total: int, *, alpha: float) -> Interval:
    """Return paired_difference of one cell: lost and gained of total samples."""
    _table(lost, gained, total)
    value, reach = (gained - lost) / total, (4 + 2 * sqrt(lost + gained)) / total

    def drops(margin: float) -> float:
        return table_p_value(lost, gained, total, margin=margin)

    def gains(margin: float) -> float:
        return table_p_value(gained, lost, total, margin=margin)

    return Interval(value, -_largest(drops, -value, reach, alpha), _largest(gains, value, reach, alpha))


def _table(lost: int, gained: int, total: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if min(lost, gained, total - lost - gained) < 0 or total < 1:
        raise ValueError(f"expected counts from 0 up, got {lost} lost and {gained} gained of {total}")
    return np.array([-1, 0, 1]), np.array([lost, total - lost - gained, gained])


@lru_cache(maxsize=100)
def most_lost(total: int, gained: int, *, margin: float, alpha: float) -> NDArray[np.int64]:
    """Return i64 [gained + 1]: how many lost, with so many gained, still refuse the margin; -1 for none.

    Exact up to EXACT_GAINED gained; above, at so many places, and on straight lines between them.
    """
    found, lost = [], -1
    places = np.unique(np.linspace(0, gained, min(gained, EXACT_GAINED) + 1).round().astype(int))
    for many in places.tolist():
        step = 1 << int(total * margin if many == 0 else 2 * gained / len(places)).bit_length()
        while step:
            while (
                lost + step + many <= total
                and table_p_value(lost + step, many, total, margin=margin) <= alpha
            ):
                lost += step
            step //= 2
        found.append(lost)
    return np.floor(np.interp(np.arange(gained + 1), places, found)).astype(np.int64)


def proof_power(drop: float, *, total: int, discordant: float, margin: float, alpha: float) -> float:
    """Return how often table_p_value refuses a drop of the margin where the true one is drop.

    discordant: the share of samples that differ, the drop's size at least.  At drop = margin it is the
    chance of a false pass.  By enumeration, exact up to what most_lost interpolates.
    """
    from scipy.special import bdtr, gammaln

    up = max(0.0, discordant - drop) / 2
    # The same number whatever the drop, so that most_lost is asked once.
    half = discordant / 2
    most = min(total, int(total * half + 8 * sqrt(total * half) + 10))
    gained, lost = np.arange(most + 1), most_lost(total, most, margin=margin, alpha=alpha)
    if up == 0:
        chance = (gained == 0).astype(float)
    else:
        chance = np.exp(
            gammaln(total + 1) - gammaln(gained + 1) - gammaln(total - gained + 1)
            + gained * log(up) + (total - gained) * np.log1p(-up)
        )  # fmt: skip
    refused = np.where(lost < 0, 0.0, bdtr(np.maximum(lost, 0), total - gained, (up + drop) / (1 - up)))
    return float((chance * refused).sum())


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

    first = max(
        0, int(count / 2 - 4 * sqrt(count)) - 1
    )  # eight standard deviations: all below are significant
    return first + int((bdtr(np.arange(first, count // 2 + 1), count, 0.5) <= alpha).sum()) - 1


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
