"""A head's own planes: what they add where, and that they change nothing before they are tuned."""

from __future__ import annotations

import pytest
import torch
from small_networks import SPEC, random_generator, solid_generator

from headlift.eg3d.camera import orbit
from headlift.eg3d.generator import EVERYWHERE
from headlift.eg3d.own_planes import BACK, OWN, PHOTO, SIDES, own_planes, with_own_planes
from headlift.eg3d.spec import PlaneLayout
from headlift.eg3d.triplane import FADE, PLANES, Plane, look_up, merge_planes, sample_planes


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


def test_planes_for_the_sides_are_added_to_those_beside_that_of_x_and_y_for_every_code() -> None:
    generator = solid_generator()
    wider = with_own_planes(generator, SIDES)
    added = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    wider.get_parameter(SIDES).copy_(added)
    ws = generator.mapping(torch.randn(2, 8, generator=torch.Generator().manual_seed(1)))
    wanted = torch.nn.functional.pad(added[None].expand(2, -1, -1, -1, -1), (0, 0, 0, 0, 0, 0, 1, 0))
    torch.testing.assert_close(wider.planes(ws) - generator.planes(ws), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", ["official", "zy", "yz"])
@pytest.mark.parametrize(
    ("reach", "shares"),
    [
        (0.1, {1.0: 1, 0.1: 1, 0.1 - FADE / 4: 0.75, 0.1 - FADE: 0, -1.0: 0}),
        (EVERYWHERE, {1.0: 1, 0.0: 1, -1.0: 1}),
    ],
)
def test_a_plane_counts_down_to_its_reach_and_fades_behind_it(
    layout: PlaneLayout, reach: float, shares: dict[float, float]
) -> None:
    planes = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    points = torch.tensor([[[0.3, -0.2, z] for z in shares]])
    each = (*PLANES[layout], Plane((0, 1), torch.full((8, 8), reach)))
    added = sample_planes(planes, each, points, 2.0) - sample_planes(planes[:, :3], each[:3], points, 2.0)
    alone = torch.nn.functional.grid_sample(
        planes[:, 3], torch.tensor([[[[0.3, -0.2]]]]), align_corners=False, padding_mode="zeros"
    )[0, :, 0, 0]
    for row, share in zip(added[0], shares.values(), strict=True):
        torch.testing.assert_close(row, alone * share / 3, atol=1e-6, rtol=1e-5)
    merged, spanned = merge_planes(planes, each)
    summed = look_up(merged, spanned, points)[0].T / 3
    torch.testing.assert_close(summed, sample_planes(planes, each, points, 2.0)[0], atol=1e-6, rtol=1e-5)


def test_each_texel_has_its_own_reach() -> None:
    reach = torch.zeros(4, 4)
    reach[:, 2:] = -0.5
    unit = torch.tensor([[[x, 0.1, z] for x in (-0.75, 0.75) for z in (0.1, -0.3, -0.7)]])
    share = Plane((0, 1), reach).share(unit)
    assert share is not None
    assert share.tolist() == [[1, 0, 0, 1, 1, 0]]
    assert Plane((0, 1)).share(unit) is None


@pytest.mark.parametrize("names", [(PHOTO,), (BACK,), (PHOTO, BACK)])
def test_the_photo_s_plane_counts_before_its_reach_and_that_for_the_back_behind(names: tuple[str, ...]) -> None:
    generator = solid_generator()
    wider = with_own_planes(generator, *names)
    wider.photo_reach.fill_(0.1)
    values = {name: k + 1.0 for k, name in enumerate(names)}
    for name, value in values.items():
        wider.get_parameter(name).add_(value)
    ws = generator.mapping(torch.randn(1, 8, generator=torch.Generator().manual_seed(1)))
    points, box = torch.tensor([[[0.01, 0.02, z] for z in (0.2, -0.2)]]), generator.spec.render.box_warp
    added = sample_planes(wider.planes(ws), wider.spanned, points, box)
    added = added - sample_planes(generator.planes(ws), generator.spanned, points, box)
    wanted = [3 * float(added[0, i].mean()) for i in (0, 1)]
    assert wanted == pytest.approx(
        [float(PHOTO in names), float(names.index(BACK) + 1 if BACK in names else 0)], abs=1e-5
    )


def test_a_back_is_seen_from_behind_and_in_queries() -> None:
    bare = random_generator(SPEC)
    generator = with_own_planes(bare, BACK)
    generator.photo_reach.fill_(0.0)
    generator.back_plane.normal_(generator=torch.Generator().manual_seed(3))
    ws = bare.mapping(torch.randn(1, 8, generator=torch.Generator().manual_seed(1)))
    points = torch.tensor([[[0.1, 0.1, 0.3], [0.1, 0.1, -0.3]]])
    sigma, before = (g.query(g.planes(ws), points)[0][0, :, 0] for g in (generator, bare))
    assert float(sigma[0]) == pytest.approx(float(before[0]), abs=1e-5)
    assert abs(float(sigma[1] - before[1])) > 1e-3
    behind = orbit(3.14, 0.0)
    seen, without = (g.volume(g.planes(ws), behind).features for g in (generator, bare))
    assert float((seen - without).abs().max()) > 1e-3
