"""The density grid: fast against plain in values and gradients, and blocks that are skipped."""

from __future__ import annotations

import mcubes
import numpy as np
import pytest
import torch
from torch import Tensor

from headlift.eg3d import density
from headlift.eg3d.density import (
    BLOCK,
    _blocks_at_once,
    density_blocks,
    density_grid,
    density_grid_reference,
    grid_axis,
    published_grid,
)
from headlift.eg3d.generator import Generator
from headlift.eg3d.own_planes import PHOTO, with_own_planes
from headlift.eg3d.spec import BackboneSpec, DecoderSpec, GeneratorSpec, MappingSpec, PlaneLayout, SuperresSpec
from headlift.errors import ConfigError

LAYOUTS: tuple[PlaneLayout, ...] = ("official", "zy", "yz")
WITH_OWN = [(layout, own) for layout in LAYOUTS for own in ((), (PHOTO,))]


def network(layout: PlaneLayout, own: tuple[str, ...] = ()) -> Generator:
    torch.manual_seed(0)
    spec = GeneratorSpec(
        mapping=MappingSpec(z_dim=4, w_dim=4),
        backbone=BackboneSpec(16, (4, 4, 4)),
        decoder=DecoderSpec(hidden=24, features=4),
        superres=SuperresSpec("2X", 16, (4, 4)),
        plane_channels=8,
        plane_layout=layout,
        image_resolution=32,
        neural_resolution=8,
    )
    generator = Generator(spec).eval().requires_grad_(False)
    generator.decoder.net[0].bias.normal_()
    generator.decoder.net[2].weight[0, :4] *= 5  # a few units decide, as in a trained network
    generator.decoder.net[2].weight[0, 4:] *= 0.1
    generator.decoder.net[2].bias[0] = 0.7
    generator = with_own_planes(generator, *own)
    if PHOTO in own:
        generator.photo_reach.uniform_(-0.5, 0.5)
    return generator


def smooth_planes(seed: int = 0, own: tuple[str, ...] = ()) -> Tensor:
    """Planes without detail, with a hill in the middle of each: a body in empty space."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(3 + len(own), 8, 3, 3, generator=random) * 0.3
    detail = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic")
    side = torch.linspace(-1, 1, 32)
    hill = torch.exp(-4 * (side[:, None] ** 2 + side**2))
    return (detail + 4 * hill * torch.randn(1, 8, 1, 1, generator=random))[None]


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return float((a - b).abs().max()) <= tolerance * float(b.abs().max())


@pytest.mark.parametrize(("layout", "own"), WITH_OWN)
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_fast_grid_equals_the_plain_one(layout: PlaneLayout, own: tuple[str, ...], scale: float) -> None:
    """Also where exp of the terms leaves float32's range, and with blocks that do not divide the grid."""
    generator = network(layout, own)
    planes = torch.randn(1, 3 + len(own), 8, 16, 16, generator=torch.Generator().manual_seed(1)) * scale
    plain = density_grid_reference(generator, planes, 21, chunk=1000)
    assert close(density_grid(generator, planes, 21, block=(4, 5, 8)), plain)
    assert close(density_grid(generator, planes, 21), plain)


@pytest.mark.parametrize(("layout", "own"), WITH_OWN)
def test_gradients_of_the_fast_grid_equal_the_plain_one_s(layout: PlaneLayout, own: tuple[str, ...]) -> None:
    generator = network(layout, own)
    generator.decoder.requires_grad_(True)
    planes = smooth_planes(own=own).requires_grad_()
    weight = torch.randn(9, 9, 9, generator=torch.Generator().manual_seed(2))
    leaves = [planes, *(p for n, p in generator.decoder.named_parameters())]
    found = [
        torch.autograd.grad((grid * weight).sum(), leaves)
        for grid in (density_grid(generator, planes, 9, block=(4, 4, 4)), density_grid_reference(generator, planes, 9))
    ]
    for fast, plain in zip(*found, strict=True):
        assert close(fast, plain)


@pytest.mark.parametrize(("layout", "own"), WITH_OWN)
def test_skipping_keeps_every_vertex(layout: PlaneLayout, own: tuple[str, ...]) -> None:
    generator, planes = network(layout, own), smooth_planes(own=own)
    whole = density_grid(generator, planes, 64)
    level = float(whole.flatten().quantile(0.99))
    for margin in (1, 3):
        skipping = density_grid(generator, planes, 64, level, block=(4, 4, 8), margin=margin)
        assert float((skipping != whole).float().mean()) > 0.1
        assert torch.equal(skipping > level, whole > level)
        expected, found = (mcubes.marching_cubes(g.numpy(), level) for g in (whole, skipping))
        assert np.array_equal(expected[0], found[0])
        assert np.array_equal(expected[1], found[1])
        # what is filled in is a bound on the level's own side
        filled = skipping != whole
        assert bool(((skipping >= whole) | (skipping > level))[filled].all())


def test_blocks_cover_the_grid_once_and_skipped_ones_are_left_out() -> None:
    generator, planes = network("zy"), smooth_planes()
    whole = density_grid(generator, planes, 33)
    seen = torch.zeros(33, 33, 33)
    for where, sigma in density_blocks(generator, planes, 33, (8, 8, 16)):
        seen[where] += 1
        assert close(sigma, whole[where])
    assert bool((seen == 1).all())
    level = float(whole.max()) + 100
    assert list(density_blocks(generator, planes, 33, (8, 8, 16), level)) == []


def test_a_gpu_takes_many_blocks_at_once_and_no_more_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    sizes = [_blocks_at_once(BLOCK, asked, device) for device in (cpu, gpu) for asked in (0, 100, 10**6)]
    assert sizes == [8, 8, 8, 1, 100, 512]
    generator = network("zy")
    wanted = density_grid_reference(generator, smooth_planes(), 20)
    monkeypatch.setattr(density, "_blocks_at_once", lambda block, asked, device: _blocks_at_once(block, asked, gpu))
    assert close(density_grid(generator, smooth_planes(), 20), wanted)


def test_threads_are_left_as_they_were() -> None:
    before = torch.get_num_threads()
    density_grid(network("zy"), smooth_planes(), 8)
    assert torch.get_num_threads() == before


def test_the_grid_is_exact_and_the_published_one_is_sheared() -> None:
    axis = grid_axis(5, 2.0)
    assert axis.tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    points, corner, spacing = published_grid(5, 2.0)
    assert spacing == 0.5
    assert corner.tolist() == [-1.0, -1.0, -1.0]
    exact = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(1, -1, 3)
    shear = points - exact
    assert torch.allclose(shear[..., 2], torch.zeros(1, 125), atol=1e-6)
    assert float(shear.min()) >= -1e-6
    assert 0.3 < float(shear.max()) < 0.5
    with pytest.raises(ConfigError, match="at least 2"):
        grid_axis(1, 1.0)
