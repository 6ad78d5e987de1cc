"""The last stage of `best`: the head rendered as finely as super-resolution can take it.

The embedded prior renders 64 pixels a side and spreads them over the 128 that its super-resolution takes; published
generators of 64 do the same. A tuned head knows more than these show: its own plane for the photo has a number for each
of 128 texels. So at the end the head is rendered at 128, with the rays' coarse samples still at 64
(`eg3d/shared_look.py`), and that plane and super-resolution learn to show the photo that way. Eyes, brows and outlines
come out sharper, in the photo's view and from beside; all else stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Generator
from dataclasses import replace

from torch import nn

from headlift.eg3d.generator import Generator as Eg3d
from headlift.eg3d.own_planes import PHOTO
from headlift.invert.latent import Pivot
from headlift.invert.perceptual import Distance
from headlift.invert.task import Task, no_terms
from headlift.invert.tuning import Tuned, carried_with, tune, tuning_rng
from headlift.values import Step

STAGE = "fine"
RAMPDOWN = 0.4
"""Share of the steps over which the rate falls."""


def tune_fine(task: Task, pivot: Pivot, tuned: Tuned, distance: Distance) -> Generator[Step, None, Tuned]:
    """Tune the photo's plane and the super-resolution of a tuned generator that is rendered finer than before; yields
    each step, returns that generator. As it was, if it is rendered that finely already."""
    steps = task.config.tuning.fine_steps
    finer = rendered_finer(tuned.generator)
    if not steps or finer is None or not task.config.tuning.steps or tuned.stopped:
        return tuned
    done = yield from tune(
        task,
        replace(pivot, generator=finer),
        distance,
        tuning_rng(task),
        no_terms,
        replace(task.config.tuning, steps=steps, rampdown=RAMPDOWN, muon=0.0, stop=0.0, locality=0.0),
        STAGE,
        tuned.history,
        carried_with(tuned),
        of_the_picture,
    )
    return done if done.stopped else replace(done, reason=f"{tuned.reason}, and {steps} for a finer picture")


def rendered_finer(generator: Eg3d) -> Eg3d | None:
    """A copy that is rendered at the resolution its super-resolution takes; None if it is so already."""
    spec = generator.spec
    if spec.neural_resolution >= spec.superres.input_resolution:
        return None
    finer = copy.deepcopy(generator)
    coarse = spec.neural_resolution if spec.render.importance_samples else None
    finer.spec = spec.rendered_at(spec.superres.input_resolution, coarse)
    return finer


def of_the_picture(generator: Eg3d) -> dict[str, nn.Parameter]:
    """The photo's plane, if there is one, and super-resolution: what draws detail and leaves the geometry."""
    named = generator.named_parameters()
    return {name: p for name, p in named if name == PHOTO or name.startswith("superresolution.")}
