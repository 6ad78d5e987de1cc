"""A head's own planes: what they add where, and that they change nothing before they are tuned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_networks import SPEC, random_generator, solid_generator

from headlift.eg3d.camera import orbit
from headlift.eg3d.own_planes import BACK, OWN, PHOTO, SIDES, own_planes, with_own_planes
from headlift.eg3d.spec import PlaneLayout
from headlift.eg3d.triplane import FADE, back_share, look_up, merge_planes, sample_planes


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
    assert wider.planes(ws).shape == (2, 4, 4, 8, 8)
    for one in (wider, with_own_planes(wider, BACK), with_own_planes(wider)):
        shown = one.render(one.planes(ws), ws, cameras)
        torch.testing.assert_close(shown.image, generator.render(generator.planes(ws), ws, cameras).image)


def test_a_second_widening_keeps_what_was_tuned() -> None:
    wider = with_own_planes(solid_generator(), BACK)
    wider.get_parameter(BACK).add_(1.0)
    wider = with_own_planes(wider, PHOTO)
    assert {name: float(p.mean()) for name, p in own_planes(wider).items()} == {BACK: 1.0, PHOTO: 0.0}


@pytest.mark.parametrize(("name", "to"), [(PHOTO, [0]), (SIDES, [1, 2])])
def test_it_is_added_to_that_of_x_and_y_or_to_the_others_for_every_code(name: str, to: list[int]) -> None:
    generator = solid_generator()
    wider = with_own_planes(generator, name)
    added = torch.randn(len(to), 4, 8, 8, generator=torch.Generator().manual_seed(2))
    wider.get_parameter(name).copy_(added.reshape(wider.get_parameter(name).shape))
    ws = generator.mapping(torch.randn(2, 8, generator=torch.Generator().manual_seed(1)))
    wanted = torch.zeros(2, 3, 4, 8, 8)
    wanted[:, to] = added
    torch.testing.assert_close(wider.planes(ws) - generator.planes(ws), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", ["official", "zy", "yz"])
def test_it_counts_at_the_back_alone_and_fades_in_between(layout: PlaneLayout) -> None:
    planes = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    middle = (FADE[0] + FADE[1]) / 2
    points = torch.tensor([[0.3, -0.2, z] for z in (1.0, FADE[0], middle, FADE[1], -1.0)])[None]
    added = sample_planes(planes, points, layout, 2.0) - sample_planes(planes[:, :3], points, layout, 2.0)
    alone = torch.nn.functional.grid_sample(
        planes[:, 3], torch.tensor([[[[0.3, -0.2]]]]), align_corners=False, padding_mode="zeros"
    )[0, :, 0, 0]
    for row, share in zip(added[0], (0.0, 0.0, 0.5, 1.0, 1.0), strict=True):
        torch.testing.assert_close(row, alone * share / 3, atol=1e-6, rtol=1e-5)
    merged, each = merge_planes(planes, layout)
    summed = look_up(merged, each, points)[0].T / 3
    torch.testing.assert_close(summed, sample_planes(planes, points, layout, 2.0)[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(back_share(points[0, :, 2]), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))


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
