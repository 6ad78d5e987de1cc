"""Whether a photo is likely to invert well, before minutes are spent: each doubt with its number and its limit."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import UInt8

from headlift.config import PoseConfig
from headlift.pose_estimation.crop import inside_photo
from headlift.pose_estimation.fit import Fit
from headlift.pose_estimation.warp import sharpness, warp
from headlift.values import Face, Finding, Similarity, Verdict

SMALLEST_CROP = 128.0
"""Side of the crop in photo pixels: half of the embedded prior's 256; below, most of what is matched is invented."""
LEAST_SHARPNESS = 0.42
"""`warp.sharpness` of the face at 256 pixels a crop."""
MOST_CUT_OFF = 0.06
"""Share of the head's outline that may lie beyond the photo's edge."""
WIDEST_TURN = 50.0
"""Degrees of yaw up to which both halves of the face are seen well enough."""
STEEPEST_PITCH = 30.0
"""Degrees up or down; training photos hardly go beyond."""
LARGEST_RESIDUAL = 0.02
"""Crop fractions: faces that the head model cannot follow lie above, drawings and masks for one."""
LEAST_SCORE = 0.9
"""Of the detector: lower for drawings, statues, covered faces."""


MOST_FLAT = 0.5
"""Share of the face's pixels equal to their neighbour: 0.01 to 0.08 in photos, 0.9 in a drawing."""


def judge(
    photo: UInt8[np.ndarray, "h w 3"], face: Face, fitted: Fit, faces: int, taken: int, config: PoseConfig
) -> Verdict:
    """The verdict on a fitted face: number `taken`, counted from the largest, of so many `faces` (never a doubt)."""
    side = 1.0 / fitted.similarity.scale
    sharp = _face_sharpness(photo, face, fitted.similarity)
    flat = _flatness(photo, face)
    beyond = cut_off((photo.shape[0], photo.shape[1]), fitted.similarity)
    turn, pitch = math.degrees(abs(fitted.yaw)), math.degrees(abs(fitted.pitch))
    widest = min(WIDEST_TURN, config.max_yaw)
    several = f"{faces} faces in the photo; number {taken} is taken (1 is the largest), --face N chooses another"
    return Verdict(
        (
            Finding("faces", float(faces), 1.0, True, several if faces > 1 else "one face"),
            _at_least("size", side, SMALLEST_CROP, f"the crop spans {side:.0f} pixels of the photo"),
            _at_least("sharpness", sharp, LEAST_SHARPNESS, f"sharpness of the face {sharp:.2f}"),
            _at_most("cut off", beyond, MOST_CUT_OFF, f"{100 * beyond:.0f} % of the head is beyond the photo's edge"),
            _at_most("turn", turn, widest, f"turned {turn:.0f} degrees to the side"),
            _at_most("pitch", pitch, STEEPEST_PITCH, f"seen from {pitch:.0f} degrees above or below"),
            _at_most(
                "residual",
                fitted.residual,
                LARGEST_RESIDUAL,
                f"the head model misses the found points by {100 * fitted.residual:.2f} % of the crop",
            ),
            _at_most("flatness", flat, MOST_FLAT, f"{100 * flat:.0f} % of the face is flat colour"),
            _at_least("score", face.score, LEAST_SCORE, f"the detector is {100 * face.score:.0f} % sure of the face"),
        )
    )


def cut_off(shape: tuple[int, int], similarity: Similarity) -> float:
    """Share of an average head's outline in the crop that lies beyond the edge of a photo of `shape` (h, w)."""
    size = 128
    inside = inside_photo(shape, similarity, size)
    ticks = (np.arange(size) + 0.5) / size
    head = ((ticks[None] - 0.5) / 0.36) ** 2 + ((ticks[:, None] - 0.47) / 0.45) ** 2 <= 1
    return float((head & ~inside).sum() / head.sum())


def _face_sharpness(photo: UInt8[np.ndarray, "h w 3"], face: Face, similarity: Similarity) -> float:
    size = 256
    crop = warp(photo, similarity.matrix * size, (size, size), border="reflect")
    points = similarity.apply(face.landmarks[:, :2]) * size
    low = np.clip(np.floor(points.min(axis=0)).astype(int), 0, size - 16)
    high = np.clip(np.ceil(points.max(axis=0)).astype(int), low + 16, size)
    return sharpness(crop[low[1] : high[1], low[0] : high[0]])


def _flatness(photo: UInt8[np.ndarray, "h w 3"], face: Face) -> float:
    """Share of the face's pixels that equal their right neighbour exactly: noise keeps it low in photos."""
    height, width = photo.shape[:2]
    left, top = np.clip(face.landmarks[:, :2].min(axis=0).astype(int), 0, (width - 2, height - 1))
    right, bottom = np.clip(face.landmarks[:, :2].max(axis=0).astype(int) + 2, (left + 2, top + 1), (width, height))
    pixels = photo[top:bottom, left:right].astype(np.int16)
    return float((np.diff(pixels, axis=1) == 0).all(axis=-1).mean())


def _at_least(name: str, value: float, limit: float, said: str) -> Finding:
    ok = value >= limit
    return Finding(name, value, limit, ok, said if ok else f"{said}, at least {limit:g} is better")


def _at_most(name: str, value: float, limit: float, said: str) -> Finding:
    ok = value <= limit
    return Finding(name, value, limit, ok, said if ok else f"{said}, at most {limit:g} is better")
