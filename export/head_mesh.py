"""From a head to its mesh: the density's surface, cleaned, decimated, and coloured or textured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headlift.config import MeshConfig
from headlift.eg3d.composite import CompositeGenerator
from headlift.eg3d.density import density_grid, grid_axis
from headlift.eg3d.generator import Generator
from headlift.errors import ConfigError
from headlift.export.clean import simplify, smoothed
from headlift.export.level import automatic_level
from headlift.export.manifold import manifold
from headlift.export.mesh import Mesh, mesh_from_density
from headlift.export.paint import cameras_around, colors_from_views, colors_of_volume, join
from headlift.export.placement import Placement
from headlift.export.texture import Photo, check_size, textured
from headlift.export.usd import check_usd
from headlift.export.views import Volume, box_side, render_views
from headlift.values import Camera

TEXTURED_FACES = 40_000
"""Triangles of a mesh with a texture, when nothing else is asked for."""
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
    photo: Photo | None = None,
) -> Mesh:
    """The surface of a head, with a texture, with coloured vertices, or bare: as the settings say.

    `camera` (batch of one) is the view of the photo: where it sees the surface, its render, which carries the photo's
    detail, outweighs the views around. With `photo`, which brings its own camera, and a texture, the photo's own pixels
    do. `density` is another source of densities than the generator's own grid. Deterministic.

    Raises:
        MeshError: the volume has no surface at the level.
        ConfigError: a count that is out of range.
    """
    density = density or grid_density(generator, planes)
    box = box_side(generator)
    level = find_level(generator, planes, ws, config, density) if config.level is None else config.level
    mesh = mesh_from_density(density(config.resolution, level), box, level, config.walls, config.close)
    mesh = smoothed(mesh, config.smooth)
    textured_now = config.texture and config.colors
    if config.faces is not None or textured_now:
        mesh = decimated(mesh, triangles(config))
    elif config.close or config.walls:
        mesh = manifold(mesh)
    if not config.colors:
        return mesh
    camera = photo.camera if photo is not None else camera
    cameras = cameras_around(view_count(generator, config))
    if camera is not None:
        cameras = join(camera.to("cpu", torch.float32), cameras)
    views = list(render_views(generator, planes, ws, cameras))
    cell = box / (config.resolution - 1)

    def below(points: Float[np.ndarray, "p 3"], normals: Float[np.ndarray, "p 3"]) -> Float[np.ndarray, "p 3"]:
        return colors_of_volume(generator, planes, points, normals, cell)

    if textured_now:
        return textured(mesh, views, cameras, below, photo if config.photo else None, config.texture_size)
    colors, weight = colors_from_views(mesh, views, cameras, cell, photo=camera is not None)
    # Where no view looks straight enough, the volume's own colours come in, gently.
    share = 0.05 * np.clip(1 - weight / 0.3, 0, 1)
    dim = share[:, 0] > 0
    colors[dim] = (colors[dim] * weight[dim] + below(mesh.vertices[dim], mesh.normals[dim]) * share[dim]) / (
        weight[dim] + share[dim]
    )
    return replace(mesh, colors=colors.astype(np.float32))


def decimated(mesh: Mesh, faces: int) -> Mesh:
    """The mesh with at most `faces` triangles, manifold: what is taken apart may need a few triangles more."""
    fewer = faces
    while True:
        small = manifold(simplify(mesh, fewer))
        over = len(small.faces) - faces
        if over <= 0 or fewer <= over + 4:
            return small
        fewer -= over


def triangles(config: MeshConfig) -> int:
    """The most triangles that a decimated mesh may have. Raises ConfigError for fewer than four."""
    count = TEXTURED_FACES if config.faces is None else config.faces
    if count < 4:
        raise ConfigError(f"a mesh of {count} triangles is none; ask for at least 4, better thousands")
    return count


def view_count(generator: Volume, config: MeshConfig) -> int:
    """How many views give the colours: as asked for, else fewer where each takes seconds. Raises ConfigError."""
    check_views(config)
    if config.views is None:
        pictures = generator.spec.image_resolution if isinstance(generator, Generator) else 256
        return 14 if pictures <= 256 else 6
    return config.views


def check_views(config: MeshConfig) -> None:
    """Raises ConfigError for a number of views outside 1 to 14."""
    if config.views is not None and not 1 <= config.views <= 14:
        raise ConfigError(f"1 to 14 views can give the colours, not {config.views}")


def check_mesh(config: MeshConfig, suffixes: Iterable[str]) -> None:
    """Raises ConfigError for settings that give no mesh, or none in files of these suffixes (`.glb`).

    To be asked before minutes are spent on a head.
    """
    grid_axis(config.resolution, 1.0)
    triangles(config)
    check_views(config)
    check_size(config.texture_size)
    if config.smooth < 0:
        raise ConfigError(f"--mesh.smooth must not be negative, but is {config.smooth}.")
    if config.close and config.walls:
        raise ConfigError("--mesh.close and --mesh.walls both make a mesh watertight; choose one of them")
    placement = Placement.of(config, np.zeros((1, 3), np.float32))
    for suffix in suffixes:
        placement.up_axis(suffix)
        if suffix == ".usdz":
            check_usd()


@torch.no_grad()
def find_level(
    generator: Volume,
    planes: Float[Tensor, "1 ..."],
    ws: Float[Tensor, "1 n w"],
    config: MeshConfig,
    density: Density,
) -> float:
    """The level by `automatic_level`, from seven views. EG3D's are rendered small and without super-resolution."""
    cameras = cameras_around()[0:13:2]
    if isinstance(generator, Generator):
        side = min(64, generator.spec.neural_resolution)
        found = generator.volume(planes, cameras.to(planes.device, planes.dtype), side).alpha
        alphas = [found[i : i + 1] for i in range(len(cameras))]
    else:
        alphas = [view.alpha for view in render_views(generator, planes, ws, cameras)]
    return automatic_level(density(min(config.resolution, 128), None), box_side(generator), alphas, cameras)


def grid_density(generator: Volume, planes: Float[Tensor, "1 ..."]) -> Density:
    """The generator's own density on the exact grid: the fast way for EG3D's, point by point for any other volume, such
    as two in one."""

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

    alone = isinstance(generator, Generator) and not isinstance(generator, CompositeGenerator)
    return fast if alone else plain
