"""Regions of the face from its landmarks: what a parsing network (BiSeNet in SPI) tells other systems.

Landmarks are MediaPipe's face mesh in fractions of the crop. The face's region is the inside of the mesh's outline,
from the forehead below the hair to the chin; ears, neck and hair are not told apart.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headlift.invert.warp import pixel_centres, sample

OUTLINE = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
"""The mesh's rim, in order round the face."""
MOUTH = (61, 291, 0, 17)
"""Corners, upper and lower lip."""
EYES = ((33, 133, 159, 145), (362, 263, 386, 374))
"""Corners, upper and lower lid, of the eye to the picture's left and of the other."""
MARGIN = 2.0
"""A part's box is so many times as wide as the part."""

Box = tuple[float, float, float]
"""Middle (x, y) and side of a square, fractions of the picture."""


def inside_polygon(points: Float[np.ndarray, "m 2"], corners: Float[np.ndarray, "k 2"]) -> Bool[np.ndarray, " m"]:
    """Which points a closed polygon holds: a ray to the right of them crosses its rim an odd number of times."""
    x, y = points[:, :1], points[:, 1:]
    start, end = corners, np.roll(corners, -1, axis=0)
    across = (start[:, 1] > y) != (end[:, 1] > y)
    rise = np.where(end[:, 1] == start[:, 1], 1.0, end[:, 1] - start[:, 1])
    crossing = start[:, 0] + (y - start[:, 1]) / rise * (end[:, 0] - start[:, 0])
    odd: Bool[np.ndarray, " m"] = (across & (x < crossing)).sum(1) % 2 == 1
    return odd


def face_mask(landmarks: Float[np.ndarray, "478 2"], side: int) -> Float[Tensor, "1 1 s s"]:
    """1 on pixels whose centre lies inside the face's outline."""
    held = inside_polygon(pixel_centres(side).double().numpy(), landmarks[list(OUTLINE)].astype(np.float64))
    return torch.from_numpy(held.reshape(1, 1, side, side).astype(np.float32))


def part_boxes(landmarks: Float[np.ndarray, "478 2"]) -> tuple[Box, Box, Box]:
    """Squares round the mouth and the two eyes."""
    boxes = []
    for part in (MOUTH, *EYES):
        corners = landmarks[list(part)]
        x, y = (corners.min(0) + corners.max(0)) / 2
        boxes.append((float(x), float(y), MARGIN * float(np.ptp(corners, axis=0).max())))
    return boxes[0], boxes[1], boxes[2]


def cut(maps: Float[Tensor, "n c h w"], box: Box, side: int) -> Float[Tensor, "n c s s"]:
    """A square of feature maps resampled to `side` pixels (bilinear), as ROI-align does with one sample a pixel."""
    x, y, width = box
    uv = (pixel_centres(side, maps.device) - 0.5) * width + torch.tensor([x, y], device=maps.device)
    return sample(maps, uv.to(maps.dtype).expand(len(maps), -1, -1)).reshape(len(maps), -1, side, side)


def mirrored_box(box: Box) -> Box:
    """The same part in the picture flipped left to right."""
    return 1 - box[0], box[1], box[2]
