"""From a head's volume to a triangle mesh in EG3D's world: y up, face towards +z, world units.

The density is sampled on the exact grid (point i of R at (-0.5 + i / (R - 1)) * box along each axis), cut at one
level by marching cubes (Lorensen and Cline 1987), freed of everything but its largest piece and of the walls where the
cube cuts the shoulders, and coloured from renders of the head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headlift.config import MeshConfig
from headlift.eg3d.density import density_grid, grid_axis
from headlift.eg3d.generator import Generator
from headlift.errors import MeshError
from headlift.export.color import srgb_to_linear
from headlift.export.views import Volume, box_side, orbit_cameras, render_views
from headlift.values import Camera, RenderOutput

Density = Callable[[int, float | None], Float[np.ndarray, "r r r"]]
"""(resolution, level) to raw densities [x, y, z] on the exact grid. With a level, points in regions that surely stay
below it may hold any value below it."""


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
        cameras = _join(camera.to("cpu", torch.float32), cameras)
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


# The level


def automatic_level(sigma: Float[np.ndarray, "r r r"], box: float, views: list[RenderOutput], cameras: Camera) -> float:
    """The raw density at which the mesh looks like the renders.

    The rule. A ray meets the surface at level L when the greatest density along it is at least L. Over all rays of the
    given views, that silhouette is held against rendered alpha > 0.5: the mean intersection over union of the views,
    for levels at the quantiles of the rays' greatest densities. Among the levels within 0.004 of the best, the one
    is taken whose first crossing lies nearest, in the mean, to where half of the light is stopped (transmittance 0.5,
    from the same densities). So silhouettes decide, and where they leave a choice, depth does.

    Where nothing is that opaque (an untrained generator's mist), half of the greatest alpha takes the place of 0.5.
    Raises MeshError when no view shows anything.
    """
    volume = torch.from_numpy(sigma)
    solid = min(0.5, 0.5 * max(float(out.alpha.max()) for out in views))
    rays = []
    for i, out in enumerate(views):
        alpha = out.alpha[0, 0].float().cpu()
        step = max(1, alpha.shape[0] // 64)
        along, distances = _densities_along_rays(volume, box, cameras[i : i + 1], alpha.shape[0], step)
        rays.append((along, distances, (alpha[::step, ::step] > solid).reshape(-1)))
    shown = torch.cat([along.amax(dim=1)[inside] for along, _, inside in rays])
    if solid < 0.005 or len(shown) == 0:
        raise MeshError(
            "The head has no surface: its renders are empty from every side. Try another seed, or look at the views "
            "before taking a mesh."
        )
    candidates = torch.quantile(shown, torch.linspace(0.001, 0.9, 120))
    scores = torch.zeros(len(candidates))
    for along, _, inside in rays:
        hit = along.amax(dim=1, keepdim=True) >= candidates
        union = (hit | inside[:, None]).sum(dim=0)
        scores += (hit & inside[:, None]).sum(dim=0) / union.clamp(min=1) / len(rays)
    close = candidates[scores >= scores.max() - 0.004]
    close = close[torch.linspace(0, len(close) - 1, min(len(close), 12)).round().long()]
    distance, count = torch.zeros(len(close)), torch.zeros(len(close))
    for along, distances, inside in rays:
        stopped = torch.cumsum(F.softplus(along - 1) * (distances[:, 1:2] - distances[:, :1]), dim=1)
        middle = first_crossings(stopped, distances, torch.tensor([math.log(2)]))
        apart = (first_crossings(along, distances, close) - middle).abs()
        valid = inside[:, None] & apart.isfinite()
        distance += torch.where(valid, apart, 0.0).sum(dim=0)
        count += valid.sum(dim=0)
    return float(close[(distance / count.clamp(min=1)).argmin()])


def _densities_along_rays(
    volume: Float[Tensor, "r r r"], box: float, camera: Camera, size: int, step: int
) -> tuple[Float[Tensor, "p k"], Float[Tensor, "p k"]]:
    """Trilinear densities at even distances along every `step`-th pixel's ray inside the cube, and those distances."""
    centres = (torch.arange(0, size, step) + 0.5) / size
    v, u = torch.meshgrid(centres, centres, indexing="ij")
    k = camera.intrinsics[0].float().cpu()
    rays = torch.stack([u, v, torch.ones_like(u)], dim=-1).reshape(-1, 3) @ torch.linalg.inv(k).T
    rays = F.normalize(rays @ camera.rotation[0].float().cpu().T, dim=-1)
    origin = camera.origin[0].float().cpu()
    safe = torch.where(rays.abs() < 1e-9, torch.full_like(rays, 1e-9), rays)
    sides = torch.stack([(-box / 2 - origin) / safe, (box / 2 - origin) / safe])
    near = sides.amin(dim=0).amax(dim=-1).clamp(min=0)
    far = torch.maximum(sides.amax(dim=0).amin(dim=-1), near)
    count = volume.shape[0]
    distances = near[:, None] + (far - near)[:, None] * ((torch.arange(count) + 0.5) / count)
    points = origin + rays[:, None] * distances[..., None]
    along = _trilinear(volume, points.reshape(-1, 3), box).reshape(distances.shape)
    missed = (far <= near)[:, None]
    return torch.where(missed, volume.min(), along), distances


def _trilinear(volume: Float[Tensor, "r r r"], points: Float[Tensor, "m 3"], box: float) -> Float[Tensor, " m"]:
    """Trilinear interpolation of the exact grid at world points; beyond the cube, its border's values."""
    grid = (points.flip(-1) * (2 / box)).reshape(1, 1, 1, -1, 3)
    return F.grid_sample(volume[None, None], grid, padding_mode="border", align_corners=True).reshape(-1)


def first_crossings(
    along: Float[Tensor, "p k"], distances: Float[Tensor, "p k"], levels: Float[Tensor, " c"]
) -> Float[Tensor, "p c"]:
    """Distances at which values along each ray first reach each level, linear between samples; infinite where never.

    A ray that starts at or above the level crosses it at its first sample.
    """
    last = along.shape[1] - 1
    rising = torch.cummax(along, dim=1).values
    index = torch.searchsorted(rising, levels.expand(len(along), -1).contiguous())
    after, before = index.clamp(max=last), (index - 1).clamp(0, last)
    a, b = along.gather(1, before), along.gather(1, after)
    t = torch.where(b > a, (levels - a) / (b - a).clamp(min=1e-12), 1.0).clamp(0, 1)
    near, far = distances.gather(1, before), distances.gather(1, after)
    return torch.where(index <= last, near + (far - near) * t, math.inf)


# The surface


def mesh_from_density(sigma: Float[np.ndarray, "r r r"], box: float, level: float, walls: bool = False) -> Mesh:
    """The surface sigma = level of a density on the exact grid, world units, without colours.

    Only the largest connected piece stays. What lies within 1.5 cells + box / 256 of the cube's border, where planes
    fade out and leave walls, is cut away, and the surface stays open there; with `walls` it is closed along the border
    instead, and then watertight. Normals are the density's gradient, by central differences over one cell each way,
    pointing outwards; where the gradient vanishes or is unknown, area-weighted face normals.

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
    field, offset = sigma, 0
    if walls:
        field, offset = np.pad(sigma, 1, constant_values=level - 1e3 * max(1.0, high - level)), 1
    points, faces = mcubes.marching_cubes(field, level)
    vertices = np.clip(points - offset, 0, resolution - 1) * cell - box / 2
    faces = faces.astype(np.int32)
    if not walls:
        faces = faces[~_border_faces(vertices, faces, box, 1.5 * cell + box / 256)]
    vertices, faces = _largest_piece(vertices, faces)
    if len(faces) == 0:
        raise MeshError(
            f"The head has no surface at level {level:g} inside the cube. Choose another level, or keep the walls."
        )
    normals = _gradient_normals(torch.from_numpy(sigma), vertices, box)
    flat = face_weighted_normals(vertices, faces)
    unknown = ~(np.abs(normals).sum(axis=1) > 0)
    normals[unknown] = flat[unknown]
    return Mesh(vertices.astype(np.float32), faces, normals.astype(np.float32), None, float(level))


def _border_faces(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], box: float, margin: float
) -> Bool[np.ndarray, " f"]:
    """Faces whose corners all lie within `margin` of the same side of the cube: its walls and the ragged rim there."""
    outside = (np.abs(vertices) > box / 2 - margin)[faces].all(axis=1)
    border: Bool[np.ndarray, " f"] = outside.any(axis=1)
    return border


def _largest_piece(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> tuple[Float[np.ndarray, "w 3"], Int[np.ndarray, "g 3"]]:
    """The connected piece with the most triangles, its vertices renumbered in their old order."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if len(faces) == 0:
        return vertices[:0], faces
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = coo_matrix((np.ones(len(ends), dtype=bool), (ends[:, 0], ends[:, 1])), shape=(len(vertices),) * 2)
    label = connected_components(graph, directed=False)[1]
    biggest = np.bincount(label[faces[:, 0]]).argmax()
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
        slopes.append(_trilinear(volume, points - step, box) - _trilinear(volume, points + step, box))
    gradient = torch.stack(slopes, dim=-1).double()
    length = gradient.norm(dim=-1, keepdim=True)
    return torch.where(length > 1e-9, gradient / length, 0.0).nan_to_num(0.0).numpy()


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


# The colours


def colors_of_volume(
    generator: Volume,
    planes: Float[Tensor, "1 ..."],
    vertices: Float[np.ndarray, "v 3"],
    normals: Float[np.ndarray, "v 3"],
    cell: float,
) -> Float[np.ndarray, "v 3"]:
    """Linear colours of the volume at the surface, composited along the normal from two cells outside to 0.12 inside.

    The volume's own colours are the first three features, sRGB in [0, 1]; what stays transparent after the last
    sample is filled by it.
    """
    steps = torch.linspace(2 * cell, -0.12, 9)
    spacing = float(steps[0] - steps[1])
    points, outwards = torch.from_numpy(vertices), torch.from_numpy(normals)
    colors = [np.zeros((0, 3), dtype=np.float32)]
    for start in range(0, len(points), 2**14):
        part = slice(start, start + 2**14)
        xyz = points[part, None] + outwards[part, None] * steps[:, None]
        with torch.no_grad():
            sigma, features = generator.query(planes, xyz.reshape(1, -1, 3).to(planes))
        alpha = 1 - torch.exp(-F.softplus(sigma.reshape(xyz.shape[:2]) - 1) * spacing)
        alpha[:, -1] = 1
        clear = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha[:, :-1]], dim=1), dim=1)
        srgb = features[..., :3].reshape(*xyz.shape[:2], 3).clamp(0, 1)
        colors.append(((alpha * clear)[..., None] * srgb).sum(dim=1).float().cpu().numpy())
    return srgb_to_linear(np.concatenate(colors).astype(np.float64))


