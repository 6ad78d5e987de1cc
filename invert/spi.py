"""Method `spi`: 3D GAN inversion with facial symmetry prior (Yin et al., CVPR 2023).

The code shows the photo, and to the mirrored camera the mirrored photo. Then the generator is tuned, and every few
steps also looked at from near the photo's camera, where the photo carried there through the depth must be seen; from
near the mirrored camera, where the mirrored photo's features must be found, wherever they are; and from all over the
front, where the depth must be the untuned generator's. The mirrored terms go by the yaw: a frontal face has none.

What differs: VGG's features become those of the perceptual distance; BiSeNet's face becomes the inside of the face
mesh's outline (the whole head where no face was detected, as with heads of known truth), and the regions that are
compared with the contextual loss are squares round mouth and eyes in both pictures (the whole picture where none was
detected). The mirrored photo's part in tuning is dropped for frontal faces as that in the search is. Cameras near
another are turns about the head's middle, and depth is what it is, a distance along the ray.
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from jaxtyping import Float
from torch import Tensor

from headlift.eg3d.active import CUT
from headlift.eg3d.camera import mirror, orbit
from headlift.invert.camera_refine import moved_camera
from headlift.invert.conclude import conclude
from headlift.invert.contextual import contextual_loss
from headlift.invert.latent import Pivot, find_latent
from headlift.invert.losses import COMPARE_AT, area_downsample, depth_error, resize
from headlift.invert.perceptual import Distance, load_distance
from headlift.invert.regions import cut, face_mask, mirrored_box, part_boxes
from headlift.invert.result import Inversion, Target
from headlift.invert.symmetry import mirror_loss, mirror_weight, mirrored, turn
from headlift.invert.task import Moment, Task, Terms, View, no_terms
from headlift.invert.tuning import tune, tuning_rng
from headlift.invert.warp import backward_warp
from headlift.values import Camera, Step

NEAR_YAW, NEAR_PITCH = 0.2, 0.1
"""Half the ranges of the neighbours' turn, radians."""
WIDE_YAW, WIDE_PITCH, MIDDLE_PITCH = 0.7, 0.4, 0.2
"""Half the ranges of the views whose depth is held, and the middle of their pitch (upwards), radians."""
WHOLE = (0.5, 0.5, 1.0)
"""The box of a whole picture."""


def spi(task: Task) -> Generator[Step, None, Inversion]:
    """The mirror pivot, then tuning with views from elsewhere; yields every step, returns the head."""
    device = next(task.generator.parameters()).device
    finding = load_distance(task.config.perceptual, "latent", device)
    pivot = yield from find_latent(task, finding, mirror_pivot(task, finding))
    rng, distance = tuning_rng(task), load_distance(task.config.perceptual, "tuning", device)
    terms = no_terms if pivot.stopped else elsewhere(task, pivot, distance, rng)
    tuned = yield from tune(task, pivot, distance, rng, terms)
    return conclude(task, pivot, tuned)


def mirror_pivot(task: Task, distance: Distance) -> Terms:
    """The mirrored photo's part in the search (sec. 3.1)."""
    view = task.views[0]
    weight = mirror_weight(turn(view.camera)) * task.config.spi.mirror
    if not weight:
        return no_terms
    photo = distance.prepare(mirrored(view.target).image)
    side = task.config.latent.neural_resolution

    def terms(moment: Moment) -> dict[str, Tensor]:
        loss = mirror_loss(moment.generator, moment.planes, moment.ws, moment.cameras[0], photo, distance, side)
        return {"mirror": weight * loss}

    return terms


