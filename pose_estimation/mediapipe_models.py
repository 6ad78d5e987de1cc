"""The one place where MediaPipe is imported: face mesh, face detector and selfie segmentation as plain functions.

All models lie inside MediaPipe's wheel, nothing is downloaded. Images are uint8 RGB, HWC; coordinates that come back
are continuous pixels of the image that went in. The graphs are built once in a process and guarded by a lock, since
they are neither re-entrant nor cheap to build. They run in their static mode: no call depends on an earlier one.

MediaPipe's C++ side writes greetings to the process's stderr, past every Python setting. They are held back at the
level of the file descriptor; everything that is not a known greeting is passed on.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

LANDMARKS = 478
"""Points of the refined face mesh: 468 of the surface, then 5 for each iris."""

_lock = threading.RLock()
_chatter = re.compile(
    rb"^(INFO: Created TensorFlow Lite"
    rb"|WARNING: All log messages before absl::InitializeLog"
    rb"|W\d{4} .*(inference_feedback_manager|landmark_projection_calculator|face_landmarker_graph|gl_context)"
    rb"|I\d{4} .*(gl_context|task_runner|resource_util))"
)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back MediaPipe's greetings on stderr while the block runs; whatever else was written follows afterwards."""
    with _lock, tempfile.TemporaryFile() as held:
        try:
            sys.stderr.flush()
            saved = os.dup(2)
        except (OSError, ValueError, AttributeError):  # no stderr at all, as under pythonw
            yield
            return
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                sys.stderr.flush()
            os.dup2(saved, 2)
            held.seek(0)
            rest = b"".join(line for line in held if not _chatter.match(line))
            if rest:
                os.write(saved, rest)
            os.close(saved)


@functools.cache
def _solutions() -> Any:
    os.environ.setdefault("GLOG_minloglevel", "2")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import mediapipe

    return mediapipe.solutions


@functools.cache
def _face_mesh() -> Any:
    return _solutions().face_mesh.FaceMesh(
        static_image_mode=True, max_num_faces=1, refine_landmarks=True, min_detection_confidence=0.3
    )


@functools.cache
def _face_detection(model: int) -> Any:
    return _solutions().face_detection.FaceDetection(model_selection=model, min_detection_confidence=0.3)


@functools.cache
def _selfie_segmentation() -> Any:
    return _solutions().selfie_segmentation.SelfieSegmentation(model_selection=0)


def _process(graph: Any, image: UInt8[np.ndarray, "h w 3"]) -> Any:
    return graph().process(np.ascontiguousarray(image))


def face_mesh(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "478 3"] | None:
    """The 478 points of the most prominent face, or None where no face is seen.

    x and y are pixels of `image`; z is in the same unit, smaller towards the camera. The face should be roughly
    upright and fill a quarter to three quarters of the side.
    """
    with _quiet():
        found = _process(_face_mesh, image).multi_face_landmarks
    if not found:
        return None
    height, width = image.shape[:2]
    points = np.array([(p.x, p.y, p.z) for p in found[0].landmark], dtype=np.float64)
    return points * (width, height, width)


def face_boxes(image: UInt8[np.ndarray, "h w 3"]) -> list[tuple[tuple[float, float, float, float], float]]:
    """Boxes (left, top, right, bottom in pixels) and scores of MediaPipe's own face detectors, near and far."""
    height, width = image.shape[:2]
    boxes = []
    for model in (0, 1):
        with _quiet():
            found = _process(functools.partial(_face_detection, model), image).detections
        for detection in found or []:
            box = detection.location_data.relative_bounding_box
            left, top = box.xmin * width, box.ymin * height
            corners = (left, top, left + box.width * width, top + box.height * height)
            boxes.append((corners, float(detection.score[0])))
        if boxes:
            break
    return boxes


def face_keypoints(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "8 2"] | None:
    """Six points of the near detector (the eyes from the picture's left, nose, mouth, the ears from the left) and its
    box's upper left and lower right corners, in pixels; None where it sees no face."""
    height, width = image.shape[:2]
    with _quiet():
        found = _process(functools.partial(_face_detection, 0), image).detections
    if not found:
        return None
    data = found[0].location_data
    box = data.relative_bounding_box
    points = [(p.x, p.y) for p in data.relative_keypoints]
    points += [(box.xmin, box.ymin), (box.xmin + box.width, box.ymin + box.height)]
    return np.array(points, dtype=np.float64) * (width, height)


def person_mask(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
    """Probability that a pixel belongs to a person, in [0, 1] (selfie segmentation, 256 x 256 inside)."""
    with _quiet():
        return np.asarray(_process(_selfie_segmentation, image).segmentation_mask, dtype=np.float64)
