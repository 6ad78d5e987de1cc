"""Gaussian splats of a head, in the PLY that viewers of 3D Gaussian splatting read (Kerbl et al. 2023).

Most splats are flat discs on the surface of a coloured mesh. What lies in front of it, the soft rim of hair and
shoulders, is in round splats that let light through, one for each cell of a grid with some density. Coordinates are
metres with y down and z away from the face's front, as scenes from photogrammetry have it and as viewers of splats
expect; `mesh_to_world` in the file's comments leads back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headlift.eg3d.density import grid_axis
from headlift.errors import MeshError
from headlift.export.color import linear_to_srgb
from headlift.export.files import write_bytes
from headlift.export.head_mesh import grid_density
from headlift.export.mesh import Mesh
from headlift.export.placement import METRES_PER_UNIT
from headlift.export.raster import between, colors_at
from headlift.export.views import Volume, box_side
from headlift.values import Camera

SH_ZERO = 0.28209479177387814
"""The constant spherical harmonic: colour = 0.5 + SH_ZERO * f_dc."""
_OPACITY = 0.98
_THICKNESS = 0.1
"""Of a disc, as a fraction of its radius."""
_INSET = 0.004
"""How far below the surface they lie, world units: what their blur adds to a contour in a picture of a head."""
_SOFT_RESOLUTION = 96
"""Grid points along the cube's side for the soft rim."""
_SOFT_RADIUS = 0.6
"""Standard deviation of its splats, in cells."""
_FAINTEST = 0.01
"""Cells of less optical depth are taken to be empty."""
_CLEAR = 0.5
"""The discs lie where this share of the light that comes in along the normal is left."""
_PROFILE = np.linspace(0.06, -0.10, 17)
"""Where the density is looked at along the normal, world units from the surface, from outside in."""
_Y_DOWN = np.diag([1.0, -1.0, -1.0])


@dataclass(frozen=True)
class Splats:
    """Gaussians in EG3D's world, world units."""

    means: Float[np.ndarray, "n 3"]
    normals: Float[np.ndarray, "n 3"]
    """The short axis of each."""
    quaternions: Float[np.ndarray, "n 4"]
    """w, x, y, z: turns the z axis onto the normal."""
    scales: Float[np.ndarray, "n 3"]
    """Standard deviations along the turned axes."""
    colors: Float[np.ndarray, "n 3"]
    """sRGB in [0, 1]: splats are blended as they are shown."""
    opacities: Float[np.ndarray, " n"]


def splats_on(mesh: Mesh, count: int = 150_000, seed: int = 0) -> Splats:
    """`count` splats spread evenly over a coloured mesh, by area, each as wide as its share of the surface.

    Raises MeshError for a mesh without colours.
    """
    if mesh.colors is None:
        raise MeshError("Splats need colours, and this mesh has none; leave out --mesh.no-colors.")
    rng = np.random.default_rng(seed)
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    # Stratified along the running sum of the areas: neighbours in it lie on the same or on neighbouring triangles.
    places = (np.arange(count) + rng.random(count)) / count * area.sum()
    face = np.searchsorted(np.cumsum(area), places).clip(max=len(area) - 1)
    root, along = np.sqrt(rng.random(count)), rng.random(count)
    weights = np.stack([1 - root, root * (1 - along), root * along], axis=1)
    normals = between(mesh.normals, mesh.faces[face], weights)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)
    radius = 0.6 * np.sqrt(area.sum() / count)
    return Splats(
        means=between(mesh.vertices, mesh.faces[face], weights) - _INSET * normals,
        normals=normals,
        quaternions=_onto(normals),
        scales=np.tile([radius, radius, _THICKNESS * radius], (count, 1)),
        colors=linear_to_srgb(colors_at(mesh, face, weights)),
        opacities=np.full(count, _OPACITY),
    )


@torch.no_grad()
def splats_of(generator: Volume, planes: Float[Tensor, "1 ..."], mesh: Mesh, count: int = 150_000) -> Splats:
    """A head as splats: `count` discs on its coloured mesh, and what is half transparent in front of them.

    A disc is moved inwards to where half the light along its normal is left, and is as opaque as the volume is there.
    The soft splats are isotropic; those of a layer of cells, h apart and of standard deviation s, add up to the layer's
    optical depth: each has h^2 / (2 pi s^2) of it. Their colours are the volume's own. Raises MeshError as `splats_on`.
    """
    discs = splats_on(mesh, count)
    surface = discs.means + _INSET * discs.normals
    spacing = float(_PROFILE[0] - _PROFILE[1])
    depths = np.stack([_densities(generator, planes, surface + t * discs.normals)[0] for t in _PROFILE], axis=1)
    passed = np.cumsum(depths * spacing, axis=1)
    inset = _reached(passed, -math.log(_CLEAR), spacing)
    discs = replace(
        discs,
        means=discs.means - inset[:, None] * discs.normals,
        opacities=np.clip(1 - np.exp(-passed[:, -1]), _FAINTEST, _OPACITY),
    )
    soft = _soft_splats(generator, planes, surface, discs.normals, inset)
    return Splats(*(np.concatenate([getattr(discs, f.name), getattr(soft, f.name)]) for f in fields(Splats)))


