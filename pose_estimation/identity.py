"""Who a face belongs to: FaceNet's embeddings of the faces in pictures, once its weights are on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from headlift.pose_estimation import facenet
from headlift.pose_estimation.detect import find_boxes

MARGIN = 1.1
"""The square that is cut round a face, in sides of its box."""

Picture = UInt8[np.ndarray, "_ _ 3"]
Recogniser = Callable[[Sequence[np.ndarray]], np.ndarray]
"""From pictures to one vector each [n, 512] of length 1, NaN where there is no face; cosines say how alike two are."""


def recogniser(weights: Path) -> Recogniser:
    """The network, with weights from that file. Raises WeightsError when the file holds something else."""
    network = facenet.identity_network(weights)

    def embed(pictures: Sequence[np.ndarray]) -> np.ndarray:
        faces = [face_of(picture) for picture in pictures]
        nobody = np.full(facenet.EMBEDDING, np.nan, dtype=np.float32)
        return np.stack([nobody if face is None else facenet.embedding(face, network) for face in faces])

    return embed


def face_of(picture: Picture) -> UInt8[np.ndarray, "s s 3"] | None:
    """The largest face of a picture in a square cut, the picture's edge repeated where it ends; None without a face."""
    boxes = find_boxes(picture)
    if not boxes:
        return None
    left, top, right, bottom = boxes[0].box
    side = max(1, round(MARGIN * max(right - left, bottom - top)))
    x, y = round((left + right - side) / 2), round((top + bottom - side) / 2)
    rows = np.clip(np.arange(y, y + side), 0, picture.shape[0] - 1)
    columns = np.clip(np.arange(x, x + side), 0, picture.shape[1] - 1)
    return np.ascontiguousarray(picture[rows][:, columns])


def likeness(a: Float[np.ndarray, " 512"], b: Float[np.ndarray, " 512"]) -> float | None:
    """Cosine of two embeddings; None where one has no face."""
    value = float(a @ b)
    return None if np.isnan(value) else value
