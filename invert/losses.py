"""The terms that inversion minimises, and the schedules of its optimisers. Free functions of tensors, no state.

Pictures are RGB in [-1, 1], NCHW; masks, alpha and weights are in [0, 1]; depth is distance along the ray in world
units; `t` is the share of the steps already done, in [0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

COMPARE_AT = 256
"""Pictures larger than this are brought down to it before they are compared (PTI and EG3D's projector), pixels."""


def area_downsample(image: Float[Tensor, "n c h w"], side: int) -> Float[Tensor, "n c r r"]:
    """Average over the pixels that each new one covers; pictures that are not larger than `side` stay as they are."""
    if image.shape[-1] <= side and image.shape[-2] <= side:
        return image
    return F.interpolate(image, size=(side, side), mode="area")


def resize(image: Float[Tensor, "n c h w"], side: int) -> Float[Tensor, "n c r r"]:
    """To `side` pixels, either way: averaging when shrinking, bilinear when growing."""
    if image.shape[-1] == side:
        return image
    if image.shape[-1] > side:
        return area_downsample(image, side)
    return F.interpolate(image, size=(side, side), mode="bilinear", align_corners=False)


def resize_weighted(
    value: Float[Tensor, "n c h w"], weight: Float[Tensor, "n 1 h w"], side: int
) -> tuple[Float[Tensor, "n c r r"], Float[Tensor, "n 1 r r"]]:
    """As `resize`, each pixel counted by its weight; the weights at that size too."""
    total = resize(weight, side)
    return resize(value * weight, side) / total.clamp_min(1e-6), total


def weighted_mean(value: Float[Tensor, "n c h w"], weight: Float[Tensor, "n 1 h w"] | None) -> Float[Tensor, ""]:
    """Mean over pixels and channels, each pixel counted by its weight; 0 where all weights are."""
    if weight is None:
        return value.mean()
    total = weight.sum() * value.shape[1]
    return (value * weight).sum() / total.clamp_min(1e-8)


def squared_error(
    a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"], weight: Float[Tensor, "n 1 h w"] | None = None
) -> Float[Tensor, ""]:
    """Mean squared difference (PTI's L2, Roich et al. 2022, eq. 3)."""
    return weighted_mean((a - b).square(), weight)


def colour_error(
    a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "n 3 h w"], weight: Float[Tensor, "n 1 h w"] | None, hue: float
) -> Float[Tensor, ""]:
    """Mean squared difference of colours; that of their hue, all but the mean of the channels, counts `hue` times more.

    The eye forgives cloudy brightness in hair and skin, but no green clouds.
    """
    apart = a - b
    return weighted_mean(apart.square() + hue * (apart - apart.mean(1, keepdim=True)).square(), weight)


def alpha_error(alpha: Float[Tensor, "n 1 h w"], mask: Float[Tensor, "n 1 h w"]) -> Float[Tensor, ""]:
    """Cross-entropy of opacity against the mask, less the mask's own entropy: 0 where they agree."""
    alpha = alpha.clamp(1e-3, 1 - 1e-3)
    mask = mask.clamp(1e-3, 1 - 1e-3)
    return (mask * (mask / alpha).log() + (1 - mask) * ((1 - mask) / (1 - alpha)).log()).mean()


def depth_error(
    depth: Float[Tensor, "n 1 h w"], reference: Float[Tensor, "n 1 h w"], weight: Float[Tensor, "n 1 h w"]
) -> Float[Tensor, ""]:
    """Mean squared change of depth where the weight (the reference's opacity) says there is a surface.

    The depth prior of SPI (Yin et al. 2023, sec. 3.3).
    """
    return weighted_mean((depth - reference).square(), weight)


def noise_regularizer(noises: Iterable[Float[Tensor, "r r"]]) -> Float[Tensor, ""]:
    """How far noise images are from white: squared correlation with their neighbours, at each size down to 8.

    StyleGAN2 (Karras et al. 2020), appendix D: at each level of a pyramid that averages 2 x 2 pixels and doubles the
    result (so that the variance stays 1), the mean products with the image shifted by one pixel along either axis
    are squared and added up.
    """
    terms = [torch.zeros(())]
    for noise in noises:
        level = noise
        while True:
            terms += [(level * level.roll(1, axis)).mean().square().cpu() for axis in (0, 1)]
            if level.shape[0] <= 8:
                break
            level = F.avg_pool2d(level[None, None], 2)[0, 0] * 2
    return torch.stack(terms).sum()


@torch.no_grad()
def normalize_noise(noises: Iterable[Float[Tensor, "r r"]]) -> None:
    """Bring each noise image, in place, back to mean 0 and variance 1, as after each step of StyleGAN2's projector."""
    for noise in noises:
        noise -= noise.mean()
        noise *= noise.square().mean().clamp_min(1e-12).rsqrt()


def learning_rate_ramp(t: float, rampup: float, rampdown: float) -> float:
    """Factor on the learning rate: linear over the first `rampup` of the steps, cosine over the last `rampdown`.

    StyleGAN2, appendix D, with the shares of the PTI projector (0.05, 0.25).
    """
    down = min(1.0, (1.0 - t) / rampdown) if rampdown > 0 else 1.0
    up = min(1.0, t / rampup) if rampup > 0 else 1.0
    return (0.5 - 0.5 * math.cos(down * math.pi)) * up


def jitter_scale(t: float, strength: float, ramp: float) -> float:
    """Noise on the code, in standard deviations of w: `strength` at first, quadratically to 0 at `ramp` (ibid.)."""
    return strength * max(0.0, 1.0 - t / ramp) ** 2 if ramp > 0 else 0.0
