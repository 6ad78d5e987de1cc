"""Cameras of the data, as EG3D's labels: near ones as in FFHQ's crops, wide ones from all round.

Labels have 25 numbers: cam2world row by row (OpenCV axes, EG3D's world), then the intrinsics over the image's side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import ndtr, ndtri

from headlift.eg3d.camera import FFHQ_FOCAL, FFHQ_PIVOT, WHOLE_HEAD_FOCAL, WHOLE_HEAD_PIVOT, orbit

LOWEST = -0.4
"""Recipe 2's least pitch (radians): from under about -0.45 one sees into the open bottom of the bust."""
EVALUATION_YAWS = (0, -30, 30, -60, 60, -90, 90, -135, 135, 180)
"""Degrees; those up to 60 near, the others wide."""


@dataclass(frozen=True)
class View:
    """A camera on the sphere of radius 2.7 about the origin; angles in radians."""

    yaw: float
    pitch: float
    wide: bool = False

    @property
    def label(self) -> Float[np.ndarray, " 25"]:
        """EG3D's label, float32."""
        yaw, pitch = (torch.tensor(angle, dtype=torch.float64) for angle in (self.yaw, self.pitch))
        if self.wide:
            camera = orbit(yaw, pitch, pivot=WHOLE_HEAD_PIVOT, focal=WHOLE_HEAD_FOCAL)
        else:
            camera = orbit(yaw, pitch, pivot=FFHQ_PIVOT, focal=FFHQ_FOCAL)
        return camera.label[0].to(torch.float32).numpy()


def draw_view(rng: np.random.Generator, wide: bool, recipe: int) -> View:
    """A random camera: as in FFHQ's crops but with more profiles, or from all round. The order of the draws stays."""
    usual = rng.random() < 0.8
    yaw = float(np.clip(rng.normal(0, 0.45), -1.35, 1.35) if usual else rng.uniform(-1.35, 1.35))
    pitch = float(np.clip(rng.normal(0, 0.16), -0.45, 0.45))
    if not wide:
        return View(yaw, pitch)
    yaw = float(rng.uniform(-math.pi, math.pi))
    height = float(rng.normal(0.05, 0.3))
    if recipe == 1:
        return View(yaw, float(np.clip(height, -0.8, 0.8)), wide=True)
    return View(yaw, _within(height, 0.05, 0.3, LOWEST, 0.8), wide=True)


def evaluation_views() -> tuple[View, ...]:
    """The ten of the evaluation set, in the order of `EVALUATION_YAWS`."""
    return tuple(View(math.radians(yaw), 0.0, wide=abs(yaw) > 60) for yaw in EVALUATION_YAWS)


def ray_lengths(side: int, focal: float | np.floating) -> Float[np.ndarray, "s s"]:
    """Distance along the ray over z-depth for each pixel of a picture; `focal` over the image's side."""
    u = ((np.arange(side) + 0.5) / side - 0.5) / float(focal)
    return np.sqrt(1 + u[None] ** 2 + u[:, None] ** 2)


def _within(value: float, mean: float, deviation: float, low: float, high: float) -> float:
    """A normal number at the same rank in the normal distribution cut off at low and high."""
    a, b = ndtr((low - mean) / deviation), ndtr((high - mean) / deviation)
    rank = ndtr((value - mean) / deviation)
    return float(mean + deviation * ndtri(a + rank * (b - a)))
