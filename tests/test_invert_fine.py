"""The last tuning of `best`: a finer picture of the same head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_networks import solid_generator

from headlift.config import preset
from headlift.eg3d.camera import orbit
from headlift.eg3d.own_planes import BACK, OWN, PHOTO, SIDES, own_planes, with_own_planes
from headlift.invert.fine import as_rendered, coarser, tune_fine, without_lines
from headlift.invert.follow import follow
from headlift.invert.latent import Pivot
from headlift.invert.losses import squared_error
from headlift.invert.perceptual import load_builtin
from headlift.invert.result import Target
from headlift.invert.task import Task, View
from headlift.invert.tuning import Tuned

FRONT = orbit(0.0, 0.0)
BEFORE = "all 9 tuning steps were done"


def found(steps: int = 6, tuning: int = 9, coarse: int | None = 8) -> tuple[Task, Pivot, Tuned]:
    """A task whose photo is the full picture of a head tuned as a smaller one, as another super-resolution draws it."""
    finer = with_own_planes(solid_generator(importance_samples=6), PHOTO)
    finer.spec = finer.spec.rendered_at(16, coarse)
    generator = as_rendered(finer, coarser(finer.spec))
    ws = generator.mapping(torch.randn(1, 8, generator=torch.Generator().manual_seed(4)))
    with torch.no_grad():
        seen = finer.render(finer.planes(ws), ws, FRONT)
    mask = torch.nn.functional.interpolate(seen.alpha, size=32, mode="bilinear")
    target = Target((0.7 * seen.image + 0.1).clamp(-1, 1), mask, True)
    config = preset("fast").inversion
    config = replace(config, tuning=replace(config.tuning, steps=tuning, fine_steps=steps, lr_gain=1.0))
    view = View(target, FRONT, torch.eye(2).numpy(), None, None, None)
    task = Task(finer, (view,), config, 0, lambda: False, None, lambda state: None)
    return task, Pivot(generator, ws, (FRONT,), ()), Tuned(generator, (), BEFORE)


def test_the_head_is_rendered_finer_and_shows_the_photo_better() -> None:
    seen = []
    task, pivot, tuned = found()
    spec = task.generator.spec
    fine = follow(tune_fine(task, pivot, tuned, load_builtin(), spec), seen.append)
    assert [(step.stage, step.index, step.total) for step in seen] == [("fine", i, 6) for i in range(1, 7)]
    assert fine.reason == f"{BEFORE}, and 6 for a finer picture"
    assert (tuned.generator.spec.neural_resolution, fine.generator.spec) == (8, spec)
    before, after = (
        float(squared_error(g.render(g.planes(pivot.ws), pivot.ws, FRONT).image, task.views[0].target.image))
        for g in (as_rendered(tuned.generator, spec), fine.generator)
    )
    assert after < 0.9 * before
    changed = {n for n, p in fine.generator.state_dict().items() if not torch.equal(p, tuned.generator.state_dict()[n])}
    assert PHOTO in changed
    assert {name.partition(".")[0] for name in changed} == {PHOTO, "superresolution"}


@pytest.mark.parametrize("without", [{"steps": 0}, {"tuning": 0}, {"coarse": None}, {"stopped": True}])
def test_without_it_the_tuned_generator_is_the_result_at_full_resolution(without: dict[str, Any]) -> None:
    stopped = without.pop("stopped", False)
    task, pivot, tuned = found(**without)
    tuned = replace(tuned, stopped=stopped)
    fine = follow(tune_fine(task, pivot, tuned, load_builtin(), task.generator.spec), lambda step: None)
    assert (fine.reason, fine.stopped, fine.history) == (BEFORE, stopped, ())
    assert fine.generator.spec == task.generator.spec
    assert all(
        torch.equal(p, q) for p, q in zip(fine.generator.parameters(), tuned.generator.parameters(), strict=True)
    )


def test_lines_go_from_the_planes_for_sides_and_back_and_what_is_smooth_stays() -> None:
    generator = with_own_planes(solid_generator(), *OWN)
    across = torch.arange(8.0)
    with torch.no_grad():
        for plane in own_planes(generator).values():
            plane.copy_((across + 5 * (-1.0) ** across).expand(plane.shape))  # a slope, and lines on it
    smooth = own_planes(without_lines(generator))
    assert torch.equal(smooth[PHOTO], own_planes(generator)[PHOTO])
    for name in (SIDES, BACK):
        torch.testing.assert_close(smooth[name][..., 1:-1], across[1:-1].expand_as(smooth[name][..., 1:-1]))
