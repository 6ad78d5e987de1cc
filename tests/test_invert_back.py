"""The last tuning of `best` on the embedded prior: sides and back change, what the photo shows gets no worse."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from headlift.config import preset
from headlift.eg3d.camera import orbit
from headlift.eg3d.generator import Generator
from headlift.invert.back import tune_back
from headlift.invert.fine import as_rendered, coarser
from headlift.invert.follow import follow
from headlift.invert.latent import Pivot
from headlift.invert.losses import resize
from headlift.invert.perceptual import load_builtin
from headlift.invert.result import Target
from headlift.invert.sides import ClearRays, Sides
from headlift.invert.task import Task, View
from headlift.invert.tuning import Tuned
from headlift.weights import load_generator

FRONT, BESIDE, BEHIND = orbit(0.0, 0.0), orbit(1.57, 0.0), orbit(3.14159, 0.0)


@pytest.fixture(scope="module")
def pivot() -> Pivot:
    generator, _ = load_generator("embedded")
    generator = as_rendered(generator, coarser(generator.spec)).requires_grad_(False)
    ws = generator.mapping(torch.randn(1, generator.spec.mapping.z_dim, generator=torch.Generator().manual_seed(4)))
    return Pivot(generator, ws, (FRONT,), ())


@pytest.fixture(scope="module")
def tuned(pivot: Pivot) -> Tuned:
    """What a careless tuning makes of it: another plane of x and y, so that face and back change alike."""
    generator, random = copy.deepcopy(pivot.generator), torch.Generator().manual_seed(0)
    weight = generator.get_parameter("backbone.synthesis.b128.torgb.weight")
    weight[: generator.spec.plane_channels] += 4 * torch.randn(24, *weight.shape[1:], generator=random)
    return Tuned(generator, (), "all 9 tuning steps were done")


@torch.no_grad()
def raw(generator: Generator, pivot: Pivot, camera=FRONT, side: int = 64) -> torch.Tensor:
    return generator.volume(generator.planes(pivot.ws), camera, side).features[:, :3]


def task_of(pivot: Pivot, steps: int, white: bool = True, tuning: int = 9) -> Task:
    image, mask = pivot.generator.render(pivot.generator.planes(pivot.ws), pivot.ws, FRONT), torch.ones(1, 1, 256, 256)
    alpha = torch.nn.functional.interpolate(image.alpha, size=256, mode="bilinear")
    target = Target(image.image.clamp(-1, 1), alpha if white else mask, white)
    config = preset("fast").inversion
    config = replace(config, tuning=replace(config.tuning, steps=tuning, back_steps=steps))
    view = View(target, FRONT, torch.eye(2).numpy(), None, None, None)
    return Task(pivot.generator, (view,), config, 0, lambda: False, None, lambda state: None)


def sides_of(pivot: Pivot) -> Callable[[], Sides]:
    target = task_of(pivot, 0).views[0].target
    return lambda: Sides(pivot.generator, pivot.ws, FRONT, target)


def test_sides_and_back_become_what_the_guard_wants_and_the_photos_view_no_worse(pivot: Pivot, tuned: Tuned) -> None:
    seen, task = [], task_of(pivot, 8)
    around = sides_of(pivot)().views((BESIDE,))
    backed = follow(tune_back(task, pivot, tuned, sides_of(pivot), lambda: around, load_builtin()), seen.append)
    assert [(step.stage, step.index, step.total) for step in seen] == [("back", i, 8) for i in range(1, 9)]
    assert backed.reason == "all 9 tuning steps were done, and 8 for sides and back"
    assert float((raw(tuned.generator, pivot) - raw(pivot.generator, pivot)).square().mean()) > 0.01
    # The middle of the photo's own view, of one from beside and of one from behind.
    (behind,) = sides_of(pivot)().views((BEHIND,))
    photo = resize(task.views[0].target.image, 48)
    for camera, wanted, share in ((FRONT, photo, 1.05), (BESIDE, around[0].colour, 0.9), (BEHIND, behind.colour, 0.5)):
        before, after = (
            float((raw(g, pivot, camera, 48) - wanted)[..., 16:30, 18:30].square().mean())
            for g in (tuned.generator, backed.generator)
        )
        assert after < share * before, camera
    # Rays that miss the head.
    missed = ClearRays.of((behind, *around), pivot.generator.spec.render.box_warp)
    assert missed is not None
    before, after = (
        float(missed.empty_error(g, g.planes(pivot.ws), torch.Generator().manual_seed(0)).detach())
        for g in (tuned.generator, backed.generator)
    )
    assert after < 0.8 * before
    weights = backed.generator.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in tuned.generator.state_dict().items())


@pytest.mark.parametrize("without", [{"steps": 0}, {"steps": 3, "white": False}, {"steps": 3, "tuning": 0}])
def test_without_it_the_tuned_generator_is_the_result(pivot: Pivot, tuned: Tuned, without: dict) -> None:
    left = tune_back(task_of(pivot, **without), pivot, tuned, sides_of(pivot), lambda: (), load_builtin())
    assert follow(left, lambda step: None) is tuned
