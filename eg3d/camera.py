"""Cameras: placing them, comparing them, and going between pixels and points.

Frames: camera axes are OpenCV's (x right, y down, z forward), the world is EG3D's (y up, the face looks along +z, the
head around the origin). Angles are radians; yaw > 0 moves the camera to +x, pitch > 0 up. Picture coordinates are
fractions of the side, (0, 0) the upper left corner and (1, 1) the lower right one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from headlift.values import Camera

FFHQ_FOCAL = 4.2647
"""Focal length of EG3D's FFHQ crops over the image's side."""
FFHQ_RADIUS = 2.7
"""Distance of its cameras from the world's origin, world units."""
FFHQ_PIVOT = (0.0, 0.0, 0.2)
"""What they look at, world units."""
WHOLE_HEAD_FOCAL = 3.1
"""Focal length, in picture sides, at which a whole head fits the picture from a distance of 2.7 units."""
WHOLE_HEAD_PIVOT = (0.0, -0.02, 0.0)
"""Where cameras all round look, world units: the middle of the head, not the face as EG3D's own (0, 0, 0.2)."""

Angle = float | int | Float[Tensor, ""] | Float[Tensor, " n"]


def orbit(
    yaw: Angle,
    pitch: Angle,
    radius: Angle = FFHQ_RADIUS,
    pivot: Sequence[float] = FFHQ_PIVOT,
    focal: Angle = FFHQ_FOCAL,
) -> Camera:
    """Cameras on a sphere of `radius` around the world's origin that look at `pivot`.

    The angles (radians, floats or tensors of n) are the true ones of the position: r (cos p sin y, sin p, cos p cos y).
    `focal` is the focal length over the image's side. Differentiable in everything given as a tensor.
    """
    given = [v for v in (yaw, pitch, radius, focal) if isinstance(v, Tensor)]
    dtype = torch.result_type(given[0], given[-1]) if given else torch.float32
    device = given[0].device if given else None
    flat = [torch.as_tensor(v, dtype=dtype, device=device).reshape(-1) for v in (yaw, pitch, radius, focal)]
    n = max(len(v) for v in flat)
    y, p, r, f = (v.expand(n) for v in flat)
    direction = torch.stack([p.cos() * y.sin(), p.sin(), p.cos() * y.cos()], dim=-1)
    target = torch.tensor(list(pivot), dtype=y.dtype, device=y.device).expand_as(direction)
    return Camera(look_at(r[:, None] * direction, target), intrinsics(f))


def look_at(
    origin: Float[Tensor, "*b 3"], target: Float[Tensor, "*b 3"], up: Sequence[float] = (0.0, 1.0, 0.0)
) -> Float[Tensor, "*b 4 4"]:
    """cam2world of cameras at `origin` (world units) that look at `target` with `up` upwards in the picture.

    Where the view is along `up` itself, the world's z axis takes its place.
    """
    forward = torch.nn.functional.normalize(target - origin, dim=-1)
    upward = torch.tensor(list(up), dtype=origin.dtype, device=origin.device).expand_as(forward)
    right = torch.linalg.cross(forward, upward)
    spare = torch.tensor([0.0, 0.0, -1.0], dtype=origin.dtype, device=origin.device).expand_as(forward)
    along = torch.linalg.vector_norm(right, dim=-1, keepdim=True) < 1e-6
    right = torch.where(along, torch.linalg.cross(forward, spare), right)
    right = torch.nn.functional.normalize(right, dim=-1)
    down = torch.linalg.cross(forward, right)
    return _cam2world(torch.stack([right, down, forward], dim=-1), origin)


def published_look_at(
    horizontal: Angle, vertical: Angle, pivot: Sequence[float] = FFHQ_PIVOT, radius: float | int = FFHQ_RADIUS
) -> Float[Tensor, "n 4 4"]:
    """EG3D's own look-at sampler, whose pitch is remapped: cos(polar angle) = 1 - 2 v / pi.

    `horizontal` and `vertical` are radians, both pi / 2 for the frontal view; `vertical` is clamped to
    [1e-5, pi - 1e-5]. For true angles use `orbit`.
    """
    h = torch.as_tensor(horizontal, dtype=torch.float32).reshape(-1)
    v = torch.as_tensor(vertical, dtype=torch.float32).reshape(-1)
    n = max(len(h), len(v))
    h, v = h.expand(n), v.expand(n)
    polar = torch.arccos(1 - 2 * (v.clamp(1e-5, math.pi - 1e-5) / math.pi))
    azimuth = math.pi - h
    position = torch.stack([polar.sin() * azimuth.cos(), polar.cos(), polar.sin() * azimuth.sin()], dim=-1)
    target = torch.tensor(list(pivot), dtype=h.dtype, device=h.device).expand_as(position)
    return look_at(radius * position, target)


