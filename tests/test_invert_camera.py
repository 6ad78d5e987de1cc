"""The camera's correction, and pictures carried from camera to camera."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from headlift.config import CameraRefineConfig
from headlift.eg3d.camera import intrinsics, orbit, rotation_angle, unproject, yaw_pitch
from headlift.invert.camera_refine import camera_prior, camera_rate, moved_camera, twist_matrix
from headlift.invert.face_points import face_points, relief_error
from headlift.invert.result import Target
from headlift.invert.sheet import erode
from headlift.invert.sides import main_piece
from headlift.invert.tones import tone_samples, transfer_tones
from headlift.invert.warp import backward_warp, pixel_centres, sample, surface_points
from headlift.values import Camera


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_zero_twist_changes_nothing() -> None:
    camera = orbit(0.3, -0.2)
    torch.testing.assert_close(moved_camera(camera, torch.zeros(6)).cam2world, camera.cam2world)


def test_twists_are_rigid_and_inverse_to_their_negatives() -> None:
    twist = torch.randn(6, generator=seeded(), dtype=torch.float64)
    motion = twist_matrix(twist)
    torch.testing.assert_close(motion[:3, :3] @ motion[:3, :3].T, torch.eye(3, dtype=torch.float64))
    assert float(torch.linalg.det(motion)) == pytest.approx(1)
    torch.testing.assert_close(motion @ twist_matrix(-twist), torch.eye(4, dtype=torch.float64))


def test_rotations_orbit_and_roll_without_leaving_the_sphere() -> None:
    camera = orbit(0.0, 0.0)
    turned = moved_camera(camera, torch.tensor([0.0, 0.1, 0.0, 0.0, 0.0, 0.0]))
    assert float(turned.origin.norm()) == pytest.approx(2.7, rel=1e-5)
    yaw, pitch = yaw_pitch(turned)
    # camera y points down: a positive turn about it moves the camera to -x
    assert float(yaw) == pytest.approx(-0.1, abs=1e-5)
    assert float(pitch) == pytest.approx(0, abs=1e-5)
    rolled = moved_camera(camera, torch.tensor([0.0, 0.0, 0.2, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(rolled.origin, camera.origin, atol=1e-5, rtol=0)
    assert float(rotation_angle(rolled.rotation, camera.rotation)) == pytest.approx(0.2, rel=1e-4)


def test_translation_is_along_the_camera_axes() -> None:
    camera = orbit(math.pi / 2, 0.0, pivot=(0.0, 0.0, 0.0))
    moved = moved_camera(camera, torch.tensor([0.0, 0.0, 0.0, 0.01, 0.0, 0.03]))
    # from +x looking to -x the camera's right is -z
    torch.testing.assert_close(moved.origin[0], torch.tensor([2.67, 0.0, -0.01]), atol=1e-5, rtol=0)


def test_camera_prior_is_the_squared_distance_in_sigmas() -> None:
    camera = orbit(0.0, 0.0)
    sigma = math.radians(3)
    covariance = np.eye(2) * (sigma**2 - math.radians(0.5) ** 2)
    config = CameraRefineConfig()
    one = camera_prior(torch.tensor([0.0, sigma, 0.0, 0.0, 0.0, 0.0]), camera, covariance, config)
    assert float(one) == pytest.approx(1, rel=1e-3)
    roll = camera_prior(torch.tensor([0.0, 0.0, math.radians(2), 0.0, 0.0, 0.0]), camera, covariance, config)
    assert float(roll) == pytest.approx(4, rel=1e-3)
    shift = camera_prior(torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.06]), camera, covariance, config)
    assert float(shift) == pytest.approx(9, rel=1e-3)


def sphere_depth(camera: Camera, side: int, radius: float) -> torch.Tensor:
    """Exact distance along the ray to a sphere about the origin; far where it is missed."""
    directions = unproject(camera, pixel_centres(side)[None], torch.ones(1, side * side)) - camera.origin[:, None]
    b = (directions * camera.origin[:, None]).sum(-1)
    root = b.square() - (camera.origin.square().sum(-1, keepdim=True) - radius**2)
    depth = torch.where(root > 0, -b - root.clamp_min(0).sqrt(), torch.full_like(b, 4.0))
    return depth.reshape(1, 1, side, side)


def test_surface_points_lie_on_the_surface() -> None:
    camera = orbit(0.4, 0.1)
    depth = sphere_depth(camera, 32, 0.25)
    points = surface_points(depth, camera)[0]
    hit = depth.flatten() < 3.9
    torch.testing.assert_close(points[hit].norm(dim=1), torch.full((int(hit.sum()),), 0.25), atol=1e-5, rtol=1e-5)


def test_sampling_at_pixel_centres_returns_the_pixels() -> None:
    image = torch.rand(1, 2, 8, 8, generator=seeded())
    torch.testing.assert_close(sample(image, pixel_centres(8)[None]).reshape(1, 2, 8, 8), image)


def test_a_painted_sphere_looks_the_same_from_the_side_where_both_see_it() -> None:
    side, radius = 64, 0.25
    front, turned = orbit(0.0, 0.0, pivot=(0.0, 0.0, 0.0)), orbit(0.8, 0.1, pivot=(0.0, 0.0, 0.0))
    depths = [sphere_depth(camera, side, radius) for camera in (front, turned)]
    pictures = []
    for camera, depth in zip((front, turned), depths, strict=True):
        points = surface_points(depth, camera)[0]
        pictures.append((points * 8).sin().T.reshape(1, 3, side, side))
    warped, visible = backward_warp(pictures[0], depths[0], front, depths[1], turned, occlusion=0.02)
    solid = depths[1] < 3.9
    inner = erode((visible * solid).float(), 2) > 0
    assert 0.3 < float(inner.sum() / solid.sum()) < 0.95
    assert float((warped - pictures[1]).abs()[inner.expand(1, 3, side, side)].median()) < 0.02
    # a point that faces away from the first camera is not seen by it
    points = surface_points(depths[1], turned)[0].T.reshape(1, 3, side, side)
    behind = (points[:, 2:] < -0.05) & solid
    assert int(behind.sum()) > 10
    assert float(visible[behind].max()) == 0


def test_warping_to_the_same_camera_is_the_identity() -> None:
    camera = orbit(0.2, 0.0)
    depth = sphere_depth(camera, 32, 0.25)
    image = torch.rand(1, 3, 32, 32, generator=seeded())
    warped, visible = backward_warp(image, depth, camera, depth, camera)
    torch.testing.assert_close(warped, image, atol=1e-4, rtol=0)
    assert float(visible.mean()) == 1


def test_tones_reach_what_the_photo_does_not_see() -> None:
    side = 32
    camera = orbit(0.0, 0.0)
    depth = sphere_depth(camera, side, 0.25)
    alpha = (depth < 3.9).float()
    raw = torch.zeros(1, 3, side, side)
    raw[:, :, side // 2 :] = -0.6  # two materials
    shift = torch.tensor([0.2, 0.1, -0.1]).reshape(1, 3, 1, 1)
    photo = torch.where(raw < -0.3, raw, raw + shift)  # only the first changes
    tones = tone_samples(raw, depth, alpha, camera, Target(photo, alpha, True))
    back = orbit(2.5, 0.0)
    points = surface_points(sphere_depth(back, side, 0.25), back)
    seen = transfer_tones(raw, points, tones)
    torch.testing.assert_close(seen[:, :, 4, 16], shift[:, :, 0, 0], atol=0.02, rtol=0)
    torch.testing.assert_close(seen[:, :, 28, 16], torch.full((1, 3), -0.6), atol=0.02, rtol=0)


def test_unsure_poses_may_move_faster() -> None:
    config = CameraRefineConfig(lr=1e-3)

    def rate(*degrees: float) -> float:
        return camera_rate([np.diag([math.radians(sigma) ** 2] * 2) for sigma in degrees], config)

    assert rate(0.0) == rate(2.0) == pytest.approx(1e-3)
    assert rate(4.0) == rate(1.0, 4.0) == pytest.approx(4e-3)
    assert rate(30.0) == pytest.approx(1e-2)
    assert rate(math.inf) == rate(math.nan) == pytest.approx(1e-3)


def test_intrinsics_stay_untouched() -> None:
    camera = orbit(0.1, 0.0, focal=3.3)
    assert torch.equal(moved_camera(camera, torch.full((6,), 0.01)).intrinsics, intrinsics(3.3))


def sphere_points(radius: float) -> np.ndarray:
    """Points spread over the front half of a sphere about the origin."""
    k = np.arange(200) + 0.5
    z = 1 - k / 200
    angle = np.pi * (1 + 5**0.5) * k
    ring = np.sqrt(1 - z**2)
    return radius * np.stack([ring * np.cos(angle), ring * np.sin(angle), z], axis=1)


def test_normals_of_points_on_a_sphere_point_away_from_its_middle() -> None:
    face = face_points(sphere_points(0.25))
    cosine = (face.normals * face.points).sum(1) / 0.25
    assert float(cosine.min()) > 0.9


def test_relief_error_is_the_squared_distance_to_the_points() -> None:
    camera = orbit(0.1, 0.0)
    side = 128
    depth = sphere_depth(camera, side, 0.25)
    alpha = (depth < 3.9).float()
    depth = torch.where(alpha > 0, depth, torch.full_like(depth, 2.7))
    face = face_points(sphere_points(0.25))
    right = relief_error(depth, alpha, camera, face)
    assert float(right) < 2e-6
    moved = (depth + 0.03).requires_grad_()
    off = relief_error(moved, alpha, camera, face)
    assert float(off) == pytest.approx(9e-4, rel=0.05)
    off.backward()
    assert float(moved.grad.sum()) == pytest.approx(2 * 0.03, rel=0.05)
    # far off the error grows linearly: 0.05 (2 * 0.2 - 0.05)
    assert float(relief_error(depth + 0.2, alpha, camera, face)) == pytest.approx(0.0175, rel=0.05)
    assert float(relief_error(depth + 0.2, torch.zeros_like(alpha), camera, face)) == 0


def test_floating_pieces_are_told_from_the_head() -> None:
    side = 32
    camera = orbit(0.0, 0.0)
    depth = sphere_depth(camera, side, 0.2)
    alpha = (depth < 3.9).float()
    alpha[..., 2:5, 2:5] = 0.8  # a floater, not touching
    depth = torch.where(depth < 3.9, depth, torch.full_like(depth, 2.4))
    piece = main_piece(alpha, surface_points(depth, camera))
    assert float(piece[..., 2:5, 2:5].max()) == 0
    assert float(piece[..., 16, 16]) == 1
    solid = (depth < 2.39) | (depth > 2.41)
    assert float(piece[solid].min()) == 1
    empty = main_piece(torch.zeros_like(alpha), surface_points(depth, camera))
    assert float(empty.min()) == 1
