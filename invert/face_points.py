"""The face's own relief: the surface must pass through the landmarks' points in space.

Pose estimation fits a head model to the landmarks, which leaves 468 points in the world, on the skin. A prior that
does not know a face's relief, or a tuning that paints the face on a smooth front, is told by them where nose, lips and
brows are. Each point that the camera sees is looked up in the rendered depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headlift.eg3d.camera import project
from headlift.invert.warp import sample
from headlift.values import Camera

NEIGHBOURS = 9
"""Points (itself among them) that a point's normal is taken from."""
FACING = 0.25
"""Points whose normal makes a smaller cosine with the way to the camera are not trusted to be seen."""
LARGEST = 0.05
"""Errors beyond this count linearly (Huber): a wrong point does not bend the head; world units."""


@dataclass(frozen=True)
class FacePoints:
    """Points on the skin with their outward normals, world units."""

    points: Float[Tensor, "k 3"]
    normals: Float[Tensor, "k 3"]


def face_points(points: Float[np.ndarray, "k 3"], device: torch.device | None = None) -> FacePoints:
    """Normals from each point's nearest neighbours (the smallest principal axis), away from the head's middle."""
    p = torch.from_numpy(np.asarray(points, dtype=np.float64))
    nearest = torch.cdist(p, p).topk(min(NEIGHBOURS, len(p)), largest=False).indices
    local = p[nearest] - p[nearest].mean(1, keepdim=True)
    axes = torch.linalg.svd(local, full_matrices=False).Vh
    normals = axes[:, -1]
    outward = (normals * p).sum(1, keepdim=True).sign()
    return FacePoints(p.float().to(device), (normals * outward).float().to(device))


def relief_error(
    depth: Float[Tensor, "1 1 r r"], alpha: Float[Tensor, "1 1 r r"], camera: Camera, face: FacePoints
) -> Float[Tensor, ""]:
    """Mean squared distance along the ray (Huber beyond 0.05) between points and surface, world units squared.

    Over the points that face the camera, lie in the picture and where there is a surface at all.
    """
    uv, _ = project(camera, face.points[None])
    towards = camera.origin - face.points
    distance = torch.linalg.vector_norm(towards, dim=1)
    facing = (towards * face.normals).sum(1) / distance > FACING
    inside = ((uv[0] > 0) & (uv[0] < 1)).all(1)
    solid = sample(alpha.detach(), uv)[0, 0] > 0.5
    seen = (facing & inside & solid).to(depth.dtype)
    error = sample(depth, uv)[0, 0] - distance
    squared = torch.where(error.abs() < LARGEST, error.square(), LARGEST * (2 * error.abs() - LARGEST))
    mean: Tensor = (squared * seen).sum() / seen.sum().clamp_min(1)
    return mean
