"""A small z-buffer in numpy: which triangle of a mesh each pixel sees. For checks of meshes against renders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from headlift.errors import MeshError
from headlift.export.color import linear_to_srgb, srgb_to_linear
from headlift.export.mesh import Mesh
from headlift.values import Camera, RenderOutput

_TESTED = 2**17
"""Pixels that are tested at once."""


@dataclass(frozen=True)
class Raster:
    """What a camera sees of a mesh; rows go down, the centre of pixel i is at (i + 0.5) / size."""

    face: Int[np.ndarray, "s s"]
    """Index of the nearest triangle, -1 where there is none."""
    weights: Float[np.ndarray, "s s 3"]
    """Barycentric weights on the triangle (perspective corrected); 0 where there is none."""
    depth: Float[np.ndarray, "s s"]
    """Distance along the ray (not z-depth) in world units; infinite where there is nothing."""

    def interpolate(
        self, faces: Int[np.ndarray, "f 3"], values: Float[np.ndarray, "v c"], background: float = 0.0
    ) -> Float[np.ndarray, "s s c"]:
        """Values of the vertices, interpolated over the picture."""
        hit = self.face >= 0
        out = np.full((*self.face.shape, values.shape[1]), background, dtype=np.float64)
        out[hit] = between(values, faces[self.face[hit]], self.weights[hit])
        return out


def rasterise(vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], camera: Camera, size: int) -> Raster:
    """Draw a mesh (world units) from a camera (batch of one) into a z-buffer of size x size pixels.

    The work suits many small triangles. Triangles that reach behind the camera are left out.
    """
    pose = camera.cam2world.reshape(4, 4).double().cpu().numpy()
    k = camera.intrinsics.reshape(3, 3).double().cpu().numpy()
    local = (vertices.astype(np.float64) - pose[:3, 3]) @ pose[:3, :3]
    z = local[:, 2]
    safe = np.where(z > 1e-6, z, 1.0)
    homogeneous = np.column_stack([local[:, :2] / safe[:, None], np.ones(len(local))]) @ k.T
    screen = homogeneous[:, :2] * size - 0.5  # integer coordinates are pixel centres

    usable = (z[faces] > 1e-6).all(axis=1)
    found_pixel, found_face, found_weights, found_z = [], [], [], []
    for pixel, part, flat in covered(screen[faces], size, usable):
        w = flat / z[faces[part]]
        inverse = w.sum(axis=-1)
        found_pixel.append(pixel)
        found_face.append(part)
        found_weights.append(w / inverse[:, None])
        found_z.append(1 / inverse)

    face = np.full(size * size, -1, dtype=np.int64)
    weights = np.zeros((size * size, 3))
    depth = np.full(size * size, np.inf)
    if found_z:
        pixel, distance = np.concatenate(found_pixel), np.concatenate(found_z)
        order = np.lexsort((distance, pixel))
        first = order[np.unique(pixel[order], return_index=True)[1]]
        seen = pixel[first]
        face[seen] = np.concatenate(found_face)[first]
        weights[seen] = np.concatenate(found_weights)[first]
        depth[seen] = distance[first] * _ray_length(k, size).ravel()[seen]
    return Raster(face.reshape(size, size), weights.reshape(size, size, 3), depth.reshape(size, size))


def covered(
    corners: Float[np.ndarray, "f 3 2"], size: int, usable: Bool[np.ndarray, " f"] | None = None
) -> Iterator[tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"], Float[np.ndarray, "p 3"]]]:
    """The pixels whose centres lie in triangles on a picture (pixels; integers are centres), in several portions.

    Yields pixels (row times size plus column), the triangles that cover them, and flat barycentric weights. Triangles
    are grouped by the size of their boxes, and each group is tested pixel by pixel of the box at once.
    """
    low = np.ceil(corners.min(axis=1)).astype(np.int64)
    high = np.floor(corners.max(axis=1)).astype(np.int64)
    low, high = np.maximum(low, 0), np.minimum(high, size - 1)
    shown = (high >= low).all(axis=1)
    if usable is not None:
        shown &= usable
    extent = np.where(shown, (high - low + 1).max(axis=1, initial=0), 0)
    for reach in np.unique(np.ceil(np.log2(np.maximum(extent[shown], 1))).astype(int)):
        box = 2**reach
        group = np.flatnonzero(shown & (extent > (box // 2 if reach else 0)) & (extent <= box))
        chunk = max(1, _TESTED // (box * box))
        dy, dx = (steps.astype(np.float64) for steps in np.divmod(np.arange(box * box), box))
        for start in range(0, len(group), chunk):
            part = group[start : start + chunk]
            a, b, c = (corners[part, i] - low[part] for i in range(3))
            # A weight is a linear function of the pixel; what it is at the box's first pixel, and how it grows.
            with np.errstate(divide="ignore", invalid="ignore"):
                area = _cross(b - a, c - a)
                wa, wb = (
                    (_cross(u, v) / area)[:, None]
                    + ((u - v)[:, 1] / area)[:, None] * dx
                    + ((v - u)[:, 0] / area)[:, None] * dy
                    for u, v in ((b, c), (c, a))
                )
                wc = 1 - wa - wb
            reaches = (high - low)[part]
            inside = (np.minimum(np.minimum(wa, wb), wc) >= -1e-9) & (dx <= reaches[:, :1]) & (dy <= reaches[:, 1:])
            f, o = np.nonzero(inside)
            weights = np.stack([wa[f, o], wb[f, o], wc[f, o]], axis=-1)
            row, column = np.divmod(o, box)
            yield (low[part[f], 1] + row) * size + low[part[f], 0] + column, part[f], weights


def drawn(mesh: Mesh, camera: Camera, size: int, background: float = 1.0) -> Float[np.ndarray, "s s 3"]:
    """A mesh as a camera (batch of one) sees it without any light: its own colours, sRGB in [0, 1].

    Raises MeshError for a mesh without colours.
    """
    seen = rasterise(mesh.vertices, mesh.faces, camera, size)
    picture = np.full((size, size, 3), background)
    hit = seen.face >= 0
    picture[hit] = linear_to_srgb(colors_at(mesh, seen.face[hit], seen.weights[hit]))
    return picture


def colors_at(mesh: Mesh, face: Int[np.ndarray, " p"], weights: Float[np.ndarray, "p 3"]) -> Float[np.ndarray, "p 3"]:
    """Linear colours at points on triangles: the texture's, bilinear, or those of the vertices.

    Raises MeshError for a mesh without colours.
    """
    if mesh.texture is None:
        if mesh.colors is None:
            raise MeshError("This mesh has no colours; extract it with colours.")
        return between(mesh.colors, mesh.faces[face], weights)
    image = mesh.texture.image
    side = len(image)
    place = between(mesh.texture.uv, mesh.texture.faces[face], weights) * side - 0.5
    low = np.floor(place).astype(np.int64)
    share = place - low
    total = np.zeros((len(face), 3))
    for dx in (0, 1):
        for dy in (0, 1):
            x, y = np.clip(low[:, 0] + dx, 0, side - 1), np.clip(low[:, 1] + dy, 0, side - 1)
            weight = np.abs(1 - dx - share[:, 0]) * np.abs(1 - dy - share[:, 1])
            total += weight[:, None] * srgb_to_linear(image[y, x] / 255.0)
    return total


def between(
    values: Float[np.ndarray, "v c"], corners: Int[np.ndarray, "p 3"], weights: Float[np.ndarray, "p 3"]
) -> Float[np.ndarray, "p c"]:
    """Values of vertices at points between three of them."""
    mixed = values[corners[:, 0]] * weights[:, :1]
    for i in (1, 2):
        mixed += values[corners[:, i]] * weights[:, i : i + 1]
    return mixed


def silhouette_iou(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], views: Sequence[RenderOutput], cameras: Camera
) -> Float[np.ndarray, " n"]:
    """Intersection over union of a mesh's silhouette with rendered alpha > 0.5, for each of n views."""
    scores = []
    for i, view in enumerate(views):
        shown = (view.alpha[0, 0] > 0.5).cpu().numpy()
        hit = rasterise(vertices, faces, cameras[i : i + 1], shown.shape[0]).face >= 0
        scores.append((hit & shown).sum() / max(1, (hit | shown).sum()))
    return np.array(scores)


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    area: np.ndarray = u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]
    return area


def _ray_length(intrinsics: np.ndarray, size: int) -> np.ndarray:
    """Distance along the ray for one unit of z-depth, for each pixel."""
    centres = (np.arange(size) + 0.5) / size
    u, v = np.meshgrid(centres, centres)
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(intrinsics).T
    length: np.ndarray = np.linalg.norm(rays, axis=-1)
    return length
