"""A photo laid out in space: its pixels where a depth map has them, and what another camera sees of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from headlift.invert.losses import resize, resize_weighted
from headlift.invert.result import Target
from headlift.invert.warp import forward_splat, normals_of, surface_points
from headlift.values import Camera

FACING = 0.1
"""Cosine of the steepest angle at which the sheet is still seen."""
BEHIND_ITSELF = 0.03
"""So far behind its own nearest part it is hidden, world units."""


@dataclass(frozen=True)
class Sheet:
    """The photo's pixels in space."""

    points: Float[Tensor, "1 m 3"]
    normals: Float[Tensor, "1 m 3"]
    """Towards the photo's camera."""
    colour: Float[Tensor, "1 3 s s"]
    weight: Float[Tensor, "1 1 s s"]
    """1 where the place is known, else 0."""


def lay_out(target: Target, camera: Camera, depth: Float[Tensor, "1 1 r r"], sure: Float[Tensor, "1 1 r r"]) -> Sheet:
    """Put the photo's pixels, at twice their number along each side, where `depth` has them, if it is `sure`."""
    side = 2 * target.image.shape[-1]
    fine, share = resize_weighted(depth, sure, side)
    points = surface_points(fine, camera)
    normals = normals_of(points, camera)
    weight = ((share > 0.6) & (resize(target.mask, side) > 0.9)).to(depth.dtype)
    return Sheet(points, normals, resize(target.image, side), weight)


def carry(
    sheet: Sheet, camera: Camera, side: int
) -> tuple[Float[Tensor, "1 3 r r"], Float[Tensor, "1 1 r r"], Float[Tensor, "1 1 r r"]]:
    """What a camera sees of the sheet's front: colours, distance along the ray, and where they hold (1 or 0)."""
    towards = camera.origin[:, None] - sheet.points
    distance = torch.linalg.vector_norm(towards, dim=-1)
    facing = (sheet.normals * towards).sum(-1) / distance
    weight = sheet.weight * (facing > FACING).reshape(sheet.weight.shape)
    source = torch.cat([sheet.colour, distance.reshape(sheet.weight.shape)], 1)
    found, full = forward_splat(source, sheet.points, weight, camera, side, BEHIND_ITSELF)
    return found[:, :3], found[:, 3:], erode((full > 0.5).to(full.dtype), 1)


def erode(mask: Float[Tensor, "n 1 h w"], pixels: int) -> Float[Tensor, "n 1 h w"]:
    """The smallest value within so many pixels."""
    return -F.max_pool2d(-mask, 2 * pixels + 1, stride=1, padding=pixels)
