"""Stage 1: the latent code, and with it a small correction of the camera.

PTI's projector (Roich et al. 2022; StyleGAN2's, Karras et al. 2020, appendix D) as published for EG3D: Adam on one
code for all layers (W) or one for each (W+) and on the noise images, with ramps on the learning rate and on the jitter
of the code. What is minimised is the perceptual distance at 256 pixels plus the regulariser of the noise; headlift adds
opacity against the mask where the prior's background is white, and the prior on the camera's correction.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headlift.config import InversionConfig, LatentConfig
from headlift.eg3d.generator import Generator as Eg3d
from headlift.invert.camera_refine import camera_prior, moved_camera
from headlift.invert.face_points import FacePoints
from headlift.invert.losses import (
    alpha_error,
    area_downsample,
    jitter_scale,
    learning_rate_ramp,
    noise_regularizer,
    normalize_noise,
    resize,
    squared_error,
)
from headlift.invert.perceptual import Distance
from headlift.invert.preview import preview
from headlift.invert.result import InversionState, Target
from headlift.invert.state import adam_tensors, restore_adam
from headlift.invert.terms import descend, volume_terms
from headlift.values import Camera, Step

STAGE = "latent"


@dataclass(frozen=True)
class CodeStatistics:
    """Where random heads lie in W."""

    mean: Float[Tensor, " w"]
    spread: float
    """Root of the mean squared distance from the mean (all dimensions together), StyleGAN2's `w_std`."""


@dataclass(frozen=True)
class Latent:
    """What the first stage found."""

    ws: Float[Tensor, "1 l w"]
    camera: Camera
    noises: Mapping[str, Float[Tensor, "r r"]]
    """The noise images found with the code, by buffer name; empty where the generator uses none."""
    history: tuple[Step, ...]
    steps: int
    """Steps done; fewer than asked for when it was stopped."""


@torch.no_grad()
def code_statistics(generator: Eg3d, config: LatentConfig) -> CodeStatistics:
    """Mean and spread of w over random codes (600, NumPy's legacy seed 123), mapped with the frontal camera."""
    random = np.random.RandomState(config.w_stats_seed)
    z = torch.from_numpy(random.randn(config.w_stats_samples, generator.spec.mapping.z_dim)).float()
    w = generator.mapping(z.to(_device(generator)), None)[:, 0]
    mean = w.mean(0)
    return CodeStatistics(mean, float((w - mean).square().sum(1).mean().sqrt()))


@torch.no_grad()
def best_start(
    generator: Eg3d,
    target: Target,
    camera: Camera,
    statistics: CodeStatistics,
    config: LatentConfig,
    rng: torch.Generator,
) -> Float[Tensor, "1 1 w"]:
    """The mean code, or, with `candidates`, whichever of so many random codes at truncation 0.7 shows the target best.

    The volume's own small picture and its opacity are compared, without super-resolution.
    """
    start = statistics.mean[None, None]
    best = float("inf")
    for index in range(config.candidates + 1):
        w = start
        if index:
            z = torch.randn(1, generator.spec.mapping.z_dim, generator=rng).to(_device(generator))
            w = statistics.mean.lerp(generator.mapping(z, None)[:, :1], 0.7)
        else:
            w = statistics.mean[None, None]
        if not config.candidates:
            return w
        volume = generator.volume(generator.planes(_broadcast(w, generator.num_ws)), camera, COARSE)
        side = volume.depth.shape[-1]
        error = float(squared_error(volume.features[:, :3], resize(target.image, side)))
        if target.white:
            error += config.alpha * float(alpha_error(volume.alpha, resize(target.mask, side)))
        if error < best:
            start, best = w, error
    return start


