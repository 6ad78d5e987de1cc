"""What travels between the parts of headlift: plain frozen values, no behaviour beyond conversions.

Frames and units are those of the README's table of conventions: cameras in OpenCV axes (x right, y down,
z forward), the world of EG3D (y up, face looks along +z, head around the origin), pixel i's centre at i + 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Camera:
    """Pinhole cameras, one for each entry of the leading batch axes.

    `cam2world` [*b, 4, 4] takes camera coordinates (OpenCV axes) to EG3D's world; `intrinsics` [*b, 3, 3] is
    normalised by the image side, so that a point projects into [0, 1] x [0, 1] inside the picture.
    """

    cam2world: Float[Tensor, "*b 4 4"]
    intrinsics: Float[Tensor, "*b 3 3"]

    @classmethod
    def from_label(cls, label: Float[Tensor, "*b 25"]) -> Camera:
        """Read EG3D's camera label: 16 numbers of cam2world row by row, then 9 of the intrinsics."""
        batch = label.shape[:-1]
        return cls(label[..., :16].reshape(*batch, 4, 4), label[..., 16:].reshape(*batch, 3, 3))

    @property
    def label(self) -> Float[Tensor, "*b 25"]:
        """EG3D's camera label, the inverse of `from_label`."""
        return torch.cat([self.cam2world.flatten(-2), self.intrinsics.flatten(-2)], dim=-1)

    @property
    def origin(self) -> Float[Tensor, "*b 3"]:
        """Position of the camera's centre in world units."""
        return self.cam2world[..., :3, 3]

    @property
    def rotation(self) -> Float[Tensor, "*b 3 3"]:
        """Rotation from camera to world; its columns are the camera's right, down and forward axes."""
        return self.cam2world[..., :3, :3]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Camera:
        """The same cameras on another device or in another precision."""
        return Camera(self.cam2world.to(device=device, dtype=dtype), self.intrinsics.to(device=device, dtype=dtype))

    def __getitem__(self, index: int | slice | Tensor) -> Camera:
        return Camera(self.cam2world[index], self.intrinsics[index])

    def __len__(self) -> int:
        return int(self.cam2world.shape[0])


@dataclass(frozen=True)
class RenderOutput:
    """What the renderer returns for a batch of n cameras."""

    image: Float[Tensor, "n 3 h w"]
    """The super-resolved picture, RGB in about [-1, 1]."""
    raw: Float[Tensor, "n 3 r r"]
    """The first three channels of `features`: the volume's own colours, RGB in about [-1, 1]."""
    features: Float[Tensor, "n f r r"]
    """The composited feature map that super-resolution starts from."""
    depth: Float[Tensor, "n 1 r r"]
    """Expected distance along the ray (not z-depth), world units."""
    alpha: Float[Tensor, "n 1 r r"]
    """Accumulated opacity in [0, 1]."""


@dataclass(frozen=True)
class Similarity:
    """A rotation, uniform scale and shift from photo pixels to the crop's unit square.

    Photo coordinates are continuous pixels (the centre of pixel i is i + 0.5); crop coordinates are fractions of
    the crop's side, (0, 0) its upper left and (1, 1) its lower right corner, so no crop resolution is implied.
    """

    matrix: Float[np.ndarray, "2 3"]

    def apply(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Photo pixels to crop fractions."""
        return points @ self.matrix[:, :2].T + self.matrix[:, 2]

    def inverse(self) -> Similarity:
        """Crop fractions to photo pixels."""
        linear = np.linalg.inv(self.matrix[:, :2])
        return Similarity(np.concatenate([linear, -linear @ self.matrix[:, 2:]], axis=1))

    @property
    def scale(self) -> float:
        """Crop fractions for one photo pixel; its inverse is the crop's side in photo pixels."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix[:, :2]))))

    @property
    def roll(self) -> float:
        """Rotation applied to the photo to level the head, radians, positive clockwise on the screen."""
        return float(np.arctan2(self.matrix[1, 0], self.matrix[0, 0]))


@dataclass(frozen=True)
class Face:
    """One face found in a photo; all coordinates are continuous photo pixels."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom."""
    score: float
    """The detector's confidence in [0, 1]."""
    landmarks: Float[np.ndarray, "478 3"]
    """MediaPipe's face mesh: x and y in photo pixels, z in the same unit, smaller towards the camera."""


@dataclass(frozen=True)
class Finding:
    """One line of a verdict: a measured number beside the limit it was held against."""

    name: str
    value: float
    limit: float
    ok: bool
    message: str


@dataclass(frozen=True)
class Verdict:
    """Whether a photo is likely to invert well, with the number behind each doubt."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return all(f.ok for f in self.findings)


@dataclass(frozen=True)
class Crop:
    """A photo brought into EG3D's crop, with the camera that saw it and the way back into the photo."""

    image: Float[Tensor, "1 3 s s"]
    """RGB in [-1, 1], the photo as it is, with its background."""
    mask: Float[Tensor, "1 1 s s"]
    """Head, neck and shoulders, 1 inside, soft at the edges."""
    camera: Camera
    """The camera that belongs to `image` (batch of one)."""
    similarity: Similarity
    face: Face
    residual: float
    """Robust root-mean-square distance of fitted to found landmarks, as a fraction of the crop's side."""
    covariance: Float[np.ndarray, "2 2"]
    """Of (yaw, pitch), radians squared."""
    verdict: Verdict
    model_points: Float[np.ndarray, "468 3"] | None = None
    """The fitted head model's points, world units: what `camera` projects to the face's landmarks in the crop."""
    frame: Literal["ffhq", "embedded"] | None = None
    """Whose heads look straight ahead where this camera's angles are 0, if it was estimated."""
    on_white: bool = False
    """`image` is a cut-out that was laid on white by `mask` already."""


@dataclass(frozen=True)
class Step:
    """One step of an optimisation, for whoever shows the progress."""

    stage: str
    index: int
    """Steps done in this stage, from 1."""
    total: int
    """Steps this stage takes at most."""
    losses: Mapping[str, float] = field(default_factory=dict)
    image: UInt8[np.ndarray, "h w 3"] | None = None
    """The current render, now and then."""
