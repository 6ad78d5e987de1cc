"""Codes made from codes: style mixing and smooth walks through the latent space."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headlift.errors import ConfigError


def style_mix(
    coarse: Float[Tensor, "n layers w"], fine: Float[Tensor, "n layers w"], crossover: int
) -> Float[Tensor, "n layers w"]:
    """The first `crossover` layers (shape) of one code with the rest (colour, detail) of the other (StyleGAN, 3.1).

    Raises:
        ConfigError: the crossover lies outside 0..layers.
    """
    layers = coarse.shape[1]
    if not 0 <= crossover <= layers:
        raise ConfigError(
            f"the crossover layer is {crossover}, but this generator has {layers} layers; take 0 to {layers}"
        )
    return torch.cat([coarse[:, :crossover], fine[:, crossover:]], dim=1)


def walk(keyframes: Float[Tensor, "k layers w"], frames: int, loop: bool = True) -> Float[Tensor, "frames layers w"]:
    """Codes along a cubic spline through the keyframes, `frames` in all.

    A loop returns to its first keyframe without a jump in position, velocity or curvature; an open walk ends on the
    last one.
    """
    from scipy.interpolate import CubicSpline

    values = keyframes.double().cpu().numpy()
    if loop:
        values = np.concatenate([values, values[:1]])
    if len(values) == 1:
        return keyframes.expand(frames, -1, -1)
    knots = np.arange(len(values))
    spline = CubicSpline(knots, values, axis=0, bc_type="periodic" if loop else "not-a-knot")
    times = np.linspace(0, knots[-1], frames, endpoint=not loop)
    return torch.from_numpy(spline(times)).to(keyframes)
