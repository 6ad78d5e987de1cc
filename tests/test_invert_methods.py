"""Every inversion method on a tiny generator: what it must do, that it stops, and that it resumes exactly."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from inversions import run, same
from small_networks import solid_generator

from headlift.config import (
    InversionConfig,
    Method,
    ReconstructConfig,
    from_table,
    preset,
    published,
    to_table,
    with_method,
)
from headlift.eg3d.camera import orbit
from headlift.eg3d.generator import Generator
from headlift.eg3d.own_planes import OWN, own_planes
from headlift.errors import ConfigError
from headlift.invert.camera_refine import moved_camera
from headlift.invert.hfgi3d import orbit_cameras, pseudo_views, soft_mask
from headlift.invert.invert import METHODS, invert
from headlift.invert.latent import Pivot
from headlift.invert.metrics import psnr
from headlift.invert.perceptual import calibrated_stop, load_builtin
from headlift.invert.pose import canonical_warping
from headlift.invert.regions import OUTLINE
from headlift.invert.result import InversionState
from headlift.invert.spi import carry, elsewhere, face_region, front_views, mirror_pivot, neighbours
from headlift.invert.task import Moment, Task, make_view
from headlift.values import Camera, Crop, Face, Similarity, Verdict


def crop_of(generator: Generator, camera: Camera, seed: int = 3) -> Crop:
    """One of the generator's own heads, nobody's face detected."""
    ws = generator.mapping(torch.randn(1, 8, generator=torch.Generator().manual_seed(seed)))
    output = generator.render(generator.planes(ws), ws, camera)
    mask = torch.nn.functional.interpolate(output.alpha, size=(32, 32), mode="bilinear").clamp(0, 1)
    face = Face((0.0, 0.0, 1.0, 1.0), 1.0, np.zeros((478, 3)))
    flat = Similarity(np.eye(3)[:2])
    return Crop(output.image.clamp(-1, 1), mask, camera, flat, face, 0.0, np.eye(2) * 2e-3, Verdict(()))


def short(method: Method, latent: int = 3, tuning: int = 3) -> InversionConfig:
    """A method's settings with a few steps of each stage."""
    config = published(method)
    own = {"finish_steps": 3, "photo_gain": 10.0, "muon": 0.8} if method == "best" else {}
    return replace(
        config,
        latent=replace(config.latent, steps=latent, noise_reg=1.0, w_stats_samples=16),
        tuning=replace(config.tuning, steps=tuning, lr_gain=1.0, stop=0.0, side_views=1, **own),
        spi=replace(config.spi, every=2, neighbours=1, region=4),
        hfgi3d=replace(config.hfgi3d, steps=3, views=2),
        in_n_out=replace(config.in_n_out, steps=3, channels=3, resolution=8, hidden=4),
        camera=replace(config.camera, preheat=0.5 if method == "pose" else 0.0),
        preview_every=0,
        keep_every=2,
    )


STAGES = {
    "best": ["latent", "tuning", "finish"],
    "w": ["latent"],
    "w+": ["latent"],
    "pti": ["latent", "tuning"],
    "pose": ["latent", "tuning"],
    "spi": ["latent", "tuning"],
    "hfgi3d": ["latent", "tuning", "views"],
    "in-n-out": ["latent", "tuning", "superres"],
    "multi": ["latent", "tuning"],
}


def test_every_method_has_a_name_settings_and_an_entry() -> None:
    assert set(METHODS) == set(get_args(Method)) == set(STAGES)
    for name in METHODS:
        assert published(name).method == name  # type: ignore[arg-type]
        for time in ("fast", "standard", "thorough"):
            config = preset(time, name)  # type: ignore[arg-type]
            assert config.inversion.method == name
            assert from_table(to_table(config)) == config
            assert from_table({"preset": time, "inversion": {"method": name}}) == config


@pytest.mark.parametrize("method", list(STAGES))
def test_a_method_resumes_to_the_same_bits_and_can_be_stopped(method: Method) -> None:
    generator = solid_generator(noise=method in ("hfgi3d", "spi"), importance_samples=4 * (method == "best"))
    if method == "best":
        generator.spec = generator.spec.rendered_at(16, 8)
    crop = crop_of(generator, orbit(0.4, 0.05))
    photos = [crop, crop_of(generator, orbit(-0.5, 0.0))] if method == "multi" else crop
    config = short(method)
    states: list[InversionState] = []
    whole, steps = run(generator, photos, config, on_state=states.append)
    assert [s.stage for s in steps] == [stage for stage in STAGES[method] for _ in range(3)]
    assert [s.losses for s in whole.history] == [s.losses for s in steps]
    tuned = {name for name, plane in own_planes(whole.generator).items() if plane.any()}
    assert tuned == (set(OWN) if method == "best" else set())
    for state in (s for s in states if s.step == 2):
        resumed, rest = run(generator, photos, config, resume=state)
        assert same(whole, resumed), state.stage
        assert [s.losses for s in resumed.history] == [s.losses for s in whole.history]
        assert len(rest) == len(whole.history) - len(state.history)
    # asked to stop in its last stage it keeps what it has, and can go on from there
    left = iter([False] * (len(steps) - 1) + [True] * 99)
    states.clear()
    early, rest = run(generator, photos, config, should_stop=lambda: next(left), on_state=states.append)
    assert len(rest) == len(steps) - 1
    assert "stopped" in early.reason
    assert same(whole, run(generator, photos, config, resume=states[-1])[0])


