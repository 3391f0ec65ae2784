"""Statistics of robustness: numbers in, Estimate out. Loads no torch."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

from robustglimpse.records import Estimate


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
