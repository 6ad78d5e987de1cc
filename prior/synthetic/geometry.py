"""Triangle meshes: their normals, their smoothing, and meshes that hang on another one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Integer


@dataclass(frozen=True)
class Topology:
    """What depends on the triangles of a mesh alone: linear operators on its n vertices."""

    triangles: Integer[np.ndarray, "t 3"]
    incidence: sp.csr_matrix
    """[n, t]: 1 where a triangle touches a vertex."""
    smoothing: sp.csr_matrix
    """[n, n]: the mean of a vertex and its neighbours."""

    @classmethod
    def of(cls, vertices: int, triangles: Integer[np.ndarray, "t 3"]) -> Topology:
        """The operators of a mesh of so many vertices."""
        face = np.repeat(np.arange(len(triangles)), 3)
        ones = np.ones(triangles.size, "f4")
        incidence = sp.csr_matrix((ones, (triangles.ravel(), face)), (vertices, len(triangles)))
        a, b = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]).T
        near = sp.csr_matrix((np.ones(2 * len(a), "f4"), (np.r_[a, b], np.r_[b, a])), (vertices, vertices))
        near.data[:] = 1
        near = near + sp.identity(vertices, dtype="f4")
        smoothing = sp.diags((1 / np.asarray(near.sum(1)).ravel()).astype("f4")) @ near
        return cls(triangles, incidence, smoothing)

    def normals(self, positions: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """Unit normals at the vertices, each triangle weighted by its area."""
        corner = positions[self.triangles]
        normal = self.incidence @ np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)


@dataclass(frozen=True)
class Mesh:
    """A part of a head in world units. v geometric vertices; r corners, one for each (vertex, texel) that occurs."""

    kind: str
    """Which shader draws it: skin, cloth, eye, teeth, hair (sorted and blended), card (brows, lashes), solid."""
    positions: Float[np.ndarray, "v 3"]
    normals: Float[np.ndarray, "v 3"]
    corner: Integer[np.ndarray, " r"]
    """Vertex of each corner."""
    uv: Float[np.ndarray, "r 2"]
    """Texture coordinates of each corner, (0, 0) the lower left one."""
    triangles: Integer[np.ndarray, "t 3"]
    """Corners of each triangle."""
    texture: str | None = None
    topology: Topology | None = None
    """None for grown strands: ribbons whose vertices come in pairs, a cross-section each."""
    rest: Float[np.ndarray, "v 3"] | None = None
    """Position in MakeHuman's rest frame (dm), by which shaders know where on the body they are."""
    brightness: Float[np.ndarray, " v"] | None = None
    """Factor on the colour of a strand."""

    def with_positions(self, positions: Float[np.ndarray, "v 3"]) -> Mesh:
        """The same mesh elsewhere, its normals as they were."""
        return replace(self, positions=positions)

    @property
    def surface(self) -> Float[np.ndarray, "t 3 3"]:
        """The corners of all triangles, world units."""
        return self.positions[self.corner[self.triangles]]


@dataclass(frozen=True)
class Binding:
    """How a proxy hangs on the base mesh: each of its p vertices on three base vertices and an offset."""

    references: Integer[np.ndarray, "p 3"]
    weights: Float[np.ndarray, "p 3"]
    offsets: Float[np.ndarray, "p 3"]
    """Decimetres, scaled along each axis by how the head's size there differs from the base's."""
    scale_references: Integer[np.ndarray, "3 2"]
    scale_denominators: Float[np.ndarray, " 3"]

    def fit(self, base: Float[np.ndarray, "v 3"]) -> Float[np.ndarray, "p 3"]:
        """The proxy's vertices on a morphed base mesh (decimetres)."""
        scale = np.array(
            [
                abs(base[a, axis] - base[b, axis]) / d if d else 1.0
                for axis, ((a, b), d) in enumerate(zip(self.scale_references, self.scale_denominators, strict=True))
            ]
        )
        return (base[self.references] * self.weights[..., None]).sum(1) + self.offsets * scale