def test_stopping_early_leaves_later_stages_out() -> None:
    generator = solid_generator()
    left = iter([False] * 4 + [True] * 99)
    result, steps = run(generator, crop_of(generator, orbit(0.4, 0.0)), short("hfgi3d"), should_stop=lambda: next(left))
    assert [s.stage for s in steps] == ["latent"] * 3 + ["tuning"]
    assert "after 1 steps of tuning" in result.reason


# Settings


def test_published_constants() -> None:
    pti, pose, spi, hfgi3d = (published(name) for name in ("pti", "pose", "spi", "hfgi3d"))
    assert (pti.latent.space, pti.latent.steps, pti.latent.lr, pti.tuning.steps, pti.tuning.lr) == (
        "w", 500, 0.01, 350, 3e-4,
    )  # fmt: skip
    assert (pti.tuning.locality, pti.tuning.locality_alpha) == (0.0, 30.0)
    assert (pose.latent.steps, round(pose.camera.preheat * pose.latent.steps), pose.tuning.steps) == (400, 50, 400)
    assert pose.camera.on_sphere
    assert (spi.latent.space, spi.latent.steps, spi.tuning.steps, spi.tuning.stop) == ("w+", 500, 1000, 0.05)
    assert (spi.spi.every, spi.spi.neighbours, spi.spi.neighbour, spi.spi.depth) == (4, 4, 0.1, 1.0)
    assert (hfgi3d.latent.space, hfgi3d.tuning.steps, hfgi3d.hfgi3d.steps, hfgi3d.hfgi3d.views) == ("w+", 500, 1000, 30)
    for config in (pti, spi, hfgi3d):
        assert not config.camera.enabled
        own = (config.latent.mse, config.latent.alpha, config.latent.relief, config.tuning.alpha, config.tuning.relief)
        assert own == (0, 0, 0, 0, 0)
    assert calibrated_stop("lpips", 0.05) == pytest.approx(0.05)


def test_another_method_takes_its_own_settings_and_keeps_the_rest() -> None:
    base = replace(ReconstructConfig(), seed=7)
    base = replace(base, inversion=replace(base.inversion, preview_every=3))
    changed = with_method(base, "spi")
    assert (changed.seed, changed.inversion.preview_every) == (7, 3)
    assert changed.inversion.latent == published("spi").latent
    assert with_method(base, "best") is base


def test_what_a_method_cannot_do_is_refused() -> None:
    generator = solid_generator()
    crop = crop_of(generator, orbit(0.2, 0.0))
    for photos, config, words in (
        (crop, InversionConfig(method="pti"), "tuning.geometry is 1, but the method .pti. does not know it"),
        (crop, replace(short("w"), latent=replace(short("w").latent, sides=1.0)), "latent.sides is 1"),
        (crop, replace(short("pti"), tuning=replace(short("pti").tuning, backbone_every=0)), "backbone_every is 0"),
        (crop, replace(short("pti"), latent=replace(short("pti").latent, w_stats_samples=0)), "w_stats_samples is 0"),
        (crop, replace(short("spi"), tuning=replace(short("spi").tuning, finish_steps=2)), "tuning.finish_steps is 2"),
        ([crop, crop], short("spi"), "one photo, not 2"),
        ([], short("multi"), "no photo"),
        (crop, replace(short("hfgi3d"), hfgi3d=replace(short("hfgi3d").hfgi3d, views=0)), "hfgi3d.views"),
    ):
        with pytest.raises(ConfigError, match=words):
            next(invert(generator, photos, config))


# w, w+


def test_code_methods_leave_the_generator_as_it_is() -> None:
    generator = solid_generator()
    crop = crop_of(generator, orbit(0.2, 0.0))
    for method in ("w", "w+"):
        result, _ = run(generator, crop, short(method))
        untouched = generator.state_dict()
        assert all(torch.equal(untouched[name], value) for name, value in result.generator.state_dict().items())
        assert torch.equal(result.ws, result.ws[:, :1].expand_as(result.ws)) == (method == "w")
        assert torch.equal(result.camera.cam2world, crop.camera.cam2world)


# pose


