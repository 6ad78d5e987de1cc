"""Cleaner meshes: fewer triangles, smoother surfaces."""

from __future__ import annotations

import numpy as np

from headlift.export.mesh import Mesh


def simplify(mesh: Mesh, faces: int) -> Mesh:
    """The mesh with about `faces` triangles (quadric edge collapse, Garland and Heckbert 1997), for viewing.

    Normals and colours are those of the nearest vertices of the full mesh. A mesh that is small enough stays as it is.
    """
    if len(mesh.faces) <= faces:
        return mesh
    import fast_simplification
    from scipy.spatial import cKDTree

    points, triangles = fast_simplification.simplify(mesh.vertices, mesh.faces, target_count=faces)
    nearest = cKDTree(mesh.vertices).query(points)[1]
    colors = None if mesh.colors is None else mesh.colors[nearest]
    return Mesh(points.astype(np.float32), triangles.astype(np.int32), mesh.normals[nearest], colors, mesh.level)
