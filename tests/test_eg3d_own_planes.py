"""A head's own planes: what they add where, and that they change nothing before they are tuned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_networks import SPEC, random_generator, solid_generator

from headlift.eg3d.camera import orbit
from headlift.eg3d.generator import EVERYWHERE
from headlift.eg3d.own_planes import BACK, OWN, PHOTO, SIDES, own_planes, with_own_planes
from headlift.eg3d.spec import PlaneLayout
from headlift.eg3d.triplane import (
    FADE,
    FADE_BEHIND,
    PLANES,
    XY_BACK,
    Plane,
    look_up,
    merge_planes,
    sample_planes,
    xy_before,
)


@pytest.mark.parametrize("white", [False, True])
def test_a_fresh_plane_changes_no_picture(white: bool) -> None:
    generator = solid_generator(white)
    wider = with_own_planes(generator, *OWN)
    shapes = {name: tuple(p.shape) for name, p in own_planes(wider).items()}
    assert shapes == {PHOTO: (4, 8, 8), SIDES: (2, 4, 8, 8), BACK: (4, 8, 8)}
    assert own_planes(generator) == {}
    assert not any(p.requires_grad for p in wider.parameters())
    ws = generator.mapping(torch.randn(2, 8, generator=torch.Generator().manual_seed(1)))
    cameras = orbit(torch.tensor([0.3, 3.0]), torch.zeros(2))
    assert wider.planes(ws).shape == (2, 5, 4, 8, 8)
    for one in (wider, with_own_planes(wider, BACK), with_own_planes(wider)):
        shown = one.render(one.planes(ws), ws, cameras)
        torch.testing.assert_close(shown.image, generator.render(generator.planes(ws), ws, cameras).image)


def test_a_second_widening_keeps_what_was_tuned() -> None:
    wider = with_own_planes(solid_generator(), BACK)
    wider.get_parameter(BACK).add_(1.0)
    wider = with_own_planes(wider, PHOTO)
    assert {name: float(p.mean()) for name, p in own_planes(wider).items()} == {BACK: 1.0, PHOTO: 0.0}


def test_planes_for_the_sides_are_added_to_those_beside_that_of_x_and_y_for_every_code() -> None:
    generator = solid_generator()
    wider = with_own_planes(generator, SIDES)
    added = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    wider.get_parameter(SIDES).copy_(added)
    ws = generator.mapping(torch.randn(2, 8, generator=torch.Generator().manual_seed(1)))
    wanted = torch.nn.functional.pad(added[None].expand(2, -1, -1, -1, -1), (0, 0, 0, 0, 0, 0, 1, 0))
    torch.testing.assert_close(wider.planes(ws) - generator.planes(ws), wanted, atol=1e-5, rtol=0)


def reaching(z: float) -> Plane:
    """Fully down to this z, and fading behind it."""
    return xy_before(torch.full((8, 8), z))


@pytest.mark.parametrize("layout", ["official", "zy", "yz"])
@pytest.mark.parametrize(
    ("part", "shares"),
    [
        (XY_BACK, {1.0: 0, FADE[0]: 0, (FADE[0] + FADE[1]) / 2: 0.5, FADE[1]: 1, -1.0: 1}),
        (reaching(0.1), {1.0: 1, 0.1: 1, 0.1 - FADE_BEHIND / 4: 0.75, 0.1 - FADE_BEHIND: 0, -1.0: 0}),
        (reaching(EVERYWHERE), {1.0: 1, 0.0: 1, -1.0: 1}),
    ],
)
def test_a_part_counts_where_it_should_and_fades_in_between(
    layout: PlaneLayout, part: Plane, shares: dict[float, float]
) -> None:
    planes = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    points, each = torch.tensor([[[0.3, -0.2, z] for z in shares]]), (*PLANES[layout], part)
    added = sample_planes(planes, each, points, 2.0) - sample_planes(planes[:, :3], each[:3], points, 2.0)
    alone = torch.nn.functional.grid_sample(
        planes[:, 3], torch.tensor([[[[0.3, -0.2]]]]), align_corners=False, padding_mode="zeros"
    )[0, :, 0, 0]
    for row, share in zip(added[0], shares.values(), strict=True):
        torch.testing.assert_close(row, alone * share / 3, atol=1e-6, rtol=1e-5)
    merged, spanned = merge_planes(planes, each)
    summed = look_up(merged, spanned, points)[0].T / 3
    torch.testing.assert_close(summed, sample_planes(planes, each, points, 2.0)[0], atol=1e-6, rtol=1e-5)


def test_each_texel_of_a_photo_s_plane_has_its_own_reach() -> None:
    reach = torch.zeros(4, 4)
    reach[:, 2:] = -0.5
    unit = torch.tensor([[[x, 0.1, z] for x in (-0.75, 0.75) for z in (0.1, -0.3, -0.7)]])
    share = xy_before(reach).share
    assert share is not None
    assert share(unit).tolist() == [[1, 0, 0, 1, 1, 0]]


def test_it_is_seen_from_behind_and_in_queries() -> None:
    generator = random_generator(replace(SPEC, back_plane=True))
    ws = generator.mapping(torch.randn(1, 8, generator=torch.Generator().manual_seed(1)))
    planes = generator.planes(ws)
    without = torch.cat([planes[:, :3], torch.zeros_like(planes[:, 3:])], dim=1)
    points = torch.tensor([[[0.1, 0.1, 0.3], [0.1, 0.1, -0.3]]])
    sigma, bare = generator.query(planes, points)[0][0, :, 0], generator.query(without, points)[0][0, :, 0]
    assert float(sigma[0]) == float(bare[0])
    assert abs(float(sigma[1] - bare[1])) > 1e-4
    behind = orbit(3.14, 0.0)
    assert not torch.equal(generator.volume(planes, behind).features, generator.volume(without, behind).features)
