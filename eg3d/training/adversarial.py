"""Loss terms of the adversarial stage, and the blur on what the discriminator sees."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def generator_loss(fake: Float[Tensor, "n 1"]) -> Float[Tensor, ""]:
    """Non-saturating logistic loss of the generator, mean of -log sigmoid(logit) (Goodfellow et al. 2014)."""
    return F.softplus(-fake).mean()


def discriminator_loss(fake: Float[Tensor, "n 1"], real: Float[Tensor, "m 1"]) -> Float[Tensor, ""]:
    """Logistic loss of the discriminator: mean of -log(1 - sigmoid(fake)) plus mean of -log sigmoid(real)."""
    return F.softplus(fake).mean() + F.softplus(-real).mean()


def r1_loss(
    logits: Float[Tensor, "n 1"], image: Float[Tensor, "n 3 h h"], raw: Float[Tensor, "n c r r"], gamma: float
) -> Float[Tensor, ""]:
    """gamma / 2 times the mean over the images of |d logit / d image|^2 + |d logit / d raw|^2.

    R1 (Mescheder et al. 2018, eq. 9) on both pictures of EG3D's dual discriminator; differentiable once more.
    `logits` must have been computed from `image` and `raw`, which require gradients.
    """
    gradients = torch.autograd.grad(logits.sum(), [image, raw], create_graph=True)
    penalty = torch.stack([g.float().square().sum(dim=(1, 2, 3)) for g in gradients]).sum(0)
    return penalty.mean() * (gamma / 2)


def blur(image: Float[Tensor, "n c h w"], sigma: float) -> Float[Tensor, "n c h w"]:
    """The image convolved with the normalised kernel 2^-(x / sigma)^2 of 2 floor(3 sigma) + 1 pixels a side.

    `sigma` in pixels of this image; the border repeats. Nothing happens below a third of a pixel.
    """
    radius = math.floor(3 * sigma)
    if radius == 0:
        return image
    taps = torch.exp2(-(torch.arange(-radius, radius + 1, device=image.device) / sigma).square())
    taps = (taps / taps.sum()).to(image.dtype)
    channels = image.shape[1]
    column, row = (taps.reshape(shape).expand(channels, 1, -1, -1) for shape in ((1, 1, -1, 1), (1, 1, 1, -1)))
    image = F.conv2d(F.pad(image, (0, 0, radius, radius), mode="replicate"), column, groups=channels)
    return F.conv2d(F.pad(image, (radius, radius, 0, 0), mode="replicate"), row, groups=channels)