def _reached(passed: Float[np.ndarray, "n t"], goal: float, spacing: float) -> Float[np.ndarray, " n"]:
    """How far below the surface the optical depth from outside reaches a goal; not above it, and at the end of the
    profile where it never does. Between two samples it is taken to rise evenly."""
    after = np.where((passed >= goal).any(axis=1), (passed >= goal).argmax(axis=1), passed.shape[1] - 1)
    rows = np.arange(len(passed))
    before = np.where(after > 0, passed[rows, after - 1], 0.0)
    share = np.clip((goal - before) / np.maximum(passed[rows, after] - before, 1e-9), 0, 1)
    depth: Float[np.ndarray, " n"] = np.maximum(-_PROFILE[after] - spacing / 2 + share * spacing, 0.0)
    return depth


def _soft_splats(
    generator: Volume,
    planes: Float[Tensor, "1 ..."],
    surface: Float[np.ndarray, "n 3"],
    normals: Float[np.ndarray, "n 3"],
    inset: Float[np.ndarray, " n"],
) -> Splats:
    """A splat for each cell with some density in front of the discs that lie `inset` below the surface."""
    from scipy.spatial import cKDTree

    box = box_side(generator)
    cell = box / (_SOFT_RESOLUTION - 1)
    depth = np.logaddexp(0, grid_density(generator, planes)(_SOFT_RESOLUTION, None) - 1.0) * cell
    places = np.argwhere(depth > _FAINTEST)
    points = grid_axis(_SOFT_RESOLUTION, box).numpy().astype(np.float64)[places]
    inside = (np.abs(points) < box / 2 - 1.5 * cell - box / 256).all(axis=1)  # as the mesh is cut
    places, points = places[inside], points[inside]
    distance, nearest = cKDTree(surface).query(points)
    outwards = ((points - surface[nearest]) * normals[nearest]).sum(axis=1)
    front = np.sign(outwards) * distance > -inset[nearest]
    places, points = places[front], points[front]
    share = depth[tuple(places.T)] / (2 * np.pi * _SOFT_RADIUS**2)
    return Splats(
        means=points,
        normals=np.tile([0.0, 0.0, 1.0], (len(points), 1)),
        quaternions=np.tile([1.0, 0.0, 0.0, 0.0], (len(points), 1)),
        scales=np.full((len(points), 3), _SOFT_RADIUS * cell),
        colors=_densities(generator, planes, points)[1].clip(0, 1),
        opacities=np.clip(1 - np.exp(-share), 1e-3, _OPACITY),
    )


