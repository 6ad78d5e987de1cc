"""How far a rendered view is from the true one: both over mid-grey, over the union of their silhouettes, at 256 pixels.

Mid-grey is 0 in [-1, 1]. On white, a prior's own ground, a head that is too thin would be punished less before a bright
part than before a dark one. The measures themselves are those of `headlift.invert`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from headlift.evaluate.multiview import Picture
from headlift.invert.losses import COMPARE_AT, resize
from headlift.invert.metrics import psnr, ssim
from headlift.invert.perceptual import Distance

SOLID = 0.5
"""Opacity above which a pixel belongs to the head."""
ALPHA_SIDE = 128
"""Side at which a render's opacity is taken, pixels. At 64, brought to 256, even the true opacity would cost a perfect
picture so much at its edges that it had 31 dB; at 128 it has 34. (The embedded prior's own edges are softer still.)"""
BEST_PSNR = 100.0
"""What equal pictures count as, dB: their mean stays finite."""


@dataclass(frozen=True)
class Score:
    """One view, against the truth."""

    psnr: float
    """dB over the union of the silhouettes."""
    ssim: float
    perceptual: float
    """The distance that inversion minimises, over the union."""


@dataclass(frozen=True)
class Pair:
    """The true and the rendered view, ready to be compared: 256 pixels, over mid-grey."""

    truth: Float[Tensor, "1 3 s s"]
    render: Float[Tensor, "1 3 s s"]
    union: Float[Tensor, "1 1 s s"]
    """1 where either is opaque."""


def render_over_grey(
    image: Float[Tensor, "n 3 h w"], alpha: Float[Tensor, "n 1 r r"], side: int = COMPARE_AT
) -> Float[Tensor, "n 3 s s"]:
    """A picture that was rendered on white, over mid-grey: white's share 1 - alpha is taken off; clipped to [-1, 1]."""
    return (resize(image, side).clamp(-1, 1) - (1 - resize(alpha, side))).clamp(-1, 1)


def pair(truth: Picture, image: Float[Tensor, "1 3 h w"], alpha: Float[Tensor, "1 1 r r"]) -> Pair:
    """Bring a true view and a render on white (RGB in [-1, 1], opacity at any resolution) to the same form."""
    side = COMPARE_AT
    true_alpha, found_alpha = resize(truth.alpha, side), resize(alpha, side)
    union = ((true_alpha > SOLID) | (found_alpha > SOLID)).to(image.dtype)
    return Pair(resize(truth.over(0.0), side), render_over_grey(image, alpha, side), union)


def score(views: Pair, distance: Distance) -> Score:
    """PSNR, SSIM and perceptual distance over the union of the silhouettes."""
    apart = distance(distance.prepare(views.truth, views.union), views.render)
    return Score(
        min(BEST_PSNR, psnr(views.render, views.truth, views.union)),
        ssim(views.render, views.truth, views.union),
        float(apart[0]),
    )


def depth_error(
    depth: Float[Tensor, "1 1 r r"], alpha: Float[Tensor, "1 1 r r"], truth: Float[Tensor, "1 1 s s"]
) -> float:
    """Median |depth - truth - shift| where both are opaque, world units; NaN where nothing is opaque in both.

    The shift is the one with the smallest mean absolute error: the median difference. Truth (0 where there is nothing)
    is averaged over the pixels that each of the render's covers, where all of them show the head.
    """
    side = depth.shape[-1]
    true_depth, solid = shrink_depth(truth, side)
    both = solid & (alpha > SOLID)
    difference = (depth - true_depth)[both].double()
    if not len(difference):
        return math.nan
    return float((difference - difference.quantile(0.5)).abs().quantile(0.5))


def shrink_depth(
    truth: Float[Tensor, "1 1 s s"], side: int
) -> tuple[Float[Tensor, "1 1 r r"], Bool[Tensor, "1 1 r r"]]:
    """Depth at `side` pixels, and where all pixels that went into it show the head."""
    if truth.shape[-1] < side:
        truth = F.interpolate(truth, size=(side, side), mode="nearest")
    there = (truth > 0).to(truth.dtype)
    mean = F.interpolate(truth, size=(side, side), mode="area")
    return mean, F.interpolate(there, size=(side, side), mode="area") > 1 - 1e-6
