"""The two stages on a tiny generator: what they reach, what they keep, how they stop, and that they repeat exactly."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from inversions import run, same
from small_networks import solid_generator

from headlift.config import CameraRefineConfig, InversionConfig, LatentConfig, TuningConfig
from headlift.eg3d.camera import orbit, rotation_angle
from headlift.eg3d.generator import Generator
from headlift.eg3d.own_planes import PHOTO, with_own_planes
from headlift.errors import ConfigError
from headlift.invert.camera_refine import moved_camera
from headlift.invert.invert import make_target
from headlift.invert.latent import code_statistics, noise_images
from headlift.invert.result import InversionState
from headlift.invert.tuning import groups, tunable
from headlift.values import Crop, Face, Similarity, Verdict


def shown(generator: Generator, seed: int = 3, camera=None) -> Crop:
    """A crop that shows one of the generator's own heads."""
    camera = camera or orbit(0.2, 0.05)
    ws = generator.mapping(torch.randn(1, 8, generator=torch.Generator().manual_seed(seed)))
    output = generator.render(generator.planes(ws), ws, camera)
    mask = torch.nn.functional.interpolate(output.alpha, size=(32, 32), mode="bilinear").clamp(0, 1)
    face = Face((0.0, 0.0, 1.0, 1.0), 1.0, np.zeros((478, 3)))
    image = output.image.clamp(-1, 1)
    return Crop(image, mask, camera, Similarity(np.eye(3)[:2]), face, 0.0, np.eye(2) * 2e-3, Verdict(()))


SHORT = InversionConfig(
    latent=LatentConfig(steps=8, noise_reg=1.0),
    tuning=TuningConfig(steps=6, lr_gain=1.0, stop=0.0, side_views=2, geometry_every=2, side_colour=0.3),
    preview_every=4,
    keep_every=3,
)


def test_both_stages_bring_the_picture_nearer_and_leave_the_prior_alone() -> None:
    generator = solid_generator()
    before = copy.deepcopy(generator.state_dict())
    config = replace(SHORT, latent=replace(SHORT.latent, steps=30, lr=0.05), tuning=replace(SHORT.tuning, steps=10))
    result, steps = run(generator, shown(generator), config)
    assert all(torch.equal(before[name], value) for name, value in generator.state_dict().items())
    latent = [s.losses["perceptual"] for s in steps if s.stage == "latent"]
    tuning = [s.losses["perceptual"] for s in steps if s.stage == "tuning"]
    assert latent[-1] < 0.6 * latent[0]
    assert tuning[-1] < tuning[0]
    assert result.metrics["psnr"] > 15
    assert not any(p.requires_grad for p in result.generator.parameters())


def test_steps_are_counted_and_pictures_come_now_and_then() -> None:
    generator = solid_generator()
    result, steps = run(generator, shown(generator), SHORT)
    assert [(s.stage, s.index, s.total) for s in steps] == [("latent", i, 8) for i in range(1, 9)] + [
        ("tuning", i, 6) for i in range(1, 7)
    ]
    assert [s.index for s in steps if s.image is not None] == [1, 4, 8, 1, 4, 6]
    assert steps[0].image is not None
    assert steps[0].image.shape == (32, 32, 3)
    assert [s.losses for s in result.history] == [s.losses for s in steps]
    assert all(s.image is None for s in result.history)
    for step in steps:
        parts = sum(value for name, value in step.losses.items() if name != "total")
        assert step.losses["total"] == pytest.approx(parts, rel=1e-4)


@pytest.mark.parametrize("noise", [False, True])
def test_the_same_seed_gives_the_same_bits_and_another_does_not(noise: bool) -> None:
    generator = solid_generator(noise=noise)
    crop = shown(generator)
    first, _ = run(generator, crop, SHORT, seed=5)
    again, _ = run(generator, crop, SHORT, seed=5)
    other, _ = run(generator, crop, SHORT, seed=6)
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize(("split", "backbone_every"), [(1.0, 1), (0.5, 2)])
def test_a_resumed_run_equals_an_uninterrupted_one(split: float, backbone_every: int) -> None:
    generator = solid_generator(noise=True, importance_samples=4)  # what a first look finds shows in the bits
    crop = shown(generator)
    tuning = replace(SHORT.tuning, const_gain=3.0, muon=0.5, backbone_every=backbone_every)
    config = replace(SHORT, latent=replace(SHORT.latent, split=split), tuning=tuning)
    states: list[InversionState] = []
    whole, _ = run(generator, crop, config, on_state=states.append)
    assert [(s.stage, s.step) for s in states] == [
        ("latent", 3), ("latent", 6), ("latent", 8), ("tuning", 3), ("tuning", 6), ("tuning", 6)
    ]  # fmt: skip
    for state in (states[0], states[1], states[3]):
        resumed, steps = run(generator, crop, config, resume=state)
        assert same(whole, resumed), (state.stage, state.step)
        assert [s.losses for s in resumed.history] == [s.losses for s in whole.history]
        assert len(steps) == len(whole.history) - len(state.history)


