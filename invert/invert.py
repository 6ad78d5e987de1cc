"""From a crop and its camera to a head: the latent code first, then the generator. Read `invert` top-down."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator

import torch

from headlift.config import InversionConfig
from headlift.eg3d.generator import Generator as Eg3d
from headlift.errors import ConfigError
from headlift.invert import latent, tuning
from headlift.invert.face_points import face_points
from headlift.invert.losses import resize
from headlift.invert.metrics import depth_moved, psnr, ssim
from headlift.invert.perceptual import load_distance
from headlift.invert.result import Inversion, InversionState, Target
from headlift.values import Camera, Crop, Step


def never() -> bool:
    """Go on to the end."""
    return False


def ignore(state: InversionState) -> None:
    """Keep no states."""


def invert(
    generator: Eg3d,
    crop: Crop,
    config: InversionConfig,
    seed: int = 0,
    should_stop: Callable[[], bool] = never,
    resume: InversionState | None = None,
    on_state: Callable[[InversionState], None] | None = None,
) -> Generator[Step, None, Inversion]:
    """Invert a crop; yields every step, returns the head.

    The same generator, crop, config and seed give the same head, bit for bit, on one machine and thread count, whether
    or not the run was interrupted and resumed.

    Args:
        generator: the prior; it is left as it is.
        should_stop: asked before each step; once true, what there is is kept and returned.
        resume: what `on_state` was handed by an earlier run of the same inputs.
        on_state: is handed a state every `keep_every` steps, and at the end of each stage.

    Raises:
        WeightsError: the perceptual distance needs weights that are not here.
        ConfigError: a setting is out of range.
    """
    _check(config)
    keep = on_state or ignore
    device = next(generator.parameters()).device
    target = make_target(crop, generator).to(device)
    camera = crop.camera.to(device, torch.float32)
    face = None if crop.model_points is None else face_points(crop.model_points, device)
    work = copy.deepcopy(generator).eval().requires_grad_(False)
    history: list[Step]
    if resume and resume.stage == tuning.STAGE:
        ws = resume.tensors["ws"].to(device)
        camera = Camera.from_label(resume.tensors["camera"].to(device))
        history = list(resume.history)
        _restore_noise(work, resume)
    else:
        distance = load_distance(config.perceptual, "latent", device)
        found = yield from latent.find_latent(
            work, target, camera, crop.covariance, config, distance, face, seed, should_stop, resume, keep
        )
        ws, camera, history = found.ws, found.camera, list(found.history)
        resume = None
        if found.steps < config.latent.steps:
            reason = f"stopped on request after {found.steps} latent steps"
            tuned = tuning.Tuned(copy.deepcopy(work), reason)
            return conclude(work, tuned, ws, camera, target, config, history)
    distance = load_distance(config.perceptual, "tuning", device)
    tuned = yield from tuning.tune(
        work, ws, camera, target, config, distance, face, seed, should_stop, resume, keep, history
    )
    return conclude(work, tuned, ws, camera, target, config, history)


def make_target(crop: Crop, generator: Eg3d) -> Target:
    """The crop at the generator's resolution; on white by the mask where the prior knows heads on white only."""
    side = generator.spec.image_resolution
    image, mask = resize(crop.image, side).clamp(-1, 1), resize(crop.mask, side).clamp(0, 1)
    white = generator.spec.render.white_background
    return Target(image * mask + (1 - mask) if white else image, mask, white)


@torch.no_grad()
def conclude(
    pivot: Eg3d,
    tuned: tuning.Tuned,
    ws: torch.Tensor,
    camera: Camera,
    target: Target,
    config: InversionConfig,
    history: list[Step],
) -> Inversion:
    """Measure the result and freeze it."""
    output = tuned.generator.render(tuned.generator.planes(ws), ws, camera)
    distance = load_distance(config.perceptual, "tuning", ws.device)
    metrics = {
        "psnr": psnr(output.image, target.image, target.mask),
        "ssim": ssim(output.image, target.image, target.mask),
        "perceptual": float(distance(distance.prepare(target.image), output.image)[0]),
        **depth_moved(pivot, tuned.generator, ws, camera),
    }
    return Inversion(ws, camera, tuned.generator, target, tuple(history), tuned.reason, metrics)


def _restore_noise(generator: Eg3d, state: InversionState) -> None:
    buffers = dict(generator.named_buffers())
    for name, value in state.tensors.items():
        if name.startswith("noise."):
            buffers[name.removeprefix("noise.")].copy_(value)


def _check(config: InversionConfig) -> None:
    for name, value in (
        ("latent.steps", config.latent.steps),
        ("tuning.steps", config.tuning.steps),
        ("tuning.side_views", config.tuning.side_views),
    ):
        if value < 0:
            raise ConfigError(f"{name} is {value}, but must not be negative")
    if config.tuning.geometry_every < 1:
        raise ConfigError(f"tuning.geometry_every is {config.tuning.geometry_every}, but must be at least 1")
    if not 0 <= config.latent.split <= 1:
        raise ConfigError(f"latent.split is {config.latent.split}, but is a share between 0 and 1")
