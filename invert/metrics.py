"""How good an inversion is: figures of the picture, and how far tuning moved the surface.

Pictures are RGB in [-1, 1]; everything is compared at 256 pixels, as published comparisons do.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from headlift.eg3d.camera import orbit, yaw_pitch
from headlift.eg3d.generator import Generator
from headlift.invert.losses import COMPARE_AT, area_downsample, resize, squared_error, weighted_mean
from headlift.values import Camera

SIDE_VIEWS = ((-0.6, 0.0), (-0.3, 0.1), (0.3, 0.1), (0.6, 0.0))
"""(yaw, pitch) in radians from the front, where the movement of the surface is measured beside the photo's view."""


WINDOW = 11
"""Side of the window of structural similarity, pixels."""
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of its scales, finest first (Wang et al. 2003)."""


def psnr(
    a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "n 3 h w"], mask: Float[Tensor, "n 1 m m"] | None = None
) -> float:
    """Peak signal-to-noise ratio in dB over the mask, at 256 pixels; the peak is 2, the span of [-1, 1]. NaN under a
    mask in which nothing lies."""
    a, b, mask = _at_256(a, b, mask)
    if mask is not None and not mask.any():
        return math.nan
    error = float(squared_error(a, b, mask))
    return math.inf if error == 0 else 10 * math.log10(4 / error)


def ssim(
    a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "n 3 h w"], mask: Float[Tensor, "n 1 m m"] | None = None
) -> float:
    """Structural similarity over the mask at 256 pixels (Wang et al. 2004, eq. 13), Gaussian window of sigma 1.5."""
    a, b, mask = _at_256(a, b, mask)
    light, form = _similarity_maps(a, b)
    return float(weighted_mean(light * form, _inner(mask)))


def ms_ssim(
    a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "n 3 h w"], mask: Float[Tensor, "n 1 m m"] | None = None
) -> float:
    """Multi-scale structural similarity over the mask at 256 pixels (Wang et al. 2003, eq. 7).

    Each scale halves the pictures; contrast and structure count at all of them, luminance at the last. Pictures too
    small for five scales take as many as they have, their exponents scaled to the same sum.
    """
    a, b, mask = _at_256(a, b, mask)
    scales = [w for k, w in enumerate(MS_SSIM_WEIGHTS) if a.shape[-1] >> k >= WINDOW]
    total, value = sum(scales), 1.0
    for index, weight in enumerate(scales):
        light, form = _similarity_maps(a, b)
        part = light * form if index == len(scales) - 1 else form
        value *= max(0.0, float(weighted_mean(part, _inner(mask)))) ** (weight / total)
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        mask = None if mask is None else F.avg_pool2d(mask, 2)
    return value


def _similarity_maps(a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "n 3 h w"]) -> tuple[Tensor, Tensor]:
    """Luminance term, and contrast and structure together, at each place where the whole window fits."""
    taps = torch.exp(-0.5 * ((torch.arange(float(WINDOW), device=a.device) - WINDOW // 2) / 1.5) ** 2)
    taps = (taps / taps.sum()).expand(3, 1, 1, WINDOW)

    def smooth(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, taps, groups=3), taps.transpose(2, 3), groups=3)

    mean_a, mean_b = smooth(a), smooth(b)
    var_a = smooth(a * a) - mean_a.square()
    var_b = smooth(b * b) - mean_b.square()
    covariance = smooth(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    light = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    return light, (2 * covariance + c2) / (var_a + var_b + c2)


def _inner(mask: Float[Tensor, "n 1 m m"] | None) -> Tensor | None:
    """Of a mask, the places where the whole window fits."""
    edge = WINDOW // 2
    return None if mask is None else mask[..., edge:-edge, edge:-edge]


def _at_256(
    a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "n 3 h w"], mask: Float[Tensor, "n 1 m m"] | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    side = min(COMPARE_AT, a.shape[-1], b.shape[-1])
    return area_downsample(a, side), area_downsample(b, side), None if mask is None else resize(mask, side)


@torch.no_grad()
def depth_moved(
    before: Generator, after: Generator, ws: Float[Tensor, "1 l w"], camera: Camera, side: int | None = None
) -> dict[str, float]:
    """How far tuning moved the surface, world units along the ray; maps of `side` pixels (at most 32 by default).

    `input` is the median of |depth after - depth before| over the pixels that are solid (alpha > 0.5) in both, at the
    photo's camera; `sides` that of the views of `SIDE_VIEWS`, all pixels together; `median` that of all five views.
    """
    side = side or min(32, after.spec.neural_resolution)
    focal = camera.intrinsics[0, 0, 0]
    yaws, pitches = (torch.tensor(angles, device=ws.device) for angles in zip(*SIDE_VIEWS, strict=True))
    sides = orbit(yaws, pitches, focal=focal)
    views = Camera(
        torch.cat([camera.cam2world, sides.cam2world.to(camera.cam2world)]),
        torch.cat([camera.intrinsics, sides.intrinsics.to(camera.intrinsics)]),
    )
    first = before.volume(before.planes(ws), views, neural_resolution=side)
    second = after.volume(after.planes(ws), views, neural_resolution=side)
    solid = (first.alpha > 0.5) & (second.alpha > 0.5)
    change = (first.depth - second.depth).abs()
    moved = [change[k][solid[k]] for k in range(len(views))]
    return {
        "depth_moved_input": _median(moved[0]),
        "depth_moved_sides": _median(torch.cat(moved[1:])),
        "depth_moved": _median(torch.cat(moved)),
    }


def _median(values: Float[Tensor, " k"]) -> float:
    return float(values.median()) if len(values) else math.nan


def camera_angles(camera: Camera) -> tuple[float, float]:
    """(yaw, pitch) of one camera in radians."""
    yaw, pitch = yaw_pitch(camera)
    return float(yaw[0]), float(pitch[0])
