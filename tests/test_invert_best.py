"""The default method's own terms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_networks import solid_generator

from headlift.config import preset, published
from headlift.eg3d.camera import orbit
from headlift.invert import best as method
from headlift.invert.invert import ignore, never
from headlift.invert.latent import Pivot
from headlift.invert.result import Target
from headlift.invert.side_net import SIDE
from headlift.invert.sides import SEARCH_YAWS, flanking_cameras
from headlift.invert.surface import Surface
from headlift.invert.task import Moment, Task, View, no_terms
from headlift.values import Camera


def test_the_search_looks_at_the_views_that_the_side_network_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, camera = solid_generator(), orbit(0.2, 0.0)
    ws = generator.w_avg.expand(1, generator.num_ws, -1)
    planes = generator.planes(ws)
    flat = torch.ones(1, 1, SIDE, SIDE)
    view = View(
        Target(flat.expand(-1, 3, -1, -1), flat, True),
        camera,
        np.eye(2),
        None,
        None,
        Surface(2.7 * flat, flat, 1 - flat, 2.8 * flat, flat),
    )
    asked: list[Camera] = []
    shade = 0.0

    def told(target: Target, surface: Surface, photo: Camera, other: Camera) -> tuple[torch.Tensor, torch.Tensor]:
        """The generator's own picture, in another shade."""
        assert photo is camera
        asked.append(other)
        volume = generator.volume(planes, other)
        return volume.features[:, :3] + shade, volume.alpha

    monkeypatch.setattr(method, "guess_view", told)
    task = Task(generator, (view,), preset("standard").inversion, 0, never, None, ignore)
    moments = [Moment(generator, planes, ws, (camera,), (), done) for done in range(4)]
    right = method.beside(task)
    assert all(sum(map(float, right(moment).values())) < 1e-6 for moment in moments)
    shade = 0.5
    wrong = method.beside(task)
    assert [float(wrong(moment)["side_colour"]) for moment in moments] == pytest.approx([0.25] * 4, rel=1e-4)
    assert len(asked) == 2 * len(flanking_cameras(camera, SEARCH_YAWS))
    plain = Task(generator, (view,), published("pti"), 0, never, None, ignore)
    assert method.beside(plain) is no_terms


def test_without_the_guard_of_geometry_space_is_still_carved() -> None:
    generator, camera = solid_generator(), orbit(0.2, 0.0)
    ws = generator.w_avg.expand(1, generator.num_ws, -1)
    flat = torch.ones(1, 1, SIDE, SIDE)
    surface = Surface(2.7 * flat, flat, 1 - flat, 2.8 * flat, flat)
    view = View(Target(flat.expand(-1, 3, -1, -1), flat, True), camera, np.eye(2), None, None, surface)
    config = preset("fast").inversion
    without = replace(config, tuning=replace(config.tuning, geometry=0.0))
    pivot = Pivot(generator, ws, (camera,), ())
    rng = torch.Generator().manual_seed(0)
    outputs = (generator.render(generator.planes(ws), ws, camera),)
    moment = Moment(generator, generator.planes(ws), ws, (camera,), outputs, 1)
    found = method.guard(Task(generator, (view,), without, 0, never, None, ignore), pivot, tuple, rng)(moment)
    assert float(found["front_depth"]) == 0
    assert float(found["carving"]) > 0
    nothing = replace(without, tuning=replace(without.tuning, carving=0.0, side_colour=0.0))
    assert method.guard(Task(generator, (view,), nothing, 0, never, None, ignore), pivot, tuple, rng) is no_terms
