"""The last tuning of `best`: the head as finely as its prior is rendered, from all round.

A prior whose rays share the coarse samples of a smaller picture (`RenderSpec.coarse_resolution`) is searched and tuned
as that smaller picture, for a fraction of the time. Then it is rendered at full resolution, and super-resolution and
planes of the head's own (`eg3d/own_planes.py`) learn to show the photo and the views round it that way.

*For the back.* Tuning draws the photo on planes that face and back share, and a face comes through where hair should
be. What lies behind the photo's reach gets a plane of its own, which begins with what takes back all that tuning did to
the plane of x and y.

*For the sides.* What tuning draws for the photo runs on into the head, along the photo's rays: streaks on hair and
neck, seen from beside. What other views are to show there has a number for each texel of the other two planes, too.
These are seen from the front, so the photo is looked at again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from headlift.eg3d.generator import Generator as Eg3d
from headlift.eg3d.own_planes import BACK, OWN, SIDES, with_own_planes
from headlift.eg3d.spec import GeneratorSpec
from headlift.invert.latent import Pivot
from headlift.invert.perceptual import Distance
from headlift.invert.sides import GUARD, HUE, ClearRays, SideView, guard_losses
from headlift.invert.surface import set_reach
from headlift.invert.task import Moment, Task, Terms
from headlift.invert.tuning import Tuned, carried_with, learning_rate, tune, tuning_rng
from headlift.values import Step

STAGE = "finish"
RATE = 0.2
"""Adam's learning rate for the planes; super-resolution has that of the tuning before."""
RAMPDOWN = 0.4
"""Share of the steps over which the rates fall."""
PHOTO_EVERY, WEIGHT = 2, 1 / 3
"""The photo is looked at once in so many steps, and what each step's view counts beside it."""
WEIGHTS = {name: WEIGHT * value for name, value in (GUARD | {"side_colour": 1.0}).items()}


def tune_finish(
    task: Task,
    pivot: Pivot,
    tuned: Tuned,
    views: Callable[[], Sequence[SideView]],
    distance: Distance,
    spec: GeneratorSpec,
) -> Generator[Step, None, Tuned]:
    """Render a tuned generator as finely as `spec` says, and tune its own planes and super-resolution to show the photo
    and the `views` round the head; yields each step, returns that generator."""
    options, photo = task.config.tuning, task.views[0]
    finer = as_rendered(tuned.generator, spec)
    if not options.finish_steps or not options.steps or tuned.stopped or not photo.target.white:
        return replace(tuned, generator=finer)
    generator = with_own_planes(finer, SIDES, BACK)
    set_reach(generator, photo.surface, photo.target, pivot.cameras[0])
    with torch.no_grad():
        generator.back_plane.copy_(pivot.generator.planes(pivot.ws)[0, 0] - generator.planes(pivot.ws)[0, 0])
    planes_gain = RATE / learning_rate(generator, options)
    options = replace(options, steps=options.finish_steps, photo_gain=planes_gain, muon=0.0)
    rng = tuning_rng(task)
    done = yield from tune(
        task,
        replace(pivot, generator=generator),
        distance,
        rng,
        round_the_head(views(), spec.render.box_warp, options.carving, rng),
        replace(options, rampdown=RAMPDOWN, stop=0.0, locality=0.0),
        STAGE,
        tuned.history,
        carried_with(tuned),
        of_the_head,
        PHOTO_EVERY,
    )
    return done if done.stopped else replace(done, reason=f"{tuned.reason}, and {options.steps} at full resolution")


def coarser(spec: GeneratorSpec) -> GeneratorSpec:
    """As the smaller picture whose rays are shared; the same where none are."""
    return spec.rendered_at(spec.render.coarse_resolution or spec.neural_resolution)


def as_rendered(generator: Eg3d, like: GeneratorSpec) -> Eg3d:
    """The generator rendered as finely as `like` says; itself if it is so already. They share their parameters."""
    spec = generator.spec.rendered_at(like.neural_resolution, like.render.coarse_resolution)
    if spec == generator.spec:
        return generator
    other = copy.copy(generator)
    other.spec = spec
    return other


def of_the_head(generator: Eg3d) -> dict[str, nn.Parameter]:
    """The head's own planes, and super-resolution: what the backbone's convolutions do not share between places."""
    named = generator.named_parameters()
    return {name: p for name, p in named if name in OWN or name.startswith("superresolution.")}


def round_the_head(views: Sequence[SideView], box_warp: float, carving: float, rng: torch.Generator) -> Terms:
    """One view after the other, and in every step empty space, weighted by `carving`, along rays of theirs that miss
    the head."""
    missed = ClearRays.of(views, box_warp) if carving else None

    def terms(moment: Moment) -> dict[str, Tensor]:
        view = views[moment.done % len(views)]
        found = guard_losses(moment.generator, moment.planes, moment.ws, view, True, HUE)
        losses = {name: WEIGHTS[name] * value for name, value in found.items()}
        if missed:
            losses["carving"] = carving * missed.empty_error(moment.generator, moment.planes, rng)
        return losses

    return terms
