"""A light second look: the pose of a head in a picture that is a crop already, such as a render."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from headlift.config import Frame
from headlift.pose_estimation import mediapipe_models
from headlift.pose_estimation.detect import find_boxes
from headlift.pose_estimation.estimate import locate
from headlift.pose_estimation.head_model import POINTS
from headlift.pose_estimation.landmarks import find_landmarks, refine
from headlift.pose_estimation.warp import resize

_SIDE = 288


@dataclass(frozen=True)
class Seen:
    """A face found in a square picture of a head."""

    points: Float[np.ndarray, "468 2"]
    """The face mesh in fractions of the picture."""
    yaw: float
    pitch: float
    """Of the camera that took the picture, radians, as `eg3d.camera.orbit` takes them."""


def see(image: UInt8[np.ndarray, "h w 3"], frame: Frame = "embedded") -> Seen | None:
    """Find the face in a square picture of a head, and from it alone the camera; None where there is none.

    `frame` as in `PoseConfig`. Errors on the synthetic heads: `benchmarks/pose.py` prints them.
    """
    small = resize(image, (_SIDE, _SIDE)) if image.shape[0] != _SIDE else image
    first = mediapipe_models.face_mesh(small)
    if first is not None:
        shown, found = small, refine(small, first)
    else:
        boxes = find_boxes(image)
        again = find_landmarks(image, boxes[0].box, boxes[0].turn) if boxes else None
        if again is None:
            return None
        shown, found = image, again
    fitted = locate(shown, *found, frame)
    return Seen(found[0][:POINTS, :2] / shown.shape[0], fitted.yaw, fitted.pitch)


def redetect(image: UInt8[np.ndarray, "h w 3"], frame: Frame = "embedded") -> tuple[float, float] | None:
    """(yaw, pitch) of `see`, radians; None where no face is found."""
    face = see(image, frame)
    return None if face is None else (face.yaw, face.pitch)
