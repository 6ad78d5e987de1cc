"""Folders that show each head from several sides with known cameras: what a prior is measured on.

A folder holds `dataset.json` (`labels: [[name, 25 numbers], ...]`, EG3D's camera labels) and the pictures it names:
square, RGBA, straight alpha. The head that a picture shows is its name up to the last underscore. `NAME_depth.png`
beside a picture `NAME.*`, where there is one, is its depth: 16 bit, the distance along the ray in counts of 1e-4 world
units, 0 where there is nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headlift.eg3d.camera import FFHQ_FOCAL, yaw_pitch
from headlift.errors import DataError
from headlift.export.images import DEPTH_STEP
from headlift.values import Camera

LABELS = "dataset.json"
FOCAL_TOLERANCE = 0.05
"""Cameras whose focal length (over the picture's side) is this near to FFHQ's take crops of the face."""
MOST_FRONTAL = 15.0
"""The view that is inverted is at most so far from the front, degrees."""
LARGEST = 4096
"""Pictures with a longer side are refused, pixels."""


@dataclass(frozen=True)
class View:
    """One picture with the camera that saw it."""

    image: Path
    """RGBA, straight alpha."""
    label: tuple[float, ...]
    """EG3D's camera label, 25 numbers."""
    depth: Path | None
    """16-bit depth; None where there is none."""

    @property
    def camera(self) -> Camera:
        """The camera (batch of one)."""
        return Camera.from_label(torch.tensor([self.label], dtype=torch.float32))

    @property
    def yaw(self) -> float:
        """Of the camera, degrees in (-180, 180]; from behind it is 180 in spite of the label's rounding."""
        degrees = math.degrees(float(yaw_pitch(self.camera)[0]))
        return degrees + 360 if degrees < -179.99 else degrees

    @property
    def from_front(self) -> float:
        """Angle between the camera's place and the front, degrees."""
        x, y, z = (self.label[i] for i in (3, 7, 11))
        return math.degrees(math.atan2(math.hypot(x, y), z))

    @property
    def is_crop(self) -> bool:
        """Taken with the lens of EG3D's crops of faces, not with the wider one."""
        return abs(self.label[16] - FFHQ_FOCAL) < FOCAL_TOLERANCE


@dataclass(frozen=True)
class HeadViews:
    """One head: the view that goes in as the photo, and those that its reconstruction is held against."""

    name: str
    photo: View
    others: tuple[View, ...]

    @property
    def views(self) -> tuple[View, ...]:
        """All of them, the photo first."""
        return (self.photo, *self.others)

    def seen_from(self, yaw: float) -> HeadViews:
        """The same head with the face crop nearest to that yaw (degrees) as the photo."""
        photo = min((view for view in self.views if view.is_crop), key=lambda view: abs(view.yaw - yaw))
        return HeadViews(self.name, photo, _in_order(view for view in self.views if view is not photo))

    def digest(self) -> str:
        """A sha256 of everything that is measured: pictures, depths and cameras."""
        digest = hashlib.sha256()
        for view in self.views:
            digest.update(json.dumps(view.label).encode())
            for path in (view.image, view.depth):
                digest.update(b"none" if path is None else hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


@dataclass(frozen=True)
class Picture:
    """A decoded view."""

    colour: Float[Tensor, "1 3 s s"]
    """RGB in [-1, 1], straight."""
    alpha: Float[Tensor, "1 1 s s"]
    """Opacity in [0, 1]."""

    def over(self, ground: float) -> Float[Tensor, "1 3 s s"]:
        """The picture over a plain ground: 1 for white, 0 for mid-grey."""
        return self.colour * self.alpha + ground * (1 - self.alpha)


def read_folder(folder: Path) -> tuple[HeadViews, ...]:
    """The heads of a folder, in the order of their names; everything but the pixels is checked.

    Raises:
        DataError: there is no such folder, or it is not of this form; the message names the file and what is wrong.
    """
    if folder.is_file():
        raise DataError(f"{folder} is a file; unpack it first, and give the folder that holds {LABELS}.")
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.")
    groups: dict[str, list[View]] = defaultdict(list)
    for name, label in read_labels(folder):
        groups[_head_of(name, folder)].append(_view(folder, name, label))
    return tuple(_head(name, groups[name]) for name in sorted(groups))


def read_picture(view: View) -> Picture:
    """The pixels of a view. Raises DataError when they cannot be decoded, or nothing is opaque in them."""
    pixels = _decoded(view.image, "RGBA").astype(np.float32) / 255
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    if not bool((tensor[:, 3:] > 0.5).any()):
        raise DataError(f"{view.image} shows nothing: no pixel is opaque.")
    return Picture(tensor[:, :3] * 2 - 1, tensor[:, 3:])


def read_depth(path: Path) -> Float[Tensor, "1 1 s s"]:
    """Distance along the ray, world units; 0 where there is nothing. Raises DataError when it cannot be decoded."""
    return torch.from_numpy(_decoded(path, None).astype(np.float32) * DEPTH_STEP)[None, None]


def read_labels(folder: Path) -> list[tuple[str, list[float]]]:
    """Names of pictures with their camera labels, from `dataset.json`. Raises DataError when it is not of that form."""
    path = folder / LABELS
    try:
        table: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path.parent} has no {LABELS}: it is not a folder of heads with camera labels. Give the folder that "
            f"holds {LABELS} itself."
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON ({error}).") from None
    labels = table.get("labels") if isinstance(table, dict) else None
    if not isinstance(labels, list) or not labels:
        raise DataError(f"{path} has no list `labels` of [picture, 25 numbers].")
    for entry in labels:
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and _is_label(entry[1])):
            raise DataError(f"{path}: {str(entry)[:80]} is not [picture, 25 numbers].")
    return [(name, [float(v) for v in label]) for name, label in labels]


