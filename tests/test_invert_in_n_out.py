"""A second volume beside a generator's own: laws of the mixture, and that it takes a patch and leaves the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from inversions import run
from small_networks import solid_generator
from torch.nn import functional as F

from headlift.config import InversionConfig, ReconstructConfig, published
from headlift.eg3d.camera import orbit
from headlift.eg3d.composite import CompositeGenerator, OuterSpec, compose, outer_parameters
from headlift.eg3d.generator import Generator
from headlift.errors import CheckpointError, HeadFileError
from headlift.export.head_mesh import grid_density
from headlift.head import load_head, save_head, without_outer
from headlift.invert.in_n_out import PARTS_COST, cover_cost
from headlift.invert.latent import code_statistics
from headlift.invert.metrics import psnr
from headlift.invert.result import Inversion
from headlift.invert.task import make_view
from headlift.values import Camera, Crop, Face, Similarity, Verdict

OUTER = OuterSpec(channels=6, resolution=16, hidden=16)
PATCH = (slice(None), slice(None), slice(12, 20), slice(14, 22))
RED = torch.tensor([0.9, -0.8, -0.8]).reshape(1, 3, 1, 1)


def fresh(generator: Generator, seed: int = 0) -> CompositeGenerator:
    return compose(generator, OUTER, torch.Generator().manual_seed(seed))


def code(generator: Generator) -> torch.Tensor:
    return generator.mapping(torch.randn(1, 8, generator=torch.Generator().manual_seed(3)))


def share_bias(generator: CompositeGenerator, logit: float) -> None:
    with torch.no_grad():
        dict(generator.named_parameters())["decoder.outer.net.2.bias"][-1] = logit


# The mixture


@pytest.mark.parametrize("white", [True, False])
def test_with_no_share_it_is_the_generator_itself(white: bool) -> None:
    generator = solid_generator(white=white)
    both, ws, camera = fresh(generator), code(generator), orbit(0.3, 0.1)
    share_bias(both, -40.0)
    planes = both.planes(ws)
    a, b = both.render(planes, ws, camera), generator.render(generator.planes(ws), ws, camera)
    for name in ("image", "features", "depth", "alpha"):
        assert torch.allclose(getattr(a, name), getattr(b, name), atol=2e-4), name
    assert float(both.parts(planes, camera).share.abs().max()) < 1e-5
    points = torch.rand(1, 40, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    for x, y in zip(both.query(planes, points), generator.query(generator.planes(ws), points), strict=True):
        assert x.shape == y.shape
        assert torch.allclose(x, y, atol=1e-3)


def test_with_the_whole_share_the_generators_own_volume_is_gone() -> None:
    generator = solid_generator()
    both, ws, camera = fresh(generator), code(generator), orbit(0.3, 0.1)
    share_bias(both, 40.0)
    other = code(generator) + 1
    a, b = both.volume(both.planes(ws), camera), both.volume(both.planes(other), camera)
    assert torch.allclose(a.features, b.features, atol=1e-5)
    parts = both.parts(both.planes(ws), camera)
    assert torch.allclose(parts.share, parts.volume.alpha, atol=1e-4)


def test_absorption_and_colour_are_the_weighted_means() -> None:
    both = fresh(solid_generator())
    share_bias(both, 0.0)
    features = torch.randn(1, 4 + 6, 30, generator=torch.Generator().manual_seed(0)) * 3
    sigma, colours = both.decoder(features)
    own, own_colours = both.own().decoder(features[:, :4])
    outer, rest = both.decoder.outer(features[:, 4:])
    b = rest[:, -1].clamp(0, 1)
    weights = (1 - b) * F.softplus(own - 1), b * F.softplus(outer - 1)
    assert torch.allclose(F.softplus(sigma - 1), sum(weights), rtol=1e-4, atol=1e-7)
    mean = (weights[0][:, None] * own_colours + weights[1][:, None] * rest[:, :-1]) / sum(weights)[:, None]
    assert torch.allclose(colours[:, :-2], mean, atol=1e-4)
    rows = both.decoder.rows(features.mT)
    assert torch.allclose(rows[0], sigma, atol=1e-4)
    assert torch.allclose(rows[1], colours, atol=1e-4)


def test_extreme_densities_stay_finite_with_finite_gradients() -> None:
    both = fresh(solid_generator())
    for scale in (1e-3, 1e3):
        features = (torch.randn(1, 10, 50, generator=torch.Generator().manual_seed(0)) * scale).requires_grad_()
        sigma, colours = both.decoder(features)
        (sigma.sum() + colours.sum()).backward()
        assert all(bool(t.isfinite().all()) for t in (sigma, colours, features.grad))


def test_own_and_composed_share_and_copy() -> None:
    generator = solid_generator()
    both, ws = fresh(generator), code(generator)
    alone = both.own()
    assert type(alone) is Generator
    assert all(torch.equal(value, generator.state_dict()[name]) for name, value in alone.state_dict().items())
    assert set(both.state_dict()) - set(generator.state_dict()) == set(outer_parameters(both))
    empty = compose(generator, OUTER)
    assert all(float(p.abs().max()) == 0 for p in outer_parameters(empty).values())
    first = both.planes(ws)
    assert first.shape[2] == generator.spec.plane_channels + OUTER.channels
    with torch.no_grad():
        next(iter(outer_parameters(both).values())).add_(1)
    assert torch.equal(generator.planes(ws), alone.planes(ws))
    assert not torch.equal(both.planes(ws), first)
    assert OuterSpec.from_dict(OUTER.to_dict()) == OUTER
    for wrong in ({}, {**OUTER.to_dict(), "hidden": 0}, {**OUTER.to_dict(), "hidden": True}, "text"):
        with pytest.raises(CheckpointError):
            OuterSpec.from_dict(wrong)


# The method


def patched_crop(generator: Generator) -> tuple[Crop, torch.Tensor]:
    """The generator's mean head, where a search of no steps stays, with a red patch on it; its code."""
    ws = code_statistics(generator, settings(0).latent).mean.expand(1, generator.num_ws, -1)
    camera = orbit(0.1, 0.0)
    output = generator.render(generator.planes(ws), ws, camera)
    image = output.image.clamp(-1, 1).clone()
    image[PATCH] = RED
    mask = F.interpolate(output.alpha, size=image.shape[-2:], mode="bilinear").clamp(0, 1)
    mask[:, :, PATCH[2], PATCH[3]] = 1
    face = Face((0.0, 0.0, 1.0, 1.0), 1.0, np.zeros((478, 3)))
    flat = Similarity(np.eye(3)[:2])
    return Crop(image, mask, camera, flat, face, 0.0, np.eye(2) * 2e-3, Verdict(())), ws


