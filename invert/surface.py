"""The photo's own surface, as the depth network sees it: what geometry is held to while code and generator are found.

A single photo says nothing of depth to a loss of colours: tuning then paints the photo on whatever surface the prior
offers, and every other view shows it in the wrong place. Two terms tell it: rendered depth must be the guessed one
where the guess is sure (the depth prior of SPI, Yin et al. 2023, sec. 3.3, with a guess in place of the pivot's own
depth), and space between camera and surface, behind the last surface, and along rays that miss the head, must be empty
(space carving, Kutulakos and Seitz 2000).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from headlift.eg3d.camera import unproject
from headlift.eg3d.generator import EVERYWHERE, Generator
from headlift.eg3d.training.losses import empty_loss, solid_loss
from headlift.invert.depth_net import guess_depth
from headlift.invert.losses import depth_error, resize, resize_weighted
from headlift.invert.result import Target
from headlift.invert.warp import normals_of, pixel_centres, sample, steps, surface_points
from headlift.values import Camera

SURE, LAST_SURE = 0.03, 0.05
"""Guesses of the first and of the last surface with at most this spread count fully, world units; beyond it their
weight falls with the square."""
CONTOUR = 0.06
"""Where neighbouring pixels differ by more, the surface is a guess, world units."""
MARGIN, SKIN = 0.02, 0.03
"""Space is empty up to `MARGIN` before the guessed surface, and solid for `SKIN` behind it, world units."""
POINTS = 1024
"""Points of each kind in a step of carving."""
FACE = -0.2
"""How far back a photo of a face is taken to see where its surface is not known; z in halves of the box."""
FACING = 0.4
"""Cosine of the steepest angle at which the photo's plane is for a place."""
BEHIND = 0.04
"""So far behind what the photo shows its plane still counts fully, world units: guesses of depth are that far off."""
SOLID_SHARE = 0.2
"""What solid points count beside empty ones."""


@dataclass(frozen=True)
class Surface:
    """The surface that a photo shows, seen from its camera."""

    depth: Float[Tensor, "1 1 s s"]
    """Distance along the ray, world units."""
    trust: Float[Tensor, "1 1 s s"]
    """How much it counts, in [0, 1]: 0 off the head, at contours, and where the network is unsure."""
    clear: Float[Tensor, "1 1 s s"]
    """1 on pixels that show nothing of the head."""
    last: Float[Tensor, "1 1 s s"]
    """Distance beyond which the ray meets no more of the head, world units."""
    last_trust: Float[Tensor, "1 1 s s"]
    """How much that counts, in [0, 1]; at contours too."""


def photo_surface(target: Target) -> Surface:
    """What the depth network makes of a photo on white. Raises WeightsError when the network is missing."""
    guess = guess_depth(target.image, target.mask)
    mask = resize(target.mask, guess.depth.shape[-1])
    inside = (-F.max_pool2d(-mask, 3, stride=1, padding=1) > 0.9).to(mask.dtype)
    outside = (F.max_pool2d(mask, 5, stride=1, padding=2) < 0.05).to(mask.dtype)
    broken = steps(torch.where(mask > 0.5, guess.depth, guess.depth.amax()), CONTOUR)
    trust = inside * (1 - broken) * (SURE / guess.spread).square().clamp(max=1)
    behind = (mask > 0.5).to(mask.dtype) * (LAST_SURE / guess.last_spread).square().clamp(max=1)
    return Surface(guess.depth, trust, outside, guess.last + guess.last_spread, behind)


def at_side(surface: Surface, side: int) -> tuple[Float[Tensor, "1 1 r r"], Float[Tensor, "1 1 r r"]]:
    """Depth and trust at another resolution; each pixel's depth is the mean of what is trusted in it."""
    return resize_weighted(surface.depth, surface.trust, side)


def set_reach(generator: Generator, surface: Surface | None, target: Target, camera: Camera) -> None:
    """Tell a generator's own planes how far back a photo sees. One that shows all of a scene is taken to see all."""
    reach = generator.photo_reach
    if surface:
        reach.copy_(farthest_seen(surface, target, camera, len(reach), generator.spec.render.box_warp))
    else:
        reach.fill_(FACE if target.white else EVERYWHERE)


