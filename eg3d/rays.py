"""Rays through the pixels' centres, and where along them the volume is sampled (NeRF, Mildenhall et al. 2020).

Distances are world units along unit ray directions. Nothing here is random by itself: jitter is handed in, drawn
from a generator that the caller owns, or replaced by the middle of each bin.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headlift.eg3d.rounding import multiply_add
from headlift.errors import ConfigError
from headlift.values import Camera


@dataclass(frozen=True)
class Jitter:
    """Uniform numbers in [0, 1) that place the samples of m rays for each of n images."""

    coarse: Float[Tensor, "n m s"]
    """Within its bin, for each stratified sample."""
    fine: Float[Tensor, "n m f"] | None = None
    """Quantiles of the importance samples; None where there are none."""

    @classmethod
    def draw(cls, generator: torch.Generator, images: int, rays: int, depth_samples: int, importance: int) -> Jitter:
        """Fresh numbers, the stratified ones first, on the generator's device."""
        device = generator.device
        coarse = torch.rand(images, rays, depth_samples, generator=generator, device=device)
        fine = torch.rand(images, rays, importance, generator=generator, device=device) if importance else None
        return cls(coarse, fine)

    @classmethod
    def centres(cls, images: int, rays: int, depth_samples: int, importance: int, device: torch.device) -> Jitter:
        """The middle of each bin: the deterministic default."""
        coarse = torch.full((1, 1, 1), 0.5, device=device).expand(images, rays, depth_samples)
        fine = (torch.arange(importance, device=device, dtype=torch.float32) + 0.5) / max(importance, 1)
        return cls(coarse, fine.expand(images, rays, importance) if importance else None)

    def check(self, images: int, rays: int, depth_samples: int, importance: int) -> None:
        """Raises ConfigError when these numbers are not those that the render needs."""
        wanted = ((images, rays, depth_samples), (images, rays, importance) if importance else None)
        given = (tuple(self.coarse.shape), None if self.fine is None else tuple(self.fine.shape))
        if wanted != given:
            raise ConfigError(f"the jitter has the shapes {given} (coarse, fine), but this render needs {wanted}")

    def rays(self, chosen: slice, device: torch.device) -> Jitter:
        """The numbers of some of the rays."""
        fine = None if self.fine is None else self.fine[:, chosen].to(device)
        return Jitter(self.coarse[:, chosen].to(device), fine)


