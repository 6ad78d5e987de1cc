"""Method `pose`: camera and code together (3D GAN Inversion with Pose Optimization, Ko et al., WACV 2023).

For `camera.preheat` of the steps the camera moves alone; then both do, the camera's distance held (`camera.on_sphere`).
A loss beside the perceptual one ties them together through the geometry: the features of the head seen from the front
are carried to the photo's camera through the rendered depth, and must be the photo's there. Pivotal tuning follows.

What differs: the published cameras come out of networks that are optimised (hence their rates of 6e-6); here Adam moves
the camera's twist itself, from the estimate of `pose_estimation`. VGG16's features become those of the perceptual
distance. What the front does not see is left out of the carrying (published: all in front of the mean depth), and the
foreground is what is opaque. Super-resolution's noise is none in EG3D's spec and is not optimised.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from jaxtyping import Float
from torch import Tensor

from headlift.eg3d.active import CUT
from headlift.invert.conclude import conclude
from headlift.invert.latent import find_latent
from headlift.invert.losses import resize
from headlift.invert.perceptual import Distance, load_distance, spatial_mean
from headlift.invert.result import Inversion
from headlift.invert.task import Moment, Task, Terms, no_terms
from headlift.invert.tuning import tune, tuning_rng
from headlift.invert.warp import backward_warp
from headlift.values import Step

FEATURE_SHARE = 4
"""Features are compared at the picture's side over this (VGG16's third block: 64 of 256 pixels)."""


def pose(task: Task) -> Generator[Step, None, Inversion]:
    """Camera and code, then the generator; yields every step, returns the head."""
    device = next(task.generator.parameters()).device
    finding = load_distance(task.config.perceptual, "latent", device)
    pivot = yield from find_latent(task, finding, canonical_warping(task, finding))
    tuned = yield from tune(task, pivot, load_distance(task.config.perceptual, "tuning", device), tuning_rng(task))
    return conclude(task, pivot, tuned)


def canonical_warping(task: Task, distance: Distance) -> Terms:
    """The loss that carries the frontal view's features to the photo's camera (Ko et al. 2023, sec. 3.3)."""
    weight, target = task.config.pose.warping, task.views[0].target
    if not weight:
        return no_terms
    wanted = level(distance.features(target.image), target.image.shape[-1]).detach()

    def terms(moment: Moment) -> dict[str, Tensor]:
        output, front = moment.outputs[0], moment.generator.frontal_camera()
        side = output.depth.shape[-1]
        canonical = moment.generator.render(moment.planes, moment.ws, front, side, cut=CUT)
        features = level(distance.features(canonical.image), canonical.image.shape[-1])
        carried, visible = backward_warp(features, canonical.depth, front, output.depth, moment.cameras[0])
        solid = (output.alpha > 0.5) if target.white else (output.depth < output.depth.mean())
        error = (carried - resize(wanted, side)).square().sum(1, keepdim=True)
        return {"warping": weight * spatial_mean(error, (visible * solid).detach()).sum()}

    return terms


def level(features: Sequence[Tensor], side: int) -> Float[Tensor, "n c r r"]:
    """The feature maps nearest to a quarter of a picture's side (256 pixels at most)."""
    wanted = min(side, 256) / FEATURE_SHARE
    found: Tensor = min(features, key=lambda maps: abs(maps.shape[-1] - wanted))
    return found
