"""Which models a set of images tells apart: per-sample outcomes in, groups of ties out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from math import sqrt
from string import ascii_uppercase
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustglimpse.records import Estimate
from robustglimpse.stats import holm, mcnemar, paired_p_value, wilson
from robustglimpse.store import is_correct

SIGNIFICANCE = 0.05


def still_right(
    outcomes: pd.DataFrame, *, exit_number: int, judge: str, steps: int, most: int
) -> pd.Series[float]:
    """Return per sample whether an exit was still right, f64 0 or 1, by index in order.

    Labels say nothing of which image it is: two models may number one class otherwise.

    judge, steps: as in results.csv; "" and 0 where nothing attacked.  most: the cell's most steps.
    """
    rows = outcomes[outcomes["exit"] == exit_number].set_index("index").sort_index()
    return pd.Series(is_correct(rows.reset_index(), judge, steps, most=most), index=rows.index, dtype=float)


def correctness(scores: Iterable[tuple[tuple[str, int, str], pd.Series[float]]]) -> pd.DataFrame:
    """Return what each exit left right, f64: a row per model, exit and corruption, a column per image.

    scores: one series (still_right) per cell, under (model, exit, corruption); a row is their mean, over
    the severities.  Empty where the cells hold different images, which cannot be paired.
    """
    parts: dict[tuple[str, int, str], list[pd.Series[float]]] = {}
    for key, one in scores:
        parts.setdefault(key, []).append(one)
    index = pd.MultiIndex.from_tuples(list(parts), names=["model", "exit", "corruption"])
    every = [one for group in parts.values() for one in group]
    if not every or not all(one.index.equals(every[0].index) for one in every):
        return pd.DataFrame(index=index[:0])
    return pd.DataFrame([np.mean([one.to_numpy() for one in g], axis=0) for g in parts.values()], index=index)


def mean_interval(scores: NDArray[Any]) -> Estimate:
    """Return the mean of f64 [N] in [0,1], one score per image, with its 95 % interval (Student's t).

    Where no image differs from another, the interval is Wilson's for N images all right or all wrong:
    t would claim certainty.
    """
    from scipy.special import stdtrit

    n, mean = len(scores), float(scores.mean())
    spread = float(scores.std(ddof=1)) if n > 1 else 0.0
    if spread == 0:
        bound = wilson(round(mean * n), n)
        return Estimate(round(mean * n), n, mean, min(mean, bound.low), max(mean, bound.high))
    half = float(stdtrit(n - 1, 0.975)) * spread / sqrt(n)
    return Estimate(round(mean * n), n, mean, max(0.0, mean - half), min(1.0, mean + half))


def tie_groups(scores: Sequence[pd.Series[float] | None]) -> list[str]:
    """Return letters per entry: entries that share one are not told apart by the images, "" if untested.

    scores: f64 per image, of the same images.  Every pair is tested over the images (McNemar's
    exact test where each is right or wrong, Student's paired t for means), all pairs together (Holm, 5 %).
    Letters go from the highest mean down.
    An entry without scores, or with those of other images than most, is left out.
    """
    tested = _same_images(scores)
    if len(tested) < 2:
        return [""] * len(scores)
    values = {k: _values(scores[k]) for k in tested}
    pairs = list(combinations(tested, 2))
    adjusted = holm([_p_value(values[i], values[j]) for i, j in pairs])
    tied = {k: {k} for k in tested}
    for (i, j), p in zip(pairs, adjusted, strict=True):
        if p >= SIGNIFICANCE:
            tied[i].add(j)
            tied[j].add(i)
    order = sorted(tested, key=lambda k: (-values[k].mean(), k))
    groups = _maximal_groups(order, tied)
    groups.sort(key=lambda group: sorted(order.index(k) for k in group))
    letters = [""] * len(scores)
    for place, group in enumerate(groups):
        for k in group:
            letters[k] += _letter(place)
    return letters


def _p_value(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return how likely so uneven a difference is where neither is the better."""
    if np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all():
        return mcnemar(int((a > b).sum()), int((a < b).sum()))
    return paired_p_value(a, b)


def _values(scores: pd.Series[float] | None) -> NDArray[Any]:
    assert scores is not None
    return scores.to_numpy(np.float64)


def _same_images(scores: Sequence[pd.Series[float] | None]) -> list[int]:
    """Return the places of the largest set of entries that saw the same two or more images."""
    seen: list[tuple[pd.Index[Any], list[int]]] = []
    for k, each in enumerate(scores):
        if each is None or len(each) < 2:
            continue
        alike = next((places for index, places in seen if index.equals(each.index)), None)
        if alike is None:
            seen.append((each.index, [k]))
        else:
            alike.append(k)
    return max((places for _, places in seen), key=len, default=[])


def _maximal_groups(order: Sequence[int], tied: dict[int, set[int]]) -> list[set[int]]:
    """Return the largest groups whose members are all tied with each other, every tie in one of them."""
    groups: list[set[int]] = []
    for k in order:
        for other in sorted(tied[k], key=order.index):
            if any({k, other} <= group for group in groups):
                continue
            group = {k, other}
            for more in order:
                if all(more in tied[member] for member in group):
                    group.add(more)
            groups.append(group)
    return groups


def _letter(place: int) -> str:
    """Return A to Z, then A1, B1, ..."""
    again, letter = divmod(place, len(ascii_uppercase))
    return ascii_uppercase[letter] + (str(again) if again else "")
