"""Two conventions for a face that looks straight ahead, and the way from one to the other.

The head model is learned from synthetic heads, whose "straight ahead" is an artist's. FFHQ's published labels are those
of a fitted face model whose mean face holds its chin further forward: against the five standard points that EG3D's
crops of FFHQ were aligned to (centres of the eyes, tip of the nose, corners of the mouth), the mean synthetic face has
to be turned up by 3.7 degrees. So the same photo has a camera 3.7 degrees higher in FFHQ's frame. What is fitted is
fitted in the synthetic frame, that of the embedded prior, and brought into FFHQ's afterwards.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from headlift.eg3d.camera import FFHQ_PIVOT, FFHQ_RADIUS
from headlift.pose_estimation.fit import Fit
from headlift.pose_estimation.head_model import orbit_axes, project
from headlift.values import Similarity

FFHQ_TILT = math.radians(3.7)
"""How far the synthetic heads are turned up to look straight ahead in FFHQ's frame, radians (best rotation of the
model's eye centres, nose tip and mouth corners onto the five standard points)."""
_TURN_ABOUT = np.array([0.0, -0.02, 0.19])
"""The middle between eyes and mouth, which both frames have at the same place, world units."""


def to_ffhq(fitted: Fit, tilt: float = FFHQ_TILT) -> Fit:
    """The same fit with the head turned up by `tilt` (radians): its camera, crop and points in FFHQ's frame.

    The camera's rotation is carried along exactly; the crop is then the one that the FFHQ camera of that direction
    sees, which meets the sphere and the pivot again, so the similarity changes a little too.
    """
    upwards = _upwards(tilt)
    points = (fitted.points - _TURN_ABOUT) @ upwards.T + _TURN_ABOUT
    yaw, pitch = angles_of(upwards @ orbit_axes(fitted.yaw, fitted.pitch)[0][:, 2])
    seen, _ = project(fitted.yaw, fitted.pitch, fitted.points)
    wanted, _ = project(yaw, pitch, points)
    move = _procrustes(seen, wanted)
    linear = move[:, :2] @ fitted.similarity.matrix
    linear[:, 2] += move[:, 2]
    return replace(fitted, yaw=yaw, pitch=pitch, points=points, similarity=Similarity(linear))


def from_ffhq(cam2world: Float[np.ndarray, "4 4"], tilt: float = FFHQ_TILT) -> Float[np.ndarray, "4 4"]:
    """A camera of FFHQ's frame in that of the synthetic heads: the same picture of a head that is turned back down."""
    back = np.eye(4)
    back[:3, :3] = _upwards(tilt).T
    back[:3, 3] = _TURN_ABOUT - back[:3, :3] @ _TURN_ABOUT
    return back @ cam2world


def _upwards(tilt: float) -> Float[np.ndarray, "3 3"]:
    """Turns a head up by `tilt` (radians) about the world's x axis."""
    c, s = math.cos(tilt), math.sin(tilt)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, s], [0.0, -s, c]])


def angles_of(forward: Float[np.ndarray, " 3"]) -> tuple[float, float]:
    """Yaw and pitch (radians) of the camera on EG3D's sphere that looks along `forward` (unit vector) at the pivot."""
    pivot = np.array(FFHQ_PIVOT)
    along = float(pivot @ forward)
    distance = along + math.sqrt(along**2 - float(pivot @ pivot) + FFHQ_RADIUS**2)
    x, y, z = pivot - distance * forward
    return math.atan2(x, z), math.atan2(y, math.hypot(x, z))


def _procrustes(source: Float[np.ndarray, "n 2"], target: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "2 3"]:
    """The similarity that takes `source` nearest to `target`."""
    a, b = source.mean(axis=0), target.mean(axis=0)
    z, w = (source - a) @ (1, 1j), (target - b) @ (1, 1j)
    factor = complex(np.vdot(z, w) / np.vdot(z, z).real)
    linear = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return np.concatenate([linear, (b - linear @ a)[:, None]], axis=1)
