"""The sliced Wasserstein distance: a measure of progress that needs no downloaded network."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

PATCH = 7
"""Side of a descriptor's patch, pixels."""


@torch.no_grad()
def sliced_wasserstein(
    first: Float[Tensor, "n c h h"],
    second: Float[Tensor, "n c h h"],
    generator: torch.Generator,
    projections: int = 512,
    draws: int = 5,
    patches: int = 128,
    smallest: int = 16,
) -> dict[int, float]:
    """Sliced Wasserstein distance of two sets of as many pictures, times 1000, by the level's side in pixels.

    Karras et al. 2018 ("Progressive Growing of GANs", section 5): descriptors are `patches` random 7 x 7 patches of
    each picture on each level of its Laplacian pyramid down to `smallest` pixels, normalised for each channel over the
    set; their distributions are compared along `projections` random directions. Mean of several draws of patches and
    directions. `generator` lives on the pictures' device; the patches lie at the same places in both sets, so that a
    set is at distance 0 from itself.
    """
    found: dict[int, float] = {}
    for one, other in zip(laplacian_pyramid(first, smallest), laplacian_pyramid(second, smallest), strict=True):
        n, c, side = one.shape[:3]
        total = 0.0
        for _ in range(draws):
            corners = torch.randint(
                side - PATCH + 1, (2, n, patches), generator=generator, device=generator.device
            )  # fmt: skip
            directions = F.normalize(
                torch.randn(c * PATCH**2, projections, generator=generator, device=generator.device), dim=0
            )
            a, b = (_descriptors(level, corners[0], corners[1]) for level in (one, other))
            total += float(sliced_distance(a, b, directions))
        found[side] = 1000 * total / draws
    return found


def sliced_distance(
    first: Float[Tensor, "m d"], second: Float[Tensor, "m d"], directions: Float[Tensor, "d k"]
) -> Float[Tensor, ""]:
    """Mean over the directions of the Wasserstein-1 distance between two sets of points, projected on them."""
    a, b = (_sorted_rows((x @ directions).T.contiguous()) for x in (first, second))
    return (a - b).abs().mean()


def _sorted_rows(values: Float[Tensor, "k m"]) -> Float[Tensor, "k m"]:
    """Each row in rising order. NumPy's sort is many times as fast on a processor as torch's along columns."""
    if values.is_cuda or values.requires_grad:
        return values.sort(dim=1).values
    return torch.from_numpy(np.sort(values.numpy(), axis=1))


def laplacian_pyramid(image: Float[Tensor, "n c h h"], smallest: int = 16) -> list[Tensor]:
    """What each halving of the resolution loses, finest first, then the rest of `smallest` pixels (Burt and Adelson
    1983). The pictures are the sum of the levels, each brought back to full size."""
    levels = []
    while image.shape[-1] >= 2 * smallest:
        coarse = halve(image)
        levels.append(image - double(coarse))
        image = coarse
    return [*levels, image]


def halve(image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
    """Half the resolution, by the filter (1, 4, 6, 4, 1) / 16 along both axes; reflected at the border."""
    return _binomial(image)[:, :, ::2, ::2]


def double(image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
    """Twice the resolution, by the same filter over pixels with zeros between them, times 4."""
    n, c, h, w = image.shape
    spread = image.new_zeros(n, c, 2 * h, 2 * w)
    spread[:, :, ::2, ::2] = image
    return _binomial(spread) * 4


def _binomial(image: Tensor) -> Tensor:
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=image.dtype, device=image.device) / 16
    kernel = torch.outer(taps, taps).expand(image.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(image, (2, 2, 2, 2), mode="reflect"), kernel, groups=image.shape[1])


def _descriptors(level: Float[Tensor, "n c h h"], y: Tensor, x: Tensor) -> Float[Tensor, "m d"]:
    """Patches with upper left corners (x, y) [n, k], each channel brought to mean 0 and deviation 1 over the set."""
    n, c = level.shape[:2]
    line = torch.arange(PATCH, device=level.device)
    rows = (y[..., None] + line)[:, :, :, None].expand(-1, -1, -1, PATCH).reshape(n, -1)
    columns = (x[..., None] + line)[:, :, None, :].expand(-1, -1, PATCH, -1).reshape(n, -1)
    places = (rows * level.shape[-1] + columns)[:, None].expand(-1, c, -1)
    patches = level.flatten(2).gather(2, places).reshape(n, c, y.shape[1], PATCH**2)
    deviation, mean = torch.std_mean(patches, dim=(0, 2, 3), keepdim=True, correction=0)
    patches = (patches - mean) / deviation.clamp(min=1e-8)
    return patches.transpose(1, 2).reshape(n * y.shape[1], -1)