def settings(tuning: int, last: int = 0) -> InversionConfig:
    config = published("in-n-out")
    return replace(
        config,
        latent=replace(config.latent, steps=0, w_stats_samples=8),
        tuning=replace(config.tuning, steps=tuning, lr=0.05, perceptual=0.0),
        in_n_out=replace(config.in_n_out, steps=last, channels=6, resolution=16, hidden=16, area=0.02, entropy=0.01),
        preview_every=0,
        keep_every=0,
    )


@pytest.fixture(scope="module")
def result() -> tuple[Generator, Crop, Inversion]:
    generator = solid_generator()
    crop, _ = patched_crop(generator)
    return generator, crop, run(generator, crop, settings(60))[0]


def test_the_second_volume_takes_the_patch_and_leaves_the_rest(result: tuple[Generator, Crop, Inversion]) -> None:
    generator, crop, found = result
    both = found.generator
    assert isinstance(both, CompositeGenerator)
    target, planes = found.target.image, both.planes(found.ws)
    shown = both.render(planes, found.ws, found.camera)
    before = generator.render(generator.planes(found.ws), found.ws, found.camera)
    patch = torch.zeros(1, 1, 32, 32)
    patch[PATCH] = 1
    rest = 1 - F.max_pool2d(patch, 5, stride=1, padding=2)
    wanted, small, others = (F.interpolate(x, size=(12, 12), mode="area") for x in (target, patch, rest))
    assert psnr(shown.raw, wanted, small) > psnr(before.raw, wanted, small) + 6
    assert psnr(shown.raw, before.raw, others) > 25
    share = F.interpolate(both.parts(planes, found.camera, 32).share, size=(32, 32))
    inside, outside = (float((share * m).sum() / m.sum()) for m in (patch, rest))
    assert inside > 0.3
    assert outside < 0.2 * inside
    # without it the generator's own head is there again, to the bit
    own = both.own()
    assert torch.equal(own.render(own.planes(found.ws), found.ws, found.camera).image, before.image)


