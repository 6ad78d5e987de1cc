"""What inversion methods are measured on: photos, heads seen from several sides, and the prior's own samples.

A `Source` is light and says where an image comes from; `load` makes a `Subject` of it: the crop that goes in, and all
that is known of the truth. The other way to read this file: from `find_sources`.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from headlift.config import PoseConfig
from headlift.eg3d.camera import FFHQ_PIVOT, orbit, yaw_pitch
from headlift.eg3d.generator import Generator
from headlift.errors import DataError, FaceError
from headlift.evaluate.metrics import ALPHA_SIDE, SOLID
from headlift.evaluate.multiview import (
    LABELS,
    HeadViews,
    Picture,
    View,
    check_header,
    labelled_picture,
    read_depth,
    read_folder,
    read_labels,
    read_picture,
)
from headlift.invert.invert import make_target
from headlift.photo import read_photo
from headlift.pose_estimation.crop import to_tensor
from headlift.pose_estimation.estimate import estimate, find_faces
from headlift.pose_estimation.frames import from_ffhq
from headlift.pose_estimation.masks import head_mask
from headlift.poses import photos_in
from headlift.values import Camera, Crop, Face, Similarity, Verdict

Kind = Literal["photo", "views", "sample"]
CAMERA_SPREAD = 0.01
"""Standard deviation of yaw and pitch that camera refinement is told of a known camera, radians."""
NEW_YAWS = (-60, -30, 30, 60)
"""New views of photos and samples, degrees."""
SAMPLE_YAW, SAMPLE_PITCH = 25.0, 10.0
"""A sample's photo is taken from at most so far to the side and up or down, degrees."""


@dataclass(frozen=True)
class Truth:
    """A view of the head as it is."""

    yaw: int
    """Of the camera, whole degrees."""
    camera: Camera
    picture: Picture
    depth: Float[Tensor, "1 1 s s"] | None = None
    """Distance along the ray, world units; 0 where there is nothing."""


@dataclass(frozen=True)
class Subject:
    """One image to invert, with what is known of its head."""

    crop: Crop
    photo: Truth
    """The view that goes in; its camera is the true one where that is known, else the estimate."""
    known: bool
    """The photo's camera is known, not estimated."""
    others: tuple[Truth, ...] = ()
    """New views; none where nothing is known of them."""
    ws: Float[Tensor, "1 l w"] | None = None
    """The code, of a sample."""


@dataclass(frozen=True)
class PhotoSource:
    """A photo, its camera to be estimated or, with a label, known: then it is EG3D's crop already."""

    path: Path
    label: tuple[float, ...] | None = None
    kind: Kind = "photo"

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def known(self) -> bool:
        """Its camera is known."""
        return self.label is not None

    def digest(self) -> str:
        return _digest(self.path.read_bytes(), self.label)

    def load(self, generator: Generator, pose: PoseConfig) -> Subject:
        """Raises FaceError when no usable face is found, PhotoError when the photo is not usable."""
        pixels = read_photo(self.path)
        crop = estimate(pixels, pose) if self.label is None else labelled_crop(self.path, pixels, self.label, pose)
        target = make_target(crop, generator)
        alpha = target.mask if target.white else torch.ones_like(target.mask)
        shown = Truth(_yaw(crop.camera), crop.camera, on_ground(target.image, alpha))
        return Subject(crop, shown, self.known)


@dataclass(frozen=True)
class ViewsSource:
    """A head that is known from several sides, one of them the photo."""

    head: HeadViews
    kind: Kind = "views"
    known: bool = True

    @property
    def name(self) -> str:
        return self.head.name

    def digest(self) -> str:
        return _digest(self.head.digest().encode(), self.head.photo.label)

    def load(self, generator: Generator, pose: PoseConfig) -> Subject:
        """Raises DataError when a picture cannot be decoded."""
        photo, *others = (_true_view(view) for view in self.head.views)
        return Subject(known_crop(photo.picture, photo.camera), photo, True, tuple(others))


