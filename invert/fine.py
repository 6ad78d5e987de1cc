"""The last stage of `best`: the head as finely as its prior is rendered.

A prior whose rays share the coarse samples of a smaller picture (`RenderSpec.coarse_resolution`) is searched and tuned
as that smaller picture, for a fraction of the time. A head so tuned knows more than it shows: its own plane for the
photo has a number for each texel. So at the end it is rendered at full resolution, and that plane and super-resolution
learn to show the photo that way. Eyes, brows and outlines come out sharper, in the photo's view and from beside.

The planes for sides and back have learned from views of the smaller picture. What these cannot show of them is noise,
lines from texel to texel, and goes before that.
"""

from __future__ import annotations

import copy
from collections.abc import Generator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from headlift.eg3d.generator import Generator as Eg3d
from headlift.eg3d.own_planes import PHOTO, own_planes
from headlift.eg3d.spec import GeneratorSpec
from headlift.invert.latent import Pivot
from headlift.invert.perceptual import Distance
from headlift.invert.task import Task, no_terms
from headlift.invert.tuning import Tuned, carried_with, tune, tuning_rng
from headlift.values import Step

STAGE = "fine"
RAMPDOWN = 0.4
"""Share of the steps over which the rate falls."""


def tune_fine(
    task: Task, pivot: Pivot, tuned: Tuned, distance: Distance, spec: GeneratorSpec
) -> Generator[Step, None, Tuned]:
    """Render a tuned generator as finely as `spec` says, and tune the photo's plane and super-resolution to that;
    yields each step, returns that generator. Where it is rendered so already, it stays as it is."""
    steps = task.config.tuning.fine_steps
    if as_rendered(tuned.generator, spec) is tuned.generator:
        return tuned
    finer = as_rendered(without_lines(tuned.generator), spec)
    if not steps or not task.config.tuning.steps or tuned.stopped:
        return replace(tuned, generator=finer)
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


def without_lines(generator: Eg3d) -> Eg3d:
    """A copy whose planes for sides and back have gone through the binomial filter (1, 2, 1) / 4 along both axes."""
    smooth = copy.deepcopy(generator)
    with torch.no_grad():
        for name, plane in own_planes(smooth).items():
            if name != PHOTO:
                padded = F.pad(plane.reshape(1, -1, *plane.shape[-2:]), (1, 1, 1, 1), mode="replicate")
                plane.copy_(F.avg_pool2d(F.avg_pool2d(padded, 2, 1), 2, 1).reshape(plane.shape))
    return smooth


def of_the_picture(generator: Eg3d) -> dict[str, nn.Parameter]:
    """The photo's plane, if there is one, and super-resolution: what draws detail and leaves the geometry."""
    named = generator.named_parameters()
    return {name: p for name, p in named if name == PHOTO or name.startswith("superresolution.")}
