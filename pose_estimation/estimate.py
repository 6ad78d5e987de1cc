"""The pose estimator's story: photo -> faces -> points -> fitted camera -> crop, mask and verdict."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, UInt8

from headlift.config import Frame, PoseConfig
from headlift.eg3d.camera import orbit
from headlift.errors import FaceError
from headlift.pose_estimation.crop import cut, to_tensor
from headlift.pose_estimation.detect import Box, Found, find_boxes
from headlift.pose_estimation.fit import Fit, fit
from headlift.pose_estimation.frames import to_ffhq
from headlift.pose_estimation.head_model import POINTS, load_head_model
from headlift.pose_estimation.landmarks import find_landmarks
from headlift.pose_estimation.masks import head_mask
from headlift.pose_estimation.regression import KAPPA, guess
from headlift.pose_estimation.verdict import judge
from headlift.values import Crop, Face

_MOST_FACES = 20
"""Of a crowd only so many are looked at closely."""


def estimate(photo: UInt8[np.ndarray, "h w 3"], config: PoseConfig | None = None) -> Crop:
    """Find the face in an upright sRGB photo, and the crop and camera that EG3D would know it by.

    With several faces the largest is taken of those whose features can be made out, or the one `config.face` names; the
    verdict's finding "faces" says how many there were, and which one was taken. The camera's angles are those of the
    head: the photo's tilt is taken up by the crop's similarity. A frame of `auto` is FFHQ's here.

    Raises:
        FaceError: there is no face, or not the one asked for; it is too small; it is turned further than
            `config.max_yaw` (unless `config.force`); the person cannot be told from the background.
    """
    config = config or PoseConfig()
    frame: Frame = "embedded" if config.frame == "embedded" else "ffhq"
    boxes = find_boxes(photo)
    number, (points, keys) = _choose(photo, boxes, config)
    found = boxes[number - 1]
    face = Face(box=found.box, score=found.score, landmarks=points)
    fitted = locate(photo, points, keys, frame)
    turned = math.degrees(abs(fitted.yaw))
    if turned > config.max_yaw and not config.force:
        raise FaceError(
            f"The face is turned {turned:.0f} degrees to the side, more than the limit of {config.max_yaw:.0f}: "
            "half of it cannot be seen. Take a photo from further in front, or go on regardless with --force."
        )
    pixels = cut(photo, fitted.similarity, config.crop_size)
    mask = head_mask(pixels, fitted.similarity.apply(points[:POINTS, :2]))
    return Crop(
        image=to_tensor(pixels),
        mask=torch.from_numpy(mask)[None, None].float(),
        camera=orbit(fitted.yaw, fitted.pitch),
        similarity=fitted.similarity,
        face=face,
        residual=fitted.residual,
        covariance=fitted.covariance[:2, :2],
        verdict=judge(photo, face, fitted, len(boxes), number, config),
        model_points=fitted.points,
        frame=frame,
    )


def find_faces(photo: UInt8[np.ndarray, "h w 3"]) -> list[Face]:
    """All faces with their 478 points, largest first; those in which no points are found are left out."""
    faces = []
    for found in find_boxes(photo)[:_MOST_FACES]:
        marks = find_landmarks(photo, found.box, found.turn)
        if marks is not None:
            faces.append(Face(box=found.box, score=found.score, landmarks=marks[0]))
    return faces


def locate(
    photo: UInt8[np.ndarray, "h w 3"],
    points: Float[np.ndarray, "478 3"],
    keys: Float[np.ndarray, "8 2"] | None,
    frame: Frame,
) -> Fit:
    """Camera, crop and shape from the mesh and the detector's key points, both in photo pixels, in the given frame."""
    model = load_head_model()
    fitted = fit(points[:POINTS, :2], model, guess(photo, points, keys, model), KAPPA)
    return to_ffhq(fitted) if frame == "ffhq" else fitted


def _choose(
    photo: UInt8[np.ndarray, "h w 3"], boxes: list[Found], config: PoseConfig
) -> tuple[int, tuple[Float[np.ndarray, "478 3"], Float[np.ndarray, "8 2"] | None]]:
    """The face that was asked for, counted from 1, with its points."""
    height, width = photo.shape[:2]
    if not boxes:
        raise FaceError(
            f"No face was found in the photo ({width} x {height} pixels). The face should look towards the camera, be "
            "upright, sharp and lit, and not be covered; crop the photo around the head and try again."
        )
    if config.face is not None and not 1 <= config.face <= len(boxes):
        number = "one face" if len(boxes) == 1 else f"{len(boxes)} faces"
        raise FaceError(
            f"Face {config.face} was asked for, but the photo shows {number}. Give --face a number from 1 to "
            f"{len(boxes)}, 1 being the largest."
        )
    asked = range(min(len(boxes), _MOST_FACES)) if config.face is None else [config.face - 1]
    largest = face_side(boxes[asked[0]].box)
    if largest < config.min_face:
        raise FaceError(
            f"The face is too small: {largest:.0f} pixels across, at least {config.min_face} are needed. "
            "Use a larger version of the photo, or one taken from nearer."
        )
    for index in asked:
        found = boxes[index]
        if face_side(found.box) < config.min_face:
            break
        marks = find_landmarks(photo, found.box, found.turn)
        if marks is not None:
            return index + 1, marks
    raise FaceError(
        f"There seems to be a face of {largest:.0f} pixels, but its features cannot be made out: it is turned too far "
        "away, covered, blurred or dark. Try a photo in which eyes, nose and mouth can be seen."
    )


def face_side(box: Box) -> float:
    """Side of the square of the same area, photo pixels."""
    return math.sqrt(max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]))
