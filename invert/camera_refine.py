"""A small correction of the estimated camera, found together with the latent code.

The correction is a twist of se(3) in camera axes, taken about the world's origin, where the head is: its rotation
orbits the camera (about the camera's x and y axes) and rolls it (about z), its translation shifts the head in the
picture and changes the distance. Free translation is kept, because the crop's shift and scale are estimates too, and a
prior on every component keeps it small; on demand the camera goes back to its sphere instead, as in 3D GAN Inversion
with Pose Optimization (Ko et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headlift.config import CameraRefineConfig
from headlift.eg3d.camera import yaw_pitch
from headlift.values import Camera

ROLL_SIGMA = math.radians(1.0)
"""Expected error of the levelled roll, radians."""
TRANSLATION_SIGMA = 0.02
"""Expected error of the head's place along each axis, world units."""
SMALLEST_ANGLE_SIGMA = math.radians(0.5)
"""No pose estimate is believed to be better than this, radians."""
USUAL_ANGLE_SIGMA = math.radians(2.0)
"""Pose estimates of photos are about so good, radians."""
FASTEST = 10.0
"""How many times the usual rate a camera moves at most."""


def twist_matrix(twist: Float[Tensor, 6]) -> Float[Tensor, "4 4"]:
    """The rigid motion exp(twist): rotation (3, radians) then translation (3, world units)."""
    wx, wy, wz, vx, vy, vz = twist.unbind()
    zero = torch.zeros_like(wx)
    generator = torch.stack([zero, -wz, wy, vx, wz, zero, -wx, vy, -wy, wx, zero, vz, zero, zero, zero, zero])
    motion: Tensor = torch.linalg.matrix_exp(generator.reshape(4, 4))
    return motion


def moved_camera(camera: Camera, twist: Float[Tensor, 6], on_sphere: bool = False) -> Camera:
    """The camera after a twist in its own axes about the world's origin; the zero twist changes nothing.

    `on_sphere` puts its centre back, along the line to the origin, to the distance that it had, as 3D GAN Inversion
    with Pose Optimization does (sec. 3.2).
    """
    axes = torch.eye(4, dtype=twist.dtype, device=twist.device).repeat(len(camera), 1, 1)
    axes[:, :3, :3] = camera.rotation.to(twist.dtype)
    motion = axes @ twist_matrix(twist) @ axes.transpose(1, 2)
    moved = Camera((motion @ camera.cam2world.to(twist.dtype)).to(camera.cam2world.dtype), camera.intrinsics)
    if not on_sphere:
        return moved
    radius = torch.linalg.vector_norm(camera.origin, dim=-1, keepdim=True)
    origin = moved.origin * (radius / torch.linalg.vector_norm(moved.origin, dim=-1, keepdim=True))
    top = torch.cat([moved.rotation, origin[..., None]], -1)
    return Camera(torch.cat([top, moved.cam2world[..., 3:, :]], -2), camera.intrinsics)


def camera_rate(covariances: Iterable[Float[np.ndarray, "2 2"]], config: CameraRefineConfig) -> float:
    """Adam's rate for cameras whose (yaw, pitch) are so sure (radians squared; the least sure one counts)."""
    variances = [float(np.trace(covariance)) / 2 for covariance in covariances]
    worst = max((v for v in variances if math.isfinite(v)), default=0.0) / USUAL_ANGLE_SIGMA**2
    return config.lr * min(max(worst, 1.0), FASTEST)


def camera_prior(
    twist: Float[Tensor, 6], camera: Camera, covariance: Float[np.ndarray, "2 2"], config: CameraRefineConfig
) -> Float[Tensor, ""]:
    """Squared Mahalanobis length of the correction.

    Change of (yaw, pitch) under the pose's own covariance (radians squared, its sigmas held above
    `SMALLEST_ANGLE_SIGMA`), roll and translation under the spreads above.
    """
    floor = np.eye(2) * SMALLEST_ANGLE_SIGMA**2
    finite = np.where(np.isfinite(covariance), covariance, 0.0)
    precision = torch.from_numpy(np.linalg.inv(finite + floor)).to(twist)
    before = torch.stack(yaw_pitch(camera), -1)[0]
    after = torch.stack(yaw_pitch(moved_camera(camera, twist)), -1)[0]
    turned = after - before
    turned = torch.remainder(turned + math.pi, 2 * math.pi) - math.pi
    angles = turned @ precision.to(turned) @ turned + (twist[2] / ROLL_SIGMA).square()
    shift = (twist[3:] / TRANSLATION_SIGMA).square().sum()
    return config.rotation_weight * angles + config.translation_weight * shift
