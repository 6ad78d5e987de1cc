"""Changes of a part of a head: what the part shall look like from many sides, and a short tuning that makes it so.

The wanted views are composites: the change inside the region, the head as it was outside. The generator is tuned to
them as to a photo (`headlift.invert.tuning`), the side views one after the other beside it, with depth and opacity
(`headlift.invert.sides`); the code stays. What comes back is a head like any other.
"""

from __future__ import annotations

from collections.abc import Generator as Steps
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headlift.config import InversionConfig, TuningConfig
from headlift.editing.edit import S, Subject, changed
from headlift.editing.regions import Region, all_round, carried_region, soften
from headlift.eg3d.generator import VolumeOutput
from headlift.errors import ConfigError
from headlift.invert.latent import Pivot
from headlift.invert.losses import resize, squared_error
from headlift.invert.perceptual import Distance
from headlift.invert.result import Target
from headlift.invert.sides import SideView, guard_losses
from headlift.invert.task import Moment, Task, View
from headlift.invert.tuning import tune
from headlift.invert.warp import backward_warp
from headlift.values import Camera, Step

DEPTH, ALPHA, COLOUR, INSIDE = 100.0, 1.0, 3.0, 3.0
"""Weights of the side views' depth, opacity and colours, and of the region in the head's own view."""
RATE = 1.5e-4
"""Learning rate before the gain for small generators: half of PTI's, as most of the head is to stay."""
MOST = 20.0
"""A pixel inside the region counts at most so many times one outside."""
PAINTED = 0.06
"""A painted pixel differs from the crop by this much in some channel, in [-1, 1]."""


@dataclass(frozen=True)
class Goal:
    """What a changed head shall show."""

    image: Float[Tensor, "1 3 h w"]
    """At the head's own camera, RGB in [-1, 1], the generator's resolution."""
    alpha: Float[Tensor, "1 1 h w"]
    inside: Float[Tensor, "1 1 h w"]
    """1 where the change is."""
    views: tuple[SideView, ...]
    """From other sides; `trust` counts the region more than the rest."""


@dataclass(frozen=True)
class _Seen:
    image: Float[Tensor, "1 3 h w"]
    volume: VolumeOutput


@torch.no_grad()
def goal_of_edit(before: Subject, after: Subject, region: Region, whole: bool = False) -> Goal:
    """The edited head inside the region, the head as it was outside.

    Args:
        whole: look from all round and not from the front half only.
    """

    def mask_of(camera: Camera, was: VolumeOutput, now: VolumeOutput) -> Tensor:
        return torch.maximum(region(camera, was), region(camera, now))

    own, views = _both(before, after, whole)
    mask = mask_of(before.camera, own[0].volume, own[1].volume)
    fine = resize(mask, own[0].image.shape[-1])
    alpha = _mixed(own[0].volume.alpha, own[1].volume.alpha, mask)
    side_views = []
    for camera, was, now in views:
        inside = mask_of(camera, was.volume, now.volume)
        side_views.append(
            SideView(
                camera,
                _mixed(was.volume.depth, now.volume.depth, inside),
                _mixed(was.volume.alpha, now.volume.alpha, inside),
                _mixed(was.volume.features[:, :3], now.volume.features[:, :3], inside),
                _trust(inside),
            )
        )
    return Goal(_mixed(own[0].image, own[1].image, fine), resize(alpha, fine.shape[-1]), fine, tuple(side_views))


@torch.no_grad()
def goal_of_colour(
    before: Subject, region: Region, colour: Float[Tensor, " 3"], strength: float = 0.7, whole: bool = False
) -> Goal:
    """The region in another colour (RGB in [-1, 1]): its mean goes there, its light and shade stay.

    Raises:
        ConfigError: the region is not seen from the head's camera.
    """
    own, views = _both(before, before, whole)
    mask = region(before.camera, own[0].volume)
    fine = resize(mask, own[0].image.shape[-1])
    if float(fine.max()) < 0.5:
        raise ConfigError("the region cannot be seen from the head's own camera")
    mean = (own[0].image * fine).sum((0, 2, 3)) / fine.sum()

    def painted(image: Tensor, inside: Tensor) -> Tensor:
        return _mixed(image, recoloured(image, mean, colour.to(image), strength), inside)

    side_views = []
    for camera, was, _ in views:
        inside, volume = region(camera, was.volume), was.volume
        shown = painted(volume.features[:, :3], inside)
        side_views.append(SideView(camera, volume.depth, volume.alpha, shown, _trust(inside)))
    alpha = resize(own[0].volume.alpha, fine.shape[-1])
    return Goal(painted(own[0].image, fine), alpha, fine, tuple(side_views))


@torch.no_grad()
def goal_of_paint(before: Subject, crop: Float[Tensor, "1 3 s s"], painted: Float[Tensor, "1 3 s s"]) -> Goal:
    """What was painted over the head's crop, carried to the side views along the surface.

    Args:
        crop: the crop as it was, RGB in [-1, 1]; what differs from it was painted.

    Raises:
        ConfigError: nothing was painted on the head.
    """
    own, views = _both(before, before, False)
    side = own[0].image.shape[-1]
    difference = (resize(painted, side) - resize(crop, side)).abs().amax(1, keepdim=True)
    brushed = soften((difference > PAINTED).to(before.ws), 1.5 / side)
    fine = (2 * brushed).clamp(0, 1) * resize(own[0].volume.alpha, side)
    if float(fine.max()) < 0.5:
        raise ConfigError("nothing was painted on the head: the picture does not differ from the crop there")
    picture = resize(painted, side).to(before.ws)
    region = carried_region(fine, own[0].volume, before.camera)
    side_views = []
    for camera, was, _ in views:
        inside = region(camera, was.volume)
        carried, _ = backward_warp(picture, own[0].volume.depth, before.camera, was.volume.depth, camera)
        shown = _mixed(was.volume.features[:, :3], carried, inside)
        side_views.append(SideView(camera, was.volume.depth, was.volume.alpha, shown, _trust(inside)))
    return Goal(_mixed(own[0].image, picture, fine), resize(own[0].volume.alpha, side), fine, tuple(side_views))