def elsewhere(task: Task, pivot: Pivot, distance: Distance, rng: torch.Generator) -> Terms:
    """Tuning's terms from other views, once in `spi.every` steps and as much the heavier (sec. 3.2 and 3.3)."""
    options, view, camera = task.config.spi, task.views[0], pivot.cameras[0]
    turned = mirror_weight(turn(camera)) > 0
    side = min(COMPARE_AT, view.target.image.shape[-1])
    photo = area_downsample(torch.cat([view.target.image, face_region(view)], 1), side)
    opposite, flipped = mirror(camera), area_downsample(mirrored(view.target).image, side)
    base_planes = pivot.generator.planes(pivot.ws)
    boxes = tuple(map(mirrored_box, part_boxes(view.landmarks))) if view.landmarks is not None else (WHOLE,)
    wanted = [cut(distance.features(flipped)[0], box, options.region) for box in boxes] if turned else []

    def terms(moment: Moment) -> dict[str, Tensor]:
        if moment.done % options.every:
            return {}
        losses = {}
        if options.neighbour:
            near = neighbours(camera, options.neighbours, rng)
            output = moment.generator.render(moment.planes, moment.ws, near, cut=CUT)
            carried, trust = carry(photo, moment.outputs[0].depth.detach(), camera, output.depth.detach(), near)
            prepared = distance.prepare(carried, trust)
            losses["neighbour"] = options.neighbour * options.every * distance(prepared, output.image).mean()
        if options.contextual and turned:
            near = neighbours(opposite, options.neighbours, rng)
            features = distance.features(moment.generator.render(moment.planes, moment.ws, near, cut=CUT).image)[0]
            found = [
                contextual_loss(cut(features, box, options.region), goal.expand(len(near), -1, -1, -1))
                for box, goal in zip(boxes, wanted, strict=True)
            ]
            losses["contextual"] = options.contextual * options.every * torch.stack(found).mean()
        if options.depth:
            wide = front_views(camera, options.neighbours, rng)
            with torch.no_grad():
                before = pivot.generator.volume(base_planes, wide)
            after = moment.generator.volume(moment.planes, wide, cut=CUT)
            losses["depth"] = options.depth * depth_error(after.depth, before.depth, before.alpha)
        return losses

    return terms


def neighbours(camera: Camera, count: int, rng: torch.Generator) -> Camera:
    """Cameras turned about the head by up to `NEAR_YAW` and `NEAR_PITCH`."""
    draws = (torch.rand(count, 2, generator=rng) * 2 - 1).to(camera.cam2world)
    moved = []
    for u, v in draws:
        twist = torch.zeros(6, dtype=draws.dtype, device=draws.device)
        twist[0], twist[1] = v * NEAR_PITCH, u * NEAR_YAW
        moved.append(moved_camera(camera, twist).cam2world)
    return Camera(torch.cat(moved), camera.intrinsics.expand(count, -1, -1))


def front_views(camera: Camera, count: int, rng: torch.Generator) -> Camera:
    """Cameras spread over the front, with the photo's focal length."""
    yaw, pitch = ((torch.rand(count, 2, generator=rng) * 2 - 1).to(camera.cam2world)).unbind(1)
    return orbit(WIDE_YAW * yaw, MIDDLE_PITCH + WIDE_PITCH * pitch, focal=camera.intrinsics[0, 0, 0])


@torch.no_grad()
def carry(
    photo: Float[Tensor, "1 4 s s"],
    photo_depth: Float[Tensor, "1 1 r r"],
    photo_camera: Camera,
    depth: Float[Tensor, "n 1 r r"],
    cameras: Camera,
) -> tuple[Float[Tensor, "n 3 s s"], Float[Tensor, "n 1 s s"]]:
    """The photo's first three channels as other cameras see them, and where to trust them: seen, and in the fourth."""
    n, side = len(cameras), photo.shape[-1]
    source = Camera(photo_camera.cam2world.expand(n, -1, -1), photo_camera.intrinsics.expand(n, -1, -1))
    spread = photo.expand(n, -1, -1, -1), resize(photo_depth, side).expand(n, -1, -1, -1)
    carried, visible = backward_warp(*spread, source, resize(depth, side), cameras)
    return carried[:, :3], visible * carried[:, 3:].clamp(0, 1)


def face_region(view: View) -> Float[Tensor, "1 1 r r"]:
    """The face in the photo, or the whole head where no face was detected."""
    target: Target = view.target
    if view.landmarks is None:
        return target.mask
    return face_mask(view.landmarks, target.mask.shape[-1]).to(target.mask) * target.mask
