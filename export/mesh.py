"""From a head's volume to a triangle mesh in EG3D's world: y up, face towards +z, world units.

The density is sampled on the exact grid (point i of R at (-0.5 + i / (R - 1)) * box along each axis), cut at one
level by marching cubes (Lorensen and Cline 1987), freed of everything but its largest piece and of the walls where the
cube cuts the shoulders, and coloured from renders of the head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from headlift.errors import MeshError


@dataclass(frozen=True)
class Texture:
    """A picture that a mesh wears, and where on it each triangle lies."""

    uv: Float[np.ndarray, "t 2"]
    """Places on the picture: fractions of its sides, (0, 0) its upper left corner as in glTF."""
    source: Int[np.ndarray, " t"]
    """The vertex of the mesh that each place belongs to; a vertex on a seam has several places."""
    faces: Int[np.ndarray, "f 3"]
    """The places of each triangle's corners, in the order of the mesh's triangles."""
    image: UInt8[np.ndarray, "s s 3"]
    """sRGB."""


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh in EG3D's world (y up, face towards +z), coordinates in world units."""

    vertices: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    """Corners counter-clockwise seen from outside."""
    normals: Float[np.ndarray, "v 3"]
    """Unit vectors pointing outwards."""
    colors: Float[np.ndarray, "v 3"] | None
    """Linear RGB in [0, 1] (not sRGB)."""
    level: float
    """The raw density (before the softplus) at the surface."""
    texture: Texture | None = None


def mesh_from_density(
    sigma: Float[np.ndarray, "r r r"], box: float, level: float, walls: bool = False, close: bool = False
) -> Mesh:
    """The surface sigma = level of a density on the exact grid, world units, without colours.

    Only the connected piece in the cube's middle stays, the head. What lies within 1.5 cells + box / 256 of the cube's
    border, where planes fade out and leave walls, is cut away, and the surface stays open there; with `close` it is
    closed flat where it is cut, and with `walls` along the border itself: then it is watertight. Normals are the
    density's gradient, by central differences over one cell each way, pointing outwards; where the gradient vanishes or
    is unknown, or where the surface was closed, area-weighted face normals.

    Raises MeshError when no density reaches the level, or every one exceeds it.
    """
    import mcubes

    resolution = sigma.shape[0]
    cell = box / (resolution - 1)
    low, high = float(sigma.min()), float(sigma.max())
    if not low < level < high:
        raise MeshError(
            f"The head has no surface at level {level:g}: its densities go from {low:g} to {high:g}. Choose a level in "
            "between, or leave it out for the automatic rule."
        )
    field, offset, rim, margin = sigma, 0, 0, 1.5 * cell + box / 256
    outside = level - 1e3 * max(1.0, high - level)
    if walls:
        field, offset = np.pad(sigma, 1, constant_values=outside), 1
    elif close:
        rim = math.ceil(margin / cell)
        inner = (slice(rim, -rim),) * 3
        field = np.full_like(sigma, outside)
        field[inner] = sigma[inner]
    points, faces = mcubes.marching_cubes(field, level)
    vertices = np.clip(points - offset, 0, resolution - 1) * cell - box / 2
    faces = faces.astype(np.int32)
    if not walls and not close:
        faces = faces[~_border_faces(vertices, faces, box, margin)]
    vertices, faces = _middle_piece(vertices, faces, box)
    if len(faces) == 0:
        raise MeshError(
            f"The head has no surface at level {level:g} inside the cube. Choose another level, or keep the walls."
        )
    normals = _gradient_normals(torch.from_numpy(sigma), vertices, box)
    flat = face_weighted_normals(vertices, faces)
    unknown = ~(np.abs(normals).sum(axis=1) > 0)
    if close or walls:
        unknown |= (np.abs(vertices) > box / 2 - (rim + 0.5) * cell).any(axis=1)
    normals[unknown] = flat[unknown]
    return Mesh(vertices.astype(np.float32), faces, normals.astype(np.float32), None, float(level))


