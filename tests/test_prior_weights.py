"""The weights that ship: their size, and that every draw is a head and the same each time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.resources import as_file, files

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from headlift.eg3d.camera import orbit
from headlift.eg3d.checkpoint import load_checkpoint, read_metadata
from headlift.eg3d.generator import Generator
from headlift.values import RenderOutput

MEGABYTE = 1e6


@pytest.fixture(scope="module")
def prior() -> Iterator[Generator]:
    with as_file(files("headlift.prior.data") / "embedded.safetensors") as path:
        yield load_checkpoint(path, "cpu").requires_grad_(False)


def draw(prior: Generator, count: int, seed: int = 0) -> Tensor:
    z = torch.randn(count, prior.spec.mapping.z_dim, generator=torch.Generator().manual_seed(seed))
    return prior.mapping(z)


def shown(prior: Generator, ws: Tensor, yaw: float, resolution: int = 32, wide: bool = True) -> RenderOutput:
    camera = orbit(yaw, 0.0, pivot=(0.0, -0.02, 0.0), focal=3.1) if wide else orbit(yaw, 0.0)
    return prior.render(prior.planes(ws), ws, camera, neural_resolution=resolution)


def test_weights_are_small_and_say_what_they_are() -> None:
    with as_file(files("headlift.prior.data") / "embedded.safetensors") as path:
        assert path.stat().st_size <= 40 * MEGABYTE
        metadata = read_metadata(path)
    assert metadata["licence"] == "Apache-2.0"


def test_a_draw_is_the_same_each_time(prior: Generator) -> None:
    one, other = (shown(prior, draw(prior, 1, seed=3), 0.3).image for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.allclose(one, shown(prior, draw(prior, 1, seed=4), 0.3).image, atol=0.05)


@pytest.mark.parametrize("seed", [26, 89, 95, 156])
def test_what_is_empty_is_white_in_the_picture(prior: Generator, seed: int) -> None:
    """Super-resolution drew these heads on grey before it was told not to (the term `white` of `prior.supervised`)."""
    seen = prior.render(prior.planes(ws := draw(prior, 1, seed)), ws, orbit(0.0, 0.0))
    empty = seen.alpha < 0.05
    assert empty.float().mean() > 0.05
    grey = F.interpolate(seen.image, size=empty.shape[-1], mode="area").mean(1, keepdim=True)
    assert float(grey[empty].median()) > 0.97


@pytest.mark.parametrize("seed", range(4))
def test_every_draw_is_a_head_on_white_from_all_round(prior: Generator, seed: int) -> None:
    ws = draw(prior, 1, seed)
    for yaw in (0.0, math.pi / 2, math.pi, -math.pi / 2):
        seen = shown(prior, ws, yaw)
        alpha = seen.alpha[0, 0]
        assert alpha.min() >= 0
        assert alpha.max() <= 1 + 1e-5
        assert 0.15 < float(alpha.mean()) < 0.75
        assert float(alpha[12:20, 12:20].min()) > 0.9  # the middle of the head is solid
        above = torch.cat([alpha[:6, :6], alpha[:6, -6:]])
        assert float(above.mean()) < 0.1  # nothing beside its top
        assert float(seen.image[0, :, :32, :32].mean()) > 0.85  # but white
        assert seen.image.isfinite().all()


def test_heads_differ_and_their_mean_is_known(prior: Generator) -> None:
    ws = draw(prior, 512)[:, 0]
    assert ws.std(0).mean() > 0.05
    assert (ws.mean(0) - prior.w_avg).norm() < 0.2 * (ws - prior.w_avg).norm(dim=1).mean()


def test_truncation_draws_towards_the_mean_head(prior: Generator) -> None:
    z = torch.randn(1, prior.spec.mapping.z_dim, generator=torch.Generator().manual_seed(1))
    none = prior.mapping(z, truncation_psi=0.0)
    assert torch.allclose(none[0, 0], prior.w_avg, atol=1e-6)
    assert 0.15 < float(shown(prior, none, 0.0).alpha.mean()) < 0.75


def test_depth_of_the_face_is_in_front_of_the_middle(prior: Generator) -> None:
    seen = shown(prior, draw(prior, 1), 0.0, wide=False)
    nose = float(seen.depth[0, 0, 15:18, 15:17].min())
    assert 2.7 - 0.4 < nose < 2.7 - 0.1