@dataclass(frozen=True)
class SampleSource:
    """A random head of the generator itself, seen by a random camera in front of it."""

    seed: int
    truncation: float
    kind: Kind = "sample"
    known: bool = True

    @property
    def name(self) -> str:
        return f"sample{self.seed:04d}"

    def digest(self) -> str:
        return _digest(b"sample", (float(self.seed), self.truncation))

    @torch.no_grad()
    def load(self, generator: Generator, pose: PoseConfig) -> Subject:
        random = np.random.RandomState(self.seed)
        z = torch.from_numpy(random.randn(1, generator.spec.mapping.z_dim)).float().to(generator.w_avg.device)
        ws = generator.mapping(z, None, self.truncation)
        planes = generator.planes(ws)
        angles = [(random.uniform(-1, 1) * SAMPLE_YAW, random.uniform(-1, 1) * SAMPLE_PITCH)]
        views = []
        for yaw, pitch in (*angles, *((float(yaw), 0.0) for yaw in NEW_YAWS)):
            camera = orbit(math.radians(yaw), math.radians(pitch))
            there = camera.to(ws.device)
            output = generator.render(planes, ws, there)
            fine = generator.volume(planes, there, max(ALPHA_SIDE, output.alpha.shape[-1]))
            alpha = fine.alpha if generator.spec.render.white_background else torch.ones_like(fine.alpha)
            depth = torch.where(fine.alpha > SOLID, fine.depth, torch.zeros_like(fine.depth)).cpu()
            views.append(Truth(round(yaw), camera, on_ground(output.image.clamp(-1, 1).cpu(), alpha.cpu()), depth))
        return Subject(known_crop(views[0].picture, views[0].camera), views[0], True, tuple(views[1:]), ws)


Source = PhotoSource | ViewsSource | SampleSource


def find_sources(
    folder: Path | None, samples: int, first: int | None, photo_yaw: float, truncation: float
) -> tuple[Source, ...]:
    """The first so many images of a folder (all without a number), then so many samples of the prior.

    A folder holds photos; or photos that are EG3D's crops, and `dataset.json` with their cameras; or pictures with
    transparency and `dataset.json`, several views of each head (`multiview`), of which the one nearest to `photo_yaw`
    degrees goes in.

    Raises:
        DataError: the folder is of none of these forms, or there is nothing to measure on.
        PhotoError: it holds no photos.
    """
    found: tuple[Source, ...] = ()
    if folder is not None and not (folder / LABELS).exists():
        if not folder.is_dir():
            raise DataError(f"There is no folder {folder}." if not folder.exists() else f"{folder} is no folder.")
        found = tuple(PhotoSource(path) for path in photos_in(folder))
    elif folder is not None and _is_multiview(folder):
        found = tuple(ViewsSource(head.seen_from(photo_yaw)) for head in read_folder(folder))
    elif folder is not None:
        found = tuple(_known_photo(folder, name, label) for name, label in read_labels(folder))
    found = found[:first] + tuple(SampleSource(seed, truncation) for seed in range(samples))
    if not found:
        raise DataError("there is nothing to measure on: give a folder, or --samples N for the prior's own heads.")
    names = [source.name for source in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"two images are called {twice[0]}; give them different names.")
    return found


def _known_photo(folder: Path, name: str, label: Sequence[float]) -> PhotoSource:
    path = labelled_picture(folder, name, label)
    check_header(path)
    return PhotoSource(path, tuple(label))


def _is_multiview(folder: Path) -> bool:
    from PIL import Image, UnidentifiedImageError

    name = read_labels(folder)[0][0]
    try:
        with Image.open(folder / name) as image:
            return image.mode == "RGBA"
    except (OSError, UnidentifiedImageError, ValueError):
        raise DataError(f"{folder / name} is named in {LABELS}, but cannot be read as a picture.") from None


# Crops


def known_crop(photo: Picture, camera: Camera) -> Crop:
    """The photo of a known head as pose estimation would hand it on: on white, its alpha the mask, its known camera.

    No landmarks: nothing was detected, and the relief of a fitted head model is not used.
    """
    side = photo.colour.shape[-1]
    nobody = Face((0.0, 0.0, float(side), float(side)), 1.0, np.zeros((478, 3)))
    crop = _whole_crop(photo.over(1.0).clamp(-1, 1), photo.alpha, camera, nobody)
    return replace(crop, on_white=True)


