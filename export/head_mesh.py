"""From a head to its mesh: the density's surface, cleaned, decimated, and coloured or textured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headlift.config import MeshConfig
from headlift.eg3d.density import density_grid, grid_axis
from headlift.eg3d.generator import Generator
from headlift.export.level import automatic_level
from headlift.export.mesh import Mesh, mesh_from_density
from headlift.export.paint import cameras_around, colors_from_views, colors_of_volume, join
from headlift.export.views import Volume, box_side, render_views
from headlift.values import Camera

Density = Callable[[int, float | None], Float[np.ndarray, "r r r"]]
"""(resolution, level) to raw densities [x, y, z] on the exact grid. With a level, points in regions that surely stay
below it may hold any value below it."""


def extract_mesh(
    generator: Volume,
    planes: Float[Tensor, "1 ..."],
    ws: Float[Tensor, "1 n w"],
    config: MeshConfig,
    camera: Camera | None = None,
    density: Density | None = None,
) -> Mesh:
    """The surface of a head as a coloured mesh.

    `camera` (batch of one) is the view of the photo: where it sees the surface, its render, which carries the photo's
    detail, outweighs the views around. `density` is another source of densities than the generator's own grid.
    Deterministic. Raises MeshError when the volume has no surface at the level.
    """
    density = density or grid_density(generator, planes)
    box = box_side(generator)
    cameras = cameras_around()
    if camera is not None:
        cameras = join(camera.to("cpu", torch.float32), cameras)
    level = config.level
    views = list(render_views(generator, planes, ws, cameras)) if config.colors or level is None else []
    if level is None:
        every = slice(len(views) - 14, None, 2)  # seven of the fourteen around
        level = automatic_level(density(min(config.resolution, 128), None), box, views[every], cameras[every])
    mesh = mesh_from_density(density(config.resolution, level), box, level, config.walls)
    if config.colors:
        cell = box / (config.resolution - 1)
        colors, weight = colors_from_views(mesh, views, cameras, cell, photo=camera is not None)
        # Where no view looks straight enough, the volume's own colours come in, gently.
        share = 0.05 * np.clip(1 - weight / 0.3, 0, 1)
        dim = share[:, 0] > 0
        below = colors_of_volume(generator, planes, mesh.vertices[dim], mesh.normals[dim], cell)
        colors[dim] = (colors[dim] * weight[dim] + below * share[dim]) / (weight[dim] + share[dim])
        mesh = replace(mesh, colors=colors.astype(np.float32))
    return mesh


def grid_density(generator: Volume, planes: Float[Tensor, "1 ..."]) -> Density:
    """The generator's own density on the exact grid: the fast way for EG3D's, point by point for any other volume."""

    @torch.no_grad()
    def fast(resolution: int, level: float | None) -> Float[np.ndarray, "r r r"]:
        assert isinstance(generator, Generator)
        sigma: Float[np.ndarray, "r r r"] = density_grid(generator, planes, resolution, level).float().cpu().numpy()
        return sigma

    @torch.no_grad()
    def plain(resolution: int, level: float | None) -> Float[np.ndarray, "r r r"]:
        axis = grid_axis(resolution, box_side(generator), planes.device)
        sigma = np.empty((resolution, resolution, resolution), dtype=np.float32)
        slab = max(1, 2**20 // resolution**2)
        for start in range(0, resolution, slab):
            xyz = torch.stack(torch.meshgrid(axis[start : start + slab], axis, axis, indexing="ij"), dim=-1)
            values = generator.query(planes, xyz.reshape(1, -1, 3))[0]
            sigma[start : start + slab] = values.reshape(xyz.shape[:3]).float().cpu().numpy()
        return sigma

    return fast if isinstance(generator, Generator) else plain
