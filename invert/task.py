"""What an inversion method is given, and what its parts hand to one another."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headlift.config import InversionConfig
from headlift.eg3d.generator import Generator as Eg3d
from headlift.invert.face_points import FacePoints, face_points
from headlift.invert.losses import resize
from headlift.invert.result import Inversion, InversionState, Target
from headlift.invert.surface import Surface, photo_surface
from headlift.values import Camera, Crop, RenderOutput, Step


@dataclass(frozen=True)
class View:
    """One photo as a method sees it: what has to be shown, and what is known of the camera that saw it."""

    target: Target
    camera: Camera
    """The estimate (one)."""
    covariance: Float[np.ndarray, "2 2"]
    """Of its (yaw, pitch), radians squared."""
    face: FacePoints | None
    """Where the face's skin lies in the world, if a head model was fitted."""
    landmarks: Float[np.ndarray, "478 2"] | None
    """The face mesh in fractions of the crop, if a face was detected."""
    surface: Surface | None
    """What the depth network sees, where the prior draws heads on white as the network knows them."""


@dataclass(frozen=True)
class Task:
    """All that a method is given."""

    generator: Eg3d
    """The prior; methods leave it as it is."""
    views: tuple[View, ...]
    """One for each photo."""
    config: InversionConfig
    seed: int
    should_stop: Callable[[], bool]
    """Asked before each step; once true, what there is is kept."""
    resume: InversionState | None
    """Where an earlier run of the same task stood."""
    on_state: Callable[[InversionState], None]
    """Is handed such states."""

    def resumed(self, stage: str) -> InversionState | None:
        """The state to go on from, if it is one of this stage."""
        return self.resume if self.resume and self.resume.stage == stage else None


@dataclass(frozen=True)
class Moment:
    """What an optimisation has rendered in a step, for the terms that a method adds to it."""

    generator: Eg3d
    planes: Float[Tensor, "1 j c p p"]
    ws: Float[Tensor, "1 l w"]
    cameras: tuple[Camera, ...]
    """One for each photo, as refined so far."""
    outputs: tuple[RenderOutput, ...]
    """What each of them sees; none in a stage that does not look at the photos."""
    done: int
    """Steps done before this one."""


Method = Callable[[Task], Generator[Step, None, Inversion]]
"""Yields every step, returns the head."""
Terms = Callable[[Moment], dict[str, Tensor]]
"""Weighted losses (scalars) by name, to be minimised together with the rest."""


def no_terms(moment: Moment) -> dict[str, Tensor]:
    """Nothing but the stage's own losses."""
    return {}


def make_view(crop: Crop, generator: Eg3d) -> View:
    """A crop on the generator's device, at its resolution."""
    device = next(generator.parameters()).device
    face = None if crop.model_points is None else face_points(crop.model_points, device)
    landmarks = crop.similarity.apply(crop.face.landmarks[:, :2])
    detected = bool(np.ptp(crop.face.landmarks[:, :2]) > 0)
    target = make_target(crop, generator).to(device)
    return View(
        target,
        crop.camera.to(device, torch.float32),
        crop.covariance,
        face,
        landmarks if detected else None,
        photo_surface(target) if target.white else None,
    )


def make_target(crop: Crop, generator: Eg3d) -> Target:
    """The crop at the generator's resolution; on white by the mask where the prior knows heads on white only."""
    side = generator.spec.image_resolution
    image, mask = resize(crop.image, side).clamp(-1, 1), resize(crop.mask, side).clamp(0, 1)
    white = generator.spec.render.white_background
    cut_out = image * mask + (1 - mask) if white and not crop.on_white else image
    return Target(cut_out, mask, white)


def mean_terms(each: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The losses of several photos as those of one: for each name the mean over the photos."""
    if len(each) == 1:
        return each[0]
    names = list(dict.fromkeys(name for terms in each for name in terms))
    zero = torch.zeros_like(next(iter(each[0].values())).reshape(()))
    return {name: torch.stack([t.get(name, zero).reshape(()) for t in each]).mean() for name in names}
