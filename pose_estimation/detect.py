"""Faces in a photo: MTCNN's boxes (facenet-pytorch, weights inside the wheel), MediaPipe's detector as second chance.

Boxes are left, top, right, bottom in continuous photo pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from headlift.pose_estimation import facenet, mediapipe_models
from headlift.pose_estimation.warp import resize, similarity, warp

Box = tuple[float, float, float, float]

SMALLEST_FACE = 14
"""Smallest face that is looked for, photo pixels: smaller than what is accepted, so that the refusal can be precise."""
_LONGEST_SIDE = 1280
"""Larger photos are shrunk for detection first; only when that shows nothing is the full size searched."""
_SURE, _SURE_SIDE = 0.9, 40.0
"""Score and side in pixels of a face beside which no second detector is asked."""
_SECOND_SCORE = 0.6
"""Least score that the second detector is believed at: it sees faces in coffee cups otherwise."""
_second_looks = tuple(math.radians(a) for a in (0, 45, -45, 90, -90, 180))


@dataclass(frozen=True)
class Found:
    """A face as the detectors see it."""

    box: Box
    score: float
    """In [0, 1]."""
    turn: float = 0.0
    """How far the photo was turned, clockwise, for the face to be seen; radians."""


def find_boxes(photo: UInt8[np.ndarray, "h w 3"]) -> list[Found]:
    """All faces, largest first; an empty list where there is none."""
    height, width = photo.shape[:2]
    if min(height, width) < SMALLEST_FACE:
        return []
    shrink = min(1.0, _LONGEST_SIDE / max(height, width))
    boxes = _mtcnn_boxes(photo, shrink)
    if not any(b.score > _SURE and math.sqrt(_area(b.box)) > _SURE_SIDE for b in boxes):
        boxes = boxes + _mediapipe_boxes(photo)
    if not boxes and shrink < 1.0:
        boxes = _mtcnn_boxes(photo, min(1.0, 4 * shrink))
    boxes = [b for b in boxes if _visible_share(b.box, width, height) > 0.4]
    return sorted(_without_duplicates(boxes), key=lambda b: -_area(b.box))


def _mtcnn_boxes(photo: UInt8[np.ndarray, "h w 3"], shrink: float) -> list[Found]:
    height, width = photo.shape[:2]
    smallest = SMALLEST_FACE if shrink == 1 else 20
    if min(height, width) * shrink < smallest:  # no scale at which the network could look
        return []
    small = resize(photo, (round(width * shrink), round(height * shrink))) if shrink < 1 else photo
    found, scores = facenet.mtcnn(smallest).detect(np.ascontiguousarray(small))
    if found is None:
        return []
    ratio = np.array([width / small.shape[1], height / small.shape[0]] * 2)
    return [
        Found((float(b[0]), float(b[1]), float(b[2]), float(b[3])), float(s))
        for b, s in zip(np.asarray(found, dtype=np.float64) * ratio, scores, strict=True)
    ]


def _mediapipe_boxes(photo: UInt8[np.ndarray, "h w 3"]) -> list[Found]:
    """MediaPipe's faces in the photo as it is and turned; for faces that MTCNN misses, lying heads most of all.

    The same face is seen in several turns; its best score is had upright, and the rest are dropped as duplicates.
    """
    height, width = photo.shape[:2]
    side = 640
    center = np.array([width / 2, height / 2])
    boxes = []
    for angle in _second_looks:
        scale = side / (max(height, width) if angle in (0.0, math.pi) else math.hypot(height, width))
        matrix = similarity(angle, scale, center, np.array([side / 2, side / 2]))
        turned = warp(photo, matrix, (side, side), border="constant")
        found = mediapipe_models.face_boxes(turned)
        boxes += [Found(_box_back(box, matrix), score, angle) for box, score in found if score >= _SECOND_SCORE]
    return boxes


def _box_back(box: Box, matrix: Float[np.ndarray, "2 3"]) -> Box:
    """The upright square around the centre of a box found in the turned photo."""
    center = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
    x, y = np.linalg.inv(matrix[:, :2]) @ (center - matrix[:, 2])
    half = max(box[2] - box[0], box[3] - box[1]) / 2 / math.sqrt(np.linalg.det(matrix[:, :2]))
    return (float(x - half), float(y - half), float(x + half), float(y + half))


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _intersection(a: Box, b: Box) -> float:
    return _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def _visible_share(box: Box, width: int, height: int) -> float:
    return _intersection(box, (0.0, 0.0, float(width), float(height))) / max(_area(box), 1e-9)


def _without_duplicates(boxes: list[Found]) -> list[Found]:
    """Drop a box that lies mostly inside one with a better score."""
    kept: list[Found] = []
    for found in sorted(boxes, key=lambda b: -b.score):
        if all(_intersection(found.box, k.box) < 0.6 * min(_area(found.box), _area(k.box)) for k in kept):
            kept.append(found)
    return kept
