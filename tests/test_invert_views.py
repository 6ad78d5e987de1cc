"""Warping there and back, visibility, symmetry, regions and the contextual loss: laws and hand-made cases."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_networks import solid_generator
from torch.nn import functional as F

from headlift.eg3d.camera import mirror, orbit, unproject, yaw_pitch
from headlift.invert.contextual import EPSILON, contextual_loss
from headlift.invert.perceptual import load_builtin
from headlift.invert.regions import OUTLINE, cut, face_mask, inside_polygon, mirrored_box, part_boxes
from headlift.invert.result import Target
from headlift.invert.seams import carried_on, joined, seam_of
from headlift.invert.sheet import carry, erode, lay_out
from headlift.invert.side_net import SIDE
from headlift.invert.sides import BEHIND, YAW, ClearRays, Sides, SideView, guard_cameras, whole_head_camera
from headlift.invert.surface import Surface
from headlift.invert.symmetry import mirror_loss, mirror_weight, mirrored
from headlift.invert.warp import backward_warp, forward_splat, pixel_centres, steps, surface_points, visibility
from headlift.values import Camera

RADIUS = 0.25


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ball(camera: Camera, side: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Exact ray distance to a ball (4 where it is missed), where it is hit, and a smooth picture painted on it."""
    directions = unproject(camera, pixel_centres(side)[None], torch.ones(1, side * side)) - camera.origin[:, None]
    b = (directions * camera.origin[:, None]).sum(-1)
    root = b.square() - (camera.origin.square().sum(-1, keepdim=True) - RADIUS**2)
    depth = torch.where(root > 0, -b - root.clamp_min(0).sqrt(), torch.full_like(b, 4.0)).reshape(1, 1, side, side)
    picture = (surface_points(depth, camera)[0] * 8).sin().T.reshape(1, 3, side, side)
    return depth, (depth < 3.9).float(), picture


def test_a_depth_step_hides_what_lies_behind_its_near_side() -> None:
    camera = orbit(0.0, 0.0)
    depth = torch.full((1, 1, 8, 8), 2.8)
    depth[..., :4] = 2.5  # the left half is nearer
    left, right = torch.tensor([0.2, 0.5]), torch.tensor([0.8, 0.5])
    cases = [
        (left, 2.50, 1.0),  # on the near surface
        (left, 2.54, 1.0),  # 0.04 behind it: within the tolerance of 0.05
        (left, 2.80, 0.0),  # the far surface goes on behind the near one
        (right, 2.80, 1.0),
        (right, 2.50, 1.0),  # in front of everything
        (torch.tensor([1.2, 0.5]), 2.5, 0.0),  # beside the picture
        (right, -2.8, 0.0),  # behind the camera
    ]
    points = torch.cat([unproject(camera, uv[None, None], torch.tensor([[far]])) for uv, far, _ in cases], 1)
    seen, uv = visibility(points, depth, camera)
    assert seen[0].tolist() == [wanted for _, _, wanted in cases]
    torch.testing.assert_close(uv[0, 0], left)


def test_splatting_to_the_same_camera_is_the_identity() -> None:
    camera = orbit(0.3, 0.1)
    depth, _, _ = ball(camera, 24)
    image = torch.rand(1, 3, 24, 24, generator=seeded())
    back, full = forward_splat(image, surface_points(depth, camera), torch.ones(1, 1, 24, 24), camera, 24)
    torch.testing.assert_close(back, image, atol=2e-3, rtol=0)
    torch.testing.assert_close(full, torch.ones_like(full), atol=2e-3, rtol=0)


def test_there_and_back_is_the_identity_on_visible_pixels() -> None:
    side, there, here = 64, orbit(0.5, 0.1, pivot=(0.0, 0.0, 0.0)), orbit(0.0, 0.0, pivot=(0.0, 0.0, 0.0))
    depth, solid, picture = ball(here, side)
    other, _, truth = ball(there, side)
    points = surface_points(depth, here)
    weight = solid * visibility(points, other, there, 0.02)[0].reshape(solid.shape)
    splatted, full = forward_splat(picture, points, weight, there, side, 0.02)
    whole = full > 0.5
    assert float(whole.float().mean()) > 0.15
    assert float((splatted - truth).abs()[whole.expand_as(truth)].median()) < 0.02
    # forward and backward agree where both hold
    sampled, seen = backward_warp(picture, depth, here, other, there, 0.02)
    both = (whole & (seen > 0)).expand_as(truth)
    assert float((splatted - sampled).abs()[both].median()) < 0.02
    # and back again
    returned, visible = backward_warp(torch.cat([splatted, whole.float()], 1), other, there, depth, here, 0.02)
    held = ((visible * solid * (returned[:, 3:] > 0.99)) > 0).expand_as(picture)
    assert float(held.float().mean()) > 0.1
    assert float((returned[:, :3] - picture).abs()[held].median()) < 0.02
    assert float((returned[:, :3] - picture).abs()[held].quantile(0.98)) < 0.15


