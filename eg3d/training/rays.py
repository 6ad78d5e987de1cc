"""Volume rendering of loose rays for training: two passes, of which only the second carries gradients.

The first pass looks at the density alone and says where the second one's samples go (importance sampling); points
outside a hull that holds every head are never looked at. Quadrature and activations are EG3D's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from headlift.eg3d.layers import softplus
from headlift.eg3d.marching import composite, interval_weights, sample_weights
from headlift.eg3d.spec import GeneratorSpec
from headlift.eg3d.training.lookup import lookup
from headlift.values import Camera

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Rays:
    """Rays of n heads, r of each; world units."""

    origin: Float[Tensor, "n r 3"]
    direction: Float[Tensor, "n r 3"]
    """Of length one."""
    near: Float[Tensor, "n r"]
    far: Float[Tensor, "n r"]
    """Where the hull is entered and left; `far` <= `near` where it is missed."""


def camera_rays(camera: Camera, uv: Float[Tensor, "n r 2"]) -> tuple[Float[Tensor, "n r 3"], Float[Tensor, "n r 3"]]:
    """Origin and unit direction of the rays through picture fractions `uv`, world units."""
    inverse = torch.linalg.inv(camera.intrinsics)
    pixel = torch.cat([uv, torch.ones_like(uv[..., :1])], dim=-1)
    direction = pixel @ inverse.transpose(1, 2) @ camera.rotation.transpose(1, 2)
    return camera.origin[:, None].expand_as(direction), F.normalize(direction, dim=-1)


def hull_limits(
    origin: Float[Tensor, "n r 3"],
    direction: Float[Tensor, "n r 3"],
    hull: Bool[Tensor, "g g g"],
    box: float,
    steps: int = 40,
) -> tuple[Float[Tensor, "n r"], Float[Tensor, "n r"]]:
    """Where rays enter and leave the hull, a grid [x, y, z] over the box, on a raster of `steps` a ray."""
    inverse = 1 / torch.where(direction.abs() < 1e-9, 1e-9, direction)
    a, b = (-box / 2 - origin) * inverse, (box / 2 - origin) * inverse
    enter, leave = torch.minimum(a, b).amax(-1), torch.maximum(a, b).amin(-1)
    length = (leave - enter).clamp(min=0)
    middle = (torch.arange(steps, device=origin.device) + 0.5) / steps
    points = origin[..., None, :] + direction[..., None, :] * (enter[..., None] + length[..., None] * middle)[..., None]
    cells = hull.shape[0]
    index = ((points / box + 0.5) * cells).long().clamp(0, cells - 1)
    hit = hull.flatten()[(index[..., 0] * cells + index[..., 1]) * cells + index[..., 2]] & (length > 0)[..., None]
    first = hit.float().argmax(-1)
    last = steps - hit.flip(-1).float().argmax(-1)
    any_hit = hit.any(-1)
    near = enter + length * first / steps
    far = torch.where(any_hit, enter + length * last / steps, near)
    return near, far


def stratified(
    near: Float[Tensor, "n r"], far: Float[Tensor, "n r"], samples: int, generator: torch.Generator | None
) -> Float[Tensor, "n r s"]:
    """Distances spread evenly from near to far, each shifted at random inside its bin (in the middle without one)."""
    shift = _uniform((*near.shape, samples), near, generator)
    fraction = (torch.arange(samples, device=near.device) + shift) / samples
    return near[..., None] + (far - near)[..., None] * fraction


def importance(
    t: Float[Tensor, "n r s"],
    weights: Float[Tensor, "n r s-1"],
    near: Float[Tensor, "n r"],
    far: Float[Tensor, "n r"],
    samples: int,
    generator: torch.Generator | None,
    uniform: float = 0.1,
) -> Float[Tensor, "n r {samples}"]:
    """Sorted distances from the piecewise constant density that the first pass found, mixed with `uniform` of the
    even one; the first and the last sample are the ends, so that the whole ray is covered."""
    widened = F.max_pool1d(F.pad(weights, (1, 1)), 2, 1)
    widened = (widened[..., 1:] + widened[..., :-1]) / 2
    edges = torch.cat([near[..., None], t[..., 1:-1], far[..., None]], dim=-1)
    length = (edges[..., 1:] - edges[..., :-1]).clamp(min=1e-6)
    mass = widened / widened.sum(-1, keepdim=True).clamp(min=1e-4) * (1 - uniform)
    mass = mass + length / length.sum(-1, keepdim=True) * (1 - mass.sum(-1, keepdim=True))
    cdf = F.pad(mass.cumsum(-1), (1, 0))
    inner = samples - 2
    u = (torch.arange(inner, device=t.device) + _uniform((*near.shape, inner), near, generator)) / inner
    u = u.clamp(max=1 - 1e-5) * cdf[..., -1:]
    bin_ = (torch.searchsorted(cdf.contiguous(), u.contiguous(), right=True) - 1).clamp(0, mass.shape[-1] - 1)
    low, width, share = (x.gather(-1, bin_) for x in (cdf[..., :-1].contiguous(), length, mass))
    found = edges.gather(-1, bin_) + width * (u - low) / share.clamp(min=1e-9)
    return torch.cat([near[..., None], found, far[..., None]], dim=-1)


def hidden(weights: Weights, features: Float[Tensor, "n m c"], dtype: torch.dtype) -> Float[Tensor, "n m h"]:
    """The decoder's hidden layer."""
    kernel = weights["decoder.net.0.weight"]
    kernel = (kernel / kernel.shape[1] ** 0.5).to(dtype)
    return softplus(F.linear(features.to(dtype), kernel, weights["decoder.net.0.bias"].to(dtype)))


