"""The photo's own surface: the depth network, and the terms that hold geometry to what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_networks import solid_generator
from torch import Tensor

from headlift.eg3d.camera import orbit, project
from headlift.invert.depth_net import MIDDLE, SIDE, SMALLEST_SPREAD, guess_depth, load_depth_net
from headlift.invert.losses import resize
from headlift.invert.result import Target
from headlift.invert.surface import (
    BEHIND,
    FACE,
    MARGIN,
    SKIN,
    Surface,
    at_side,
    carving_error,
    carving_points,
    farthest_seen,
    photo_surface,
    surface_error,
)
from headlift.invert.warp import sample, surface_points

RADIUS = 0.25


def ball_target(side: int = 64) -> Target:
    """A shaded ball of skin colour on white, where a head would be."""
    y, x = torch.meshgrid(*[(torch.arange(side) + 0.5) / side - 0.5] * 2, indexing="ij")
    inside = (torch.hypot(x, y) < 0.38).float()[None, None]
    shade = (0.4 - x - y).clamp(-0.5, 0.8)[None, None].expand(1, 3, -1, -1)
    return Target(shade * inside + 1 - inside, inside, True)


def ball_surface(side: int = 48) -> tuple[Surface, Tensor]:
    """A ball about the world's origin as the frontal camera on the z axis sees it, exactly, its back too."""
    camera = orbit(0.0, 0.0, pivot=(0.0, 0.0, 0.0))
    ray = surface_points(torch.ones(1, 1, side, side), camera) - camera.origin[:, None]
    b = (ray * camera.origin[:, None]).sum(-1)
    root = b.square() - (camera.origin.square().sum(-1, keepdim=True) - RADIUS**2)
    hit = (root > 0).float().reshape(1, 1, side, side)
    depth = torch.where(root > 0, -b - root.clamp_min(0).sqrt(), torch.full_like(b, 3.0)).reshape(1, 1, side, side)
    back = torch.where(root > 0, -b + root.clamp_min(0).sqrt(), torch.zeros_like(b)).reshape(1, 1, side, side)
    return Surface(depth, hit, 1 - hit, back, hit), hit


def test_the_network_gives_depths_of_a_head_with_a_spread_that_is_positive() -> None:
    target = ball_target()
    guess = guess_depth(target.image, target.mask)
    assert guess.depth.shape == guess.spread.shape == (1, 1, SIDE, SIDE)
    inside = resize(target.mask, SIDE) > 0.5
    assert guess.spread.min() >= SMALLEST_SPREAD
    assert guess.depth[inside].sub(MIDDLE).abs().max() < 0.5  # world units: within the cube that holds the head


def test_a_mirrored_photo_has_the_mirrored_depth() -> None:
    target = ball_target()
    plain, other = guess_depth(target.image, target.mask), guess_depth(target.image.flip(3), target.mask.flip(3))
    torch.testing.assert_close(plain.depth, other.depth.flip(3), atol=1e-5, rtol=0)


def test_the_network_is_loaded_once_and_frozen() -> None:
    assert load_depth_net() is load_depth_net()
    assert not any(p.requires_grad for p in load_depth_net().parameters())


def test_trust_is_kept_to_the_head_and_clear_to_what_lies_beside_it() -> None:
    target = ball_target(128)
    found = photo_surface(target)
    assert (found.trust[target.mask == 0] == 0).all()
    assert (found.clear[target.mask == 1] == 0).all()
    assert (found.clear[0, 0, 0, :10] == 1).all()
    assert 0 <= found.trust.min() <= found.trust.max() <= 1
    assert (found.trust * found.clear).max() == 0
    assert (found.last_trust * found.clear).max() == 0
    assert 0 <= found.last_trust.min() <= found.last_trust.max() <= 1


def test_depth_at_another_side_is_the_mean_of_what_is_trusted() -> None:
    depth = torch.tensor([[2.0, 9.0], [2.2, 9.0]])[None, None]
    trust, none = torch.tensor([[1.0, 0.0], [0.5, 0.0]])[None, None], torch.zeros(1, 1, 2, 2)
    surface = Surface(depth, trust, none, depth, none)
    coarse, trust = at_side(surface, 1)
    assert coarse.item() == pytest.approx((2.0 + 0.5 * 2.2) / 1.5, rel=1e-5)
    assert trust.item() == pytest.approx(1.5 / 4)
    assert surface_error(depth, surface) == 0
    assert surface_error(depth + 0.1, surface).item() == pytest.approx(0.01, rel=1e-4)