def _densities(
    generator: Volume, planes: Float[Tensor, "1 ..."], points: Float[np.ndarray, "n 3"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n 3"]]:
    """Optical depths for one unit of length, and the volume's own colours, sRGB."""
    depths, colors = [np.zeros(0)], [np.zeros((0, 3))]
    for start in range(0, len(points), 2**16):
        xyz = torch.from_numpy(points[start : start + 2**16]).float()[None].to(planes)
        sigma, features = generator.query(planes, xyz)
        depths.append(np.logaddexp(0, sigma.reshape(-1).double().cpu().numpy() - 1))
        colors.append(features[..., :3].reshape(-1, 3).double().cpu().numpy())
    return np.concatenate(depths), np.concatenate(colors)


def splat_ply_bytes(splats: Splats, metres_per_unit: float = METRES_PER_UNIT) -> bytes:
    """The standard fields: positions, normals, f_dc (colour), opacity (logit), scale (logarithm), rot (w, x, y, z)."""
    turned = _multiply(np.array([0.0, 1.0, 0.0, 0.0]), splats.quaternions)  # half a turn about x: y and z down
    columns = {
        **_named("", ("x", "y", "z"), splats.means @ _Y_DOWN * metres_per_unit),
        **_named("", ("nx", "ny", "nz"), splats.normals @ _Y_DOWN),
        **_named("f_dc_", "012", (splats.colors - 0.5) / SH_ZERO),
        "opacity": np.log(splats.opacities / (1 - splats.opacities)),
        **_named("scale_", "012", np.log(splats.scales * metres_per_unit)),
        **_named("rot_", "0123", turned),
    }
    table = np.zeros(len(splats.means), dtype=[(name, "<f4") for name in columns])
    for name, values in columns.items():
        table[name] = values
    back = np.eye(4)
    back[:3, :3] = _Y_DOWN / metres_per_unit
    header = ["ply", "format binary_little_endian 1.0", "comment headlift: Gaussian splats, metres, y down, z forward"]
    header += [
        f"comment mesh_to_world {i} " + " ".join(f"{value + 0.0:.9g}" for value in row)
        for i, row in enumerate(back.tolist())
    ]
    header += [f"element vertex {len(table)}", *(f"property float {name}" for name in columns), "end_header", ""]
    return "\n".join(header).encode("ascii") + table.tobytes()


def write_splats(path: Path | str, splats: Splats, metres_per_unit: float = METRES_PER_UNIT) -> None:
    """Write splats as PLY. Raises OutputError."""
    write_bytes(path, splat_ply_bytes(splats, metres_per_unit))


def _named(prefix: str, names: str | tuple[str, ...], values: np.ndarray) -> dict[str, np.ndarray]:
    return {prefix + name: values[:, i] for i, name in enumerate(names)}


def _onto(normals: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 4"]:
    """The shortest turns of the z axis onto unit vectors, as quaternions w, x, y, z."""
    x, y, z = normals.T
    turn = np.stack([1 + z, -y, x, np.zeros_like(x)], axis=1)
    turn[1 + z < 1e-6] = [0.0, 1.0, 0.0, 0.0]
    unit: Float[np.ndarray, "n 4"] = turn / np.linalg.norm(turn, axis=1, keepdims=True)
    return unit


def _multiply(a: Float[np.ndarray, " 4"], b: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    """Quaternion product a b: turn by b, then by a."""
    w, v = b[:, :1], b[:, 1:]
    scalar = a[0] * w - v @ a[1:, None]
    vector = a[0] * v + w * a[1:] + np.cross(a[1:], v)
    return np.concatenate([scalar, vector], axis=1)


def draw_splats(splats: Splats, camera: Camera, size: int, background: float = 1.0) -> Float[np.ndarray, "s s 3"]:
    """Splats as a camera (batch of one) sees them: sRGB in [0, 1]. Plain and slow; for checks.

    Each Gaussian is projected to an ellipse of covariance J W S W^T J^T (Zwicker et al. 2001, "EWA splatting"), widened
    by 0.3 square pixels as 3D Gaussian splatting does, and laid over what is behind it, nearest last.
    """
    pose = camera.cam2world.reshape(4, 4).double().cpu().numpy()
    k = camera.intrinsics.reshape(3, 3).double().cpu().numpy() * np.array([[size], [size], [1.0]])
    local = (splats.means - pose[:3, 3]) @ pose[:3, :3]
    z = local[:, 2]
    centre = (local / z[:, None]) @ k.T
    axes = _rotations(splats.quaternions) * splats.scales[:, None, :]
    jacobian = np.zeros((len(z), 2, 3))
    jacobian[:, 0, 0], jacobian[:, 1, 1] = k[0, 0] / z, k[1, 1] / z
    jacobian[:, :, 2] = -np.stack([k[0, 0] * local[:, 0], k[1, 1] * local[:, 1]], axis=1) / (z * z)[:, None]
    flat = jacobian @ (pose[:3, :3].T @ axes)
    inverse = np.linalg.inv(flat @ flat.transpose(0, 2, 1) + 0.3 * np.eye(2))
    reach = int(min(8, np.ceil(3 * np.sqrt(np.abs(flat).max() ** 2 + 0.3))))
    corner = np.floor(centre[:, :2]).astype(np.int64)
    pixels, numbers, alphas = [], [], []
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            pixel = corner + [dx, dy]
            apart = pixel + 0.5 - centre[:, :2]
            alpha = splats.opacities * np.exp(-0.5 * np.einsum("ni,nij,nj->n", apart, inverse, apart))
            kept = np.flatnonzero((alpha > 1 / 255) & ((pixel >= 0) & (pixel < size)).all(axis=1) & (z > 0))
            pixels.append(pixel[kept, 1] * size + pixel[kept, 0])
            numbers.append(kept)
            alphas.append(alpha[kept])
    pixel, number, alpha = np.concatenate(pixels), np.concatenate(numbers), np.concatenate(alphas)
    order = np.lexsort((z[number], pixel))
    pixel, number, alpha = pixel[order], number[order], alpha[order].clip(max=0.999)
    clear = np.log1p(-alpha)
    before = np.cumsum(clear) - clear
    first = np.flatnonzero(np.diff(pixel, prepend=-1))
    before -= np.repeat(before[first], np.diff(first, append=len(pixel)))
    weight = alpha * np.exp(before)
    picture = np.stack(
        [np.bincount(pixel, weight * splats.colors[number, c], minlength=size * size) for c in range(3)], axis=1
    )
    covered = np.bincount(pixel, weight, minlength=size * size)[:, None]
    return (picture + (1 - covered) * background).reshape(size, size, 3)


def _rotations(quaternions: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 3 3"]:
    w, x, y, z = quaternions.T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.array(rows).transpose(2, 0, 1)