def test_stopping_keeps_what_there_is() -> None:
    generator = solid_generator()
    crop = shown(generator)
    whole, _ = run(generator, crop, SHORT)
    left = iter([False] * 3 + [True] * 99)
    states: list[InversionState] = []
    early, steps = run(generator, crop, SHORT, should_stop=lambda: next(left), on_state=states.append)
    assert [s.stage for s in steps] == ["latent"] * 3
    assert "stopped" in early.reason
    assert early.ws.shape == whole.ws.shape
    assert [s.losses for s in early.history] == [s.losses for s in whole.history[:3]]
    # and it can go on from the last state that was handed out
    resumed, _ = run(generator, crop, SHORT, resume=states[-1])
    assert same(whole, resumed)
    left = iter([False] * 11 + [True] * 99)
    states.clear()
    late, steps = run(generator, crop, SHORT, should_stop=lambda: next(left), on_state=states.append)
    assert [s.stage for s in steps] == ["latent"] * 8 + ["tuning"] * 3
    assert "stopped" in late.reason
    resumed, _ = run(generator, crop, SHORT, resume=states[-1])
    assert same(whole, resumed)


def test_tuning_stops_before_the_step_once_the_distance_is_small_enough() -> None:
    generator = solid_generator()
    config = replace(SHORT, tuning=replace(SHORT.tuning, stop=1e9))
    result, steps = run(generator, shown(generator), config)
    assert {s.stage for s in steps} == {"latent"}
    assert "limit" in result.reason
    untouched = generator.state_dict()
    assert all(torch.equal(untouched[name], value) for name, value in result.generator.state_dict().items())
    assert result.metrics["depth_moved"] == 0


def test_constant_photo_plane_and_kernels_learn_at_rates_of_their_own() -> None:
    parameters = tunable(with_own_planes(solid_generator(), PHOTO))
    found = groups(parameters, TuningConfig(const_gain=3.0, photo_gain=10.0, muon=0.8))
    assert sum(len(group.parameters) for group in found) == len(parameters)
    name_of = {parameter: name for name, parameter in parameters.items()}
    names = {(group.gain, group.muon): [name_of[parameter] for parameter in group.parameters] for group in found}
    assert set(names) == {(1.0, 0.0), (1.0, 0.8), (3.0, 0.0), (10.0, 0.0)}
    assert names[10.0, 0.0] == [PHOTO]
    assert names[3.0, 0.0] == ["backbone.synthesis.b4.const"]
    assert all(name.endswith(("conv0.weight", "conv1.weight")) for name in names[1.0, 0.8])
    assert not any(name.endswith(("conv0.weight", "conv1.weight")) for name in names[1.0, 0.0])
    (alone,) = groups(tunable(solid_generator()), TuningConfig())
    assert (alone.gain, alone.muon) == (1.0, 0.0)


def test_w_has_one_code_and_w_plus_one_for_each_layer() -> None:
    generator = solid_generator()
    crop = shown(generator)
    ends = {}
    for name, changes in {"w": {}, "w+": {"space": "w+"}, "split": {"split": 0.5}}.items():
        config = replace(SHORT, latent=replace(SHORT.latent, **changes), tuning=replace(SHORT.tuning, steps=0))
        ends[name] = run(generator, crop, config)[0].ws
    assert torch.equal(ends["w"], ends["w"][:, :1].expand_as(ends["w"]))
    assert not torch.equal(ends["w+"], ends["w+"][:, :1].expand_as(ends["w"]))
    assert not torch.equal(ends["split"], ends["split"][:, :1].expand_as(ends["w"]))


def test_code_statistics_are_those_of_the_published_codes() -> None:
    generator = solid_generator()
    z = torch.from_numpy(np.random.RandomState(123).randn(600, 8)).float()
    w = generator.mapping(z, generator.frontal_camera())[:, 0]
    found = code_statistics(generator, LatentConfig())
    torch.testing.assert_close(found.mean, w.mean(0))
    assert found.spread == pytest.approx(math.sqrt(float(((w - w.mean(0)) ** 2).sum() / 600)), rel=1e-5)


def test_noise_is_optimised_only_where_the_generator_uses_it() -> None:
    assert noise_images(solid_generator()) == {}
    generator = solid_generator(noise=True)
    names = set(noise_images(generator))
    assert names == {
        name for name, _ in generator.named_buffers() if name.startswith("backbone") and "noise_const" in name
    }
    result, steps = run(generator, shown(generator), SHORT)
    assert "noise" in steps[0].losses
    for name, noise in noise_images(result.generator).items():
        assert not torch.equal(noise, noise_images(generator)[name])
        assert float(noise.square().mean()) == pytest.approx(1, rel=1e-4)


