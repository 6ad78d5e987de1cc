"""Where a fine picture's rays need samples, by a look along the rays of a coarse one.

Half of a ray's samples are there to say where the other half go (NeRF's coarse pass). Rays of neighbouring pixels meet
nearly the same, so that one coarse look serves them all: a picture of 128 pixels a side then costs half as much, and
shows the same (`benchmarks/shared_look.py`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

REACH = 3
"""Side of the square of coarse rays whose findings count for each, so that outlines between two of them are met."""
CLEAR = 1e-3
"""Rays of which these weights add up to at most this meet nothing."""


@torch.no_grad()
def spread_weights(weights: Float[Tensor, "n m s1"], side: int) -> Float[Tensor, "n m2 s1"]:
    """What the rays of square pictures found (`marching.interval_weights`), as a look for the rays of pictures of
    `side` pixels a side: for each interval the most that the nearest ray or one beside it found."""
    n, m, intervals = weights.shape
    coarse = round(m**0.5)
    found = F.max_pool2d(weights.mT.reshape(n, intervals, coarse, coarse), REACH, stride=1, padding=REACH // 2)
    return F.interpolate(found, size=(side, side), mode="nearest").flatten(2).mT
