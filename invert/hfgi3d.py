"""Method `hfgi3d`: high-fidelity 3D GAN inversion by pseudo-multi-view optimisation (Xie et al., CVPR 2023).

Pivotal tuning gives a first head, and its surface says which points the photo sees. From each camera of an orbit a
pseudo view is put together: the photo carried there where it is seen, the first head's own picture elsewhere. A second
tuning, from the untuned generator and at the same code, then holds the photo and one pseudo view in each step.

What differs: the photo's pixels are put in space by their distance along the ray (published: taken for z-depth) and
splatted one by one (published: a million points of a triangulated depth map, each a disc of 2 pixels); a point hidden
behind the first head's own surface is not seen, within `hfgi3d.tolerance` (published: 1/512 of a mesh; expected depths
differ by more from view to view). Sizes of masks, given at 512 pixels, go with the picture. LPIPS becomes the chosen
perceptual distance.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from headlift.config import Hfgi3dConfig
from headlift.eg3d.active import CUT
from headlift.eg3d.camera import published_look_at
from headlift.eg3d.generator import Generator as Eg3d
from headlift.eg3d.generator import VolumeOutput
from headlift.invert.conclude import conclude
from headlift.invert.latent import find_latent
from headlift.invert.losses import resize, squared_error
from headlift.invert.perceptual import Distance, load_distance
from headlift.invert.result import Inversion, Target
from headlift.invert.sheet import erode
from headlift.invert.task import Moment, Task, Terms
from headlift.invert.tuning import tune, tuning_rng
from headlift.invert.warp import forward_splat, steps, surface_points, visibility
from headlift.values import Camera, Step

STAGE = "views"
"""The second tuning's name."""
YAW, PITCH, MIDDLE_PITCH = 0.35, 0.25, -0.05
"""The orbit in EG3D's own angles (`published_look_at`, where pitch is downwards), radians."""
DEPTH_SIDE = 128
"""The photo's depth is rendered at this side at least, pixels (that of the published generator)."""
JUMP = 0.1
"""A contour is where the depth jumps by more, world units."""
CONTOUR, SHRINK, BLUR = 25, 1, 3.5
"""At 512 pixels: how near to a contour the photo is not carried, how much the mask is shrunk, and its blur's sigma."""


def hfgi3d(task: Task) -> Generator[Step, None, Inversion]:
    """A first head, pseudo views of it and the photo, the second tuning; yields every step, returns the head."""
    device = next(task.generator.parameters()).device
    pivot = yield from find_latent(task, load_distance(task.config.perceptual, "latent", device))
    distance = load_distance(task.config.perceptual, "tuning", device)
    again = task.resumed(STAGE)
    if again:
        views, history = PseudoViews.restored(again.tensors, device), again.history
    else:
        first = yield from tune(task, pivot, distance, tuning_rng(task))
        if first.stopped:
            return conclude(task, pivot, first)
        views = pseudo_views(first.generator, pivot.ws, pivot.cameras[0], task.views[0].target, task.config.hfgi3d)
        history = first.history
    rng = torch.Generator().manual_seed(task.seed + 2)
    options = replace(task.config.tuning, steps=task.config.hfgi3d.steps, stop=0.0)
    terms = beside(views, task, distance, rng)
    tuned = yield from tune(task, pivot, distance, rng, terms, options, STAGE, history, views.tensors())
    return conclude(task, pivot, tuned)


@dataclass(frozen=True)
class PseudoViews:
    """What the head is to show from k cameras."""

    cameras: Camera
    images: Float[Tensor, "k 3 r r"]
    """In half precision, as they are kept for a resumption too."""
    seen: Float[Tensor, "k 1 r r"]
    """The photo's share of each pixel; the rest is the first head's."""

    def tensors(self) -> dict[str, Tensor]:
        """For an `InversionState`."""
        return {"pseudo.cameras": self.cameras.label, "pseudo.images": self.images, "pseudo.seen": self.seen}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], device: torch.device) -> PseudoViews:
        """From `tensors`."""
        labels, images, seen = (tensors[f"pseudo.{name}"].to(device) for name in ("cameras", "images", "seen"))
        return cls(Camera.from_label(labels), images, seen)


