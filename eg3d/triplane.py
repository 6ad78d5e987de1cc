"""Three feature planes and the look-up of points in them (EG3D section 3.1).

A point's coordinates are scaled so that the box of side `box_warp` becomes [-1, 1]^3. Each plane is sampled bilinearly,
zero outside, with texel i's centre at (i + 0.5) / size. The first coordinate of a pair runs along a plane's width.

The official weights carry a defect: their third plane is looked up at (z, x), so that two planes span x and z and none
spans y and z. Weights trained with it need it; the layouts `zy` and `yz` are the two repairs in use.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headlift.eg3d.spec import PlaneLayout

PLANE_AXES: dict[PlaneLayout, tuple[tuple[int, int], ...]] = {
    "official": ((0, 1), (0, 2), (2, 0)),
    "zy": ((0, 1), (0, 2), (2, 1)),
    "yz": ((0, 1), (0, 2), (1, 2)),
}
"""For each plane the world axes along its width and its height."""

Axes = tuple[tuple[int, int], ...]


def sample_planes(
    planes: Float[Tensor, "n 3 c p p"], xyz: Float[Tensor, "n m 3"], layout: PlaneLayout, box_warp: float
) -> Float[Tensor, "n m c"]:
    """Mean of the three planes' features at points in world units: one look-up for each plane, the plain way."""
    n, _, c = planes.shape[:3]
    with torch.autocast(planes.device.type, enabled=False):
        found = _sample(planes.float(), PLANE_AXES[layout], xyz.float() * (2 / box_warp))
        return found.permute(0, 3, 2, 1).reshape(n, 3, -1, c).mean(dim=1)


def merge_planes(planes: Float[Tensor, "n 3 c p p"], layout: PlaneLayout) -> tuple[Float[Tensor, "n k c p p"], Axes]:
    """As few planes as give the same sum of features, with their axes.

    In the official layout the second plane at (x, z) plus the third at (z, x) is one plane: the second plus the
    transposed third. The other layouts have three distinct planes, which are returned as they are.
    """
    axes = PLANE_AXES[layout]
    if layout != "official":
        return planes, axes
    return torch.stack([planes[:, 0], planes[:, 1] + planes[:, 2].mT], dim=1), axes[:2]


def look_up(planes: Float[Tensor, "n k c p p"], axes: Axes, unit: Float[Tensor, "n m 3"]) -> Float[Tensor, "n c m"]:
    """Sum over the planes of their features at points given in [-1, 1]^3 (bilinear, zero outside; float32)."""
    n, k, c = planes.shape[:3]
    with torch.autocast(planes.device.type, enabled=False):
        return _sample(planes.float(), axes, unit.float()).reshape(n, k, c, -1).sum(dim=1)


def _sample(planes: Float[Tensor, "n k c p p"], axes: Axes, unit: Float[Tensor, "n m 3"]) -> Float[Tensor, "n*k c 1 m"]:
    uv = torch.stack([unit[..., list(pair)] for pair in axes], dim=1).flatten(0, 1)[:, None]
    return F.grid_sample(planes.flatten(0, 1), uv, mode="bilinear", padding_mode="zeros", align_corners=False)