def colors_from_views(
    mesh: Mesh, views: list[RenderOutput], cameras: Camera, cell: float, photo: bool = False
) -> tuple[Float[np.ndarray, "v 3"], Float[np.ndarray, "v 1"]]:
    """Linear colours of the vertices averaged over renders that see them, and the sum of the averaging's weights.

    A view weighs by the fourth power of the cosine between normal and ray, so that the view that looks straight at
    the surface decides, and by its opacity there, so that nothing of the background bleeds in. With `photo` the first
    view is the photo's: it weighs by the square of the cosine, sixteenfold, so that its detail stays sharp. Hidden
    vertices are found by a z-buffer of the vertices themselves, and next to them a view's weight fades.
    """
    points, normals = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.normals)
    local = (points - cameras.origin[:, None]) @ cameras.rotation
    uv = ((local / local[..., 2:]) @ cameras.intrinsics.mT)[..., :2]
    seen = []
    for i in range(len(views)):
        per_unit = float(cameras.intrinsics[i, 0, 0] / local[i, :, 2].mean())
        seen.append(_visible(uv[i], local[i, :, 2], min(512, max(16, int(0.7 / (cell * per_unit)))), 3 * cell))
    clear = torch.from_numpy(_faded(torch.stack(seen, dim=-1).numpy(), mesh.faces))
    total, weights = torch.zeros(len(points), 3), torch.zeros(len(points), 1)
    for i, out in enumerate(views):
        rays = F.normalize(points - cameras.origin[i], dim=-1)
        facing = (-(rays * normals).sum(dim=-1)).clamp(min=0)
        grid = (uv[i] * 2 - 1).reshape(1, 1, -1, 2)
        image = F.grid_sample(out.image.float().cpu(), grid, padding_mode="border", align_corners=False)
        # The faintest of the neighbouring opacities: colours at the rim are mixed with the background.
        solid = -F.max_pool2d(-out.alpha.float().cpu(), 3, stride=1, padding=1)
        opacity = F.grid_sample(solid, grid, padding_mode="zeros", align_corners=False)[0, 0, 0]
        trust = 16 * facing**2 if photo and i == 0 else facing**4
        weight = (trust * opacity.clamp(0, 1) ** 8 * clear[:, i])[:, None]
        linear = srgb_to_linear((image[0, :, 0].T.numpy().astype(np.float64) + 1) / 2)
        total += weight * torch.from_numpy(linear).float()
        weights += weight
    return (total / weights.clamp(min=1e-12)).double().numpy(), weights.double().numpy()


