"""Cleaner meshes: fewer triangles, smoother surfaces, and figures that tell how clean one is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from headlift.export.manifold import fans, paired
from headlift.export.mesh import Mesh, counted_edges, edges, face_weighted_normals, pieces
from headlift.export.placement import METRES_PER_UNIT

_PASS_BAND = (0.5, -0.53)
"""Taubin's factors: a step of smoothing and a slightly longer one back."""


def simplify(mesh: Mesh, faces: int) -> Mesh:
    """The mesh with about `faces` triangles (quadric edge collapse, Garland and Heckbert 1997), without texture.

    Normals and colours are those of the nearest vertices of the full mesh; where such a normal leans away from the
    new triangles, as on the edge of a flat cap, it is theirs. A mesh that is small enough stays as it is.
    """
    if len(mesh.faces) <= faces:
        return mesh
    import fast_simplification
    from scipy.spatial import cKDTree

    points, triangles = fast_simplification.simplify(mesh.vertices, mesh.faces, target_count=faces)
    points, triangles = _used(points.astype(np.float32), triangles.astype(np.int32))
    nearest = cKDTree(mesh.vertices).query(points)[1]
    normals = upright_normals(mesh.normals[nearest], face_weighted_normals(points, triangles))
    colors = None if mesh.colors is None else mesh.colors[nearest]
    return Mesh(points, triangles, normals, colors, mesh.level)


def upright_normals(
    normals: Float[np.ndarray, "v 3"], flat: Float[np.ndarray, "v 3"], least: float = 0.5
) -> Float[np.ndarray, "v 3"]:
    """Normals of the volume, but those of the triangles where the two are more than arccos(`least`) apart."""
    apart = (normals * flat).sum(axis=1) < least
    return np.where(apart[:, None], flat, normals).astype(np.float32)


def smoothed(mesh: Mesh, rounds: int) -> Mesh:
    """The mesh with a smoother surface that does not shrink; its border stays where it is.

    Each round moves vertices towards the mean of their neighbours and then a little further back (Taubin 1995,
    "A signal processing approach to fair surface design", factors 0.5 and -0.53).
    """
    if rounds == 0:
        return mesh
    from scipy.sparse import csr_matrix, diags

    count, ends = len(mesh.vertices), edges(mesh.faces)
    beside = csr_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    beside = ((beside + beside.T) > 0).astype(np.float64)
    mean = diags(1 / np.asarray(beside.sum(axis=1)).ravel().clip(1)) @ beside
    free = np.ones((count, 1))
    free[border_edges(mesh.faces).ravel()] = 0
    points = mesh.vertices.astype(np.float64)
    for _ in range(rounds):
        for factor in _PASS_BAND:
            points = points + factor * free * (mean @ points - points)
    normals = face_weighted_normals(points, mesh.faces).astype(np.float32)
    return replace(mesh, vertices=points.astype(np.float32), normals=normals)


def border_edges(faces: Int[np.ndarray, "f 3"]) -> Int[np.ndarray, "b 2"]:
    """Edges that belong to one triangle only."""
    ends, count = counted_edges(faces)
    return ends[count == 1]


def _used(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> tuple[Float[np.ndarray, "w 3"], Int[np.ndarray, "g 3"]]:
    """Without triangles that have a corner twice, and without vertices that no triangle has."""
    faces = faces[(faces != np.roll(faces, 1, axis=1)).all(axis=1)]
    kept = np.zeros(len(vertices), dtype=bool)
    kept[faces] = True
    return vertices[kept], (np.cumsum(kept) - 1)[faces].astype(np.int32)


@dataclass(frozen=True)
class Quality:
    """What can be said about a mesh without looking at it."""

    triangles: int
    vertices: int
    pieces: int
    """Connected ones; a head is one."""
    border_edges: int
    """Edges of one triangle only; none in a watertight mesh."""
    nonmanifold_edges: int
    """Edges of more than two triangles."""
    nonmanifold_vertices: int
    """Vertices at which several fans of triangles meet."""
    turned_edges: int
    """Edges whose two triangles run the same way along them, so that one of the two is inside out."""
    degenerate_triangles: int
    """Of no area."""
    watertight: bool
    """Every edge belongs to exactly two triangles."""
    volume_cm3: float | None
    """Enclosed volume; only for a watertight mesh."""
    area_cm2: float
    size_mm: tuple[float, float, float]
    """Extent from left to right, from bottom to top, from back to front."""
    normals_outwards: float
    """Share of the triangles' corners whose normal lies on the outer side of the triangle."""
    texture_use: float | None
    """Share of the texture that triangles lie on."""

    def lines(self) -> list[str]:
        """For people to read."""
        x, y, z = self.size_mm
        closed = f"open ({self.border_edges} border edges)" if self.border_edges else "closed, but touching itself"
        if self.volume_cm3 is not None:
            closed = f"watertight, {self.volume_cm3:.0f} cm3"
        faults = [
            f"{count} {name}"
            for count, name in (
                (self.pieces - 1, "loose pieces"),
                (self.nonmanifold_edges, "non-manifold edges"),
                (self.nonmanifold_vertices, "non-manifold vertices"),
                (self.turned_edges, "turned edges"),
                (self.degenerate_triangles, "degenerate triangles"),
            )
            if count
        ]
        return [
            f"{self.triangles} triangles, {self.vertices} vertices, {x:.0f} x {y:.0f} x {z:.0f} mm, {closed}",
            f"normals outwards at {100 * self.normals_outwards:.1f} % of the corners; faults: "
            + (", ".join(faults) or "none"),
        ]


def quality(mesh: Mesh, metres_per_unit: float = METRES_PER_UNIT) -> Quality:
    """Count what a mesh has of holes, seams and the like."""
    count = counted_edges(mesh.faces)[1]
    twice = np.unique(edges(mesh.faces), axis=0, return_counts=True)[1]
    total = len(mesh.vertices)
    corners = mesh.vertices[mesh.faces].astype(np.float64) * (100 * metres_per_unit)
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(across, axis=1) / 2
    watertight = bool((count == 2).all())
    fan = fans(mesh.faces, paired(mesh.vertices.astype(np.float64), mesh.faces))
    around = mesh.faces.ravel()[np.unique(fan, return_index=True)[1]]
    outwards = np.einsum("fkc,fc->fk", mesh.normals[mesh.faces].astype(np.float64), across) > 0
    use = None
    if mesh.texture is not None:
        a, b, c = (mesh.texture.uv[mesh.texture.faces[:, i]] for i in range(3))
        u, v = b - a, c - a
        use = float(np.abs(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]).sum() / 2)
    return Quality(
        triangles=len(mesh.faces),
        vertices=total,
        pieces=pieces(mesh.faces, total)[0],
        border_edges=int((count == 1).sum()),
        nonmanifold_edges=int((count > 2).sum()),
        nonmanifold_vertices=int((np.bincount(around, minlength=total) > 1).sum()),
        turned_edges=int((twice > 1).sum()),
        degenerate_triangles=int((area <= 1e-12).sum()),
        watertight=watertight,
        volume_cm3=float(np.einsum("fc,fc->f", corners[:, 0], across).sum() / 6) if watertight else None,
        area_cm2=float(area.sum()),
        size_mm=tuple(float(extent) for extent in np.ptp(mesh.vertices, axis=0) * (1000 * metres_per_unit)),  # type: ignore[arg-type]
        normals_outwards=float(outwards[area > 1e-12].mean()),
        texture_use=use,
    )
