"""Small meshes whose every number is known."""

from __future__ import annotations

import numpy as np

from headlift.export.mesh import Mesh, Texture, face_weighted_normals


def sample_mesh() -> Mesh:
    """A lopsided octahedron: no two axes alike, with a colour for each vertex."""
    vertices = np.array(
        [[0.3, 0, 0], [-0.1, 0, 0], [0, 0.4, 0], [0, -0.2, 0], [0, 0, 0.25], [0, 0, -0.15]], dtype=np.float32
    )
    faces = np.array(
        [[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]], dtype=np.int32
    )
    colors = np.array(
        [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.25, 0.125], [0.02, 0.6, 0.9], [0.214041, 1, 0]], dtype=np.float32
    )
    return Mesh(vertices, faces, face_weighted_normals(vertices, faces).astype(np.float32), colors, 7.5)


def textured_sample() -> Mesh:
    """The octahedron with a seam: each triangle on a square of its own in a picture of 4 by 4 squares of 16 pixels."""
    mesh = sample_mesh()
    square = np.arange(8)
    corner = np.stack([square % 4, square // 4], axis=1)[:, None] / 4
    uv = (corner + np.array([[0.02, 0.02], [0.2, 0.03], [0.05, 0.22]])).reshape(-1, 2).astype(np.float32)
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    for i in range(16):
        image[i // 4 * 16 : i // 4 * 16 + 16, i % 4 * 16 : i % 4 * 16 + 16] = (15 * i, 255 - 15 * i, 128)
    places = np.arange(24).reshape(8, 3).astype(np.int32)
    texture = Texture(uv, mesh.faces.reshape(-1).astype(np.int32), places, image)
    return Mesh(mesh.vertices, mesh.faces, mesh.normals, mesh.colors, mesh.level, texture)
