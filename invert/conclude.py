"""The end of every method: measure the head, and freeze it."""

from __future__ import annotations

import torch

from headlift.invert.latent import Pivot
from headlift.invert.metrics import depth_moved, psnr, ssim
from headlift.invert.perceptual import load_distance
from headlift.invert.result import Inversion, Shown
from headlift.invert.task import Task
from headlift.invert.tuning import Tuned


@torch.no_grad()
def conclude(task: Task, pivot: Pivot, tuned: Tuned) -> Inversion:
    """The head with its figures: those of the first photo, and the PSNR of each further one."""
    ws, generator = pivot.ws, tuned.generator
    distance = load_distance(task.config.perceptual, "tuning", ws.device)
    planes = generator.planes(ws)
    camera, target = pivot.cameras[0], task.views[0].target
    output = generator.render(planes, ws, camera)
    metrics = {
        "psnr": psnr(output.image, target.image, target.mask),
        "ssim": ssim(output.image, target.image, target.mask),
        "perceptual": float(distance(distance.prepare(target.image), output.image)[0]),
        **depth_moved(pivot.generator, generator, ws, camera),
    }
    others = tuple(Shown(c, view.target) for c, view in zip(pivot.cameras[1:], task.views[1:], strict=True))
    for number, other in enumerate(others, 2):
        image = generator.render(planes, ws, other.camera).image
        metrics[f"psnr_photo_{number}"] = psnr(image, other.target.image, other.target.mask)
    return Inversion(ws, camera, generator, target, tuned.history, tuned.reason, metrics, others)