def beside(views: PseudoViews, task: Task, distance: Distance, rng: torch.Generator) -> Terms:
    """One pseudo view in each step, drawn at random, under the losses that the photo is under."""
    options = task.config.tuning

    def terms(moment: Moment) -> dict[str, Tensor]:
        index = int(torch.randint(len(views.images), (1,), generator=rng))
        wanted = views.images[index : index + 1].float()
        camera = views.cameras[index : index + 1]
        image = moment.generator.render(moment.planes, moment.ws, camera, cut=CUT).image
        apart = distance(distance.prepare(wanted), image).sum()
        return {
            "view_mse": options.mse * squared_error(image, wanted),
            "view_perceptual": options.perceptual * apart,
        }

    return terms


def orbit_cameras(camera: Camera, count: int) -> Camera:
    """The published orbit with the photo's focal length."""
    angles = torch.arange(count) * (2 * math.pi / count)
    horizontal = math.pi / 2 + YAW * angles.sin()
    vertical = math.pi / 2 + MIDDLE_PITCH + PITCH * angles.cos()
    cam2world = published_look_at(horizontal, vertical).to(camera.cam2world)
    return Camera(cam2world, camera.intrinsics.expand(count, -1, -1))


@torch.no_grad()
def pseudo_views(
    generator: Eg3d, ws: Float[Tensor, "1 l w"], camera: Camera, target: Target, options: Hfgi3dConfig
) -> PseudoViews:
    """The photo where an orbit's cameras see what it saw, the head's own pictures elsewhere (sec. 3.2 and 3.3)."""
    planes = generator.planes(ws)
    cameras = orbit_cameras(camera, options.views)
    fine = max(DEPTH_SIDE, generator.spec.neural_resolution)
    points, photo, weight = photo_in_space(generator.volume(planes, camera, fine), camera, target)
    images, shares = [], []
    for index in range(options.views):
        view = cameras[index : index + 1]
        output = generator.render(planes, ws, view)
        seen = visibility(points, output.depth, view, options.tolerance)[0].reshape(weight.shape)
        carried, full = forward_splat(photo, points, weight * seen, view, output.image.shape[-1], options.tolerance)
        share = soft_mask(full)
        images.append((share * carried + (1 - share) * output.image).half())
        shares.append(share.half())
    return PseudoViews(cameras, torch.cat(images), torch.cat(shares))


def photo_in_space(
    volume: VolumeOutput, camera: Camera, target: Target
) -> tuple[Float[Tensor, "1 m 3"], Float[Tensor, "1 3 s s"], Float[Tensor, "1 1 s s"]]:
    """The photo's pixels at twice their number along each side: their points, colours, and which of them to carry.

    Left out: what is not opaque, what the mask leaves out where the background is white, and what is near a contour.
    """
    side = 2 * target.image.shape[-1]
    depth, alpha = resize(volume.depth, side), resize(volume.alpha, side)
    solid = (alpha > 0.5).to(depth)
    if target.white:
        solid = solid * (resize(target.mask, side) > 0.5)
    contour = torch.maximum(steps(volume.depth, JUMP), steps(volume.alpha, 0.5))
    near = F.interpolate(contour, size=(side, side))
    radius = max(1, round(CONTOUR * side / 512))
    clear = 1 - F.max_pool2d(near, 2 * radius + 1, stride=1, padding=radius)
    return surface_points(depth, camera), resize(target.image, side), solid * clear


def soft_mask(full: Float[Tensor, "1 1 r r"]) -> Float[Tensor, "1 1 r r"]:
    """Where a splatted picture is whole: shrunk, softened, and 0 wherever nothing arrived."""
    scale = full.shape[-1] / 512
    whole = (full > 0.5).to(full)
    sigma = BLUR * scale
    radius = max(1, round(3 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=full.device) / max(sigma, 1e-3)) ** 2).to(full)
    taps = taps / taps.sum()
    padded = F.pad(erode(whole, max(1, round(SHRINK * scale))), (radius,) * 4, mode="replicate")
    smooth = F.conv2d(F.conv2d(padded, taps.reshape(1, 1, 1, -1)), taps.reshape(1, 1, -1, 1))
    return smooth.clamp(0, 1) * whole
