"""From a photo to a head. Read this file first: `reconstruct` is the whole story.

The parts it calls are the folders: `pose_estimation` finds the face, its crop and its camera; `weights` loads the
generator of `eg3d`; `invert` finds the code and tunes the generator; `export` makes a mesh of the density.
`run_folder` keeps a run on the disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from headlift.config import Frame, ReconstructConfig
from headlift.device import find_device
from headlift.eg3d.generator import Generator as Eg3d
from headlift.errors import FaceError
from headlift.evaluate.check import HeadCheck, check_head
from headlift.export.head_mesh import extract_mesh
from headlift.export.mesh import Mesh
from headlift.export.texture import Photo
from headlift.invert.follow import follow
from headlift.invert.invert import check as check_inversion
from headlift.invert.invert import invert
from headlift.invert.result import Inversion, InversionState
from headlift.photo import read_photo
from headlift.pose_estimation.estimate import estimate
from headlift.values import Crop, Step
from headlift.weights import load_generator, looks_ahead


@dataclass(frozen=True)
class Reconstruction:
    """A head with all that led to it."""

    photo: UInt8[np.ndarray, "h w 3"]
    crop: Crop
    inversion: Inversion
    planes: Float[Tensor, "1 j c p p"]
    """The tuned head's tri-planes, from which every view is rendered."""
    mesh: Mesh
    check: HeadCheck
    """Whether the photo is matched and the sides show a whole head."""
    base: Eg3d
    """The generator that was tuned, as it was before."""
    base_sha256: str
    """Of its file."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall-clock time of each part."""


def reconstruct(
    photo: Path | UInt8[np.ndarray, "h w 3"],
    config: ReconstructConfig,
    on_step: Callable[[Step], None] = lambda step: None,
    should_stop: Callable[[], bool] = lambda: False,
    on_crops: Callable[[Sequence[Crop]], None] = lambda crops: None,
    resume: InversionState | None = None,
    on_state: Callable[[InversionState], None] | None = None,
    more: Sequence[Path | UInt8[np.ndarray, "_ _ 3"]] = (),
) -> Reconstruction:
    """Lift the head out of a photo.

    Args:
        photo: a picture file, or upright sRGB pixels.
        on_step: is told of each step of the optimisation.
        should_stop: is asked before each step; once true, the inversion ends and keeps what it has.
        on_crops: is shown crop, camera and verdict of each photo before minutes are spent; it may raise to call the
            run off.
        resume: where an earlier, interrupted run of the same photo and settings stood.
        on_state: is handed such a state now and then, for safekeeping.
        more: further photos of the same person, for methods that take several.

    Raises:
        HeadliftError: whatever is wrong with the photo, the face, the settings, the weights or the device.
    """
    check_inversion(config.inversion, 1 + len(more))
    clock = Clock()
    device = find_device(config.device)
    pixels = read_photo(photo) if isinstance(photo, Path) else photo
    frame = frame_of(config)
    crop = estimate(pixels, replace(config.pose, frame=frame))
    crops = (crop, *(further_crop(number, other, config) for number, other in enumerate(more, 2)))
    on_crops(crops)
    clock.lap("pose")
    generator, base_sha256 = load_generator(config.weights, device)
    clock.lap("weights")
    steps = invert(generator, crops, config.inversion, config.seed, should_stop, resume, on_state)
    inversion = follow(steps, on_step)
    clock.lap("inversion")
    with torch.no_grad():
        planes = inversion.generator.planes(inversion.ws)
        photographed = Photo(crop.image, crop.mask, inversion.camera.to("cpu"))
        mesh = extract_mesh(inversion.generator, planes, inversion.ws, config.mesh, photo=photographed)
    clock.lap("mesh")
    check = check_head(inversion, planes, frame)
    clock.lap("check")
    return Reconstruction(pixels, crop, inversion, planes, mesh, check, generator, base_sha256, clock.laps)


def further_crop(number: int, photo: Path | UInt8[np.ndarray, "h w 3"], config: ReconstructConfig) -> Crop:
    """The crop of a further photo's largest face.

    Raises:
        PhotoError, FaceError: it is not usable; the message says which photo.
    """
    pixels = read_photo(photo) if isinstance(photo, Path) else photo
    try:
        return estimate(pixels, replace(config.pose, frame=frame_of(config), face=None))
    except FaceError as error:
        raise FaceError(f"photo {number}: {error}") from None


def frame_of(config: ReconstructConfig) -> Frame:
    """What the generator takes for straight ahead."""
    return looks_ahead(config.weights, config.pose.frame)


class Clock:
    """Wall-clock seconds from lap to lap."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
