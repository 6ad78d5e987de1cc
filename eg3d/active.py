"""Rays composited with gradients for the samples that matter alone: what makes inversion affordable on a CPU.

Of a ray's samples only a few near the surface contribute to its colour; the others lie in empty space or behind. A
first look, at the density alone and without gradients, tells which; only those are decoded once more, with colours and
gradients. The plain form is `Generator.render` without a `cut`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from headlift.eg3d.decoder import Decoder
from headlift.eg3d.marching import composite, interval_weights, optical_depths, sample_weights
from headlift.eg3d.rays import Jitter, importance_samples, stratified_samples
from headlift.eg3d.shared_look import CLEAR
from headlift.eg3d.spec import RenderSpec
from headlift.eg3d.triplane import Plane, look_up

CUT = 1e-4
"""What optimisers cut at. On the embedded prior a step takes a fifth less, pictures differ by 3e-4 at most (of 2) and
gradients by 2e-4 (`benchmarks/active.py`)."""

BLOCK = 2**13
"""Points whose density a processor looks at in one go: what stays in its cache."""
EMPTY = -1e4
"""A density (before any activation) of nothing at all."""


@dataclass
class FirstLook:
    """What the first look along a camera's rays found. Renders that are handed one go by it once it is filled: while a
    head is tuned, where its surface lies changes little from one step to the next."""

    found: tuple[Float[Tensor, "n m s"], Float[Tensor, "n m s"]] | None = None
    """Where the samples lie (sorted distances along the ray), and their density before any activation."""


def march_active(
    planes: Float[Tensor, "1 j c p p"],
    axes: tuple[Plane, ...],
    decoder: Decoder,
    spec: RenderSpec,
    origins: Float[Tensor, "n m 3"],
    directions: Float[Tensor, "n m 3"],
    start: float | Float[Tensor, "n m"],
    end: float | Float[Tensor, "n m"],
    jitter: Jitter,
    cut: float,
    look: FirstLook | None = None,
    shared: Float[Tensor, "n m s1"] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Features [n f m], depth, alpha, nearest and farthest sample [n m] of rays through one head: what
    `Generator._march` gives.

    Samples that could contribute at most `cut` to their ray (`matters`) keep their density but give no colour and take
    no gradient. An empty `look` is filled; one that is filled, of the same rays, is gone by. With what rays nearby
    found (`shared`) the coarse samples are left out, and rays that meet nothing there are not looked along.
    """
    n, m = origins.shape[:2]
    unit = 2 / spec.box_warp

    def points(rows: Tensor, distances: Tensor) -> Tensor:
        return ((origins.flatten(0, 1)[rows] + distances[:, None] * directions.flatten(0, 1)[rows]) * unit)[None]

    @torch.no_grad()
    def density(distances: Float[Tensor, "n m s"]) -> Float[Tensor, "n m s"]:
        return density_along(planes, axes, decoder, origins, directions, distances, unit)

    @torch.no_grad()
    def density_where(alive: Bool[Tensor, "n m"], distances: Float[Tensor, "n m s"]) -> Float[Tensor, "n m s"]:
        rays, count = alive.flatten().nonzero()[:, 0], distances.shape[-1]
        places = points(rays.repeat_interleave(count), distances.flatten(0, 1)[rays].flatten())
        found = density_at(planes, axes, decoder, places).reshape(-1, count)
        return torch.full_like(distances, EMPTY).flatten(0, 1).index_copy(0, rays, found).reshape(distances.shape)

    def first_look() -> tuple[Float[Tensor, "n m s"], Float[Tensor, "n m s"]]:
        # The samples' places keep their gradients: with the camera moves where its rays enter the box.
        depths = stratified_samples(start, end, jitter.coarse, spec.disparity_sampling)
        if shared is not None and jitter.fine is not None:
            fine = importance_samples(depths.detach(), shared, jitter.fine).sort(dim=-1).values
            return fine, density_where(shared.sum(dim=-1) > CLEAR, fine)
        sigma = density(depths)
        if jitter.fine is None:
            return depths, sigma
        with torch.no_grad():
            weights = interval_weights(depths, sigma, spec.clamp_mode)
        fine = importance_samples(depths.detach(), weights, jitter.fine)
        depths, order = torch.cat([depths, fine], dim=-1).sort(dim=-1)
        return depths, torch.cat([sigma, density(fine)], dim=-1).gather(-1, order)

    if look and look.found:
        depths, sigma = look.found
    else:
        depths, sigma = first_look()
        if look:
            look.found = depths.detach(), sigma
    with torch.no_grad():
        chosen = matters(depths, sigma, cut, spec).flatten().nonzero()[:, 0]
    rays = chosen // depths.shape[-1]
    found, colors = decoder(look_up(planes, axes, points(rays, depths.flatten()[chosen])))
    sigma = sigma.flatten().index_copy(0, chosen, found[0]).reshape(sigma.shape)
    weights = interval_weights(depths, sigma, spec.clamp_mode)
    depth, alpha = composite(depths, weights)
    shares = sample_weights(weights).flatten()[chosen]
    features = colors.new_zeros(colors.shape[1], n * m).index_add(1, rays, colors[0] * shares)
    return features.reshape(-1, n, m).transpose(0, 1), depth, alpha, depths[..., 0], depths[..., -1]


def density_at(
    planes: Float[Tensor, "1 j c p p"], axes: tuple[Plane, ...], decoder: Decoder, places: Float[Tensor, "1 k 3"]
) -> Float[Tensor, "1 k"]:
    """The density before any activation at places of one head, in halves of its box."""
    blocks = places.split(BLOCK, dim=1) if places.device.type == "cpu" else (places,)
    return torch.cat([decoder.density(look_up(planes, axes, block)) for block in blocks], dim=1)


def density_along(
    planes: Float[Tensor, "1 j c p p"],
    axes: tuple[Plane, ...],
    decoder: Decoder,
    origins: Float[Tensor, "n m 3"],
    directions: Float[Tensor, "n m 3"],
    distances: Float[Tensor, "n m s"],
    unit: float,
) -> Float[Tensor, "n m s"]:
    """The same at distances along rays, of which `unit` makes halves of the box."""
    places = ((origins[:, :, None] + distances[..., None] * directions[:, :, None]) * unit).reshape(1, -1, 3)
    return density_at(planes, axes, decoder, places).reshape(distances.shape)


def matters(
    depths: Float[Tensor, "n m s"], sigma: Float[Tensor, "n m s"], cut: float, spec: RenderSpec
) -> Bool[Tensor, "n m s"]:
    """Samples that bound an interval with transmittance * density * length above `cut`.

    That product bounds both the interval's weight and, where space is nearly empty, the weight's derivative by sigma.
    """
    absorbed = optical_depths(depths, sigma, spec.clamp_mode)
    passed = torch.exp(-F.pad(absorbed[..., :-1].cumsum(-1), (1, 0)))
    high = absorbed * passed > cut
    return F.pad(high, (1, 0)) | F.pad(high, (0, 1))