def _border_faces(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], box: float, margin: float
) -> Bool[np.ndarray, " f"]:
    """Faces whose corners all lie within `margin` of the same side of the cube: its walls and the ragged rim there."""
    outside = (np.abs(vertices) > box / 2 - margin)[faces].all(axis=1)
    border: Bool[np.ndarray, " f"] = outside.any(axis=1)
    return border


def edges(faces: Int[np.ndarray, "f 3"]) -> Int[np.ndarray, "e 2"]:
    """The three directed edges of each triangle, one after the other: all first edges, all second, all third."""
    return np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])


def counted_edges(faces: Int[np.ndarray, "f 3"]) -> tuple[Int[np.ndarray, "e 2"], Int[np.ndarray, " e"]]:
    """Each edge once, the smaller vertex first, and how many triangles it has."""
    return np.unique(np.sort(edges(faces), axis=1), axis=0, return_counts=True)


def pieces(faces: Int[np.ndarray, "f 3"], vertices: int) -> tuple[int, Int[np.ndarray, " v"]]:
    """How many pieces there are that hang together, and to which each vertex belongs; a lone vertex is one too."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = coo_matrix((np.ones(len(ends), dtype=bool), (ends[:, 0], ends[:, 1])), shape=(vertices, vertices))
    count, label = connected_components(graph, directed=False)
    return int(count), label


def _middle_piece(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], box: float
) -> tuple[Float[np.ndarray, "w 3"], Int[np.ndarray, "g 3"]]:
    """The connected piece with the most triangles around the cube's middle, its vertices renumbered in their old order.

    A triangle counts by a Gaussian of its distance from the middle, of a fifth of the cube's side, so that a sheet of
    background behind the head does not win by its size.
    """
    if len(faces) == 0:
        return vertices[:0], faces
    label = pieces(faces, len(vertices))[1]
    near = np.exp(-0.5 * (np.linalg.norm(vertices[faces[:, 0]], axis=1) / (0.2 * box)) ** 2)
    biggest = np.bincount(label[faces[:, 0]], near).argmax()
    faces = faces[label[faces[:, 0]] == biggest]
    used = np.zeros(len(vertices), dtype=bool)
    used[faces] = True
    renumbered = np.cumsum(used) - 1
    return vertices[used], renumbered[faces].astype(np.int32)


def face_weighted_normals(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> Float[np.ndarray, "v 3"]:
    """Unit normals of vertices: the sum of their triangles' normals, weighted by area; (0, 0, 1) for lone vertices."""
    corners = vertices[faces].astype(np.float64)
    area = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = np.stack(
        [np.bincount(faces.ravel(), np.repeat(area[:, i], 3), minlength=len(vertices)) for i in range(3)], axis=1
    )
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(length > 1e-20, total / length.clip(1e-20), [0.0, 0.0, 1.0])


def _gradient_normals(volume: Tensor, vertices: Float[np.ndarray, "v 3"], box: float) -> Float[np.ndarray, "v 3"]:
    """Minus the density's gradient, normalised; zero where it vanishes or is not finite."""
    points = torch.from_numpy(vertices).float()
    cell = box / (volume.shape[0] - 1)
    slopes = []
    for axis in range(3):
        step = torch.zeros(3)
        step[axis] = cell
        slopes.append(trilinear(volume, points - step, box) - trilinear(volume, points + step, box))
    gradient = torch.stack(slopes, dim=-1).double()
    length = gradient.norm(dim=-1, keepdim=True)
    return torch.where(length > 1e-9, gradient / length, 0.0).nan_to_num(0.0).numpy()


def trilinear(volume: Float[Tensor, "r r r"], points: Float[Tensor, "m 3"], box: float) -> Float[Tensor, " m"]:
    """Trilinear interpolation of the exact grid at world points; beyond the cube, its border's values."""
    grid = (points.flip(-1) * (2 / box)).reshape(1, 1, 1, -1, 3)
    return F.grid_sample(volume[None, None], grid, padding_mode="border", align_corners=True).reshape(-1)