def intrinsics(focal: Angle, batch: int | None = None) -> Float[Tensor, "n 3 3"]:
    """Intrinsics normalised by the image's side: the same focal length both ways, principal point in the middle.

    `focal` is a number or a tensor of n; with a number, `batch` says how many (1 without it).
    """
    f = torch.as_tensor(focal) if isinstance(focal, Tensor) else torch.tensor(float(focal))
    f = f.reshape(-1)
    if batch is not None:
        f = f.expand(batch)
    zero, one, half = torch.zeros_like(f), torch.ones_like(f), torch.full_like(f, 0.5)
    return torch.stack([f, zero, half, zero, f, half, zero, zero, one], dim=-1).reshape(-1, 3, 3)


def focal_from_fov(degrees: float | int) -> float:
    """Focal length over the image's side, of a camera whose picture spans `degrees` from edge to edge."""
    return 0.5 / math.tan(math.radians(degrees) / 2)


def published_focal(fov: float | int) -> float:
    """EG3D's focal length for a `fov` in degrees, which it measures along the diagonal and with rounded constants."""
    return 1 / (math.tan(fov * 3.14159 / 360) * 1.414)


def yaw_pitch(camera: Camera) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """The true angles (radians) of the cameras' positions as seen from the world's origin: the inverse of `orbit`."""
    x, y, z = camera.origin.unbind(-1)
    return torch.atan2(x, z), torch.atan2(y, torch.hypot(x, z))


def rotation_angle(first: Float[Tensor, "*b 3 3"], second: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b"]:
    """Geodesic angle between rotations, radians in [0, pi].

    From the chord |A - B| = 2 sqrt(2) sin(angle / 2), which keeps its precision at small angles; the trace does not.
    """
    half = torch.linalg.matrix_norm(first - second) / (2 * math.sqrt(2))
    return 2 * torch.asin(half.clamp(0, 1))


def project(camera: Camera, points: Float[Tensor, "n m 3"]) -> tuple[Float[Tensor, "n m 2"], Float[Tensor, "n m"]]:
    """Where world points appear: picture fractions, and z along the camera's axis (world units, negative behind it)."""
    local = (points - camera.origin[:, None]) @ camera.rotation
    pixels = local @ camera.intrinsics.mT
    return pixels[..., :2] / pixels[..., 2:], local[..., 2]


def ray_directions(camera: Camera, uv: Float[Tensor, "n m 2"]) -> Float[Tensor, "n m 3"]:
    """Unit vectors in the world from each camera's centre through the picture fractions `uv`."""
    k = camera.intrinsics[:, None]
    y = (uv[..., 1] - k[..., 1, 2]) / k[..., 1, 1]
    x = (uv[..., 0] - k[..., 0, 2] - k[..., 0, 1] * y) / k[..., 0, 0]
    local = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    return torch.nn.functional.normalize(local @ camera.rotation.mT, dim=-1)


def unproject(
    camera: Camera, uv: Float[Tensor, "n m 2"], distance_along_ray: Float[Tensor, "n m"]
) -> Float[Tensor, "n m 3"]:
    """World points at a distance along the ray (not z-depth; world units) through picture fractions `uv`."""
    return camera.origin[:, None] + distance_along_ray[..., None] * ray_directions(camera, uv)


def mirror(camera: Camera) -> Camera:
    """The camera of the picture flipped left to right, for a world that is its own mirror image across x = 0."""
    flip = torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=camera.cam2world.dtype, device=camera.cam2world.device)
    k = camera.intrinsics.clone()
    k[..., 0, 2] = 1 - k[..., 0, 2]
    k[..., 0, 1] = -k[..., 0, 1]
    return Camera(flip[:, None] * camera.cam2world * flip, k)


def _cam2world(rotation: Float[Tensor, "*b 3 3"], origin: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 4 4"]:
    top = torch.cat([rotation, origin[..., None]], dim=-1)
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=origin.dtype, device=origin.device)
    return torch.cat([top, bottom.expand(*origin.shape[:-1], 1, 4)], dim=-2)
