"""Loss terms of the supervised stage, where cameras, masks and several views of each head are known."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

EMPTIER = 20.0
"""Space whose raw density is so far below the wanted level is empty enough: another e^-20 would be gained."""


def opacity_loss(
    alpha: Float[Tensor, "*b"], target: Float[Tensor, "*b"], counted: Bool[Tensor, "*b"], margin: float = 1e-3
) -> Float[Tensor, ""]:
    """Binary cross-entropy of rendered against true opacity, mean over the counted rays.

    Unlike a squared error it does not fade where a ray is wrong and certain of it, which is what lets training
    leave empty space. Below `margin` the logarithms go on along their tangents, which keeps them finite and their
    slope.
    """
    entropy = -(target * _log(alpha, margin) + (1 - target) * _log(1 - alpha, margin))
    return (entropy * counted).sum() / counted.sum().clamp(min=1)


def _log(x: Float[Tensor, "*b"], margin: float) -> Float[Tensor, "*b"]:
    """The logarithm, and below `margin` its tangent there."""
    above = x.clamp(min=margin)
    return above.log() + (x - above) / margin


def pyramid_loss(
    image: Float[Tensor, "n c h w"], target: Float[Tensor, "n c h w"], levels: int = 3
) -> Float[Tensor, ""]:
    """Sum over the levels of a Laplacian pyramid of the mean absolute difference, the coarse rest included.

    Fine levels hold few large values: L1 on each asks for edges that a plain L1 leaves blurred
    (Bojanowski et al. 2018, section 3.2).
    """
    difference = image - target
    total = difference.new_zeros(())
    for _ in range(levels):
        coarse = F.avg_pool2d(difference, 2)
        fine = difference - F.interpolate(coarse, scale_factor=2, mode="nearest")
        total = total + fine.abs().mean()
        difference = coarse
    return total + difference.abs().mean()


def weighted_mean(value: Float[Tensor, "*b"], weight: Float[Tensor, "*b"] | None) -> Float[Tensor, ""]:
    """The mean in which each value counts by its weight, which is not negative; 0 where none does."""
    if weight is None:
        return value.mean()
    return (value * weight).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)


def empty_loss(
    sigma: Float[Tensor, "*b"], level: float = -4.0, weight: Float[Tensor, "*b"] | None = None
) -> Float[Tensor, ""]:
    """Pushes the raw density of points that are known to be empty below `level`.

    What lies `EMPTIER` below takes no gradient: it would fall with the exponential of the density to numbers below
    float32's normal range, on which many processors are several times as slow.
    """
    return weighted_mean(F.softplus((sigma - level).clamp_min(-EMPTIER)), weight)


def solid_loss(
    sigma: Float[Tensor, "*b"], level: float = 20.0, weight: Float[Tensor, "*b"] | None = None
) -> Float[Tensor, ""]:
    """Pushes the raw density of points that are known to be inside above `level`."""
    return weighted_mean(F.relu(level - sigma), weight) / level


def smooth_density_loss(sigma: Float[Tensor, "*b"], moved: Float[Tensor, "*b"]) -> Float[Tensor, ""]:
    """Mean absolute difference of the raw density at points and at points close by (EG3D's density regularisation)."""
    return (sigma - moved).abs().mean()


def psnr(image: Float[Tensor, "*b"], target: Float[Tensor, "*b"], span: float = 2.0) -> Float[Tensor, ""]:
    """Peak signal-to-noise ratio in dB of values that span `span`."""
    return 10 * torch.log10(span**2 / (image - target).square().mean())
