"""The second tuning of `best`: planes of its own for sides and back of the head alone (`eg3d/own_planes.py`).

Tuning draws the photo on planes that face and back share, and a face comes through where hair should be. Weighing the
views of the back more hides it at the photo's cost. So when the photo is shown, what lies behind its reach gets a plane
of its own. It begins with what takes back all that tuning did to the plane of x and y, and learns what the guard wants
to see there.

And what tuning draws for the photo runs on into the head, along the photo's rays: streaks on hair and neck, seen from
beside. What the guard wants to see there has a number for each texel of the other two planes, too. They are seen from
the front, so the photo is looked at again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from itertools import zip_longest

import torch
from torch import Tensor, nn

from headlift.eg3d.generator import Generator as Eg3d
from headlift.eg3d.own_planes import BACK, SIDES, with_own_planes
from headlift.invert.latent import Pivot
from headlift.invert.perceptual import Distance
from headlift.invert.sides import GUARD, HUE, ClearRays, Sides, SideView, back_cameras, guard_losses
from headlift.invert.surface import set_reach
from headlift.invert.task import Moment, Task, Terms
from headlift.invert.tuning import Tuned, carried_with, tune, tuning_rng
from headlift.values import Step

STAGE = "back"
RATE = 0.2
"""Adam's learning rate."""
RAMPDOWN = 0.4
"""Share of the steps over which it falls."""
PHOTO_EVERY, WEIGHT = 2, 1 / 3
"""The photo is looked at once in so many steps, and what each step's view counts beside it."""
WEIGHTS = {name: WEIGHT * value for name, value in (GUARD | {"side_colour": 1.0}).items()}


def tune_back(
    task: Task,
    pivot: Pivot,
    tuned: Tuned,
    sides: Callable[[], Sides],
    around: Callable[[], Sequence[SideView]],
    distance: Distance,
) -> Generator[Step, None, Tuned]:
    """Tune planes for sides and back of a tuned generator to show what `sides` has of the back, and the views `around`
    the head; yields each step, returns the generator that has them."""
    steps = task.config.tuning.back_steps
    if not steps or not task.config.tuning.steps or tuned.stopped or not task.views[0].target.white:
        return tuned
    generator = with_own_planes(tuned.generator, SIDES, BACK)
    set_reach(generator, task.views[0].surface, task.views[0].target, pivot.cameras[0])
    with torch.no_grad():
        generator.back_plane.copy_(pivot.generator.planes(pivot.ws)[0, 0] - generator.planes(pivot.ws)[0, 0])

    def chosen(generator: Eg3d) -> dict[str, nn.Parameter]:
        return {name: generator.get_parameter(name) for name in (SIDES, BACK)}

    views = in_turns(sides().views(back_cameras(pivot.ws.device)), around())
    rng = tuning_rng(task)
    backed = yield from tune(
        task,
        replace(pivot, generator=generator),
        distance,
        rng,
        back_terms(views, generator.spec.render.box_warp, task.config.tuning.carving, rng),
        replace(task.config.tuning, steps=steps, lr=RATE, lr_gain=1.0, rampdown=RAMPDOWN, stop=0.0, locality=0.0),
        STAGE,
        tuned.history,
        carried_with(tuned),
        chosen,
        photo_every=PHOTO_EVERY,
    )
    return backed if backed.stopped else replace(backed, reason=f"{tuned.reason}, and {steps} for sides and back")


def in_turns(first: Sequence[SideView], second: Sequence[SideView]) -> list[SideView]:
    """One of the first, one of the second, and so on, then the rest of the longer."""
    return [view for pair in zip_longest(first, second) for view in pair if view is not None]


def back_terms(views: Sequence[SideView], box_warp: float, carving: float, rng: torch.Generator) -> Terms:
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
