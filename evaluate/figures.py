"""The figures of one inversion: against the truth where it is known, and of the head by itself.

Pictures are compared over mid-grey, over the union of the silhouettes, at 256 pixels (`metrics`). Faces are looked for
by the project's own detector, in the truth and in the render alike, so that its habits cancel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from headlift.config import Frame, LatentConfig
from headlift.eg3d.camera import orbit, rotation_angle
from headlift.errors import WeightsError
from headlift.evaluate.metrics import ALPHA_SIDE, SOLID, depth_error, pair, score
from headlift.evaluate.subjects import NEW_YAWS, Subject, Truth
from headlift.export.images import to_uint8
from headlift.invert.latent import code_statistics
from headlift.invert.losses import COMPARE_AT, resize, squared_error
from headlift.invert.metrics import ms_ssim, psnr
from headlift.invert.perceptual import Distance, backbone_folders, find_backbone, load_builtin, load_lpips
from headlift.invert.result import Inversion
from headlift.invert.warp import backward_warp, steps
from headlift.pose_estimation.identity import Recogniser, likeness, recogniser
from headlift.pose_estimation.redetect import Seen, see
from headlift.values import Camera, RenderOutput
from headlift.weights import FACENET, INCEPTION, find_measure

FACE_YAW = 75.0
"""Views further to the side show too little of a face for landmarks and identity, degrees."""
OVER_YAW = tuple(sorted((0, *NEW_YAWS)))
"""Where a head is looked at by itself, degrees."""
SURE = 0.9
"""Opacity above which a pixel is surface."""
MIRRORED = 30
"""Where it is held against its own mirror image, degrees."""

Figures = dict[str, float | None]
"""By name; None where there is nothing to compare (no truth, no face found, no network)."""


@dataclass(frozen=True)
class Judges:
    """Networks that measure."""

    distance: Distance
    """The builtin one, whatever inversion used."""
    lpips: Distance | None
    """LPIPS (Alex), where its weights are."""
    recognise: Recogniser | None
    """Identity, where its weights are."""
    frame: Frame
    """Whose heads look straight ahead (`PoseConfig.frame`)."""


def judge_files() -> dict[str, Path]:
    """Files of the networks that measure, by name: those on this machine. They decide what figures there are."""
    found = {name: find_measure(name) for name in (FACENET, INCEPTION)}
    found["alexnet"] = find_backbone("alex", backbone_folders())
    return {name: file for name, file in found.items() if file is not None}


@cache
def find_judges(frame: Frame) -> Judges:
    """Those that are on this machine."""
    try:
        lpips: Distance | None = load_lpips("alex", backbone_folders())
    except WeightsError:
        lpips = None
    file = find_measure(FACENET)
    return Judges(load_builtin(), lpips, None if file is None else recogniser(file), frame)


@dataclass(frozen=True)
class Sight:
    """A render with all that is compared of it, on the CPU."""

    yaw: int
    camera: Camera
    image: Float[Tensor, "1 3 h w"]
    alpha: Float[Tensor, "1 1 a a"]
    """At `ALPHA_SIDE` pixels or more where it is held against a truth; 1 everywhere with a generator that draws
    backgrounds."""
    depth: Float[Tensor, "1 1 r r"]
    opacity: Float[Tensor, "1 1 r r"]
    """The volume's, with that depth."""

    @property
    def pixels(self) -> UInt8[np.ndarray, "h w 3"]:
        return to_uint8(self.image)


@torch.no_grad()
def sights(inversion: Inversion, yaws: Sequence[int], cameras: Camera, fine: bool) -> list[Sight]:
    """The head from each camera; `fine` with a silhouette that can be held against a truth."""
    generator = inversion.generator
    planes = generator.planes(inversion.ws)
    white, found = generator.spec.render.white_background, []
    for index, yaw in enumerate(yaws):
        camera = cameras[index : index + 1].to(planes.device)
        output: RenderOutput = generator.render(planes, inversion.ws, camera)
        side = max(ALPHA_SIDE, output.alpha.shape[-1])
        alpha = generator.volume(planes, camera, side).alpha if fine and white else output.alpha
        alpha = alpha if white else torch.ones_like(alpha)
        found.append(
            Sight(yaw, camera.to("cpu"), output.image.cpu(), alpha.cpu(), output.depth.cpu(), output.alpha.cpu())
        )
    return found


def measure(subject: Subject, inversion: Inversion, judges: Judges) -> tuple[Figures, list[Sight]]:
    """All figures of an inversion: in view by their plain names, new views by `NAME_YAW` (absolute yaw, the mean of
    both sides); and the renders that they are of, the photo's view first."""
    others = subject.others
    yaws = [subject.photo.yaw, *(truth.yaw for truth in others)]
    shown = sights(inversion, yaws, _join([inversion.camera, *(truth.camera for truth in others)]), fine=True)
    figures = compare(subject.photo, shown[0], judges)
    sides: dict[str, list[float | None]] = {}
    for truth, sight in zip(others, shown[1:], strict=True):
        for name, value in compare(truth, sight, judges).items():
            sides.setdefault(f"{name}_{abs(truth.yaw)}", []).append(value)
    figures |= {name: mean(values) for name, values in sides.items()}
    angles = torch.tensor([math.radians(yaw) for yaw in OVER_YAW])
    around = sights(inversion, OVER_YAW, orbit(angles, torch.zeros_like(angles)), fine=False)
    figures |= by_itself(subject.photo, around, judges)
    figures["depth_moved"] = inversion.metrics.get("depth_moved")
    if subject.known:
        figures["camera_error"] = camera_error(inversion.camera, subject.photo.camera)
        figures["camera_start"] = camera_error(subject.crop.camera, subject.photo.camera)
    if subject.ws is not None:
        figures["code"] = code_error(inversion, subject.ws)
    return figures, shown if others else [shown[0], *around]