def labelled_crop(path: Path, pixels: UInt8[np.ndarray, "s s 3"], label: Sequence[float], pose: PoseConfig) -> Crop:
    """A photo that is EG3D's crop already, with its known camera; mask and landmarks are found in it.

    Labels are in FFHQ's frame, and brought into that of `pose.frame`. Raises FaceError when no face is found, or it
    cannot be told from the background.
    """
    side = pixels.shape[0]
    faces = find_faces(pixels)
    if not faces:
        raise FaceError(f"{path.name}: no face is found in the crop.")
    try:
        mask = torch.from_numpy(head_mask(pixels, faces[0].landmarks[:468, :2] / side)).float()[None, None]
    except FaceError as error:
        raise FaceError(f"{path.name}: {error}") from None
    camera = Camera.from_label(torch.tensor([list(label)], dtype=torch.float32))
    if pose.frame == "embedded":
        brought = from_ffhq(camera.cam2world[0].double().numpy())
        camera = Camera(torch.from_numpy(brought).float()[None], camera.intrinsics)
    return _whole_crop(to_tensor(pixels), mask, camera, faces[0])


def _whole_crop(image: Float[Tensor, "1 3 s s"], mask: Float[Tensor, "1 1 _ _"], camera: Camera, face: Face) -> Crop:
    side = image.shape[-1]
    whole = Similarity(np.array([[1 / side, 0.0, 0.0], [0.0, 1 / side, 0.0]]))
    spread = np.eye(2) * CAMERA_SPREAD**2
    if mask.shape[-1] != side:
        mask = torch.nn.functional.interpolate(mask, size=(side, side), mode="bilinear", align_corners=False)
    return Crop(image, mask, camera, whole, face, 0.0, spread, Verdict(()))


def turned_off(crop: Crop, degrees: float, name: str) -> Crop:
    """The crop with a camera that is wrong by so many degrees in yaw and as many in pitch, each to a side that the
    name decides; it still looks at the same point of the face, and says how sure it is."""
    if not degrees:
        return crop
    signs = zlib.crc32(name.encode())
    angle = math.radians(degrees)
    yaw, pitch = (angle if signs & bit else -angle for bit in (1, 2))
    found = turned(crop.camera, yaw, pitch)
    return replace(crop, camera=found, covariance=np.eye(2) * max(CAMERA_SPREAD, angle) ** 2)


def turned(camera: Camera, yaw: float, pitch: float) -> Camera:
    """The camera swung round EG3D's pivot: up by `pitch`, then by `yaw` about the world's y axis; radians."""
    upright = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    turn = _rotation(upright * yaw) @ _rotation(-pitch * camera.rotation[0, :, 0].double())
    pivot = torch.tensor(FFHQ_PIVOT, dtype=torch.float64)
    swing = torch.eye(4, dtype=torch.float64)
    swing[:3, :3], swing[:3, 3] = turn, pivot - turn @ pivot
    return Camera((swing @ camera.cam2world.double()).to(camera.cam2world), camera.intrinsics)


def _rotation(vector: Float[Tensor, " 3"]) -> Float[Tensor, "3 3"]:
    """The rotation about a vector by its length in radians."""
    x, y, z = vector.tolist()
    return torch.linalg.matrix_exp(torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=vector.dtype))


# Pictures


def on_ground(white: Float[Tensor, "1 3 s s"], alpha: Float[Tensor, "1 1 r r"]) -> Picture:
    """A picture that lies on white, with its opacity at any resolution, taken apart into straight colours and alpha."""
    side = white.shape[-1]
    if alpha.shape[-1] != side:
        alpha = torch.nn.functional.interpolate(alpha, size=(side, side), mode="bilinear", align_corners=False)
    return Picture((white - (1 - alpha)) / alpha.clamp_min(1e-3), alpha)


def _true_view(view: View) -> Truth:
    depth = None if view.depth is None else read_depth(view.depth)
    return Truth(round(view.yaw), view.camera, read_picture(view), depth)


def _yaw(camera: Camera) -> int:
    return round(math.degrees(float(yaw_pitch(camera)[0])))


def _digest(content: bytes, numbers: Sequence[float] | None) -> str:
    return hashlib.sha256(content + json.dumps(numbers).encode()).hexdigest()
