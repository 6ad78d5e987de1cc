"""The prior that heads are nearly their own mirror images: what the photo shows on one side holds on the other.

A head that is symmetric across x = 0 shows to the mirrored camera the mirrored picture (`eg3d.camera.mirror`), so that
a photo is two views at once. The more the face is turned, the more the second view adds; a frontal one adds nothing,
and there it would only average the two halves (SPI, Yin et al. 2023, sec. 3.1).
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from headlift.eg3d.active import CUT
from headlift.eg3d.camera import mirror, yaw_pitch
from headlift.eg3d.generator import Generator
from headlift.invert.perceptual import Distance, Prepared
from headlift.invert.result import Target
from headlift.values import Camera

FRONTAL = 0.2
"""Faces turned by less count as frontal, radians (SPI)."""
SPREAD = 0.29
"""Standard deviation of the yaws of the training photos, radians (SPI)."""
SCALE = 2.7
"""What SPI divides their density by."""


def mirror_weight(yaw: float) -> float:
    """SPI's weight of the mirrored photo: 0 for frontal faces, else (1 - density(|yaw|) / 2.7) / 2, up to a half."""
    if abs(yaw) < FRONTAL:
        return 0.0
    density = math.exp(-0.5 * (yaw / SPREAD) ** 2) / (SPREAD * math.sqrt(2 * math.pi))
    return (1 - density / SCALE) / 2


def turn(camera: Camera) -> float:
    """Yaw of a camera, radians."""
    return float(yaw_pitch(camera)[0][0])


def mirrored(target: Target) -> Target:
    """The photo flipped left to right."""
    return Target(target.image.flip(-1), target.mask.flip(-1), target.white)


def mirror_loss(
    generator: Generator,
    planes: Float[Tensor, "1 j c p p"],
    ws: Float[Tensor, "1 l w"],
    camera: Camera,
    mirrored_photo: Prepared,
    distance: Distance,
    neural_resolution: int | None = None,
) -> Float[Tensor, ""]:
    """How far the head's picture from the mirrored camera is from the mirrored photo; 0 for a symmetric head.

    `camera` is the photo's own.
    """
    output = generator.render(planes, ws, mirror(camera), neural_resolution, cut=CUT)
    return distance(mirrored_photo, output.image).sum()