def reach(before: S, goal: Goal, distance: Distance, steps: int = 80, seed: int = 0) -> Steps[Step, None, S]:
    """Tune the head's generator until it shows the goal; yields each step, returns the changed head.

    Raises:
        ConfigError: no steps.
    """
    if steps < 1:
        raise ConfigError("a region needs at least one tuning step")
    generator, ws, camera = before.generator, before.ws, before.camera
    tuning = TuningConfig(steps=steps, lr=RATE, mse=3.0, raw=1.0, relief=0.0, rampdown=0.3, stop=-1.0, geometry=0.0)
    config = InversionConfig(tuning=tuning, preview_every=0, keep_every=0)
    target = Target(goal.image, goal.alpha, generator.spec.render.white_background)
    view = View(target, camera, np.eye(2), None, None, None)
    task = Task(generator, (view,), config, seed, lambda: False, None, lambda state: None)
    inside = _trust(goal.inside) - 1

    def terms(moment: Moment) -> dict[str, Tensor]:
        losses = {"inside": INSIDE * squared_error(moment.outputs[0].image, goal.image, inside)}
        if goal.views:
            view = goal.views[moment.done % len(goal.views)]
            found = guard_losses(moment.generator, moment.planes, moment.ws, view, True)
            weights = {"side_depth": DEPTH, "side_alpha": ALPHA, "side_colour": COLOUR}
            losses |= {name: weights[name] * value for name, value in found.items()}
        return losses

    rng = torch.Generator().manual_seed(seed)
    tuned = yield from tune(task, Pivot(generator, ws, (camera,), ()), distance, rng, terms)
    return changed(before, ws, tuned.generator)


@torch.no_grad()
def change_inside_and_outside(before: Subject, after: Subject, region: Region, camera: Camera) -> tuple[float, float]:
    """Mean absolute change of colour (in [-1, 1]) inside and outside a region, over the head, in one view."""
    was, now = (_look(head, [camera])[0] for head in (before, after))
    mask = torch.maximum(region(camera, was.volume), region(camera, now.volume))
    change = (was.volume.features[:, :3] - now.volume.features[:, :3]).abs().mean(1, keepdim=True)
    head = (torch.maximum(was.volume.alpha, now.volume.alpha) > 0.5).to(mask)
    inside, outside = (mask > 0.5).to(mask) * head, (mask < 0.02).to(mask) * head
    parts = [float((change * part).sum() / part.sum().clamp_min(1)) for part in (inside, outside)]
    return parts[0], parts[1]


def recoloured(
    image: Float[Tensor, "1 3 h w"], mean: Float[Tensor, " 3"], colour: Float[Tensor, " 3"], strength: float
) -> Float[Tensor, "1 3 h w"]:
    """Colours moved so that `mean` becomes `colour` (at strength 1), their contrast scaled by the ratio of the two.

    On [0, 1]: c + strength (c k - c) with k = colour / mean for each channel, limited to 1/4 ... 4, then shifted by
    what the limit left over; so black stays near black and highlights stay lights.
    """
    c, m, goal = (image + 1) / 2, (mean + 1) / 2, (colour + 1) / 2
    ratio = ((goal + 0.02) / (m + 0.02)).clamp(0.25, 4)
    moved = c * ratio[:, None, None] + (goal - m * ratio)[:, None, None]
    return ((c + strength * (moved - c)).clamp(0, 1)) * 2 - 1


def _both(
    before: Subject, after: Subject, whole: bool
) -> tuple[tuple[_Seen, _Seen], list[tuple[Camera, _Seen, _Seen]]]:
    """Both heads at the first one's camera, and from the sides."""
    around = all_round(before.generator, whole, before.camera.intrinsics[0, 0, 0])
    cameras = [before.camera, *(around[i : i + 1] for i in range(len(around)))]
    was = _look(before, cameras)
    now = was if after is before else _look(after, cameras)
    return (was[0], now[0]), list(zip(cameras[1:], was[1:], now[1:], strict=True))


def _look(head: Subject, cameras: Sequence[Camera]) -> list[_Seen]:
    """A head from each camera."""
    planes, seen = head.generator.planes(head.ws), []
    for camera in cameras:
        out = head.generator.render(planes, head.ws, camera)
        seen.append(_Seen(out.image.clamp(-1, 1), VolumeOutput(out.features, out.depth, out.alpha)))
    return seen


def _mixed(outside: Tensor, inside: Tensor, mask: Tensor) -> Tensor:
    return outside + mask * (inside - outside)


def _trust(inside: Float[Tensor, "1 1 h w"]) -> Float[Tensor, "1 1 h w"]:
    """1 outside, and inside as much more as makes both count alike, at most `MOST` times."""
    share = float(inside.mean())
    return 1 + inside * min(MOST, (1 - share) / max(share, 1e-3))
