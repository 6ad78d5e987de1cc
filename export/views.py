"""What export asks of a generator, and renders of a head from given cameras."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from headlift.eg3d.camera import WHOLE_HEAD_FOCAL, WHOLE_HEAD_PIVOT, orbit
from headlift.values import Camera, RenderOutput


@runtime_checkable
class Volume(Protocol):
    """A renderable head volume: `headlift.eg3d.generator.Generator`, or anything that answers the same two calls."""

    spec: Any
    """With `spec.render.box_warp`, the side of the volume's cube in world units."""

    def render(self, planes: Tensor, ws: Tensor, camera: Camera) -> RenderOutput: ...

    def query(self, planes: Tensor, xyz: Tensor) -> tuple[Tensor, Tensor]: ...


def box_side(generator: Volume) -> float:
    """Side of the generator's cube in world units (its centre is the world's origin)."""
    return float(generator.spec.render.box_warp)


@torch.no_grad()
def render_views(
    generator: Volume, planes: Float[Tensor, "1 ..."], ws: Float[Tensor, "1 n w"], cameras: Camera, batch: int = 4
) -> Iterator[RenderOutput]:
    """Render a head from each camera, `batch` at a time; yields one RenderOutput of batch one for each camera.

    Results stay on the generator's device; memory is bounded by the batch.
    """
    cameras = cameras.to(device=planes.device, dtype=planes.dtype)
    for start in range(0, len(cameras), batch):
        out = generator.render(planes, ws, cameras[start : start + batch])
        for i in range(out.image.shape[0]):
            j = slice(i, i + 1)
            yield RenderOutput(out.image[j], out.raw[j], out.features[j], out.depth[j], out.alpha[j])


def orbit_cameras(
    yaw: Float[Tensor, " n"],
    pitch: Float[Tensor, " n"] | float = 0.0,
    radius: float = 2.7,
    focal: float = WHOLE_HEAD_FOCAL,
    pivot: tuple[float, float, float] = WHOLE_HEAD_PIVOT,
) -> Camera:
    """Cameras around a head: angles in radians, true angles (yaw > 0 moves to +x, pitch > 0 up).

    Unlike EG3D's crop cameras they turn about the middle of the head and see all of it, also from behind.
    """
    heights = torch.as_tensor(pitch, dtype=yaw.dtype).expand_as(yaw)
    return orbit(yaw, heights, radius=radius, pivot=pivot, focal=focal)
