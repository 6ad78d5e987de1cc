"""Carry a picture from one camera to another through rendered depth, forward (splatting) or backward (sampling).

Depth is the distance along the ray throughout, so points are camera centre + depth * unit direction (several
published methods take it for z-depth, which is off by up to 1.4 % at the corners of an FFHQ crop).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from headlift.eg3d.camera import project, unproject
from headlift.values import Camera

OCCLUSION = 0.05
"""A point counts as hidden when the source sees a surface this much closer, world units (SPI)."""


def pixel_centres(side: int, device: torch.device | None = None) -> Float[Tensor, "m 2"]:
    """Centres of the pixels row by row, in picture fractions (x, y)."""
    ticks = (torch.arange(side, device=device, dtype=torch.float32) + 0.5) / side
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def sample(image: Float[Tensor, "n c h w"], uv: Float[Tensor, "n m 2"]) -> Float[Tensor, "n c m"]:
    """Bilinear look-up at picture fractions; the border goes on beyond the edge."""
    found = F.grid_sample(image, (uv * 2 - 1)[:, None], padding_mode="border", align_corners=False)
    return found[:, :, 0]


def surface_points(depth: Float[Tensor, "n 1 s s"], camera: Camera) -> Float[Tensor, "n m 3"]:
    """World points that the pixels of a depth map see, row by row."""
    n, side = depth.shape[0], depth.shape[-1]
    uv = pixel_centres(side, depth.device).expand(n, -1, -1)
    return unproject(camera, uv, depth.flatten(1))


def normals_of(points: Float[Tensor, "1 m 3"], camera: Camera) -> Float[Tensor, "1 m 3"]:
    """Unit normals of a surface at the points that a camera's pixels see, row by row; they point towards the camera."""
    side = math.isqrt(points.shape[1])
    grid = points.reshape(side, side, 3)
    across = torch.gradient(grid, dim=1)[0]
    down = torch.gradient(grid, dim=0)[0]
    normals = F.normalize(torch.linalg.cross(down, across), dim=-1).reshape(1, -1, 3)
    towards = F.normalize(camera.origin[:, None] - points, dim=-1)
    return normals * (normals * towards).sum(-1, keepdim=True).sign()


def visibility(
    points: Float[Tensor, "n m 3"], depth: Float[Tensor, "n 1 r r"], camera: Camera, occlusion: float = OCCLUSION
) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m 2"]]:
    """Which world points a camera with this depth map sees (1 or 0), and where, in picture fractions.

    Seen is what lies inside the picture, in front of the camera, and no more than `occlusion` behind the surface there.
    """
    uv, z = project(camera, points)
    surface = sample(depth, uv)[:, 0]
    distance = torch.linalg.vector_norm(points - camera.origin[:, None], dim=-1)
    inside = ((uv > 0) & (uv < 1)).all(-1) & (z > 0)
    return (inside & (distance - surface < occlusion)).to(depth.dtype), uv


def backward_warp(
    source: Float[Tensor, "n c h w"],
    source_depth: Float[Tensor, "n 1 r r"],
    source_camera: Camera,
    depth: Float[Tensor, "n 1 s s"],
    camera: Camera,
    occlusion: float = OCCLUSION,
) -> tuple[Float[Tensor, "n c s s"], Float[Tensor, "n 1 s s"]]:
    """What `camera` would see of the surface `depth` if it were painted with the source picture.

    Each pixel's point is looked up in the source. Returns the picture and where it holds (1 or 0): the source sees the
    point (`visibility`).
    """
    n, side = depth.shape[0], depth.shape[-1]
    visible, uv = visibility(surface_points(depth, camera), source_depth, source_camera, occlusion)
    return sample(source, uv).reshape(n, -1, side, side), visible.reshape(n, 1, side, side)


def forward_splat(
    source: Float[Tensor, "1 c h w"],
    points: Float[Tensor, "1 m 3"],
    weight: Float[Tensor, "1 1 h w"],
    camera: Camera,
    side: int,
    occlusion: float = OCCLUSION,
) -> tuple[Float[Tensor, "1 c r r"], Float[Tensor, "1 1 r r"]]:
    """What `camera` sees of the source's pixels, laid out in space, in a picture of `side` pixels.

    Each point goes to the four pixels around it by its bilinear share; of those that meet in a pixel, the ones more
    than `occlusion` behind the nearest are hidden (a z-buffer of distances along the ray).

    Args:
        points: where the source's pixels lie, row by row (`surface_points`).
        weight: how much each counts; 0 leaves it out.

    Returns:
        The weighted mean of the colours (0 where there are none), and how full each pixel is, in [0, 1].
    """
    uv, z = project(camera, points)
    distance = torch.linalg.vector_norm(points - camera.origin[:, None], dim=-1)[0]
    place = uv[0] * side - 0.5
    corner = place.floor()
    share = place - corner
    counts = weight.flatten() * (z[0] > 0)
    indices, shares = [], []
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = corner[:, 0] + dx, corner[:, 1] + dy
        inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
        part = (share[:, 0] if dx else 1 - share[:, 0]) * (share[:, 1] if dy else 1 - share[:, 1])
        indices.append(torch.where(inside, y * side + x, torch.zeros_like(x)).long())
        shares.append(torch.where(inside, part * counts, torch.zeros_like(part)))
    index, amount, far = torch.cat(indices), torch.cat(shares), distance.repeat(4)
    large = amount >= NEAR_SHARE * counts.repeat(4).clamp_min(1e-8)
    nearest = torch.full((side * side,), torch.inf, dtype=far.dtype, device=far.device)
    nearest = nearest.scatter_reduce(0, index, torch.where(large, far, torch.full_like(far, torch.inf)), "amin")
    amount = amount * (far <= nearest[index] + occlusion)
    colours = source.flatten(2)[0].repeat(1, 4)
    total = torch.zeros(side * side, dtype=far.dtype, device=far.device).index_add(0, index, amount)
    summed = torch.zeros(len(colours), side * side, dtype=far.dtype, device=far.device)
    summed = summed.index_add(1, index, colours * amount)
    image = summed / total.clamp_min(1e-8)
    return image.reshape(1, -1, side, side), total.clamp(0, 1).reshape(1, 1, side, side)


NEAR_SHARE = 0.25
"""Only pixels that take this share of a point or more are covered by it in the z-buffer."""


def steps(depth: Float[Tensor, "n 1 s s"], limit: float = OCCLUSION) -> Float[Tensor, "n 1 s s"]:
    """1 on pixels beside which the depth jumps by more than `limit`: contours, where a surface point is a guess."""
    high = F.max_pool2d(depth, 3, stride=1, padding=1)
    low = -F.max_pool2d(-depth, 3, stride=1, padding=1)
    return (high - low > limit).to(depth.dtype)