def labelled_picture(folder: Path, name: str, label: Sequence[float]) -> Path:
    """Where a picture that `read_labels` names lies.

    Raises:
        DataError: outside the folder; or its label is no camera.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{folder / LABELS}: {name!r} lies outside the folder.")
    cam2world = np.array(label[:16]).reshape(4, 4)
    rotation = cam2world[:3, :3]
    turned = np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) and np.linalg.det(rotation) > 0
    if not turned or not np.allclose(cam2world[3], [0, 0, 0, 1], atol=1e-6) or label[16] <= 0:
        raise DataError(
            f"{folder / LABELS}: the label of {name} is no camera (16 numbers of cam2world, 9 of intrinsics)."
        )
    return path


def check_header(path: Path, modes: tuple[str, ...] = (), partner: Path | None = None) -> None:
    """Hold a picture's header against what is expected: its kind (any without `modes`), that it is square, and its
    partner's size. Raises DataError when it is not there or otherwise."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            mode, size = image.mode, image.size
    except FileNotFoundError:
        raise DataError(f"{path} is named in {LABELS}, but is not there; unpack the whole archive.") from None
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError):
        raise DataError(f"{path} cannot be read as a picture.") from None
    wanted = "with transparency (RGBA)" if "RGBA" in modes else "of 16 bit"
    if modes and mode not in modes:
        raise DataError(f"{path} is a picture of the kind {mode}; it must be one {wanted}.")
    if size[0] != size[1] or size[0] > LARGEST:
        raise DataError(f"{path} is {size[0]} x {size[1]} pixels; pictures must be square, {LARGEST} at most.")
    if partner is not None:
        with Image.open(partner) as image:
            if image.size != size:
                raise DataError(f"{path} is {size[0]} pixels wide and its picture {image.size[0]}; they must agree.")


def _is_label(label: object) -> bool:
    return (
        isinstance(label, list)
        and len(label) == 25
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in label)
    )


def _head_of(name: str, folder: Path) -> str:
    head, underscore, _ = Path(name).stem.rpartition("_")
    if not underscore or not head:
        raise DataError(
            f"{folder / LABELS}: the name {name!r} does not say which head it shows; pictures are called HEAD_VIEW, "
            "such as head000_yaw+030.webp."
        )
    return head


def _view(folder: Path, name: str, label: Sequence[float]) -> View:
    path = labelled_picture(folder, name, label)
    check_header(path, ("RGBA",))
    depth = path.with_name(f"{path.stem}_depth.png")
    if not depth.exists():
        return View(path, tuple(label), None)
    check_header(depth, ("I;16", "I"), path)
    return View(path, tuple(label), depth)


def _decoded(path: Path, mode: str | None) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode) if mode else image)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); unpack the archive again.") from None


def _head(name: str, views: Sequence[View]) -> HeadViews:
    frontal = min((v for v in views if v.is_crop), key=lambda v: v.from_front, default=None)
    if frontal is None or frontal.from_front > MOST_FRONTAL:
        raise DataError(
            f"{name} has no view from the front (within {MOST_FRONTAL:.0f} degrees, focal length {FFHQ_FOCAL}), which "
            "is needed as the photo."
        )
    others = _in_order(view for view in views if view is not frontal)
    if not others:
        raise DataError(f"{name} has a single view; others are needed to measure its reconstruction.")
    return HeadViews(name, frontal, others)


def _in_order(views: Iterable[View]) -> tuple[View, ...]:
    return tuple(sorted(views, key=lambda view: (abs(round(view.yaw)), view.yaw)))