def test_a_head_file_keeps_both_volumes(result: tuple[Generator, Crop, Inversion], tmp_path: Path) -> None:
    generator, crop, found = result
    path = tmp_path / "head.safetensors"
    config = ReconstructConfig(weights="tiny", inversion=settings(60))

    def loader(name: str, device: object) -> tuple[Generator, str]:
        return generator, "0" * 64

    save_head(path, found, generator, "0" * 64, crop, config)
    head = load_head(path, loader=loader)
    assert isinstance(head.generator, CompositeGenerator)
    assert head.config.inversion.method == "in-n-out"
    wanted = found.generator.render(found.generator.planes(found.ws), found.ws, found.camera).image
    again = head.generator.render(head.generator.planes(head.ws), head.ws, head.camera).image
    assert psnr(again, wanted) > 60
    alone = without_outer(head)
    assert type(alone.generator) is Generator
    assert without_outer(alone) is alone
    bare = generator.render(generator.planes(found.ws), found.ws, found.camera).image
    assert psnr(alone.generator.render(alone.generator.planes(head.ws), head.ws, head.camera).image, bare) > 60
    assert psnr(again, bare) < 40
    with pytest.raises(HeadFileError):
        load_head(path, loader=lambda name, device: (solid_generator(neural_resolution=6), "1" * 64))


def test_meshes_see_both_volumes(result: tuple[Generator, Crop, Inversion]) -> None:
    _, _, found = result
    both = found.generator
    planes = both.planes(found.ws)
    grid = grid_density(both, planes)(12, None)
    ticks = torch.linspace(-0.5, 0.5, 12)
    points = torch.stack(torch.meshgrid(ticks, ticks, ticks, indexing="ij"), -1).reshape(1, -1, 3)
    assert np.allclose(grid.reshape(-1), both.query(planes, points)[0].flatten().numpy(), atol=1e-4)


def test_the_last_stage_moves_super_resolution_alone() -> None:
    generator = solid_generator()
    crop, _ = patched_crop(generator)
    first, _ = run(generator, crop, settings(1))
    second, _ = run(generator, crop, settings(1, last=2))
    before, after = first.generator.state_dict(), second.generator.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("superresolution.") for name in moved)


def test_covering_eyes_and_mouth_costs_more() -> None:
    generator = solid_generator()
    crop, _ = patched_crop(generator)
    assert torch.equal(cover_cost(make_view(crop, generator), 16), torch.ones(1, 1, 16, 16))
    points = np.zeros((478, 3))
    points[61], points[291], points[0], points[17] = [(0.4, 0.7, 0), (0.6, 0.7, 0), (0.5, 0.68, 0), (0.5, 0.74, 0)]
    points[33], points[133], points[159], points[145] = [(0.3, 0.4, 0), (0.4, 0.4, 0), (0.35, 0.38, 0), (0.35, 0.42, 0)]
    points[362], points[263], points[386], points[374] = [
        (0.6, 0.4, 0),
        (0.7, 0.4, 0),
        (0.65, 0.38, 0),
        (0.65, 0.42, 0),
    ]
    detected = replace(crop, face=replace(crop.face, landmarks=points))
    cost = cover_cost(make_view(detected, generator), 20)[0, 0]
    for x, y in ((0.35, 0.4), (0.65, 0.4), (0.5, 0.71)):
        assert float(cost[int(y * 20), int(x * 20)]) == PARTS_COST
    assert float(cost[2, 10]) == float(cost[19, 0]) == 1


def test_cameras_all_round_are_rendered(result: tuple[Generator, Crop, Inversion]) -> None:
    _, _, found = result
    cameras = orbit(torch.tensor([0.0, 1.5, 3.1]), torch.zeros(3))
    out = found.generator.render(
        found.generator.planes(found.ws), found.ws, Camera(cameras.cam2world, cameras.intrinsics)
    )
    assert bool(out.image.isfinite().all())
