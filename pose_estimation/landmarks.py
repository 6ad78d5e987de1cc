"""From a face's box to the 478 points of MediaPipe's face mesh, in photo pixels, steadily.

The mesh network sees an upright face of a fixed size. `find_landmarks` looks for the face in generous cuts around the
box, turned and scaled until it is seen, then levels it by its own points and averages the mesh over several slightly
moved cuts and their mirror images, which halves the scatter of a single run.
"""

from __future__ import annotations

import functools
import itertools
import math
from importlib import resources

import numpy as np
from jaxtyping import Float, Int, UInt8

from headlift.pose_estimation import mediapipe_models
from headlift.pose_estimation.warp import similarity, warp

Box = tuple[float, float, float, float]

SIDE = 288
"""Side in pixels of the cuts that the mesh network's graph is shown."""
EYE_CORNERS = (33, 263)
"""Outer corners of the two eyes: the one on the picture's left first."""
_search_angles = tuple(math.radians(a) for a in (0, 30, -30, 60, -60, 90, -90, 135, -135, 180))
_search_sizes = (1.9, 1.45, 2.6)
# (turn in radians, size of the cut, shift in cuts) of the runs that are averaged
_runs = ((0.04, 1.8, 0.015, -0.01), (-0.06, 2.0, -0.015, 0.02))


@functools.cache
def mirror_order() -> Int[np.ndarray, " 478"]:
    """Index of each point's mirror image: point i of a mirrored photo is point `mirror_order()[i]` of the photo."""
    source = resources.files("headlift.pose_estimation.data").joinpath("head_model.npz")
    with resources.as_file(source) as path, np.load(path, allow_pickle=False) as arrays:
        return arrays["mirror"].astype(np.int64)


def find_landmarks(
    photo: UInt8[np.ndarray, "h w 3"], box: Box, turn: float = 0.0
) -> tuple[Float[np.ndarray, "478 3"], Float[np.ndarray, "8 2"] | None] | None:
    """The face's 478 points (z in pixels too, smaller towards the camera) and the detector's key points, or None.

    `box` is left, top, right, bottom of the face in photo pixels, `turn` the clockwise turn of the photo (radians) that
    is tried first: the mesh takes upside-down faces for upright ones if it is shown them so. None: no cut around the
    box shows the mesh a face.
    """
    first = _search(photo, box, turn)
    return None if first is None else refine(photo, first)


def _search(photo: UInt8[np.ndarray, "h w 3"], box: Box, turn: float) -> Float[np.ndarray, "478 3"] | None:
    center = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
    extent = max(box[2] - box[0], box[3] - box[1], 1.0)
    for angle, size in itertools.product(_search_angles, _search_sizes):
        cut, matrix = _cut(photo, center, size * extent, turn + angle)
        points = _back(mediapipe_models.face_mesh(cut), matrix)
        if points is not None and _is_inside(points, center, extent):
            return points
    return None


def _is_inside(points: Float[np.ndarray, "478 3"], center: Float[np.ndarray, " 2"], extent: float) -> bool:
    """Whether the mesh lies on the face that was asked for, not on a neighbour's."""
    return bool(np.linalg.norm(points[:468, :2].mean(axis=0) - center) < 0.5 * extent)


def refine(
    photo: UInt8[np.ndarray, "h w 3"], points: Float[np.ndarray, "478 3"]
) -> tuple[Float[np.ndarray, "478 3"], Float[np.ndarray, "8 2"] | None]:
    """Level the face by the points found so far and average over moved cuts and their mirror images.

    Returns the mesh and the detector's key points (`mediapipe_models.face_keypoints`; None where it sees no face in the
    levelled cut), in photo pixels. The box's corners are those of the levelled cut.
    """
    left, right = points[EYE_CORNERS[0], :2], points[EYE_CORNERS[1], :2]
    angle = -math.atan2(right[1] - left[1], right[0] - left[0])
    level = similarity(angle, 1.0, np.zeros(2), np.zeros(2))[:, :2]
    turned = points[:468, :2] @ level.T
    low, high = turned.min(axis=0), turned.max(axis=0)
    extent, center = float((high - low).max()), level.T @ ((low + high) / 2)
    meshes, keypoints = [], []
    for (turn, size, dx, dy), mirror in itertools.product(_runs, (False, True)):
        middle = center + level.T @ (size * extent * np.array([dx, dy]))
        mesh, keys = _look(photo, middle, size * extent, angle + turn, mirror)
        if mesh is not None and np.linalg.norm(mesh[:468, :2].mean(axis=0) - center) < 0.5 * extent:
            meshes.append(mesh)
        if keys is not None and np.linalg.norm(keys[:4].mean(axis=0) - center) < 0.5 * extent:
            keypoints.append(keys)
    return np.mean(meshes, axis=0) if meshes else points, np.mean(keypoints, axis=0) if keypoints else None


def _look(
    photo: UInt8[np.ndarray, "h w 3"], center: Float[np.ndarray, " 2"], side: float, angle: float, mirror: bool
) -> tuple[Float[np.ndarray, "478 3"] | None, Float[np.ndarray, "8 2"] | None]:
    """Mesh and key points in a square cut of `side` photo pixels about `center`, turned clockwise by `angle`."""
    cut, matrix = _cut(photo, center, side, angle)
    shown = cut[:, ::-1] if mirror else cut
    mesh, keys = mediapipe_models.face_mesh(shown), mediapipe_models.face_keypoints(shown)
    if mirror and mesh is not None:
        mesh = mesh[mirror_order()] * (-1, 1, 1) + (SIDE, 0, 0)
    if mirror and keys is not None:
        keys = keys * (-1, 1) + (SIDE, 0)
        keys = np.concatenate([keys[[1, 0, 2, 3, 5, 4]], [[keys[7, 0], keys[6, 1]], [keys[6, 0], keys[7, 1]]]])
    return _back(mesh, matrix), _back(keys, matrix)


def _cut(
    photo: UInt8[np.ndarray, "h w 3"], center: Float[np.ndarray, " 2"], side: float, angle: float
) -> tuple[UInt8[np.ndarray, "c c 3"], Float[np.ndarray, "2 3"]]:
    """A square cut of `side` photo pixels about `center`, and the similarity from photo pixels to its own."""
    matrix = similarity(angle, SIDE / side, center, np.array([SIDE / 2, SIDE / 2]))
    return warp(photo, matrix, (SIDE, SIDE), border="reflect"), matrix


def _back(points: np.ndarray | None, matrix: Float[np.ndarray, "2 3"]) -> np.ndarray | None:
    """From the cut's pixels to the photo's; a third coordinate is scaled alike."""
    if points is None:
        return None
    flat = (points[:, :2] - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    return np.concatenate([flat, points[:, 2:] / math.sqrt(np.linalg.det(matrix[:, :2]))], axis=1)
