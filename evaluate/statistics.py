"""How sure a mean is, and whether one method is better than another on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float

DRAWS = 10_000
"""Bootstrap samples."""
LEVEL = 0.95
"""Of the intervals."""
SIGNIFICANT = 0.05
"""Largest p at which one is said to be better."""


@dataclass(frozen=True)
class Interval:
    """A mean over images with its bootstrap interval (percentiles, images drawn with replacement)."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Paired:
    """Two methods on the same images: the first less the second."""

    difference: Interval
    p: float
    """Two-sided, of Wilcoxon's signed-rank test (exact for few images). It goes by ranks, and a few large differences
    can turn the mean: 1 where the ranks do not speak for the one with the larger mean."""


def interval(values: Sequence[float], seed: int = 0) -> Interval:
    """The mean with its interval. Raises ValueError without values."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise ValueError("no values")
    low, high = np.quantile(_drawn(len(array), seed) @ array, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(array.mean()), float(low), float(high), len(array))


@cache
def _drawn(n: int, seed: int) -> Float[np.ndarray, "d n"]:
    """By how much each of n images counts in the mean of each bootstrap sample."""
    images = np.random.default_rng(seed).choice(n, (DRAWS, n))
    sample = np.arange(DRAWS)[:, None]
    return np.bincount((sample * n + images).ravel(), minlength=DRAWS * n).reshape(DRAWS, n) / n


def paired(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Paired:
    """Compare figures of the same images in the same order."""
    from scipy.stats import rankdata, wilcoxon

    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    moved = difference[difference != 0]
    ranks = np.sign(moved) @ rankdata(np.abs(moved))
    agreed = ranks * difference.mean() > 0
    p = float(wilcoxon(difference).pvalue) if agreed else 1.0
    return Paired(interval(difference.tolist(), seed), p)


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979), in the order given."""
    corrected, largest = [1.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = largest
    return corrected


def fewest(tests: int) -> int:
    """With fewer images none of so many tests can come out significant after Holm's correction."""
    return math.ceil(math.log2(2 * tests / SIGNIFICANT))
