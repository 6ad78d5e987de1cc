"""FID and KID: how far two sets of pictures are from one another, by the features of an Inception network.

The network is torchvision's Inception v3 with its ImageNet weights, where they have been fetched (`headlift weights
fetch inception`). It is not the TensorFlow graph of the published FID, whose values differ: compare these figures with
one another only, and mind n, for FID of few pictures is far too large.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from headlift.errors import UNREADABLE, WeightsError

SIDE = 299
"""What the network takes, pixels."""
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours in [0, 1]."""

Inception = Callable[[Sequence[Tensor]], np.ndarray]
"""From pictures [1, 3, h, w] in [-1, 1] to features [n, 2048]."""


@cache
def inception(weights: Path) -> Inception:
    """The network's last pooled features. Raises WeightsError when the file holds something else."""
    from torchvision.models import inception_v3

    network = inception_v3(weights=None, init_weights=False, transform_input=False)
    try:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except UNREADABLE as error:
        raise WeightsError(f"{weights} does not hold the weights of Inception v3 ({str(error)[:200]}).") from None
    network.fc = torch.nn.Identity()
    network.eval().requires_grad_(False)
    shift, scale = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, SPREAD))

    def features(pictures: Sequence[Tensor]) -> np.ndarray:
        found = []
        for picture in pictures:
            large = F.interpolate(picture, size=(SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
            found.append(network(((large.clamp(-1, 1) + 1) / 2 - shift) / scale)[0].numpy())
        return np.stack(found)

    return features


def fid(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """Frechet distance of the Gaussians with the sets' means and covariances (Heusel et al. 2017).

    tr (AB)^1/2 is the sum of the singular values of X Y^T, X X^T and Y Y^T being the covariances.
    """
    x, y = ((f - f.mean(0)).astype(np.float64) / np.sqrt(max(1, len(f) - 1)) for f in (a, b))
    apart = np.square(a.mean(0, dtype=np.float64) - b.mean(0, dtype=np.float64)).sum()
    shared = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return float(apart + np.square(x).sum() + np.square(y).sum() - 2 * shared)


def kid(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3 (Binkowski et al. 2018)."""

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        result: np.ndarray = (x.astype(np.float64) @ y.T.astype(np.float64) / x.shape[1] + 1) ** 3
        return result

    def within(x: np.ndarray) -> float:
        k = kernel(x, x)
        return float((k.sum() - np.trace(k)) / (len(x) * (len(x) - 1)))

    return within(a) + within(b) - 2 * float(kernel(a, b).mean())