def _faded(seen: Bool[np.ndarray, "v n"], faces: Int[np.ndarray, "f 3"]) -> Float[np.ndarray, "v n"]:
    """What is seen, as weights that fade towards hidden neighbours: means over edges, to the fourth power."""
    from scipy.sparse import csr_matrix, diags

    count = len(seen)
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    beside = csr_matrix((np.ones(len(ends), dtype=np.float32), (ends[:, 0], ends[:, 1])), shape=(count, count))
    beside = beside + beside.T + diags(np.ones(count, dtype=np.float32), format="csr")
    mean = diags(1 / np.asarray(beside.sum(axis=1)).ravel().astype(np.float32)) @ beside
    share = seen.astype(np.float32)
    for _ in range(8):
        share = mean @ share
    faded: Float[np.ndarray, "v n"] = share**4 * seen
    return faded


def _visible(uv: Float[Tensor, "v 2"], z: Float[Tensor, " v"], size: int, tolerance: float) -> Bool[Tensor, " v"]:
    """Which points are nobody's hidden ones: a z-buffer of points, widened by a pixel against gaps between them."""
    pixel = (uv * size).long()
    inside = ((pixel >= 0) & (pixel < size)).all(dim=-1)
    index = (pixel[:, 1] * size + pixel[:, 0]).clamp(0, size * size - 1)
    buffer = torch.full((size * size,), math.inf)
    buffer.scatter_reduce_(0, index[inside], z[inside], "amin")
    nearest = -F.max_pool2d(-buffer.reshape(1, 1, size, size), 3, stride=1, padding=1).reshape(-1)
    return inside & (z <= nearest[index] + tolerance + 2 / size * z * 0.3)


def cameras_around() -> Camera:
    """Fourteen views: eight all round at eye level, five from above, one from the top."""
    quarter = math.pi / 2
    yaw = [i * math.pi / 4 for i in range(8)] + [quarter * i for i in range(4)] + [0.0, math.pi / 4]
    pitch = [0.0] * 8 + [0.6] * 4 + [1.35, -0.35]
    return orbit_cameras(torch.tensor(yaw), torch.tensor(pitch))


def _join(first: Camera, second: Camera) -> Camera:
    return Camera(torch.cat([first.cam2world, second.cam2world]), torch.cat([first.intrinsics, second.intrinsics]))
