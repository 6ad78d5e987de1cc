"""The density at which a mesh looks like the renders of its head."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headlift.errors import MeshError
from headlift.export.mesh import trilinear
from headlift.values import Camera


def automatic_level(
    sigma: Float[np.ndarray, "r r r"], box: float, alphas: list[Float[Tensor, "1 1 a a"]], cameras: Camera
) -> float:
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
    solid = min(0.5, 0.5 * max(float(alpha.max()) for alpha in alphas))
    rays = []
    for i, opacity in enumerate(alphas):
        alpha = opacity[0, 0].float().cpu()
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
    along = trilinear(volume, points.reshape(-1, 3), box).reshape(distances.shape)
    missed = (far <= near)[:, None]
    return torch.where(missed, volume.min(), along), distances


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