def compare(truth: Truth, sight: Sight, judges: Judges) -> Figures:
    """One view against the truth.

    mse (of [-1, 1]), psnr (dB), ssim, ms_ssim, perceptual, lpips; silhouette (1 less the intersection over the union);
    depth (median after the best shift, world units); landmarks (mean distance, percent of the picture's side), pose
    (angle between the directions that the faces are seen from, degrees), identity (cosine of embeddings).
    """
    views = pair(truth.picture, sight.image, sight.alpha)
    found = score(views, judges.distance)
    figures: Figures = {
        "mse": float(squared_error(views.render, views.truth, views.union)),
        "psnr": found.psnr,
        "ssim": found.ssim,
        "ms_ssim": ms_ssim(views.render, views.truth, views.union),
        "perceptual": found.perceptual,
    }
    if judges.lpips is not None:
        figures["lpips"] = float(judges.lpips(judges.lpips.prepare(views.truth, views.union), views.render)[0])
    figures["silhouette"] = silhouette_error(truth, sight)
    if truth.depth is not None:
        error = depth_error(sight.depth, sight.opacity, truth.depth)
        figures["depth"] = error if math.isfinite(error) else None
    if abs(truth.yaw) <= FACE_YAW:
        true_pixels = to_uint8(truth.picture.over(1.0))
        figures |= compare_faces(see(true_pixels, judges.frame), see(sight.pixels, judges.frame))
        if judges.recognise is not None:
            figures["identity"] = likeness(*judges.recognise([true_pixels, sight.pixels]))
    return figures


def compare_faces(truth: Seen | None, found: Seen | None) -> Figures:
    """Landmarks and pose as in `compare`; None where either has no face."""
    if truth is None or found is None:
        return {"landmarks": None, "pose": None}
    apart = np.linalg.norm(truth.points - found.points, axis=1).mean()
    cameras = [orbit(face.yaw, face.pitch) for face in (truth, found)]
    return {"landmarks": 100 * float(apart), "pose": camera_error(*cameras)}


def silhouette_error(truth: Truth, sight: Sight) -> float:
    """1 less the intersection over the union of what is opaque, at 256 pixels."""
    a, b = (resize(alpha, COMPARE_AT) > SOLID for alpha in (truth.picture.alpha, sight.alpha))
    return 1 - float((a & b).sum()) / max(1.0, float((a | b).sum()))


def by_itself(photo: Truth, around: Sequence[Sight], judges: Judges) -> Figures:
    """What needs no truth: consistency and symmetry (dB), and the photo's identity at other yaws (mean cosine)."""
    figures: Figures = {
        "consistency": mean([carried_psnr(a, b) for a, b in zip(around, around[1:], strict=False)]),
        "symmetry": mirror_psnr(around),
    }
    if judges.recognise is not None:
        first, *others = judges.recognise([to_uint8(photo.picture.over(1.0)), *(sight.pixels for sight in around)])
        figures["identity_over_yaw"] = mean([likeness(first, other) for other in others])
    return figures


def carried_psnr(source: Sight, target: Sight) -> float | None:
    """PSNR of one view carried into another through the rendered depths, at their side, where both see the surface."""
    carried, seen = backward_warp(source.image, source.depth, source.camera, target.depth, target.camera)
    weight = seen * (1 - steps(target.depth)) * (target.opacity > SURE)
    if not bool(weight.any()):
        return None
    return psnr(carried, resize(target.image, carried.shape[-1]), weight)


def mirror_psnr(around: Sequence[Sight]) -> float | None:
    """PSNR of the view from one side against the mirror image of the view from the other, over their union, dB."""
    left, right = (next(s for s in around if s.yaw == yaw) for yaw in (-MIRRORED, MIRRORED))
    union = torch.maximum(left.alpha, right.alpha.flip(-1)) > SOLID
    return psnr(left.image, right.image.flip(-1), union.to(left.alpha))


def camera_error(found: Camera, truth: Camera) -> float:
    """Geodesic angle between two cameras' rotations, degrees."""
    return math.degrees(float(rotation_angle(found.rotation.cpu().double(), truth.rotation.cpu().double())[0]))


def code_error(inversion: Inversion, truth: Float[Tensor, "1 l w"]) -> float:
    """Root mean square over the layers of the code's distance from the true one, in standard deviations of w."""
    spread = code_statistics(inversion.generator, LatentConfig()).spread
    return float((inversion.ws - truth).square().sum(-1).mean().sqrt()) / spread


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that there are; None where there are none."""
    there = [value for value in values if value is not None and math.isfinite(value)]
    return sum(there) / len(there) if there else None


def _join(cameras: Sequence[Camera]) -> Camera:
    return Camera(
        torch.cat([camera.cam2world.cpu() for camera in cameras]),
        torch.cat([camera.intrinsics.cpu() for camera in cameras]),
    )