def test_in_the_preheat_the_camera_moves_alone_and_stays_on_its_sphere() -> None:
    generator = solid_generator()
    crop = crop_of(generator, orbit(0.2, 0.05))
    config = short("pose", latent=4, tuning=0)
    config = replace(config, camera=replace(config.camera, preheat=1.0, lr=0.02))
    result, _ = run(generator, crop, config)
    start, _ = run(generator, crop, short("w", latent=0))
    assert torch.equal(result.ws, start.ws)
    assert float((result.camera.cam2world - crop.camera.cam2world).abs().max()) > 1e-3
    assert float(result.camera.origin.norm()) == pytest.approx(float(crop.camera.origin.norm()), rel=1e-5)
    twist = torch.tensor([0.0, 0.1, 0.0, 0.02, 0.0, 0.3])
    assert float(moved_camera(crop.camera, twist).origin.norm()) != pytest.approx(2.7, abs=0.1)
    assert float(moved_camera(crop.camera, twist, on_sphere=True).origin.norm()) == pytest.approx(2.7, rel=1e-4)


def moment_of(generator: Generator, ws: torch.Tensor, camera: Camera, done: int = 0) -> Moment:
    planes = generator.planes(ws)
    return Moment(generator, planes, ws, (camera,), (generator.render(planes, ws, camera),), done)


def task_of(generator: Generator, crop: Crop, config: InversionConfig) -> Task:
    return Task(generator, (make_view(crop, generator),), config, 0, lambda: False, None, lambda state: None)


def test_the_warping_loss_is_zero_on_the_frontal_view_itself_and_grows_with_the_camera_error() -> None:
    generator = solid_generator()
    front = generator.frontal_camera()
    crop = crop_of(generator, front)
    ws = generator.mapping(torch.randn(1, 8, generator=torch.Generator().manual_seed(3)))
    terms = canonical_warping(task_of(generator, crop, published("pose")), load_builtin())
    right = float(terms(moment_of(generator, ws, front))["warping"])
    wrong = float(terms(moment_of(generator, ws, moved_camera(front, torch.tensor([0.0, 0.2, 0, 0, 0, 0]))))["warping"])
    # the picture is cut at [-1, 1] on its way into the crop
    assert right < 0.1 * wrong


# spi


def test_the_mirrored_photo_is_used_for_turned_faces_only() -> None:
    generator = solid_generator()
    for yaw, names in ((0.1, set()), (0.5, {"mirror"})):
        crop = crop_of(generator, orbit(yaw, 0.0))
        task = task_of(generator, crop, short("spi"))
        ws = generator.mapping(torch.randn(1, 8, generator=torch.Generator().manual_seed(4)))
        moment = moment_of(generator, ws, crop.camera)
        assert set(mirror_pivot(task, load_builtin())(moment)) == names
        pivot = Pivot(generator, ws, (crop.camera,), ())
        terms = elsewhere(task, pivot, load_builtin(), torch.Generator().manual_seed(0))
        found = terms(moment)
        assert set(found) == {"neighbour", "depth"} | ({"contextual"} if names else set())
        assert float(found["depth"]) == pytest.approx(0, abs=1e-9)  # nothing has been tuned yet
        assert float(found["neighbour"]) > 0
        assert terms(replace(moment, done=1)) == {}


def test_a_detected_face_narrows_what_spi_looks_at() -> None:
    generator = solid_generator()
    crop = crop_of(generator, orbit(0.5, 0.0))
    mesh = np.random.default_rng(0).uniform(0.3, 0.7, (478, 3))
    angles = np.linspace(0, 2 * np.pi, len(OUTLINE), endpoint=False)
    mesh[list(OUTLINE), :2] = 0.5 + 0.25 * np.stack([np.cos(angles), np.sin(angles)], 1)
    found = replace(crop, face=replace(crop.face, landmarks=mesh))
    region = face_region(make_view(found, generator))
    assert float(region[..., 16, 16]) == float(crop.mask[..., 16, 16])
    assert float(region[..., 2, 2]) == 0
    assert torch.equal(face_region(make_view(crop, generator)), crop.mask)
    ws = generator.mapping(torch.randn(1, 8, generator=torch.Generator().manual_seed(4)))
    losses = []
    for one in (crop, found):
        task = task_of(generator, one, short("spi"))
        terms = elsewhere(task, Pivot(generator, ws, (crop.camera,), ()), load_builtin(), torch.Generator())
        losses.append(terms(moment_of(generator, ws, crop.camera)))
    assert set(losses[0]) == set(losses[1])
    for name in ("neighbour", "contextual"):
        assert torch.isfinite(losses[1][name])
        assert float(losses[0][name]) != float(losses[1][name])
    assert float(losses[0]["depth"]) == float(losses[1]["depth"])