@torch.no_grad()
def farthest_seen(
    surface: Surface, target: Target, camera: Camera, side: int, box_warp: float
) -> Float[Tensor, "{side} {side}"]:
    """How far back the photo shows the head, for each texel of a plane that spans x and y: z in halves of the box.

    It is that of the farthest place in a texel's column or beside it, less `BEHIND`. Places that the photo grazes do
    not count: the few pixels that it has of them would be drawn as streaks along z. Columns in which nothing is seen
    have what their nearest neighbours have, `FACE` where nothing is seen at all.
    """
    points = surface_points(surface.depth, camera)
    facing = (normals_of(points, camera) * F.normalize(camera.origin[:, None] - points, dim=-1)).sum(-1)
    seen = (resize(target.mask, surface.depth.shape[-1]) > 0.5) & (facing.reshape(surface.depth.shape) > FACING)
    # Each pixel as four, so that no texel is left out between two.
    unit = surface_points(_fourfold(surface.depth), camera)[0] * (2 / box_warp)
    unit = unit[(_fourfold(seen.float()).flatten() > 0) & (unit.abs() < 1).all(dim=1)]
    if not len(unit):
        return torch.full((side, side), FACE, device=unit.device)
    column, row = ((unit[:, :2] + 1) / 2 * side).long().unbind(1)
    reach = torch.full((side * side,), torch.inf, device=unit.device)
    reach = reach.scatter_reduce(0, row * side + column, unit[:, 2], "amin").view(1, 1, side, side)
    while not bool(reach.isfinite().all()):
        reach = torch.where(reach.isfinite(), reach, lowest_beside(reach))
    return lowest_beside(reach)[0, 0] - BEHIND * 2 / box_warp


def _fourfold(values: Float[Tensor, "1 1 s s"]) -> Float[Tensor, "1 1 t t"]:
    return F.interpolate(values, scale_factor=2, mode="nearest")


def lowest_beside(values: Float[Tensor, "1 1 s s"]) -> Float[Tensor, "1 1 s s"]:
    """The least of each texel and those around it."""
    return -F.max_pool2d(-values, 3, stride=1, padding=1)


def surface_error(depth: Float[Tensor, "1 1 r r"], surface: Surface) -> Float[Tensor, ""]:
    """Mean squared distance of rendered depth from the guess, weighted by trust; world units squared."""
    wanted, trust = at_side(surface, depth.shape[-1])
    return depth_error(depth, wanted, trust)


def carving_error(
    generator: Generator,
    planes: Float[Tensor, "1 j c p p"],
    camera: Camera,
    surface: Surface,
    rng: torch.Generator,
    points: int = POINTS,
) -> Float[Tensor, ""]:
    """How dense space is at random places where it must be empty, and how thin just behind the surface."""
    empty, solid = carving_points(generator, camera, surface, rng, points)
    total = planes.new_zeros(())
    if empty.numel():
        total = total + empty_loss(generator.query(planes, empty)[0])
    if solid.numel():
        total = total + SOLID_SHARE * solid_loss(generator.query(planes, solid)[0])
    return total


def carving_points(
    generator: Generator, camera: Camera, surface: Surface, rng: torch.Generator, points: int
) -> tuple[Float[Tensor, "1 m 3"], Float[Tensor, "1 k 3"]]:
    """Places that must be empty (before the surface, behind the last, and along rays that miss the head), and solid
    ones; world units."""
    uv = pixel_centres(surface.depth.shape[-1], surface.depth.device)
    half = generator.spec.render.box_warp / 2
    middle = torch.linalg.vector_norm(camera.origin, dim=-1)
    near, far = (float(middle) - 3**0.5 * half, float(middle) + 3**0.5 * half)

    def chosen(weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
        if not bool((weight > 0).any()):
            return uv[:0], torch.zeros(2, 0)
        picked = torch.multinomial(weight.flatten().cpu(), count, replacement=True, generator=rng)
        return uv[picked.to(uv.device)], torch.rand(2, count, generator=rng)

    on, share = chosen(surface.trust, points)
    off, missed = chosen(surface.clear, points // 2)
    out, gone = chosen(surface.last_trust, points // 2)
    share, missed, gone = share.to(uv), missed.to(uv), gone.to(uv)
    depth = sample(surface.depth, on[None])[0, 0]
    before = near + share[0] * (depth - MARGIN - near)
    beside = near + missed[0] * (far - near)
    last = sample(surface.last, out[None])[0, 0] + MARGIN
    behind = last + gone[0] * (far - last).clamp_min(0)
    empty = unproject(camera, torch.cat([on, off, out])[None], torch.cat([before, beside, behind])[None])
    inside = (empty.abs() < half).all(-1)[0]
    return empty[:, inside], unproject(camera, on[None], (depth + SKIN * share[1])[None])
