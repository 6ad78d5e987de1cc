"""Where the person is in a crop: head, neck and shoulders, with edges that follow the picture's.

MediaPipe's selfie segmentation gives a soft mask of 256 x 256; a guided filter (He, Sun and Tang, "Guided Image
Filtering", PAMI 2013) with the crop as its guide then moves the edge onto the hair and the shoulders seen there.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from headlift.errors import FaceError
from headlift.pose_estimation import mediapipe_models
from headlift.pose_estimation.warp import component_at, guided_filter, resize

LEAST_FACE = 0.5
"""Share of the face's landmarks that must lie in the mask; in photos all but a few at the edge of the face do."""
_RADIUS = 0.012
"""Of the guided filter, in crops."""
_EPSILON = 2e-4
"""Its regulariser: variance of the guide (colours in [0, 1]) below which it averages."""


def head_mask(
    crop: UInt8[np.ndarray, "s s 3"], points: Float[np.ndarray, "n 2"] | None = None
) -> Float[np.ndarray, "s s"]:
    """Head, neck and shoulders of the person in the crop: 1 inside, 0 outside, soft at the edges.

    `points` are the face's landmarks in crop fractions: of several people only the one with this face is kept.

    Raises:
        FaceError: the face with these landmarks is not in the mask; the person cannot be told from the background.
    """
    size = crop.shape[0]
    coarse = resize(mediapipe_models.person_mask(resize(crop, (256, 256))), (size, size))
    if points is not None:
        coarse = component_at(coarse > 0.4, points * size) * coarse
    # the network's edge is a ramp some 10 of its pixels wide; its steep middle is the edge
    steep = np.clip((coarse - 0.25) / 0.5, 0, 1)
    radius = max(2, round(_RADIUS * size))
    fine = guided_filter(crop.astype(np.float32) / 255, steep.astype(np.float32), radius, _EPSILON)
    mask = np.clip((fine.astype(np.float64) - 0.1) / 0.8, 0, 1)
    if points is not None:
        column, row = np.clip((points * size).astype(int), 0, size - 1).T
        share = float((mask[row, column] > 0.5).mean())
        if share < LEAST_FACE:
            raise FaceError(
                f"The person cannot be told from the background: {100 * share:.0f} % of the face is found to belong to "
                "somebody. Try a photo with more contrast, lit evenly, before a background of another colour."
            )
    return mask
