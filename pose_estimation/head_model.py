"""The 3D landmark model: mean and principal components of the mesh's 468 points in EG3D's world frame, and what was
learned beside it (`learn_head_model.py` makes the file, data/README.md says from what).

Also the one camera that EG3D's crops know, in plain numpy: on the sphere of radius 2.7 about the origin, its axis
through (0, 0, 0.2), the head upright. `headlift.eg3d.camera.orbit` is the same camera for torch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

import numpy as np
from jaxtyping import Float

from headlift.eg3d.camera import FFHQ_FOCAL, FFHQ_PIVOT, FFHQ_RADIUS

POINTS = 468
"""Points of the face's surface; the ten iris points behind them move with the gaze and are not modelled."""
UNKNOWNS = ("yaw", "pitch", "roll", "log scale", "x", "y")
"""What is asked about a face whose points were normalised: the camera's angles (radians), and the similarity from the
normalised points to the crop: turn (radians), logarithm of the scale, shift (crop fractions from the middle)."""


@dataclass(frozen=True)
class Guess:
    """A Gaussian over `UNKNOWNS`."""

    mean: Float[np.ndarray, " 6"]
    covariance: Float[np.ndarray, "6 6"]


@dataclass(frozen=True)
class HeadModel:
    """The landmark model and the regression, as read from the model file."""

    mean: Float[np.ndarray, "468 3"]
    """Mean face, world units."""
    basis: Float[np.ndarray, "k 468 3"]
    """Principal components, each times its standard deviation: coefficients are standard normal."""
    noise: Float[np.ndarray, " 468"]
    """What the model leaves unexplained of a found point at the true camera: standard deviation, crop fractions."""
    template: Float[np.ndarray, "468 2"]
    """The frontal face that points are normalised to, crop fractions about its own centre."""
    features: Float[np.ndarray, "d f"]
    """From the normalised coordinates (less their mean) to whitened features."""
    features_mean: Float[np.ndarray, " d"]
    features_scale: Float[np.ndarray, " f"]
    """Of the features on their way into the network."""
    ridge: Float[np.ndarray, "f+1 6"]
    """Of the linear regression from features to `UNKNOWNS`, offsets in the last row."""
    network: Mapping[str, Float[np.ndarray, ...]]
    """Of the networks that correct it (`regression.network`), along the first axis."""
    guess_covariance: Float[np.ndarray, "6 6"]
    """Of the regression's errors on heads it was not trained on."""

    def shape(self, coefficients: Float[np.ndarray, " k"]) -> Float[np.ndarray, "468 3"]:
        """World positions of the points of one head."""
        return self.mean + np.tensordot(coefficients, self.basis, axes=1)


@functools.cache
def load_head_model() -> HeadModel:
    """The model that ships with the package."""
    source = resources.files("headlift.pose_estimation.data").joinpath("head_model.npz")
    with resources.as_file(source) as path, np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name].astype(np.float64) for name in file.files}
    network = {name.removeprefix("net_"): arrays[name] for name in arrays if name.startswith("net_")}
    single = {name: arrays[name] for name in arrays if not name.startswith("net_") and name != "mirror"}
    return HeadModel(network=network, **single)


def orbit_axes(yaw: float, pitch: float) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, " 3"]]:
    """Rotation from camera to world (columns right, down, forward) and position of EG3D's FFHQ camera."""
    origin = FFHQ_RADIUS * np.array([np.cos(pitch) * np.sin(yaw), np.sin(pitch), np.cos(pitch) * np.cos(yaw)])
    forward = np.array(FFHQ_PIVOT) - origin
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, (0.0, 1.0, 0.0))
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward], axis=1), origin


def project(
    yaw: float, pitch: float, points: Float[np.ndarray, "n 3"]
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n 2 3"]]:
    """Crop fractions of world points under EG3D's FFHQ camera, and their derivatives with respect to the points."""
    rotation, origin = orbit_axes(yaw, pitch)
    local = (points - origin) @ rotation
    flat = local[:, :2] / local[:, 2:]
    slopes = np.zeros((len(points), 2, 3))
    slopes[:, 0, 0] = slopes[:, 1, 1] = 1.0
    slopes[:, :, 2] = -flat
    slopes *= (FFHQ_FOCAL / local[:, 2])[:, None, None]
    return FFHQ_FOCAL * flat + 0.5, slopes @ rotation.T


def normalise(
    points: Float[np.ndarray, "468 2"], template: Float[np.ndarray, "468 2"]
) -> tuple[Float[np.ndarray, "468 2"], complex, Float[np.ndarray, " 2"]]:
    """Points brought onto the template by the best similarity (Procrustes): normalised points, the complex number that
    turned and scaled them about their mean, and that mean."""
    center = points.mean(axis=0)
    z = (points - center) @ (1, 1j)
    factor = complex(np.vdot(z, template @ (1, 1j)) / np.vdot(z, z).real)
    moved = z * factor
    return np.stack([moved.real, moved.imag], axis=1), factor, center
