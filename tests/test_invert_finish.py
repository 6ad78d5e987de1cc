"""The last tuning of `best` on the embedded prior: a finer picture, sides and back as they are told."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from headlift.config import preset
from headlift.eg3d.camera import orbit
from headlift.eg3d.generator import Generator
from headlift.eg3d.own_planes import BACK, PHOTO, SIDES, with_own_planes
from headlift.invert.finish import as_rendered, coarser, tune_finish
from headlift.invert.follow import follow
from headlift.invert.latent import Pivot
from headlift.invert.losses import resize, squared_error
from headlift.invert.perceptual import load_builtin
from headlift.invert.result import Target
from headlift.invert.sides import ClearRays, Sides, SideView
from headlift.invert.task import Task, View
from headlift.invert.tuning import Tuned
from headlift.weights import load_generator

FRONT, BESIDE, BEHIND = orbit(0.0, 0.0), orbit(1.57, 0.0), orbit(3.14159, 0.0)
BEFORE = "all 9 tuning steps were done"


@pytest.fixture(scope="module")
def prior() -> Generator:
    return load_generator("embedded")[0].requires_grad_(False)


@pytest.fixture(scope="module")
def pivot(prior: Generator) -> Pivot:
    ws = prior.mapping(torch.randn(1, prior.spec.mapping.z_dim, generator=torch.Generator().manual_seed(4)))
    return Pivot(as_rendered(prior, coarser(prior.spec)), ws, (FRONT,), ())


@pytest.fixture(scope="module")
def tuned(pivot: Pivot) -> Tuned:
    """What a careless tuning makes of it: another plane of x and y, so that face and back change alike."""
    generator, random = with_own_planes(pivot.generator, PHOTO), torch.Generator().manual_seed(0)
    weight = generator.get_parameter("backbone.synthesis.b128.torgb.weight")
    weight[: generator.spec.plane_channels] += 4 * torch.randn(24, *weight.shape[1:], generator=random)
    return Tuned(generator, (), BEFORE)


@torch.no_grad()
def raw(generator: Generator, pivot: Pivot, camera=FRONT, side: int = 64) -> torch.Tensor:
    return generator.volume(generator.planes(pivot.ws), camera, side).features[:, :3]


@torch.no_grad()
def task_of(pivot: Pivot, steps: int, white: bool = True, tuning: int = 9) -> Task:
    image, mask = pivot.generator.render(pivot.generator.planes(pivot.ws), pivot.ws, FRONT), torch.ones(1, 1, 256, 256)
    alpha = torch.nn.functional.interpolate(image.alpha, size=256, mode="bilinear")
    target = Target(image.image.clamp(-1, 1), alpha if white else mask, white)
    config = preset("fast").inversion
    config = replace(config, tuning=replace(config.tuning, steps=tuning, finish_steps=steps))
    view = View(target, FRONT, torch.eye(2).numpy(), None, None, None)
    return Task(pivot.generator, (view,), config, 0, lambda: False, None, lambda state: None)


def views_of(pivot: Pivot) -> Callable[[], Sequence[SideView]]:
    target = task_of(pivot, 0).views[0].target
    return lambda: Sides(pivot.generator, pivot.ws, FRONT, target).views((BEHIND, BESIDE))


def test_sides_and_back_become_what_is_told_and_the_photos_view_a_finer_picture(
    prior: Generator, pivot: Pivot, tuned: Tuned
) -> None:
    seen, task, told = [], task_of(pivot, 8), views_of(pivot)()
    ended = tune_finish(task, pivot, tuned, lambda: told, load_builtin(), prior.spec)
    finished = follow(ended, seen.append)
    assert [(step.stage, step.index, step.total) for step in seen] == [("finish", i, 8) for i in range(1, 9)]
    assert finished.reason == f"{BEFORE}, and 8 at full resolution"
    assert (tuned.generator.spec.neural_resolution, finished.generator.spec.neural_resolution) == (64, 128)
    assert finished.generator.spec.render.coarse_resolution == 64
    assert float((raw(tuned.generator, pivot) - raw(pivot.generator, pivot)).square().mean()) > 0.01
    # All of the head, in the photo's own view, in one from beside and in one from behind.
    behind, beside = (view.at(48) for view in told)
    photo, mask = (resize(x, 48) for x in (task.views[0].target.image, task.views[0].target.mask))
    for camera, wanted, solid, share in (
        (FRONT, photo, mask, 1.0),
        (BESIDE, beside.colour, beside.alpha, 0.9),
        (BEHIND, behind.colour, behind.alpha, 0.5),
    ):
        before, after = (
            float(squared_error(raw(g, pivot, camera, 48), wanted, solid))
            for g in (tuned.generator, finished.generator)
        )
        assert after < share * before, camera
    # Rays that miss the head.
    missed = ClearRays.of(told, prior.spec.render.box_warp)
    assert missed is not None
    before, after = (
        float(missed.empty_error(g, g.planes(pivot.ws), torch.Generator().manual_seed(0)).detach())
        for g in (tuned.generator, finished.generator)
    )
    assert after < 0.8 * before
    # Nothing else has changed.
    weights, kept = finished.generator.state_dict(), tuned.generator.state_dict()
    changed = {name.partition(".")[0] for name in kept if not torch.equal(weights[name], kept[name])}
    assert changed == {PHOTO, "photo_reach", "superresolution"}
    assert {SIDES, BACK} <= set(weights)


def test_the_photo_is_learned_at_full_resolution(prior: Generator, pivot: Pivot) -> None:
    """A photo as another super-resolution draws it."""
    tuned, task = Tuned(with_own_planes(pivot.generator, PHOTO), (), BEFORE), task_of(pivot, 8)
    finer = as_rendered(tuned.generator, prior.spec)
    with torch.no_grad():
        image = finer.render(finer.planes(pivot.ws), pivot.ws, FRONT).image
    photo = (0.7 * image + 0.1).clamp(-1, 1)
    task = replace(task, views=(replace(task.views[0], target=Target(photo, task.views[0].target.mask, True)),))
    ended = tune_finish(task, pivot, tuned, views_of(pivot), load_builtin(), prior.spec)
    finished = follow(ended, lambda step: None).generator
    with torch.no_grad():
        again = finished.render(finished.planes(pivot.ws), pivot.ws, FRONT).image
    assert float(squared_error(again, photo)) < 0.5 * float(squared_error(image, photo))


@pytest.mark.parametrize(
    "without", [{"steps": 0}, {"steps": 3, "white": False}, {"steps": 3, "tuning": 0}, {"steps": 3, "stopped": True}]
)
def test_without_it_the_tuned_generator_is_the_result_at_full_resolution(
    prior: Generator, pivot: Pivot, tuned: Tuned, without: dict[str, Any]
) -> None:
    stopped = without.pop("stopped", False)
    left = replace(tuned, stopped=stopped)
    ended = tune_finish(task_of(pivot, **without), pivot, left, views_of(pivot), load_builtin(), prior.spec)
    result = follow(ended, lambda step: None)
    assert (result.reason, result.stopped, result.history) == (BEFORE, stopped, ())
    assert result.generator.spec == replace(prior.spec, photo_plane=True)
    assert all(
        torch.equal(p, q) for p, q in zip(result.generator.parameters(), tuned.generator.parameters(), strict=True)
    )


def test_a_prior_that_is_rendered_as_it_is_tuned_stays_so(pivot: Pivot) -> None:
    small = copy.copy(pivot.generator)
    assert coarser(small.spec) == small.spec
    assert as_rendered(small, coarser(small.spec)) is small