def test_the_nearer_of_two_points_in_a_pixel_is_seen() -> None:
    camera = orbit(0.0, 0.0)
    uv = torch.tensor([[[0.5625, 0.5625]] * 4])  # the centre of pixel (4, 4) of 8
    points = unproject(camera, uv, torch.tensor([[2.7, 2.4, 2.42, 2.9]]))
    colours = torch.tensor([1.0, 2.0, 4.0, 9.0]).reshape(1, 1, 2, 2)
    image, full = forward_splat(colours, points, torch.ones(1, 1, 2, 2), camera, 8)
    assert float(image[0, 0, 4, 4]) == pytest.approx(3.0, abs=1e-3)  # 2.4 and 2.42 are one surface
    assert float(full[0, 0, 4, 4]) == pytest.approx(1.0)
    hidden = torch.tensor([1.0, 0.0, 0.0, 1.0]).reshape(1, 1, 2, 2)
    image, _ = forward_splat(colours, points, hidden, camera, 8)
    assert float(image[0, 0, 4, 4]) == pytest.approx(1.0, abs=1e-3)  # what is left out hides nothing
    assert float(image[0, 0, 1, 1]) == 0


def test_steps_are_where_the_depth_jumps() -> None:
    depth = torch.full((1, 1, 6, 6), 2.5)
    depth[..., 3:] = 2.6
    assert steps(depth, 0.05)[0, 0, 0].tolist() == [0, 0, 1, 1, 0, 0]
    assert float(steps(depth, 0.2).sum()) == 0


# What the photo shows to other cameras


def test_a_photo_laid_out_in_space_shows_other_cameras_the_truth() -> None:
    side, here, there = 64, orbit(0.0, 0.0, pivot=(0.0, 0.0, 0.0)), orbit(0.5, 0.1, pivot=(0.0, 0.0, 0.0))
    depth, solid, picture = ball(here, side)
    sheet = lay_out(Target(picture, solid, True), here, depth, erode(solid, 1))
    carried, far, seen = carry(sheet, there, side)
    true_depth, _, truth = ball(there, side)
    whole = seen > 0
    assert 0.1 < float(whole.float().mean()) < float(solid.mean())
    assert float((far - true_depth).abs()[whole].median()) < 2e-3
    error = (carried - truth).abs()[whole.expand_as(truth)]
    assert float(error.median()) < 0.02
    assert float(error.quantile(0.98)) < 0.1
    # what has turned away is not seen: the ball's far rim, as the new camera has it
    points, normal = surface_points(depth, here), surface_points(depth, here) / RADIUS
    away = (normal * (there.origin[:, None] - points)).sum(-1).reshape(solid.shape) < 0
    assert float((solid * away).sum()) > 0
    back, _, full = carry(sheet, orbit(math.pi, 0.0, pivot=(0.0, 0.0, 0.0)), side)
    assert float(full.sum()) == 0
    assert float(back.abs().max()) == 0


def test_a_side_view_takes_colour_depth_and_opacity_from_the_photo_where_it_reaches() -> None:
    side, camera, generator = 32, orbit(0.0, 0.0), solid_generator()
    depth, solid, picture = ball(camera, side)
    target = Target(picture.clamp(-1, 1) * solid + 1 - solid, solid, True)
    far, whole, _ = ball(camera, SIDE)
    surface = Surface(far, erode(whole, 1), 1 - whole, far, torch.zeros_like(whole))
    ws = generator.w_avg.expand(1, generator.num_ws, -1)
    cameras = guard_cameras(2, camera, target.white, seeded())
    views = Sides(generator, ws, camera, target, surface).views(cameras)
    planes = generator.planes(ws)
    # colours do not wait for a surface that geometry can be held to
    untrusted = replace(surface, trust=torch.zeros_like(whole))
    for view, same in zip(views, Sides(generator, ws, camera, target, untrusted).views(cameras), strict=True):
        assert same.seen is not None
        assert torch.equal(same.seen, view.seen)
    for view in views:
        assert view.carried is not None
        assert view.seen is not None
        assert abs(float(yaw_pitch(view.camera)[0])) <= YAW
        assert float(view.seen.mean()) > 0.02
        true_depth, _, truth = ball(view.camera, side)
        reached = (view.seen > 0).expand_as(truth)
        assert float((view.carried - truth.clamp(-1, 1)).abs()[reached].median()) < 0.05
        pivot = generator.volume(planes, view.camera, view.depth.shape[-1])
        coarse = F.interpolate(view.seen, size=view.depth.shape[-2:], mode="area")
        known, unknown = coarse > 0.9, coarse == 0
        wanted = F.interpolate(true_depth, size=view.depth.shape[-2:], mode="area")
        assert float((view.depth - wanted).abs()[known].median()) < 0.01
        assert (view.alpha[known] == 1).all()
        assert torch.equal(view.depth[unknown], pivot.depth[unknown])
        # the pivot's own surface hides what lies behind it
        assert (wanted[known] < pivot.depth[known] + BEHIND + 0.01).all()


