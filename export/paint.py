"""Colours of a mesh's vertices, from renders of the head and from the volume itself; linear RGB in [0, 1]."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headlift.export.color import srgb_to_linear
from headlift.export.mesh import Mesh
from headlift.export.views import Volume, orbit_cameras
from headlift.values import Camera, RenderOutput


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
    clear = torch.from_numpy(faded(torch.stack(seen, dim=-1).numpy(), mesh.faces))
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


def faded(seen: Bool[np.ndarray, "v n"], faces: Int[np.ndarray, "f 3"]) -> Float[np.ndarray, "v n"]:
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


def cameras_around(count: int = 14) -> Camera:
    """The first so many of fourteen views: four all round at eye level, four from above, four between those at eye
    level, one from the top and one from below."""
    quarter = math.pi / 2
    yaw = [i * quarter for i in range(4)] + [(i + 0.5) * quarter for i in range(4)]
    yaw += [(i + 0.5) * quarter for i in range(4)] + [0.0, math.pi / 4]
    pitch = [0.0] * 4 + [0.6] * 4 + [0.0] * 4 + [1.35, -0.35]
    return orbit_cameras(torch.tensor(yaw[:count]), torch.tensor(pitch[:count]))


def join(first: Camera, second: Camera) -> Camera:
    return Camera(torch.cat([first.cam2world, second.cam2world]), torch.cat([first.intrinsics, second.intrinsics]))