def pixel_centres(resolution: int, device: torch.device | None = None) -> Float[Tensor, "m 2"]:
    """Picture fractions of the pixels' centres, row by row, x before y."""
    side = torch.arange(resolution, dtype=torch.float32, device=device) * (1 / resolution) + 0.5 / resolution
    y, x = torch.meshgrid(side, side, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def pixel_rays(camera: Camera, resolution: int) -> tuple[Float[Tensor, "n m 3"], Float[Tensor, "n m 3"]]:
    """Origins (world units) and unit directions of the rays through all pixels of a square picture, row by row.

    The direction is taken between two points in the world, as in the published code: volumes with fine detail turn the
    rounding of these sums into visible differences, so that references can be matched only in the same order.
    """
    uv = pixel_centres(resolution, camera.cam2world.device).to(camera.cam2world.dtype)
    k, pose = camera.intrinsics[..., None], camera.cam2world
    skew, fy, cy = k[:, 0, 1], k[:, 1, 1], k[:, 1, 2]
    y = (uv[:, 1] - cy) / fy
    x = (uv[:, 0] - k[:, 0, 2] + cy * skew / fy - skew * uv[:, 1] / fy) / k[:, 0, 0]
    origin = pose[:, :3, 3:]
    aside = multiply_add(pose[:, :3, 1:2], y[:, None], pose[:, :3, 0:1] * x[:, None])
    point = aside + pose[:, :3, 2:3] + origin
    directions = F.normalize((point - origin).mT, dim=2)
    return camera.origin[:, None].expand_as(directions), directions


def box_limits(
    origins: Float[Tensor, "n m 3"], directions: Float[Tensor, "n m 3"], side: float, published_faults: bool = False
) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"]]:
    """Where rays enter and leave the cube of `side` around the origin (the slab method), not before their start.

    A ray that misses the cube gets an interval of no length at its point nearest to the cube's centre: whatever is
    sampled there has no weight. With `published_faults` it gets the smallest and the largest entry distance of the
    batch's other rays, as the published code has it.
    """
    inverse = 1 / torch.where(directions == 0, torch.full_like(directions, 1e-20), directions)
    first, second = (-side / 2 - origins) * inverse, (side / 2 - origins) * inverse
    start = torch.minimum(first, second).amax(dim=-1)
    end = torch.maximum(first, second).amin(dim=-1)
    if not published_faults:
        start = start.clamp_min(0)
    hits = end > start
    if published_faults:
        if not bool(hits.any()):
            return start, end
        return torch.where(hits, start, start[hits].min()), torch.where(hits, end, start[hits].max())
    nearest = -(origins * directions).sum(dim=-1).clamp_max(0)
    return torch.where(hits, start, nearest), torch.where(hits, end, nearest)


def stratified_samples(
    start: float | Float[Tensor, "n m"],
    end: float | Float[Tensor, "n m"],
    uniform: Float[Tensor, "n m s"],
    disparity: bool = False,
) -> Float[Tensor, "n m s"]:
    """Distances of the samples: evenly spaced from start to end, each moved by its uniform number times the spacing.

    The limits are the same for all rays (floats) or each ray's own. `disparity` spaces evenly in 1 / distance instead.
    """
    count = uniform.shape[-1]
    if isinstance(start, Tensor):
        start = start[..., None]
    if isinstance(end, Tensor):
        end = end[..., None]
    if disparity:
        share = torch.linspace(0, 1, count, device=uniform.device) + uniform * (1 / (count - 1))
        return 1 / (1 / start * (1 - share) + 1 / end * share)
    if isinstance(start, Tensor) or isinstance(end, Tensor):
        even = start + torch.arange(count, device=uniform.device) / (count - 1) * (end - start)
    else:
        even = torch.linspace(start, end, count, device=uniform.device)
    return even + uniform * ((end - start) / (count - 1))


def importance_samples(
    depths: Float[Tensor, "n m s"], weights: Float[Tensor, "n m s1"], uniform: Float[Tensor, "n m f"]
) -> Float[Tensor, "n m f"]:
    """Distances drawn where the first pass found something: the quantiles `uniform` of its smoothed weights.

    The weights of the s - 1 intervals are dilated, blurred and raised by 0.01 (Mip-NeRF), the outermost two dropped,
    and the piecewise constant density over the intervals' middles inverted (NeRF section 5.2). No gradient.
    """
    with torch.no_grad():
        n, m, s = depths.shape
        flat = weights.reshape(n * m, 1, s - 1)
        blurred = F.avg_pool1d(F.max_pool1d(flat, 2, 1, padding=1), 2, 1).reshape(n, m, s - 1) + 0.01
        middles = (depths[..., 1:] + depths[..., :-1]) / 2
        return _invert_density(middles, blurred[..., 1:-1], uniform)


def _invert_density(
    bins: Float[Tensor, "n m b"], weights: Float[Tensor, "n m b2"], uniform: Float[Tensor, "n m f"], eps: float = 1e-5
) -> Float[Tensor, "n m f"]:
    """Quantiles of a piecewise constant density: `weights` belong to the first b2 = b - 2 intervals of `bins`."""
    raised = weights + eps
    density = raised / raised.sum(dim=-1, keepdim=True)
    cdf = F.pad(density.cumsum(dim=-1), (1, 0))
    index = torch.searchsorted(cdf, uniform.contiguous(), right=True)
    below = (index - 1).clamp_min(0)
    above = index.clamp_max(weights.shape[-1])
    cdf_below, cdf_above = cdf.gather(-1, below), cdf.gather(-1, above)
    bin_below, bin_above = bins.gather(-1, below), bins.gather(-1, above)
    width = cdf_above - cdf_below
    width = torch.where(width < eps, torch.ones_like(width), width)
    return bin_below + (uniform - cdf_below) / width * (bin_above - bin_below)