def test_spis_cameras_lie_where_they_should() -> None:
    camera, rng = orbit(0.3, 0.1), torch.Generator().manual_seed(0)
    near = neighbours(camera, 64, rng)
    turned = near.rotation.mT @ camera.rotation
    angle = torch.arccos(((turned.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1))
    assert 0.1 < float(angle.max()) < 0.23  # sqrt(0.2^2 + 0.1^2)
    torch.testing.assert_close(near.origin.norm(dim=1), torch.full((64,), 2.7), atol=1e-4, rtol=0)
    wide = front_views(camera, 64, rng)
    height = torch.asin(wide.origin[:, 1] / 2.7)
    assert -0.2 - 1e-4 < float(height.min()) < 0 < float(height.max()) < 0.6 + 1e-4


def test_a_photo_carried_to_its_own_camera_is_itself() -> None:
    generator = solid_generator()
    crop = crop_of(generator, orbit(0.3, 0.0))
    ws = generator.mapping(torch.randn(1, 8, generator=torch.Generator().manual_seed(3)))
    depth = generator.volume(generator.planes(ws), crop.camera).depth
    photo = torch.cat([crop.image, crop.mask], 1)
    carried, trust = carry(photo, depth, crop.camera, depth, crop.camera)
    torch.testing.assert_close(carried, crop.image, atol=1e-3, rtol=0)
    torch.testing.assert_close(trust, crop.mask, atol=1e-3, rtol=0)


# hfgi3d


def test_pseudo_views_are_the_photo_where_it_was_seen_and_the_first_head_elsewhere() -> None:
    generator = solid_generator(neural_resolution=32)
    camera = orbit(0.0, 0.0)
    crop = crop_of(generator, camera)
    view = make_view(crop, generator)
    mask = torch.ones_like(view.target.mask)
    mask[..., :12] = 0  # what the mask leaves out counts as not seen
    painted = replace(view.target, image=torch.full_like(view.target.image, 0.7), mask=mask)
    ws = generator.mapping(torch.randn(1, 8, generator=torch.Generator().manual_seed(3)))
    views = pseudo_views(generator, ws, camera, painted, replace(published("hfgi3d").hfgi3d, views=3))
    planes = generator.planes(ws)
    seen = views.seen > 0.99
    assert float(seen.float().mean()) > 0.02
    assert float((views.images - 0.7).abs()[seen.expand_as(views.images)].max()) < 0.02
    for index in range(3):
        own = generator.render(planes, ws, views.cameras[index : index + 1]).image
        unseen = (views.seen[index : index + 1] == 0).expand_as(own)
        assert int(unseen.sum()) > 0
        torch.testing.assert_close(views.images[index : index + 1].float()[unseen], own.half().float()[unseen])


def test_masks_are_soft_and_never_reach_beyond_what_arrived() -> None:
    full = torch.zeros(1, 1, 128, 128)
    full[..., 32:96, 32:96] = 1.0
    share = soft_mask(full)
    assert float(share[..., 64, 64]) == pytest.approx(1)
    assert 0 < float(share[..., 64, 33]) < 1
    assert float(share[full == 0].max()) == 0


def test_the_orbit_sways_and_keeps_the_photos_lens() -> None:
    cameras = orbit_cameras(orbit(0.0, 0.0, focal=3.0), 8)
    assert len(cameras) == 8
    assert float(cameras.intrinsics[:, 0, 0].min()) == float(cameras.intrinsics[:, 0, 0].max()) == 3.0
    yaw = torch.atan2(cameras.origin[:, 0], cameras.origin[:, 2])
    assert float(yaw.max()) == pytest.approx(0.35, abs=0.01)
    assert float(yaw.min()) == pytest.approx(-0.35, abs=0.01)
    torch.testing.assert_close(cameras.origin.norm(dim=1), torch.full((8,), 2.7), atol=1e-4, rtol=0)


# multi


def test_two_photos_show_the_other_side_better_than_one() -> None:
    generator = solid_generator()
    cameras = orbit(0.8, 0.0), orbit(-0.8, 0.0)
    crops = [crop_of(generator, camera) for camera in cameras]
    # another head is nearer to the mean: what only the second photo shows must come from it
    config = short("multi", latent=25, tuning=5)
    config = replace(
        config, camera=replace(config.camera, enabled=False), latent=replace(config.latent, lr=0.05), keep_every=0
    )
    target = make_view(crops[1], generator).target
    figures = {}
    for count in (1, 2):
        result, _ = run(generator, crops[:count], config)
        image = result.generator.render(result.generator.planes(result.ws), result.ws, cameras[1]).image
        figures[count] = psnr(image, target.image, target.mask)
        assert len(result.others) == count - 1
    assert result.metrics["psnr_photo_2"] == pytest.approx(figures[2], abs=1e-3)
    assert figures[2] > figures[1] + 0.5
