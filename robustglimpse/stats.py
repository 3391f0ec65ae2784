"""Statistics of robustness: numbers in, Estimate out. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import NormalDist
from typing import Any

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


def wilson(correct: int, total: int, *, confidence: float = 0.95) -> Estimate:
    """Return the proportion correct/total with Wilson's score interval.

    The interval never leaves [0,1] and has a width at 0 of n and n of n, where the normal
    approximation claims certainty.  Raises ValueError unless 0 <= correct <= total and total >= 1.
    Source: Wilson 1927; Brown, Cai & DasGupta 2001.
    """
    if not 0 <= correct <= total or total < 1:
        raise ValueError(f"expected 0 <= correct <= total and total >= 1, got {correct} of {total}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = correct / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    # At the ends one bound is exact; the formula gives it only up to rounding.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == total else min(1.0, centre + half)
    return Estimate(correct, total, p, low, high)


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
