"""Three feature planes and the look-up of points in them (EG3D section 3.1).

A point's coordinates are scaled so that the box of side `box_warp` becomes [-1, 1]^3. Each plane is sampled bilinearly,
zero outside, with texel i's centre at (i + 0.5) / size. The first coordinate of a pair runs along a plane's width.

The official weights carry a defect: their third plane is looked up at (z, x), so that two planes span x and z and none
spans y and z. Weights trained with it need it; the layouts `zy` and `yz` are the two repairs in use.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headlift.eg3d import rows
from headlift.eg3d.spec import PlaneLayout

FADE = 0.08
"""Over so much of z a plane fades behind its reach, in halves of the box."""


@dataclass(frozen=True, eq=False)
class Plane:
    """What one of the planes spans."""

    axes: tuple[int, int]
    """The world axes along its width and its height."""
    reach: Float[Tensor, "p p"] | None = None
    """Down to which z it counts fully at each of its texels, if it spans x and y and does not count everywhere; in
    halves of the box."""

    def share(self, unit: Float[Tensor, "n m 3"]) -> Float[Tensor, "n m"] | None:
        """How much it counts at points given in [-1, 1]^3, from 0 to 1; None for fully."""
        if self.reach is None:
            return None
        return (unit[..., 2] / FADE + self.offset(unit[..., :2])).clamp(0, 1)

    def offset(self, xy: Float[Tensor, "n m 2"]) -> Float[Tensor, "n m"]:
        """What the share is before it is kept between 0 and 1, at z = 0 and places given in [-1, 1]^2: bilinear, beyond
        the plane as at its rim."""
        assert self.reach is not None
        found = F.grid_sample(
            1 - self.reach[None, None] / FADE,
            xy.flatten(0, 1)[None, None],
            mode="bilinear",
            padding_mode="border",
            align_corners=False,
        )
        return found.reshape(xy.shape[:2])


XY, XZ = Plane((0, 1)), Plane((0, 2))

PLANES: dict[PlaneLayout, tuple[Plane, Plane, Plane]] = {
    "official": (XY, XZ, Plane((2, 0))),
    "zy": (XY, XZ, Plane((2, 1))),
    "yz": (XY, XZ, Plane((1, 2))),
}
"""The three planes of each layout, in order."""


def sample_planes(
    planes: Float[Tensor, "n k c p p"], each: tuple[Plane, ...], xyz: Float[Tensor, "n m 3"], box_warp: float
) -> Float[Tensor, "n m c"]:
    """A third of the sum of the planes' features at points in world units: a look-up for each plane, the plain way."""
    n, k, c = planes.shape[:3]
    with torch.autocast(planes.device.type, enabled=False):
        found = _sample(planes.float(), each, xyz.float() * (2 / box_warp))
        found = found.permute(0, 3, 2, 1).reshape(n, k, -1, c)
        return found.mean(dim=1) if k == 3 else found.sum(dim=1) / 3


def merge_planes(
    planes: Float[Tensor, "n k c p p"], each: tuple[Plane, ...]
) -> tuple[Float[Tensor, "n j c p p"], tuple[Plane, ...]]:
    """As few planes as give the same sum of features, and what they span.

    In the official layout the second plane at (x, z) plus the third at (z, x) is one plane: the second plus the
    transposed third. The other layouts have distinct planes, which are returned as they are.
    """
    if each[1].axes != each[2].axes[::-1]:
        return planes, each
    both = planes[:, 1:2] + planes[:, 2:3].mT
    return torch.cat([planes[:, :1], both, planes[:, 3:]], dim=1), (*each[:2], *each[3:])


def look_up(
    planes: Float[Tensor, "n k c p p"], each: tuple[Plane, ...], unit: Float[Tensor, "n m 3"]
) -> Float[Tensor, "n c m"]:
    """Sum over the planes of their features at points given in [-1, 1]^3 (bilinear, zero outside; float32).

    On a processor one head goes by `rows`, unless the points want gradients.
    """
    n, k, c = planes.shape[:3]
    with torch.autocast(planes.device.type, enabled=False):
        if rows.pays(planes, unit):
            shares = [plane.share(unit) for plane in each]
            return rows.summed_rows(planes.float(), unit.float(), [plane.axes for plane in each], shares).T[None]
        return _sample(planes.float(), each, unit.float()).reshape(n, k, c, -1).sum(dim=1)


def in_rows(planes: Float[Tensor, "n k c p p"]) -> Float[Tensor, "n k c p p"]:
    """The same with each texel's channels side by side in memory: what `look_up` wants on a processor."""
    return planes.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)


def _sample(
    planes: Float[Tensor, "n k c p p"], each: tuple[Plane, ...], unit: Float[Tensor, "n m 3"]
) -> Float[Tensor, "n*k c 1 m"]:
    uv = torch.stack([unit[..., list(plane.axes)] for plane in each], dim=1).flatten(0, 1)[:, None]
    found = F.grid_sample(planes.flatten(0, 1), uv, mode="bilinear", padding_mode="zeros", align_corners=False)
    shares = [plane.share(unit) for plane in each]
    if any(share is not None for share in shares):
        full = torch.ones_like(unit[..., 2])
        each_share = torch.stack([full if share is None else share for share in shares], dim=1)
        found = found * each_share.flatten(0, 1)[:, None, None]
    return found