def test_the_camera_is_found_again() -> None:
    generator = solid_generator()
    true = orbit(0.15, 0.05)
    crop = shown(generator, camera=true)
    off = moved_camera(true, torch.tensor([0.03, -0.08, 0.0, 0.01, -0.01, 0.0]))
    config = InversionConfig(
        latent=LatentConfig(steps=60, lr=0.0, w_noise=0.0, mse=5.0),
        camera=CameraRefineConfig(lr=1e-2, start=0.0, rotation_weight=0.01, translation_weight=0.01),
        tuning=TuningConfig(steps=0, geometry=0.0),
    )
    # the right code is known, only the camera is not
    ws = generator.mapping(torch.randn(1, 8, generator=torch.Generator().manual_seed(3)))
    state = InversionState(
        "latent", 0, {"code": ws[:, :1], "twist": torch.zeros(6), "rng": torch.Generator().get_state()}
    )
    result, _ = run(generator, replace(crop, camera=off), config, resume=state)
    before = float(rotation_angle(off.rotation, true.rotation)[0])
    after = float(rotation_angle(result.camera.rotation, true.rotation)[0])
    assert before > 0.08
    assert after < 0.25 * before
    assert float((result.camera.origin - true.origin).norm()) < 0.25 * float((off.origin - true.origin).norm())


def test_a_fixed_camera_stays_where_it_was() -> None:
    generator = solid_generator()
    crop = shown(generator)
    result, steps = run(generator, crop, replace(SHORT, camera=CameraRefineConfig(enabled=False)))
    assert torch.equal(result.camera.cam2world, crop.camera.cam2world)
    assert "camera" not in steps[-7].losses


def test_the_guard_keeps_the_surface_where_it_was() -> None:
    generator = solid_generator()
    crop = shown(generator)
    photo = replace(crop, image=torch.rand(crop.image.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1)
    tuning = TuningConfig(steps=12, lr=3e-3, lr_gain=1.0, stop=0.0, alpha=0.0, side_views=4, geometry_every=1)
    config = replace(SHORT, latent=replace(SHORT.latent, steps=2), tuning=tuning)
    held, steps = run(generator, photo, config)
    free, _ = run(generator, photo, replace(config, tuning=replace(tuning, geometry=0.0)))
    assert "side_depth" in steps[-1].losses
    assert held.metrics["depth_moved"] < 0.5 * free.metrics["depth_moved"]


def test_locality_keeps_neighbours_as_they_were() -> None:
    generator = solid_generator()
    crop = shown(generator)
    tuning = replace(SHORT.tuning, steps=12, lr=3e-3, geometry=0.0, locality_alpha=1.0)
    results = {
        weight: run(generator, crop, replace(SHORT, tuning=replace(tuning, locality=weight)))[0]
        for weight in (0.0, 50.0)
    }
    z = torch.randn(4, 8, generator=torch.Generator().manual_seed(9))
    ws = generator.mapping(z)
    camera = generator.frontal_camera()
    wanted = generator.render(generator.planes(ws), ws, camera[torch.zeros(4, dtype=torch.long)]).image
    drift = {}
    for weight, result in results.items():
        image = result.generator.render(result.generator.planes(ws), ws, camera[torch.zeros(4, dtype=torch.long)]).image
        drift[weight] = float((image - wanted).square().mean())
    assert drift[50.0] < 0.5 * drift[0.0]


def test_white_priors_see_the_photo_on_white_and_others_with_its_background() -> None:
    crop = shown(solid_generator())
    image = torch.full_like(crop.image, -0.5)
    mask = torch.zeros_like(crop.mask)
    mask[..., 8:24, 8:24] = 1
    crop = replace(crop, image=image, mask=mask)
    white = make_target(crop, solid_generator())
    assert float(white.image[0, 0, 16, 16]) == -0.5
    assert float(white.image[0, 0, 0, 0]) == 1
    assert white.white
    cut_out = replace(crop, mask=torch.full_like(mask, 0.5), on_white=True)
    torch.testing.assert_close(make_target(cut_out, solid_generator()).image, image)  # not laid on white once more
    scene = make_target(crop, solid_generator(white=False))
    torch.testing.assert_close(scene.image, image)
    _, steps = run(solid_generator(white=False), crop, SHORT)
    assert "alpha" not in steps[0].losses


def test_larger_crops_are_averaged_to_the_generator() -> None:
    generator = solid_generator()
    crop = shown(generator)
    large = replace(
        crop,
        image=crop.image.repeat_interleave(3, 2).repeat_interleave(3, 3),
        mask=crop.mask.repeat_interleave(3, 2).repeat_interleave(3, 3),
    )
    torch.testing.assert_close(make_target(large, generator).image, make_target(crop, generator).image)


def test_settings_out_of_range_are_refused() -> None:
    generator = solid_generator()
    crop = shown(generator)
    for config in (
        replace(SHORT, latent=replace(SHORT.latent, steps=-1)),
        replace(SHORT, latent=replace(SHORT.latent, split=1.5)),
        replace(SHORT, tuning=replace(SHORT.tuning, geometry_every=0)),
    ):
        with pytest.raises(ConfigError):
            run(generator, crop, config)
