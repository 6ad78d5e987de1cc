"""Compositing along rays, with values at the middle of each interval (Mip-NeRF; Max 1995 for the quadrature).

All of it in float32. Distances are world units along the ray.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headlift.eg3d.spec import DensityClamp


def interval_weights(
    depths: Float[Tensor, "n m s"],
    sigma: Float[Tensor, "n m s"],
    clamp_mode: DensityClamp = "softplus",
    published: bool = False,
) -> Float[Tensor, "n m s1"]:
    """What each of the s - 1 intervals between sorted samples contributes to its ray.

    The density of an interval is softplus(mean sigma - 1) per world unit, its opacity 1 - exp(-density length), its
    weight the opacity times the transmittance of all intervals before it. The exponential is rounded once, from double
    precision: where a ray meets next to nothing, its opacities are a few units of float32's last place, and which of
    them round to nothing decides its depth. `published` takes the processor's own exponential.
    """
    absorbed = optical_depths(depths, sigma, clamp_mode)
    opacity = 1 - (torch.exp(-absorbed) if published else torch.exp(-absorbed.double()).float())
    passed = F.pad((1 - opacity[..., :-1] + 1e-10).cumprod(dim=-1), (1, 0), value=1.0)
    return opacity * passed


def optical_depths(
    depths: Float[Tensor, "n m s"], sigma: Float[Tensor, "n m s"], clamp_mode: DensityClamp = "softplus"
) -> Float[Tensor, "n m s1"]:
    """Density times length of each interval between sorted samples."""
    middle = (sigma[..., 1:] + sigma[..., :-1]) / 2
    density = F.softplus(middle - 1) if clamp_mode == "softplus" else F.relu(middle)
    return density * (depths[..., 1:] - depths[..., :-1])


def composite(
    depths: Float[Tensor, "n m s"], weights: Float[Tensor, "n m s1"]
) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"]]:
    """Expected distance and accumulated opacity of each ray.

    Where a ray meets nothing at all its distance is that of its last sample, and no gradient flows through it.
    """
    total = weights.sum(dim=-1)
    middle = (depths[..., 1:] + depths[..., :-1]) / 2
    hit = total > 0
    expected = (weights * middle).sum(dim=-1) / torch.where(hit, total, torch.ones_like(total))
    return torch.where(hit, expected, depths[..., -1].detach()), total


def sample_weights(weights: Float[Tensor, "n m s1"]) -> Float[Tensor, "n m s"]:
    """What each sample contributes: half the weights of the two intervals that it bounds.

    Summing samples with these gives what summing the intervals' middles with `weights` does.
    """
    return (F.pad(weights, (1, 0)) + F.pad(weights, (0, 1))) / 2