def find_latent(
    generator: Eg3d,
    target: Target,
    camera: Camera,
    covariance: Float[np.ndarray, "2 2"],
    config: InversionConfig,
    distance: Distance,
    face: FacePoints | None,
    seed: int,
    should_stop: Callable[[], bool],
    resume: InversionState | None,
    on_state: Callable[[InversionState], None],
) -> Generator[Step, None, Latent]:
    """Optimise code, noise and camera; yields each step, returns what was found (or what there is when stopped).

    `generator` is worked on: its noise images are replaced by the optimised ones. `camera` is the estimate,
    `covariance` that of its (yaw, pitch) in radians squared, `face` where its skin lies, if that is known.
    """
    options = config.latent
    rng = torch.Generator().manual_seed(seed)
    statistics = code_statistics(generator, options)
    noises = noise_images(generator)
    twist = torch.zeros(6, device=_device(generator))
    done = resume.step if resume else 0
    history = list(resume.history) if resume else []
    split_at = round(options.split * options.steps) if options.space == "w" and options.split < 1 else options.steps + 1
    if resume:
        code = resume.tensors["code"].to(twist)
        twist = resume.tensors["twist"].to(twist)
        for name, noise in noises.items():
            noise.copy_(resume.tensors[f"noise.{name}"])
        rng.set_state(resume.tensors["rng"])
    else:
        code = best_start(generator, target, camera, statistics, options, rng)
        if options.space == "w+":
            code = _broadcast(code, generator.num_ws)
        for noise in noises.values():
            noise.copy_(torch.randn(noise.shape, generator=rng))
    parameters = _leaves(code, twist, noises)
    _install(generator, noises)
    optimiser = _adam(parameters, list(noises.values()), options, config.camera.lr)
    if resume:
        restore_adam(optimiser, resume.tensors)
    prepared = distance.prepare(target.image)
    code, twist = parameters

    def state() -> InversionState:
        tensors = {"code": code.detach().clone(), "twist": twist.detach().clone(), "rng": rng.get_state()}
        tensors |= {f"noise.{name}": noise.detach().clone() for name, noise in noises.items()}
        return InversionState(STAGE, done, tensors | adam_tensors(optimiser), tuple(history))

    while done < options.steps and not should_stop():
        t = done / options.steps
        if done == split_at:
            code, twist = _leaves(_broadcast(code.detach(), generator.num_ws), twist, noises)
            optimiser = _adam((code, twist), list(noises.values()), options, config.camera.lr)
        ramp = learning_rate_ramp(t, options.rampup, options.rampdown)
        moving = config.camera.enabled and t >= config.camera.start
        optimiser.param_groups[0]["lr"] = options.lr * ramp
        optimiser.param_groups[1]["lr"] = config.camera.lr * ramp if moving else 0.0
        jitter = statistics.spread * jitter_scale(t, options.w_noise, options.w_noise_ramp)
        shaken = code + torch.randn(code.shape, generator=rng).to(code) * jitter
        ws = _broadcast(shaken, generator.num_ws)
        seen = moved_camera(camera, twist) if moving else camera
        output = generator.render(generator.planes(ws), ws, seen, options.neural_resolution)
        losses = {"perceptual": distance(prepared, output.image).sum()}
        if options.mse:
            small = area_downsample(target.image, 256)
            losses["mse"] = options.mse * squared_error(area_downsample(output.image, 256), small)
        losses |= volume_terms(output, seen, target, face, options)
        if options.near_mean:
            away = (code - statistics.mean).square().sum(-1).mean() / statistics.spread**2
            losses["near_mean"] = options.near_mean * away
        if noises:
            losses["noise"] = options.noise_reg * noise_regularizer(noises.values()).to(code.device)
        if moving:
            losses["camera"] = CAMERA_PRIOR * camera_prior(twist, camera, covariance, config.camera)
        numbers = descend(optimiser, losses)
        normalize_noise(noises.values())
        done += 1
        step = Step(STAGE, done, options.steps, numbers)
        history.append(step)
        if config.keep_every and done % config.keep_every == 0:
            on_state(state())
        yield preview(step, output.image, config.preview_every)
    on_state(state())
    found = moved_camera(camera, twist.detach()) if config.camera.enabled else camera
    ws = _broadcast(code.detach(), generator.num_ws).clone()
    final = {name: noise.detach().clone() for name, noise in noises.items()}
    _install(generator, final)
    return Latent(ws, found, final, tuple(history), done)


COARSE = 32
"""Side of the pictures that are looked at for a start, pixels."""
CAMERA_PRIOR = 1e-3
"""What one squared standard deviation of the camera's correction costs, in units of the perceptual distance."""


def noise_images(generator: Eg3d) -> dict[str, Float[Tensor, "r r"]]:
    """Copies of the backbone's noise images that are in use (their layer's strength is not 0), by buffer name."""
    state = dict(generator.named_parameters())
    found = {}
    for name, buffer in generator.backbone.named_buffers():
        if name.endswith("noise_const"):
            strength = state.get("backbone." + name.removesuffix("noise_const") + "noise_strength")
            if strength is not None and float(strength.abs().max()) > 0:
                found["backbone." + name] = buffer.detach().clone()
    return found


def _install(generator: Eg3d, noises: Mapping[str, Float[Tensor, "r r"]]) -> None:
    for name, noise in noises.items():
        owner, _, attribute = name.rpartition(".")
        setattr(generator.get_submodule(owner), attribute, noise)


def _leaves(
    code: Float[Tensor, "1 l w"], twist: Float[Tensor, 6], noises: Mapping[str, Float[Tensor, "r r"]]
) -> tuple[Tensor, Tensor]:
    for noise in noises.values():
        noise.requires_grad_()
    return code.detach().clone().requires_grad_(), twist.detach().clone().requires_grad_()


def _adam(
    parameters: tuple[Tensor, Tensor], noises: list[Tensor], options: LatentConfig, camera_lr: float
) -> torch.optim.Adam:
    code, twist = parameters
    groups = [{"params": [code, *noises], "lr": options.lr}, {"params": [twist], "lr": camera_lr}]
    return torch.optim.Adam(groups, betas=(0.9, 0.999))


def _broadcast(code: Float[Tensor, "1 k w"], layers: int) -> Float[Tensor, "1 l w"]:
    return code.expand(-1, layers, -1) if code.shape[1] == 1 else code


def _device(generator: Eg3d) -> torch.device:
    return next(generator.parameters()).device
