"""The whole estimator on a real photo (skimage's astronaut, public domain), as it is and mistreated."""

from __future__ import annotations

import functools
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage import data

from headlift.config import PoseConfig
from headlift.eg3d.camera import project, rotation_angle, yaw_pitch
from headlift.errors import FaceError
from headlift.pose_estimation import estimate as story
from headlift.pose_estimation import mediapipe_models
from headlift.pose_estimation.crop import cut, to_uint8
from headlift.pose_estimation.detect import find_boxes
from headlift.pose_estimation.estimate import estimate, find_faces
from headlift.pose_estimation.redetect import redetect
from headlift.pose_estimation.warp import blur, resize, similarity, warp
from headlift.values import Crop


@functools.cache
def astronaut() -> np.ndarray:
    return data.astronaut()


@functools.cache
def reference() -> Crop:
    return estimate(astronaut(), PoseConfig(crop_size=256))


def degrees(crop: Crop) -> tuple[float, float]:
    yaw, pitch = yaw_pitch(crop.camera)
    return math.degrees(float(yaw)), math.degrees(float(pitch))


def apart(a: Crop, b: Crop) -> float:
    return math.degrees(float(rotation_angle(a.camera.rotation, b.camera.rotation)))


def numbers(crop: Crop) -> dict[str, float]:
    return {finding.name: finding.value for finding in crop.verdict.findings}


def test_face_crop_and_camera() -> None:
    crop = reference()
    assert crop.image.shape == (1, 3, 256, 256)
    assert crop.mask.shape == (1, 1, 256, 256)
    assert crop.face.landmarks.shape == (478, 3)
    assert crop.verdict.ok, crop.verdict
    yaw, pitch = degrees(crop)
    assert abs(yaw) < 20
    assert abs(pitch) < 20
    eyes = crop.similarity.apply(crop.face.landmarks[[33, 263, 61, 291], :2])
    # where FFHQ's alignment has the outer corners of the eyes and the corners of the mouth
    assert np.abs(eyes - [(0.33, 0.40), (0.67, 0.40), (0.38, 0.66), (0.62, 0.66)]).max() < 0.07
    assert 0 < crop.residual < 0.02
    sigma = np.degrees(np.sqrt(crop.covariance.diagonal()))
    assert ((sigma > 0.3) & (sigma < 5)).all()


def test_crop_is_the_photo_under_its_similarity() -> None:
    crop = reference()
    assert (to_uint8(crop.image) == cut(astronaut(), crop.similarity, 256)).all()
    # the camera of that crop sees the fitted points where the landmarks were found
    assert crop.model_points is not None
    seen, depth = project(crop.camera, torch.from_numpy(crop.model_points).float()[None])
    found = crop.similarity.apply(crop.face.landmarks[:468, :2])
    assert np.linalg.norm(seen[0].numpy() - found, axis=1).mean() < 0.02
    assert float(depth.min()) > 2


def test_same_photo_same_answer() -> None:
    again = estimate(astronaut(), PoseConfig(crop_size=256))
    assert (again.camera.label == reference().camera.label).all()
    assert (again.image == reference().image).all()
    assert (again.mask == reference().mask).all()


@pytest.mark.parametrize("angle", [30, -30, 75, 180])
def test_rolled_photo_gives_the_same_crop(angle: float) -> None:
    center = np.array([224.0, 120.0])
    matrix = similarity(math.radians(angle), 1.0, center, np.array([256.0, 256.0]))
    crop = estimate(warp(astronaut(), matrix, (512, 512)), PoseConfig(crop_size=256))
    assert apart(crop, reference()) < 3
    turned = math.remainder(crop.similarity.roll - reference().similarity.roll + math.radians(angle), 2 * math.pi)
    assert abs(math.degrees(turned)) < 2
    corners = np.array([[180.0, 60.0], [270.0, 60.0], [180.0, 180.0], [270.0, 180.0]])
    there = crop.similarity.apply(corners @ matrix[:, :2].T + matrix[:, 2])
    assert np.abs(there - reference().similarity.apply(corners)).max() < 0.03


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_scaled_photo_gives_the_same_crop(factor: float) -> None:
    size = round(512 * factor)
    crop = estimate(resize(astronaut(), (size, size)), PoseConfig(crop_size=256))
    assert apart(crop, reference()) < 3
    assert crop.similarity.scale * factor == pytest.approx(reference().similarity.scale, rel=0.03)


def test_flipped_photo_gives_the_mirrored_camera() -> None:
    crop = estimate(astronaut()[:, ::-1], PoseConfig(crop_size=256))
    yaw, pitch = degrees(crop)
    expected = degrees(reference())
    assert yaw == pytest.approx(-expected[0], abs=1.5)
    assert pitch == pytest.approx(expected[1], abs=1.5)


def test_an_aligned_crop_is_cropped_to_itself() -> None:
    aligned = cut(astronaut(), reference().similarity, 512)
    crop = estimate(aligned, PoseConfig(crop_size=256))
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert np.linalg.norm(crop.similarity.apply(corners * 512) - corners, axis=1).max() < 0.03
    assert apart(crop, reference()) < 2.5


def test_two_faces_largest_first() -> None:
    small = resize(astronaut()[:300, 80:380], (180, 180))
    both = np.concatenate([np.full((300, 40, 3), 90, np.uint8), astronaut()[:300, 80:380]], axis=1)
    both = np.concatenate([both, np.pad(small, ((60, 60), (0, 0), (0, 0)), mode="edge")], axis=1)
    faces = find_faces(both)
    assert len(faces) == 2
    assert faces[0].box[0] < 300 < faces[1].box[0]
    largest = estimate(both, PoseConfig(crop_size=64))
    assert largest.face.box == faces[0].box
    assert numbers(largest)["faces"] == 2
    second = estimate(both, PoseConfig(crop_size=64, face=2))
    assert second.face.box == faces[1].box
    with pytest.raises(FaceError, match=r"Face 3 .* 2 faces.*--face"):
        estimate(both, PoseConfig(face=3))
    with pytest.raises(FaceError, match="--face"):
        estimate(both, PoseConfig(face=0))


