"""The contextual loss: how alike two pictures are when they are not aligned (Mechrez et al., ECCV 2018)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

EPSILON = 1e-5
"""Keeps the relative distance finite where a feature has an exact likeness (ibid., eq. 2)."""


def contextual_loss(
    features: Float[Tensor, "n c h w"],
    target: Float[Tensor, "n c k l"],
    bandwidth: float = 0.5,
    rows: int = 512,
) -> Float[Tensor, ""]:
    """Mean over the pictures of -log CX(features, target) (ibid., eq. 2 to 5, and 6).

    Each feature vector of the one is held against every one of the other, wherever they are: cosine distances about
    the target's mean, relative to the nearest, through a softmax of this `bandwidth`; then the mean over the target's
    vectors of the best likeness. No more than `rows` of the table of likenesses are in memory at a time, also in the
    backward pass.
    """
    losses = []
    for x, y in zip(features, target, strict=True):
        middle = y.mean((1, 2))[:, None]
        a = F.normalize(x.flatten(1) - middle, dim=0).T
        b = F.normalize(y.flatten(1) - middle, dim=0)
        best = torch.zeros(b.shape[1], dtype=b.dtype, device=b.device)
        for block in a.split(rows):
            likeness: Tensor = checkpoint(_best_likeness, block, b, bandwidth, use_reentrant=False)
            best = torch.maximum(best, likeness)
        losses.append(-best.mean().log())
    return torch.stack(losses).mean()


def _best_likeness(a: Float[Tensor, "m c"], b: Float[Tensor, "c k"], bandwidth: float) -> Float[Tensor, " k"]:
    distance = (1 - a @ b).clamp_min(0)
    relative = distance / (distance.amin(1, keepdim=True) + EPSILON)
    return torch.softmax((1 - relative) / bandwidth, dim=1).amax(0)
