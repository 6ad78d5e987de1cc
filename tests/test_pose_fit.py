"""The fit recovers cameras it could have been given: exactly without noise, within its own covariance with it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headlift.eg3d.camera import orbit, rotation_angle
from headlift.eg3d.camera import project as project_torch
from headlift.pose_estimation.fit import fit
from headlift.pose_estimation.frames import FFHQ_TILT, angles_of, to_ffhq
from headlift.pose_estimation.head_model import Guess, load_head_model, normalise, orbit_axes, project
from headlift.pose_estimation.warp import similarity
from headlift.values import Similarity

angles = st.tuples(st.floats(-1.1, 1.1), st.floats(-0.5, 0.5))


def placed(uv: np.ndarray, roll: float, side: float, middle: tuple[float, float]) -> tuple[np.ndarray, Similarity]:
    """Crop fractions put into a photo, and the similarity that leads back."""
    to_crop = Similarity(similarity(roll, 1 / side, np.array(middle), np.array([0.5, 0.5])))
    return to_crop.inverse().apply(uv), to_crop


@settings(max_examples=30, deadline=None)
@given(angles)
def test_camera_in_numpy_is_the_camera_in_torch(pose: tuple[float, float]) -> None:
    yaw, pitch = (torch.tensor([a], dtype=torch.float64) for a in pose)
    camera = orbit(yaw, pitch)
    rotation, origin = orbit_axes(*pose)
    assert np.abs(camera.rotation[0].numpy() - rotation).max() < 1e-12
    assert np.abs(camera.origin[0].numpy() - origin).max() < 1e-12
    points = load_head_model().mean
    uv, _ = project_torch(camera, torch.from_numpy(points)[None])
    assert np.abs(uv[0].numpy() - project(*pose, points)[0]).max() < 1e-6  # focal length travels in float32
    assert angles_of(rotation[:, 2]) == pytest.approx(pose, abs=1e-9)


def test_derivatives_of_the_projection_are_differences() -> None:
    points, step = load_head_model().mean[::50], 1e-6
    _, slopes = project(0.4, -0.2, points)
    for axis in range(3):
        moved = np.eye(3)[axis] * step
        numeric = (project(0.4, -0.2, points + moved)[0] - project(0.4, -0.2, points - moved)[0]) / (2 * step)
        assert np.abs(numeric - slopes[..., axis]).max() < 1e-6


@settings(max_examples=15, deadline=None)
@given(angles, st.floats(-3, 3), st.floats(60, 4000))
def test_mean_face_without_noise_gives_the_camera_exactly(pose: tuple[float, float], roll: float, side: float) -> None:
    model = load_head_model()
    points, truth = placed(project(*pose, model.mean)[0], roll, side, (700.0, 300.0))
    found = fit(points, model, steps=100)
    assert (found.yaw, found.pitch) == pytest.approx(pose, abs=1e-5)
    assert np.abs(found.similarity.apply(points) - truth.apply(points)).max() < 1e-5
    assert found.similarity.roll == pytest.approx(roll, abs=1e-4)
    assert found.similarity.scale * side == pytest.approx(1, abs=1e-4)
    assert found.residual < 1e-5


def test_with_noise_the_camera_lies_within_the_covariance() -> None:
    model = load_head_model()
    random = np.random.default_rng(0)
    distances, misses = [], []
    for _ in range(25):
        pose = random.uniform((-0.7, -0.3), (0.7, 0.3))
        shape = model.shape(random.normal(size=len(model.basis)))
        uv = project(*pose, shape)[0] + model.noise[:, None] * random.normal(size=(468, 2))
        points, _ = placed(uv, 0.3, 500.0, (250.0, 250.0))
        found = fit(points, model)
        off = np.array([found.yaw, found.pitch]) - pose
        distances.append(off @ np.linalg.solve(found.covariance[:2, :2], off))
        misses.append(np.degrees(np.abs(off)).max())
    # squared Mahalanobis distances of two numbers have a mean of 2 (and a standard error of 0.4 here)
    assert 0.9 < np.mean(distances) < 3.5
    assert np.median(misses) < 4


def test_a_few_wild_points_do_not_count() -> None:
    model = load_head_model()
    uv = project(0.3, -0.1, model.mean)[0]
    uv[::20] += 0.2
    found = fit(placed(uv, 0.0, 500.0, (250.0, 250.0))[0], model, steps=100)
    assert math.degrees(abs(found.yaw - 0.3)) < 0.5
    assert math.degrees(abs(found.pitch + 0.1)) < 0.5


def test_a_certain_guess_wins_and_a_vague_one_does_not() -> None:
    model = load_head_model()
    points, truth = placed(project(0.3, 0.1, model.mean)[0], 0.0, 500.0, (250.0, 250.0))
    _, factor, center = normalise(points, model.template)
    back = truth.scale / factor
    middle = truth.apply(center[None])[0] - 0.5
    wrong = np.array([0.1, 0.1, np.angle(back), np.log(abs(back)), *middle])
    assert fit(points, model, Guess(wrong, 1e-12 * np.eye(6))).yaw == pytest.approx(0.1, abs=1e-3)
    assert fit(points, model, Guess(wrong, 1e4 * np.eye(6)), steps=100).yaw == pytest.approx(0.3, abs=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.tuples(st.floats(-0.9, 0.9), st.floats(-0.4, 0.4)))
def test_ffhq_frame_turns_the_head_up_and_changes_no_picture(pose: tuple[float, float]) -> None:
    model = load_head_model()
    points, _ = placed(project(*pose, model.mean)[0], 0.2, 500.0, (250.0, 250.0))
    here = fit(points, model, steps=100)
    there = to_ffhq(here)
    if abs(pose[0]) < 0.2:
        assert there.pitch - here.pitch == pytest.approx(FFHQ_TILT, abs=0.02)
    seen = project(there.yaw, there.pitch, there.points)[0]
    assert np.abs(seen - there.similarity.apply(points)).max() < 4e-3  # other perspective, same points
    # the camera's rotation is carried along: only the turn within the picture is left to the similarity
    upwards = np.array(
        [[1, 0, 0], [0, math.cos(FFHQ_TILT), math.sin(FFHQ_TILT)], [0, -math.sin(FFHQ_TILT), math.cos(FFHQ_TILT)]]
    )
    carried = upwards @ orbit_axes(here.yaw, here.pitch)[0]
    assert carried[:, 2] == pytest.approx(orbit_axes(there.yaw, there.pitch)[0][:, 2], abs=1e-9)
    roll = there.similarity.roll - here.similarity.roll
    turn = np.array([[math.cos(roll), -math.sin(roll), 0], [math.sin(roll), math.cos(roll), 0], [0, 0, 1]])
    both = (torch.from_numpy(m)[None] for m in (carried, orbit_axes(there.yaw, there.pitch)[0] @ turn))
    assert float(rotation_angle(*both)) < math.radians(0.5)


def test_no_tilt_is_no_change() -> None:
    model = load_head_model()
    points, _ = placed(project(0.2, 0.1, model.mean)[0], 0.2, 500.0, (250.0, 250.0))
    here = fit(points, model, steps=100)
    there = to_ffhq(replace(here), tilt=0.0)
    assert (there.yaw, there.pitch) == pytest.approx((here.yaw, here.pitch), abs=1e-12)
    assert np.abs(there.similarity.matrix - here.similarity.matrix).max() < 1e-9
