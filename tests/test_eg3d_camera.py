"""Laws of cameras."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headlift.eg3d import camera as cam
from headlift.eg3d.rays import pixel_centres, pixel_rays
from headlift.values import Camera

ANGLE = st.floats(-math.pi, math.pi)
STEEP = st.floats(-1.5, 1.5)
COORDINATE = st.floats(-2.0, 2.0)


def rotation(camera: Camera) -> torch.Tensor:
    return camera.cam2world[:, :3, :3].double()


@given(ANGLE, STEEP)
def test_orbit_looks_at_its_pivot_from_its_radius_with_a_right_handed_rotation(yaw: float, pitch: float) -> None:
    camera = cam.orbit(yaw, pitch)
    uv, z = cam.project(camera, torch.tensor([[[0.0, 0.0, 0.2]]]))
    assert torch.allclose(uv, torch.full_like(uv, 0.5), atol=1e-5)
    assert float(z) > 2
    assert float(camera.origin.norm()) == pytest.approx(2.7, rel=1e-5)
    r = rotation(camera)[0]
    assert torch.allclose(r.T @ r, torch.eye(3).double(), atol=1e-5)
    assert float(torch.linalg.det(r)) == pytest.approx(1, abs=1e-5)
    assert float(r[1, 1]) < 0  # the world's up is the picture's up
    assert abs(float(r[1, 0])) < 1e-6  # and its horizon level


@given(ANGLE, STEEP)
def test_angles_are_read_back_from_the_position(yaw: float, pitch: float) -> None:
    found = cam.yaw_pitch(cam.orbit(yaw, pitch))
    assert math.cos(float(found[0]) - yaw) == pytest.approx(1, abs=1e-6)
    assert float(found[1]) == pytest.approx(pitch, abs=1e-3)


def test_the_frontal_camera_is_the_published_matrix() -> None:
    front = torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 2.7], [0, 0, 0, 1]])
    assert torch.allclose(cam.orbit(0.0, 0.0).cam2world[0], front, atol=1e-6)
    assert torch.allclose(cam.published_look_at(math.pi / 2, math.pi / 2)[0], front, atol=1e-6)


def test_yaw_moves_the_camera_to_plus_x_and_pitch_moves_it_up() -> None:
    x, y, z = cam.orbit(torch.tensor([0.5]), 0.3).origin[0].tolist()
    assert (x, y, z) == pytest.approx(
        (2.7 * math.cos(0.3) * math.sin(0.5), 2.7 * math.sin(0.3), 2.7 * math.cos(0.3) * math.cos(0.5)), abs=1e-5
    )


@given(st.floats(-0.8, 0.8))
def test_the_published_sampler_remaps_pitch(offset: float) -> None:
    """cos(polar) = 1 - 2 v / pi: its height is linear in v, unlike the true angle's."""
    pose = cam.published_look_at(math.pi / 2, math.pi / 2 + offset)
    assert float(pose[0, 1, 3]) == pytest.approx(-2.7 * 2 * offset / math.pi, abs=1e-4)


@given(st.lists(st.tuples(COORDINATE, COORDINATE), min_size=1, max_size=5), ANGLE, STEEP, st.floats(0.5, 4.0))
def test_projecting_what_was_unprojected_gives_the_pixel_back(
    pixels: list[tuple[float, float]], yaw: float, pitch: float, distance: float
) -> None:
    camera = cam.orbit(yaw, pitch).to(dtype=torch.float64)
    skewed = camera.intrinsics.clone()
    skewed[:, 0, 1], skewed[:, 0, 2], skewed[:, 1, 1] = 0.1, 0.4, 3.9
    camera = Camera(camera.cam2world, skewed)
    uv = torch.tensor([pixels], dtype=torch.float64)
    far = torch.full(uv.shape[:2], distance, dtype=torch.float64)
    points = cam.unproject(camera, uv, far)
    back, z = cam.project(camera, points)
    assert torch.allclose(back, uv, atol=1e-6)
    assert torch.allclose((points - camera.origin[:, None]).norm(dim=-1), far)
    assert bool((z > 0).all())


@given(ANGLE, STEEP)
def test_mirroring_twice_is_nothing_and_once_mirrors_what_is_seen(yaw: float, pitch: float) -> None:
    camera = cam.orbit(yaw, pitch)
    twice = cam.mirror(cam.mirror(camera))
    assert torch.equal(twice.cam2world, camera.cam2world)
    assert torch.allclose(twice.intrinsics, camera.intrinsics)
    points = torch.tensor([[[0.1, 0.2, 0.3], [-0.2, 0.1, 0.0]]])
    uv, z = cam.project(camera, points)
    other, z2 = cam.project(cam.mirror(camera), points * torch.tensor([-1.0, 1.0, 1.0]))
    assert torch.allclose(other[..., 0], 1 - uv[..., 0], atol=1e-4)
    assert torch.allclose(other[..., 1], uv[..., 1], atol=1e-4)
    assert torch.allclose(z, z2, atol=1e-4)


@given(st.floats(1e-4, math.pi - 1e-3))
def test_the_angle_between_rotations_is_that_of_the_turn_between_them(angle: float) -> None:
    c, s = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[[c, -s, 0], [s, c, 0], [0, 0, 1]]], dtype=torch.float64)
    base = rotation(cam.orbit(0.3, 0.2))
    assert float(cam.rotation_angle(base, base @ turn)) == pytest.approx(angle, rel=1e-4)


def test_focal_lengths() -> None:
    assert cam.focal_from_fov(90) == pytest.approx(0.5)
    assert cam.focal_from_fov(13.3730) == pytest.approx(4.2647, abs=2e-3)
    assert cam.published_focal(18.837) == pytest.approx(4.2634, abs=1e-4)
    assert cam.published_focal(18) == pytest.approx(4.465, abs=1e-3)


def test_a_view_along_up_still_has_a_camera() -> None:
    pose = cam.look_at(torch.tensor([[0.0, 2.0, 0.0]]), torch.zeros(1, 3))
    assert bool(torch.isfinite(pose).all())
    assert float(torch.linalg.det(pose[0, :3, :3])) == pytest.approx(1, abs=1e-6)


def test_rays_go_through_the_centres_of_their_pixels() -> None:
    camera = cam.orbit(torch.tensor([0.4, -1.0]), torch.tensor([0.1, 0.5]))
    origins, directions = pixel_rays(camera, 5)
    assert directions.shape == (2, 25, 3)
    assert torch.allclose(directions.norm(dim=-1), torch.ones(2, 25))
    uv, _ = cam.project(camera, origins + 2 * directions)
    assert torch.allclose(uv, pixel_centres(5).expand(2, -1, -1), atol=1e-5)
    assert torch.allclose(pixel_centres(5)[:2], torch.tensor([[0.1, 0.1], [0.3, 0.1]]))


def test_orbit_has_gradients() -> None:
    yaw = torch.zeros(1, requires_grad=True)
    cam.orbit(yaw, 0.1).origin[0, 0].backward()
    assert yaw.grad is not None
    assert float(yaw.grad) == pytest.approx(2.7 * math.cos(0.1), rel=1e-5)


def test_the_label_holds_the_camera() -> None:
    camera = cam.orbit(torch.tensor([0.1, 0.2]), 0.3)
    back = Camera.from_label(camera.label)
    assert torch.equal(back.cam2world, camera.cam2world)
    assert torch.equal(back.intrinsics, camera.intrinsics)
