"""The one place where OpenCV is imported: similarity warps, resampling and the guided filter.

Coordinates are continuous pixels throughout (the centre of pixel i is i + 0.5), unlike OpenCV's own.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

Border = Literal["reflect", "constant", "edge"]


@functools.cache
def _cv2() -> Any:
    import cv2

    return cv2


def similarity(
    angle: float, scale: float, source: Float[np.ndarray, " 2"], target: Float[np.ndarray, " 2"]
) -> Float[np.ndarray, "2 3"]:
    """The similarity that turns by `angle` (radians, clockwise on the screen), scales, takes `source` to `target`."""
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    linear = np.array([[c, -s], [s, c]])
    return np.concatenate([linear, (target - linear @ source)[:, None]], axis=1)


def warp(
    image: Shaped[np.ndarray, "h w *c"],
    matrix: Float[np.ndarray, "2 3"],
    size: tuple[int, int],
    border: Border = "reflect",
) -> Shaped[np.ndarray, "H W *c"]:
    """Resample `image` under `matrix`, which takes its continuous pixels to those of the result of `size` (w, h).

    Where the result is smaller than the original, the original is first averaged over whole blocks, so that nothing
    aliases; then it is sampled bicubically (bilinearly for floats, which then stay within their range).
    """
    cv2 = _cv2()
    shrink = max(1, int(1.0 / max(1e-6, math.sqrt(abs(np.linalg.det(matrix[:, :2]))))))
    if shrink > 1:
        small = (max(1, image.shape[1] // shrink), max(1, image.shape[0] // shrink))
        ratio = np.array([image.shape[1] / small[0], image.shape[0] / small[1]])
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        matrix = np.concatenate([matrix[:, :2] * ratio, matrix[:, 2:]], axis=1)
    if max(image.shape[:2]) > _LARGEST:
        image, matrix = _around(image, matrix, size)
    # continuous pixels -> OpenCV's, whose pixel i has its centre at i
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    modes = {"reflect": cv2.BORDER_REFLECT_101, "constant": cv2.BORDER_CONSTANT, "edge": cv2.BORDER_REPLICATE}
    flags = cv2.INTER_CUBIC if image.dtype == np.uint8 else cv2.INTER_LINEAR
    return cv2.warpAffine(image, shifted, size, flags=flags, borderMode=modes[border])


_LARGEST = 30_000
"""Longest side of a picture that OpenCV's warp takes whole, pixels (it counts them in 16 bits)."""


def _around(
    image: Shaped[np.ndarray, "h w *c"], matrix: Float[np.ndarray, "2 3"], size: tuple[int, int]
) -> tuple[Shaped[np.ndarray, "_ _ *c"], Float[np.ndarray, "2 3"]]:
    """The part of a very large picture around what `matrix` brings into a result of `size` (w, h), and its matrix."""
    middle = np.linalg.solve(matrix[:, :2], np.array(size) / 2 - matrix[:, 2])
    room = np.maximum(np.array(image.shape[1::-1]) - _LARGEST, 0)
    first = np.clip(middle - _LARGEST / 2, 0, room).astype(int)
    part = image[first[1] : first[1] + _LARGEST, first[0] : first[0] + _LARGEST]
    return part, np.concatenate([matrix[:, :2], (matrix[:, 2] + matrix[:, :2] @ first)[:, None]], axis=1)


def resize(image: Shaped[np.ndarray, "h w *c"], size: tuple[int, int]) -> Shaped[np.ndarray, "H W *c"]:
    """Resample to `size` (w, h): by averaging areas when shrinking, bilinearly when growing."""
    cv2 = _cv2()
    shrinks = size[0] < image.shape[1]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def blur(image: Shaped[np.ndarray, "h w *c"], sigma: float) -> Shaped[np.ndarray, "h w *c"]:
    """Gaussian blur, `sigma` in pixels."""
    return _cv2().GaussianBlur(image, (0, 0), sigma)


def distance_outside(inside: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Distance in pixels of each pixel to the nearest one inside; 0 inside."""
    cv2 = _cv2()
    return cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, 5).astype(np.float64)


def component_at(mask: Bool[np.ndarray, "h w"], points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "h w"]:
    """The connected piece of `mask` that holds most of `points` (x, y in pixels), as 0 and 1, a little widened."""
    cv2 = _cv2()
    _, labels = cv2.connectedComponents(mask.astype(np.uint8))
    column = np.clip(points[:, 0].astype(int), 0, mask.shape[1] - 1)
    row = np.clip(points[:, 1].astype(int), 0, mask.shape[0] - 1)
    votes = np.bincount(labels[row, column], minlength=2)
    votes[0] = 0
    if votes.max() == 0:
        return np.ones(mask.shape)
    piece = (labels == votes.argmax()).astype(np.uint8)
    width = max(3, mask.shape[0] // 40) | 1
    return cv2.dilate(piece, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))).astype(np.float64)


def guided_filter(
    guide: Float[np.ndarray, "h w 3"], image: Float[np.ndarray, "h w"], radius: int, epsilon: float
) -> Float[np.ndarray, "h w"]:
    """He's guided filter with a colour guide in [0, 1], whose windows have a side of 2 radius + 1 pixels.

    `epsilon` is the variance of the guide below which it averages.
    """
    # OpenCV gives up where a covariance's determinant is tiny, as on grey guides in [0, 1]: hence 255 of everything
    return _cv2().ximgproc.guidedFilter(guide * 255, image, radius, epsilon * 255**2)


def sharpness(image: UInt8[np.ndarray, "h w 3"]) -> float:
    """Energy of the finest detail in proportion to that of detail twice to four times as coarse; falls with blur.

    The ratio of the standard deviations of two bands (differences of Gaussians at 0.7/1.4 and 1.4/2.8 pixels) of the
    grey picture: 0.6 to 0.8 on sharp faces, about 0.4 when blurred by 1.5 pixels. Contrast cancels.
    """
    cv2 = _cv2()
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    levels = [cv2.GaussianBlur(grey, (0, 0), s) for s in (0.7, 1.4, 2.8)]
    return float(np.std(levels[0] - levels[1]) / max(np.std(levels[1] - levels[2]), 1e-6))
