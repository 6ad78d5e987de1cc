"""Method `best`, headlift's default: pivotal tuning towards the photo's own surface, with a guard on the other views.

PTI alone may flatten the head into a relief that is right from the front only. Here code and generator are held to the
depth that a network sees in the photo (`surface.py`), the search looks at the views that another network tells from it
(`side_net.py`), and the guard (`sides.py`) holds other views to these while the generator is tuned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import cache
from itertools import zip_longest

import torch
from torch import Tensor

from headlift.eg3d.active import CUT
from headlift.eg3d.own_planes import PHOTO, with_own_planes
from headlift.invert import finish
from headlift.invert.conclude import conclude
from headlift.invert.latent import Pivot, find_latent
from headlift.invert.losses import alpha_error, depth_error, resize, squared_error
from headlift.invert.perceptual import load_distance
from headlift.invert.result import Inversion
from headlift.invert.side_net import guess_view
from headlift.invert.sides import (
    GUARD,
    HUE,
    SEARCH_YAWS,
    ClearRays,
    Sides,
    SideView,
    back_cameras,
    flanking_cameras,
    guard_cameras,
    guard_losses,
)
from headlift.invert.surface import at_side, carving_error, set_reach
from headlift.invert.task import Moment, Task, Terms, no_terms
from headlift.invert.tuning import tune, tuned_before, tuning_rng
from headlift.values import Step

GUARD_SHARE = 0.75
"""The guard looks at side views at this share of the resolution at which heads are tuned: most of what is wanted there
is smooth."""


def best(task: Task) -> Generator[Step, None, Inversion]:
    """Code and camera together, pivotal tuning under the guard, then the head at full resolution from all round; yields
    every step, returns the head."""
    spec = task.generator.spec
    task = replace(task, generator=finish.as_rendered(task.generator, finish.coarser(spec)))
    device = next(task.generator.parameters()).device
    pivot = yield from find_latent(task, load_distance(task.config.perceptual, "latent", device), beside(task))
    distance = load_distance(task.config.perceptual, "tuning", device)
    view, start = task.views[0], pivot
    if task.config.tuning.photo_gain:
        start = replace(pivot, generator=with_own_planes(pivot.generator, PHOTO))
        set_reach(start.generator, view.surface, view.target, pivot.cameras[0])
    rng = tuning_rng(task)
    cameras = guard_cameras(task.config.tuning.side_views, pivot.cameras[0], view.target.white, rng)

    @cache
    def sides() -> Sides:
        return Sides(pivot.generator, pivot.ws, pivot.cameras[0], view.target, view.surface)

    @cache
    def around() -> tuple[SideView, ...]:
        return sides().views(cameras) if cameras else ()

    def smaller() -> list[SideView]:
        return [one.at(math.ceil(GUARD_SHARE * one.alpha.shape[-1])) for one in around()]

    def all_round() -> list[SideView]:
        return in_turns(sides().views(back_cameras(device)), around())

    tuned = tuned_before(task, finish.STAGE, start.generator)
    if tuned is None:
        tuned = yield from tune(task, start, distance, rng, guard(task, pivot, smaller, rng))
    tuned = yield from finish.tune_finish(task, pivot, tuned, all_round, distance, spec)
    return conclude(task, pivot, tuned)


def in_turns(first: Sequence[SideView], second: Sequence[SideView]) -> list[SideView]:
    """One of the first, one of the second, and so on, then the rest of the longer."""
    return [view for pair in zip_longest(first, second) for view in pair if view is not None]


def beside(task: Task) -> Terms:
    """The search's own terms: colours and opacity of one view after the other round the head, as the side network
    tells them from the photo."""
    options, view = task.config.latent, task.views[0]
    if not options.sides or view.surface is None:
        return no_terms
    cameras = flanking_cameras(view.camera, SEARCH_YAWS)
    told = [guess_view(view.target, view.surface, view.camera, camera) for camera in cameras]

    def terms(moment: Moment) -> dict[str, Tensor]:
        index = moment.done % len(cameras)
        volume = moment.generator.volume(moment.planes, cameras[index], options.neural_resolution, cut=CUT)
        picture, opacity = (resize(x, volume.depth.shape[-1]) for x in told[index])
        return {
            "side_colour": options.sides * squared_error(volume.features[:, :3], picture),
            "side_alpha": options.sides * options.alpha * alpha_error(volume.alpha, opacity),
        }

    return terms


def guard(task: Task, pivot: Pivot, around: Callable[[], Sequence[SideView]], rng: torch.Generator) -> Terms:
    """The guard's terms: depth at the photo's camera (the pivot's where the photo's own surface is not known) and empty
    space before that surface and beside the head, as all side views see it, in every step; one side view after the
    other now and then."""
    options, base, camera = task.config.tuning, pivot.generator, pivot.cameras[0]
    target, surface = task.views[0].target, task.views[0].surface
    if pivot.stopped or not (options.geometry or options.carving or options.side_colour):
        return no_terms
    views = around()
    missed = ClearRays.of(views, base.spec.render.box_warp) if views else None
    with torch.no_grad():
        before = base.volume(base.planes(pivot.ws), camera)
        solid = before.alpha * resize(target.mask, before.depth.shape[-1]) if target.white else before.alpha
        if surface and options.depth:
            solid = solid * (1 - at_side(surface, solid.shape[-1])[1])

    def terms(moment: Moment) -> dict[str, Tensor]:
        output = moment.outputs[0]
        kept = depth_error(output.depth, before.depth, solid)
        losses = {"front_depth": options.geometry * GUARD["side_depth"] * kept}
        if surface and options.carving:
            empty = carving_error(moment.generator, moment.planes, camera, surface, rng)
            if missed:
                empty = empty + missed.empty_error(moment.generator, moment.planes, rng)
            losses["carving"] = options.carving * empty
        if views and moment.done % options.geometry_every == 0:
            view = views[(moment.done // options.geometry_every) % len(views)]
            found = guard_losses(moment.generator, moment.planes, moment.ws, view, options.side_colour > 0, HUE)
            for name, value in found.items():
                losses[name] = (
                    options.side_colour if name == "side_colour" else options.geometry * GUARD[name]
                ) * value
        return losses

    return terms
