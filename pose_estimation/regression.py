"""A first guess at the camera, learned: from the normalised points to yaw, pitch and the crop's similarity.

Linear on whitened principal components of the mesh's points and the detector's key points, plus a small correction.
`learn_head_model.py` trains it on synthetic heads and measures its errors on heads it was not trained on.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from headlift.pose_estimation.head_model import POINTS, Guess, HeadModel, normalise

KAPPA = 30.0
"""How many of the mesh's points are worth one independent measurement beside the guess (chosen on training heads)."""


def coordinates(
    points: Float[np.ndarray, "p d"], keys: Float[np.ndarray, "8 2"] | None, template: Float[np.ndarray, "468 2"]
) -> tuple[Float[np.ndarray, "952"], complex, Float[np.ndarray, "2"]]:
    """The 468 points and 8 key points, normalised, in one row; with the factor and the centre of the normalisation.

    Missing key points (None) are NaN.
    """
    moved, factor, center = normalise(points[:POINTS, :2], template)
    if keys is None:
        turned = np.full((8, 2), np.nan)
    else:
        z = ((keys - center) @ (1, 1j)) * factor
        turned = np.stack([z.real, z.imag], axis=1)
    return np.concatenate([moved.ravel(), turned.ravel()]), factor, center


def guess(points: Float[np.ndarray, "p d"], keys: Float[np.ndarray, "8 2"] | None, model: HeadModel) -> Guess:
    """What the regression says of the camera and the similarity, with the spread of its errors on new heads."""
    row, _, _ = coordinates(points, keys, model.template)
    row = np.where(np.isnan(row), model.features_mean, row)
    features = (row - model.features_mean) @ model.features
    linear, *layers = model.weights
    mean = np.append(features, 1.0) @ linear
    hidden = np.clip(features, -6, 6)
    for index, layer in enumerate(layers):
        hidden = np.append(hidden, 1.0) @ layer
        if index < len(layers) - 1:
            hidden = np.tanh(hidden)
    if layers:
        mean = mean + hidden
    return Guess(mean, model.guess_covariance)