def test_face_at_the_edge_is_padded_and_reported() -> None:
    edge = astronaut()[60:, 195:]
    crop = estimate(edge, PoseConfig(crop_size=256))
    assert numbers(crop)["cut off"] > 0.06
    assert not crop.verdict.ok
    assert numbers(reference())["cut off"] < 0.06
    assert crop.image.isfinite().all()


def test_verdict_sees_blur_and_size() -> None:
    blurred = estimate(blur(astronaut(), 2.0), PoseConfig(crop_size=64))
    assert numbers(blurred)["sharpness"] < 0.7 * numbers(reference())["sharpness"]
    assert [f.name for f in blurred.verdict.findings if not f.ok] == ["sharpness"]
    half = estimate(resize(astronaut(), (256, 256)), PoseConfig(crop_size=64))
    assert numbers(half)["size"] == pytest.approx(numbers(reference())["size"] / 2, rel=0.05)
    assert "size" in [f.name for f in half.verdict.findings if not f.ok]


def test_mask_holds_the_head_and_not_the_background() -> None:
    crop = reference()
    mask = crop.mask[0, 0].numpy()
    assert 0 <= mask.min() <= mask.max() <= 1
    face = (crop.similarity.apply(crop.face.landmarks[:468, :2]) * 256).astype(int)
    assert mask[face[:, 1], face[:, 0]].mean() > 0.97
    assert 0.3 < mask.mean() < 0.9
    assert mask[:20, :20].mean() < 0.2  # the flag and the shuttle behind her
    soft = (mask > 0.05) & (mask < 0.95)
    assert 0.001 < soft.mean() < 0.15


def test_a_person_who_cannot_be_told_from_the_background_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = mediapipe_models.person_mask(resize(astronaut(), (256, 256)))
    monkeypatch.setattr(mediapipe_models, "person_mask", lambda crop: found * 0)
    with pytest.raises(FaceError, match=r"cannot be told from the background: 0 % .* contrast"):
        estimate(astronaut(), PoseConfig(crop_size=64))


def test_of_a_face_that_cannot_be_made_out_and_another_the_other_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    (box,) = find_boxes(astronaut())
    left, top, right, bottom = box.box
    larger = replace(box, box=(left - 150, top, right, bottom + 100))
    monkeypatch.setattr(story, "find_boxes", lambda photo: [larger, box])
    look = story.find_landmarks
    monkeypatch.setattr(
        story, "find_landmarks", lambda photo, place, turn: None if place == larger.box else look(photo, place, turn)
    )
    crop = estimate(astronaut(), PoseConfig(crop_size=64))
    assert crop.face.box == box.box
    assert "2 faces in the photo; number 2 is taken" in crop.verdict.findings[0].message


def test_thin_panoramas_have_no_face() -> None:
    assert find_boxes(np.full((130, 9000, 3), 90, dtype=np.uint8)) == []


def test_no_face() -> None:
    with pytest.raises(FaceError, match="No face was found"):
        estimate(data.coffee(), PoseConfig())
    for tiny in (1, 2, 11):
        with pytest.raises(FaceError, match="No face"):
            estimate(np.full((tiny, tiny, 3), 128, dtype=np.uint8), PoseConfig())


def test_face_of_twenty_pixels_is_refused_with_its_size() -> None:
    small = resize(astronaut(), (512 * 20 // 100, 512 * 20 // 100))
    framed = np.pad(small, ((100, 100), (100, 100), (0, 0)), mode="edge")
    with pytest.raises(FaceError, match=r"too small: \d\d pixels.*at least 40"):
        estimate(framed, PoseConfig())


def test_turn_beyond_the_limit_is_refused_unless_forced() -> None:
    turned = np.pad(astronaut()[:260, 100:350], ((20, 20), (0, 0), (0, 0)), mode="edge")
    limit = abs(degrees(estimate(turned, PoseConfig(crop_size=64)))[0]) - 1e-3  # she looks straight ahead
    with pytest.raises(FaceError, match=r"turned .* --force"):
        estimate(turned, PoseConfig(max_yaw=limit))
    crop = estimate(turned, PoseConfig(max_yaw=limit, force=True, crop_size=64))
    assert "turn" in [f.name for f in crop.verdict.findings if not f.ok]


def test_second_look_agrees() -> None:
    again = redetect(to_uint8(reference().image), frame="ffhq")
    assert again is not None
    assert np.degrees(again) == pytest.approx(degrees(reference()), abs=2.5)
    assert redetect(np.full((128, 128, 3), 128, dtype=np.uint8)) is None


def test_frames_differ_in_pitch_alone() -> None:
    embedded = estimate(astronaut(), PoseConfig(crop_size=256, frame="embedded"))
    yaw, pitch = degrees(embedded)
    expected = degrees(reference())
    assert expected[1] - pitch == pytest.approx(3.7, abs=0.4)
    assert yaw == pytest.approx(expected[0], abs=1)


def test_nothing_but_errors_is_written_to_stderr() -> None:
    code = (
        "import os; from skimage import data;"
        "from headlift.pose_estimation.mediapipe_models import face_mesh, person_mask;"
        "image = data.astronaut()[:300, 80:380]; assert face_mesh(image) is not None; person_mask(image);"
        "os.write(2, b'kept')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stderr == b"kept"