def density(weights: Weights, h: Float[Tensor, "n m h"]) -> Float[Tensor, "n m"]:
    """Raw density (before the shift and the softplus) from the hidden layer."""
    kernel = (weights["decoder.net.2.weight"][:1] / h.shape[-1] ** 0.5).to(h.dtype)
    return F.linear(h, kernel)[..., 0].float() + weights["decoder.net.2.bias"][0]


def colours(
    weights: Weights, h: Float[Tensor, "n m h"], channels: int, shift: Float[Tensor, "n m 3"] | None = None
) -> Float[Tensor, "n m {channels}"]:
    """The first `channels` colour features, about [0, 1]; `shift` is added to RGB before the sigmoid."""
    kernel = (weights["decoder.net.2.weight"][1 : 1 + channels] / h.shape[-1] ** 0.5).to(h.dtype)
    raw = F.linear(h, kernel, weights["decoder.net.2.bias"][1 : 1 + channels].to(h.dtype))
    if shift is not None:
        raw = raw + F.pad(shift, (0, channels - 3)).to(raw.dtype)
    return torch.sigmoid(raw) * 1.002 - 0.001


@dataclass(frozen=True)
class Rendered:
    """What r rays of n heads saw."""

    colour: Float[Tensor, "n r f"]
    """Composited features, premultiplied by alpha, in [0, 1]."""
    alpha: Float[Tensor, "n r"]
    depth: Float[Tensor, "n r"]
    """Expected distance, world units."""
    sigma: Float[Tensor, "n r s"]
    """Raw density at the second pass's samples."""
    t: Float[Tensor, "n r s"]
    """Their distances."""


def render_rays(
    weights: Weights,
    spec: GeneratorSpec,
    table: Float[Tensor, "n size size 3 c"],
    rays: Rays,
    coarse: int,
    fine: int,
    channels: int,
    generator: torch.Generator | None,
    dtype: torch.dtype = torch.bfloat16,
    light: tuple[Float[Tensor, "n r l"], Float[Tensor, "l 3 h"]] | None = None,
) -> Rendered:
    """Render rays with `coarse` samples without and `fine` samples with gradients.

    `light` (a code a ray, and a basis) shifts the RGB of each sample before the sigmoid by code * basis * hidden.
    """
    n, r = rays.near.shape
    half = spec.render.box_warp / 2

    def look(t: Tensor) -> Tensor:
        points = rays.origin[:, :, None] + rays.direction[:, :, None] * t[..., None]
        features = lookup(table, (points / half).reshape(n, -1, 3), spec.plane_layout)
        return hidden(weights, features, dtype)

    with torch.no_grad():
        t = stratified(rays.near, rays.far, coarse, generator)
        intervals = interval_weights(t, density(weights, look(t)).reshape(n, r, coarse))
        t = importance(t, intervals, rays.near, rays.far, fine, generator)
    h = look(t)
    sigma = density(weights, h).reshape(n, r, fine)
    intervals = interval_weights(t, sigma)
    depth, alpha = composite(t, intervals)
    shift = None
    if light is not None:
        code, basis = light
        per_ray = torch.einsum("nrl,lch->nrch", code.to(dtype), basis.to(dtype))
        shift = (h.reshape(n, r, fine, -1) @ per_ray.transpose(2, 3)).reshape(n, r * fine, 3)
    colour = colours(weights, h, channels, shift).reshape(n, r, fine, channels)
    composed = (sample_weights(intervals)[:, :, None].to(dtype) @ colour)[:, :, 0].float()
    return Rendered(composed, alpha, depth, sigma, t)


def _uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return torch.full(shape, 0.5, device=like.device)
    return torch.rand(shape, generator=generator, device=like.device)
