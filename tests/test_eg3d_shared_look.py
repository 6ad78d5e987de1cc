"""Coarse samples along the rays of a smaller picture, against those along each ray."""

from __future__ import annotations

import copy

import pytest
import torch
from small_networks import solid_generator

from headlift.eg3d.active import CUT, FirstLook
from headlift.eg3d.camera import orbit
from headlift.eg3d.generator import Generator
from headlift.eg3d.shared_look import spread_weights
from headlift.eg3d.spec import RenderSpec
from headlift.errors import ConfigError
from headlift.weights import load_generator

CAMERAS = orbit(torch.tensor([0.2, 1.4]), torch.tensor([0.05, -0.1]))


@pytest.fixture(scope="module")
def head() -> tuple[Generator, Generator, torch.Tensor]:
    """The embedded prior, the same with a shared look, and the planes of a head."""
    plain, _ = load_generator("embedded")
    shared = copy.deepcopy(plain)
    plain.spec, shared.spec = plain.spec.rendered_at(128), plain.spec.rendered_at(128, 64)
    ws = plain.mapping(torch.randn(1, plain.spec.mapping.z_dim, generator=torch.Generator().manual_seed(4)))
    return plain, shared, plain.planes(ws)


def test_what_a_coarse_ray_finds_counts_for_those_beside_it() -> None:
    weights = torch.zeros(1, 16, 3)
    weights[0, 5, 1] = 0.5  # the second ray of the second row
    spread = spread_weights(weights, 8)
    assert spread.shape == (1, 64, 3)
    found = spread[0, :, 1].reshape(8, 8)
    assert torch.equal(found[:6, :6], torch.full((6, 6), 0.5))
    assert float(found.sum()) == 0.5 * 36
    assert float(spread[..., [0, 2]].sum()) == 0


def test_the_picture_stays_what_it_was(head) -> None:
    plain, shared, planes = head
    with torch.no_grad():
        wanted, found = plain.volume(planes, CAMERAS), shared.volume(planes, CAMERAS)
        alone = shared.volume(planes, CAMERAS[1:])
    assert float((found.features - wanted.features).abs().mean()) < 5e-3
    assert float((found.alpha - wanted.alpha).abs().mean()) < 5e-3
    solid = wanted.alpha > 0.9
    assert float((found.depth - wanted.depth)[solid].abs().median()) < 1e-3
    # A shift by a pixel is worse by far.
    assert float((wanted.features.roll(1, 3) - wanted.features).abs().mean()) > 2e-2
    torch.testing.assert_close(alone.features, found.features[1:], atol=1e-5, rtol=0)


def test_gradients_point_the_same_way(head) -> None:
    found = []
    for generator in head[:2]:
        planes = head[2].detach().clone().requires_grad_()
        seen = generator.volume(planes, CAMERAS[:1], cut=CUT, look=FirstLook())
        (seen.features[:, :3] - 0.3).square().mean().backward()
        assert planes.grad is not None
        found.append(planes.grad.flatten())
    assert float(torch.cosine_similarity(*found, dim=0)) > 0.95


def test_small_pictures_and_those_without_fine_samples_look_for_themselves(head) -> None:
    plain, shared, planes = head
    with torch.no_grad():
        for side, fine in ((64, None), (80, 0)):
            seen = [g.volume(planes, CAMERAS[:1], side, None, 12, fine).features for g in (plain, shared)]
            assert torch.equal(*seen)


def test_where_nothing_is_there_is_only_the_background() -> None:
    generator = solid_generator(importance_samples=4)
    generator.decoder.net[2].bias.data[0] = -1e3
    generator.spec = generator.spec.rendered_at(16, 8)
    with torch.no_grad():
        seen = generator.volume(generator.planes(torch.zeros(1, generator.num_ws, 8)), CAMERAS)
    assert float(seen.alpha.max()) == 0
    assert torch.equal(seen.features, torch.ones_like(seen.features))
    assert bool(torch.isfinite(seen.depth).all())


def test_a_shared_look_without_fine_samples_is_refused() -> None:
    with pytest.raises(ConfigError, match="coarse_resolution needs importance_samples"):
        RenderSpec(importance_samples=0, coarse_resolution=64)