def test_carving_points_lie_before_the_surface_beside_and_behind_the_head_and_just_inside() -> None:
    surface, hit = ball_surface()
    camera = orbit(0.0, 0.0, pivot=(0.0, 0.0, 0.0))
    generator = solid_generator()
    empty, solid = carving_points(generator, camera, surface, torch.Generator().manual_seed(0), 400)
    half = generator.spec.render.box_warp / 2
    assert (empty.abs() < half).all()
    radius = torch.linalg.vector_norm(empty[0], dim=-1)
    uv, _ = project(camera, empty)
    on = sample(hit, uv)[0, 0] > 0.5
    distance = torch.linalg.vector_norm(empty[0] - camera.origin, dim=-1)
    wanted = sample(surface.depth, uv)[0, 0]
    assert on.any()
    assert not on.all()
    assert (radius[on] > RADIUS).all()
    back = distance > torch.linalg.vector_norm(camera.origin)
    assert (on & back).any()
    assert (distance[on & ~back] < wanted[on & ~back] - MARGIN + 1e-4).all()
    ends = sample(surface.last, uv)[0, 0]
    assert (distance[on & back] > ends[on & back] + MARGIN - 1e-4).all()
    there = sample(surface.depth, project(camera, solid)[0])[0, 0]
    behind = torch.linalg.vector_norm(solid[0] - camera.origin, dim=-1) - there
    assert behind.min() > -1e-3
    assert behind.max() < SKIN + 1e-3
    same, _ = carving_points(generator, camera, surface, torch.Generator().manual_seed(0), 400)
    assert torch.equal(same, empty)


def test_carving_empties_the_space_beside_the_head() -> None:
    surface, _ = ball_surface()
    camera = orbit(0.0, 0.0, pivot=(0.0, 0.0, 0.0))
    generator = solid_generator()
    ws = generator.w_avg.expand(1, generator.num_ws, -1)
    planes = generator.planes(ws).detach().requires_grad_()
    optimiser = torch.optim.Adam([planes], lr=0.5)
    rng = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        loss = carving_error(generator, planes, camera, surface, rng, points=300)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    with torch.no_grad():
        seen = generator.volume(planes, camera, 48)
        before = generator.volume(generator.planes(ws), camera, 48)
    beside = surface.clear > 0
    assert seen.alpha[beside].mean() < 0.5 * before.alpha[beside].mean()


def test_nothing_known_carves_nothing() -> None:
    surface, _ = ball_surface()
    zero = torch.zeros_like(surface.trust)
    blank = replace(surface, trust=zero, clear=zero, last_trust=zero)
    generator = solid_generator()
    planes = generator.planes(generator.w_avg.expand(1, generator.num_ws, -1))
    assert carving_error(generator, planes, orbit(0.0, 0.0), blank, torch.Generator().manual_seed(0)) == 0


def test_the_photo_s_plane_reaches_behind_what_the_photo_shows_and_no_farther() -> None:
    """Of a ball seen from the front that is its front half, and from beside what lies on that side."""
    surface, inside = ball_surface()
    target, side = Target(inside.expand(1, 3, -1, -1), inside, True), 32
    front = orbit(0.0, 0.0, pivot=(0.0, 0.0, 0.0))
    ticks = (torch.arange(side) + 0.5) / side - 0.5
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    height = (RADIUS**2 - x.square() - y.square()).clamp_min(0).sqrt()
    seen, beside = torch.hypot(x, y) < 0.6 * RADIUS, torch.hypot(x, y) > RADIUS + 2 / side
    reach = farthest_seen(surface, target, front, side, 1.0) / 2  # world units
    # Less than the ball's own surface by what is put behind it, and by what a texel's neighbours lie farther back.
    apart = (height - reach)[seen]
    assert float(apart.min()) > BEHIND - 0.01
    assert float(apart.max()) < BEHIND + 0.08
    assert float(reach[beside].min()) > -BEHIND - 0.01  # as at the rim
    turned = farthest_seen(surface, target, orbit(0.8, 0.0, pivot=(0.0, 0.0, 0.0)), side, 1.0) / 2
    assert float(turned[side // 2, side // 2 - 6]) > 0  # the camera stands at positive x
    assert float(turned[side // 2, side // 2 + 7]) < -0.1


def test_a_photo_that_shows_nothing_is_taken_to_see_a_face() -> None:
    surface, inside = ball_surface()
    target = Target(inside.expand(1, 3, -1, -1), 0 * inside, True)
    assert farthest_seen(surface, target, orbit(0.0, 0.0), 8, 1.0).unique().tolist() == pytest.approx([FACE])