def test_a_side_view_made_smaller_averages_what_counts_and_keeps_the_photo() -> None:
    camera, alpha = orbit(0.4, 0.0), torch.ones(1, 1, 8, 8)
    depth, colour, trust = torch.full((1, 1, 8, 8), 2.5), torch.full((1, 3, 8, 8), 0.2), torch.full((1, 1, 8, 8), 0.8)
    solid = alpha.clone()
    depth[..., ::2], solid[..., ::2] = 9.0, 0.0  # where there is no surface
    colour[..., 1::2, :], trust[..., 1::2, :] = -1.0, 0.0  # what does not count
    alpha[..., :4] = 0.5
    photo, seen = torch.rand(1, 3, 16, 16, generator=seeded()), torch.ones(1, 1, 16, 16)
    view = SideView(camera, depth, alpha, colour, trust, photo, seen, solid)
    small = view.at(4)
    assert (small.depth == 2.5).all()
    assert small.solid is not None
    assert (small.solid == 0.5).all()
    torch.testing.assert_close(small.colour, torch.full((1, 3, 4, 4), 0.2))
    torch.testing.assert_close(small.trust, torch.full((1, 1, 4, 4), 0.4))
    assert small.alpha[0, 0, 0].tolist() == [0.5, 0.5, 1.0, 1.0]
    assert small.carried is photo
    assert small.seen is seen
    assert view.at(8) is view


