"""How sure a mean is, and whether one method is better than another on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 10_000
"""Bootstrap samples."""
LEVEL = 0.95
"""Of the intervals."""
SIGNIFICANT = 0.05
"""Largest p at which one is said to be better."""


FEWEST = 6
"""With fewer pairs the test cannot fall below that."""


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
    """Two-sided, of Wilcoxon's signed-rank test (exact for few images); 1 where all differences are 0."""


def interval(values: Sequence[float], seed: int = 0) -> Interval:
    """The mean with its interval. Raises ValueError without values."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise ValueError("no values")
    drawn = np.random.default_rng(seed).choice(array, (DRAWS, len(array)))
    low, high = np.quantile(drawn.mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(array.mean()), float(low), float(high), len(array))


def paired(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Paired:
    """Compare figures of the same images in the same order."""
    from scipy.stats import wilcoxon

    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    p = float(wilcoxon(difference).pvalue) if np.any(difference) else 1.0
    return Paired(interval(difference.tolist(), seed), p)


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979), in the order given."""
    corrected, largest = [1.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = largest
    return corrected
