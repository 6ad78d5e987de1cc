"""The last tuning of `best`: planes of its own for sides and back of the head, and nothing else (`eg3d/own_planes.py`).

Tuning draws the photo on planes that face and back share, and a face comes through where hair should be. Weighing the
views of the back more hides it at the photo's cost. So when the photo is shown, the back gets its own plane. It begins
with what takes back all that tuning did to the plane of x and y, and learns what the guard wants to see from behind.
Where the photo itself shows something so far behind, it stays zero.

And what tuning draws for the photo runs on into the head, along the photo's rays: streaks on hair and neck, seen from
beside. What the guard wants to see there has a number for each texel of the other two planes, too. They are seen from
the front, so the photo is looked at again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from itertools import zip_longest

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from headlift.eg3d.generator import Generator as Eg3d
from headlift.eg3d.marching import optical_depths
from headlift.eg3d.own_planes import BACK, SIDES, with_own_planes
from headlift.eg3d.rays import box_limits, pixel_rays
from headlift.eg3d.triplane import FADE
from headlift.invert.latent import Pivot
from headlift.invert.perceptual import Distance
from headlift.invert.sides import GUARD, HUE, ClearRays, Sides, SideView, back_cameras, guard_losses
from headlift.invert.task import Moment, Task, Terms
from headlift.invert.tuning import Tuned, tunable, tune, tuning_rng
from headlift.values import Camera, Step

STAGE = "back"
TUNED = "tuned."
"""Before the names of the tuned generator's tensors in states."""
RATE = 0.2
"""Adam's learning rate."""
RAMPDOWN = 0.4
"""Share of the steps over which it falls."""
PHOTO_EVERY, WEIGHT = 2, 1 / 3
"""The photo is looked at once in so many steps, and what each step's view counts beside it."""
WEIGHTS = {name: WEIGHT * value for name, value in (GUARD | {"side_colour": 1.0}).items()}
RAYS, SAMPLES = 64, 64
"""Rays along each side of the photo, and samples of each, by which is found what it sees of the back."""
SEEN = 0.05
"""It sees places that at least this share of the light reaches."""
SPREAD = 2
"""And so many texels around them."""


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
    free = free_texels(generator, pivot.ws, pivot.cameras[0])
    with torch.no_grad():
        undone = pivot.generator.planes(pivot.ws)[0, 0] - generator.planes(pivot.ws)[0, 0]
        generator.back_plane.copy_(undone * free)

    def chosen(generator: Eg3d) -> dict[str, nn.Parameter]:
        planes = {name: generator.get_parameter(name) for name in (SIDES, BACK)}
        planes[BACK].requires_grad_().register_hook(lambda gradient: gradient * free)
        return planes

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
        {TUNED + name: p.detach().clone() for name, p in tunable(tuned.generator).items()},
        chosen,
        photo_every=PHOTO_EVERY,
    )
    return backed if backed.stopped else replace(backed, reason=f"{tuned.reason}, and {steps} for sides and back")


def tuned_before(task: Task, pivot: Pivot) -> Tuned | None:
    """What a task that is resumed in this stage had tuned before it."""
    again = task.resumed(STAGE)
    if again is None:
        return None
    generator = copy.deepcopy(pivot.generator)
    with torch.no_grad():
        for name, parameter in tunable(generator).items():
            parameter.copy_(again.tensors[TUNED + name])
    return Tuned(generator, again.history, f"all {task.config.tuning.steps} tuning steps were done")


@torch.no_grad()
def free_texels(generator: Eg3d, ws: Float[Tensor, "1 l w"], camera: Camera) -> Float[Tensor, "p p"]:
    """Where the plane for the back may change: 0 on texels at which the camera looks into the back of the box, else 1.

    It does where its rays arrive with some light left, whether there is anything to be seen or not: through thin hair,
    and beside the head.
    """
    planes, spec = generator.planes(ws), generator.spec.render
    side, half = planes.shape[-1], spec.box_warp / 2
    origins, directions = pixel_rays(camera, RAYS)
    start, end = box_limits(origins, directions, spec.box_warp)
    shares = (torch.arange(SAMPLES, device=planes.device) + 0.5) / SAMPLES
    depths = start[..., None] + (end - start)[..., None] * shares
    points = origins[:, :, None] + depths[..., None] * directions[:, :, None]
    sigma = generator.query(planes, points.reshape(1, -1, 3))[0].reshape(depths.shape)
    absorbed = optical_depths(depths, sigma, spec.clamp_mode)
    left = torch.exp(-F.pad(absorbed.cumsum(-1), (1, 0)))[..., : depths.shape[-1]]
    far = points[(left > SEEN) & (points[..., 2] < FADE[0] * half)]
    column, row = (((far[:, :2] / half + 1) / 2 * side).long().clamp(0, side - 1)).unbind(1)
    seen = planes.new_zeros(1, 1, side, side)
    seen[0, 0, row, column] = 1
    return 1 - F.max_pool2d(seen, 2 * SPREAD + 1, stride=1, padding=SPREAD)[0, 0]


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