def told_ball(camera: Camera, side: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A ball of two told colours, one above the other, where it is, and its points."""
    depth, solid, _ = ball(camera, side)
    told = torch.full((1, 3, side, side), -0.3)
    told[:, :, side // 2 :] = 0.5
    return told, solid, surface_points(depth, camera)


def test_what_the_photo_adds_at_the_seam_is_carried_on_by_colour_and_place() -> None:
    side, change = 32, torch.tensor([0.3, 0.2, -0.1]).reshape(1, 3, 1, 1)
    told, solid, points = told_ball(orbit(0.4, 0.0, pivot=(0.0, 0.0, 0.0)), side)
    seen = solid * (torch.arange(side) < side // 2).float()
    photo = torch.where(told < 0, told + change, told)  # the upper colour is told wrong, the lower right
    seam = seam_of(told, photo, seen, solid, points)
    assert 0 < len(seam.keys) < 2 * side
    view = orbit(1.2, 0.0, pivot=(0.0, 0.0, 0.0))
    beside, there, places = told_ball(view, side)
    found = carried_on(beside, places, seam) - beside
    upper, lower = there[0, 0] * (beside[0, 0] < 0) > 0, there[0, 0] * (beside[0, 0] > 0) > 0
    assert float((found[0, :, upper] - change[0, :, 0]).abs().max()) < 0.1
    assert float(found[0, :, lower].abs().max()) < 1e-3
    away = carried_on(beside, places + 2.0, seam)  # like in colour, but nowhere near
    torch.testing.assert_close(away, beside, atol=1e-4, rtol=0)
    agreed = seam_of(told, told, seen, solid, points)
    torch.testing.assert_close(carried_on(beside, places, joined([agreed, agreed])), beside, atol=1e-6, rtol=0)
    nothing = seam_of(told, photo, solid, solid, points)  # all of it is seen
    assert torch.equal(carried_on(beside, places, nothing), beside)


def test_places_on_clear_rays_lie_in_the_box_and_off_the_head() -> None:
    views, box = [], 1.0
    for camera in (orbit(0.4, 0.1), whole_head_camera(2.0, 0.0)):
        depth, alpha, picture = ball(camera, 48)
        views.append(SideView(camera, depth, alpha, picture, alpha))
    clear = ClearRays.of(views, box)
    assert clear is not None
    found = clear.points(4000, seeded())
    assert torch.equal(found, clear.points(4000, seeded()))
    assert float(found.abs().max()) < box / 2 + 1e-4
    radius = torch.linalg.vector_norm(found[0], dim=-1)
    assert float(radius.min()) > RADIUS
    assert float(radius.min()) < RADIUS + 0.05  # close by, too
    sides = [torch.linalg.vector_norm(found[0] - view.camera.origin, dim=-1) > 2.7 for view in views]
    assert all(bool(side.any()) and not bool(side.all()) for side in sides)  # before the head and behind it
    assert ClearRays.of([replace(view, alpha=torch.ones_like(view.alpha)) for view in views], box) is None


@pytest.mark.parametrize("count", [1, 2, 7, 8, 12])
def test_the_guards_cameras_go_evenly_round_a_whole_head(count: int) -> None:
    front = orbit(0.3, 0.1, focal=3.0)
    yaws = [float(yaw_pitch(camera)[0]) for camera in guard_cameras(count, front, True, seeded())]
    assert len(yaws) == count
    assert all(yaw > 0 if index % 2 else yaw < 0 for index, yaw in enumerate(yaws))
    near = [abs(yaw) for index, yaw in enumerate(yaws) if index % 4 < 2]
    far = [abs(yaw) for index, yaw in enumerate(yaws) if index % 4 >= 2]
    assert max(near) <= YAW
    bands = math.ceil(count / 4)
    for place, yaw in enumerate(far):  # a pair, one on either side, for each part of the way round
        assert place // 2 <= (yaw - YAW) / (math.pi - YAW) * bands <= place // 2 + 1
    faces = guard_cameras(count, front, False, seeded())
    assert all(abs(float(yaw_pitch(camera)[0])) <= YAW for camera in faces)
    assert float(faces[0].intrinsics[0, 0, 0]) == 3.0


# Symmetry


def test_the_mirrored_photo_counts_by_the_yaw() -> None:
    assert mirror_weight(0.0) == mirror_weight(0.19) == mirror_weight(-0.19) == 0
    # density of N(0, 0.29) at 0.29: 1.37566 exp(-1/2) = 0.83438; (1 - 0.83438 / 2.7) / 2
    assert mirror_weight(0.29) == pytest.approx(0.34549, abs=1e-4)
    assert mirror_weight(-0.29) == mirror_weight(0.29)
    assert mirror_weight(0.25) < mirror_weight(0.5) < mirror_weight(1.2) < 0.5


def symmetric_head():
    """A generator whose super-resolution does not know left from right, and symmetric planes of one of its heads."""
    generator = copy.deepcopy(solid_generator())
    for parameter in generator.superresolution.parameters():
        if parameter.ndim == 4:
            parameter.copy_((parameter + parameter.flip(-1)) / 2)
    ws = generator.mapping(torch.randn(1, 8, generator=seeded(3)))
    planes = generator.planes(ws).clone()
    planes[:, :2] = (planes[:, :2] + planes[:, :2].flip(-1)) / 2  # x runs along the columns of (x, y) and (x, z)
    return generator, planes, ws


@torch.no_grad()
def test_the_mirror_loss_is_zero_on_a_symmetric_head_and_not_on_another() -> None:
    generator, planes, ws = symmetric_head()
    distance, camera = load_builtin(), orbit(0.5, 0.1)
    image = generator.render(planes, ws, camera).image
    photo = distance.prepare(mirrored(Target(image, torch.ones(1, 1, 32, 32), True)).image)
    symmetric = float(mirror_loss(generator, planes, ws, camera, photo, distance))
    assert symmetric == pytest.approx(0, abs=1e-5)
    uneven = generator.planes(ws)
    image = generator.render(uneven, ws, camera).image
    photo = distance.prepare(image.flip(-1))
    assert float(mirror_loss(generator, uneven, ws, camera, photo, distance)) > 100 * max(symmetric, 1e-6)


def test_the_mirrored_photo_belongs_to_the_mirrored_camera() -> None:
    camera = orbit(0.4, 0.2, pivot=(0.0, 0.0, 0.0))
    _, solid, _ = ball(camera, 16)
    opposite = mirror(camera)
    points = surface_points(ball(camera, 16)[0], camera)[0] * torch.tensor([-1.0, 1.0, 1.0])
    wanted = surface_points(ball(opposite, 16)[0], opposite)[0].reshape(16, 16, 3).flip(1).reshape(-1, 3)
    hit = solid.flatten() > 0
    torch.testing.assert_close(points[hit], wanted[hit], atol=1e-4, rtol=0)


# Regions


def test_polygons_hold_what_lies_inside() -> None:
    corners = np.array([[0.2, 0.2], [0.8, 0.2], [0.8, 0.8], [0.5, 0.5], [0.2, 0.8]])  # a notch from below
    inside = inside_polygon(np.array([[0.3, 0.3], [0.5, 0.7], [0.25, 0.7], [0.9, 0.5], [0.5, 0.4]]), corners)
    assert inside.tolist() == [True, False, True, False, True]


def landmarks() -> np.ndarray:
    """A face mesh that is a disc of radius 0.3 with eyes and a mouth."""
    found = np.full((478, 2), 0.5)
    angles = np.linspace(0, 2 * np.pi, len(OUTLINE), endpoint=False)
    found[list(OUTLINE)] = 0.5 + 0.3 * np.stack([np.cos(angles), np.sin(angles)], 1)
    found[[61, 291, 0, 17]] = [[0.4, 0.7], [0.6, 0.7], [0.5, 0.66], [0.5, 0.74]]
    found[[33, 133, 159, 145]] = [[0.3, 0.4], [0.4, 0.4], [0.35, 0.38], [0.35, 0.42]]
    found[[362, 263, 386, 374]] = [[0.6, 0.4], [0.7, 0.4], [0.65, 0.38], [0.65, 0.42]]
    return found


def test_the_face_is_the_inside_of_its_outline_and_its_parts_have_boxes() -> None:
    mask = face_mask(landmarks(), 64)
    assert float(mask.mean()) == pytest.approx(math.pi * 0.3**2, rel=0.02)
    mouth, left, right = part_boxes(landmarks())
    assert mouth == pytest.approx((0.5, 0.7, 0.4))
    assert left == pytest.approx((0.35, 0.4, 0.2))
    assert mirrored_box(left) == pytest.approx(right)


def test_cutting_a_box_resamples_it() -> None:
    ramp = ((torch.arange(16.0) + 0.5) / 16).expand(1, 1, 16, 16)
    piece = cut(ramp, (0.5, 0.5, 0.5), 4)
    torch.testing.assert_close(piece[0, 0, 0], torch.tensor([0.3125, 0.4375, 0.5625, 0.6875]))


# The contextual loss


def plain_contextual(x: torch.Tensor, y: torch.Tensor, bandwidth: float) -> torch.Tensor:
    """Mechrez et al. 2018, eq. 2 to 5, entry by entry."""
    middle = y.mean(1, keepdim=True)
    a, b = x - middle, y - middle
    a, b = a / a.norm(dim=0), b / b.norm(dim=0)
    d = torch.stack([torch.stack([1 - a[:, i] @ b[:, j] for j in range(b.shape[1])]) for i in range(a.shape[1])])
    w = ((1 - d / (d.min(1, keepdim=True).values + EPSILON)) / bandwidth).exp()
    return -(w / w.sum(1, keepdim=True)).max(0).values.mean().log()


@pytest.mark.parametrize("rows", [1, 7, 512])
def test_the_contextual_loss_is_the_papers_also_in_blocks(rows: int) -> None:
    x = torch.randn(1, 5, 3, 4, generator=seeded(), dtype=torch.float64)
    y = torch.randn(1, 5, 2, 5, generator=seeded(1), dtype=torch.float64)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    found = contextual_loss(one, y, 0.5, rows)
    wanted = plain_contextual(other[0].flatten(1), y[0].flatten(1), 0.5)
    assert float(found) == pytest.approx(float(wanted), rel=1e-9)
    found.backward()
    wanted.backward()
    torch.testing.assert_close(one.grad, other.grad)


def test_the_contextual_loss_does_not_mind_places_but_minds_features() -> None:
    y = torch.randn(1, 8, 4, 4, generator=seeded())
    moved = y.flatten(2)[..., torch.randperm(16, generator=seeded(1))].reshape(y.shape)
    other = torch.randn(1, 8, 4, 4, generator=seeded(2))
    same = float(contextual_loss(y, y))
    assert float(contextual_loss(moved, y)) == pytest.approx(same, abs=1e-6)
    assert same < 0.01
    assert float(contextual_loss(other, y)) > 10 * same + 0.1
