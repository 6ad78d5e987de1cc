"""Stage 1: the latent code, and with it a small correction of the camera.

PTI's projector (Roich et al. 2022; StyleGAN2's, Karras et al. 2020, appendix D) as published for EG3D: Adam on one
code for all layers (W) or one for each (W+) and on the noise images, with ramps on the learning rate and on the jitter
of the code. What is minimised is the perceptual distance at 256 pixels plus the regulariser of the noise; headlift adds
opacity against the mask where the prior's background is white, and the prior on the camera's correction.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headlift.config import LatentConfig
from headlift.eg3d.active import CUT
from headlift.eg3d.generator import Generator as Eg3d
from headlift.invert.camera_refine import camera_prior, camera_rate, moved_camera
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
from headlift.invert.optimiser import AdamAndMuon, Group
from headlift.invert.perceptual import Distance
from headlift.invert.preview import preview
from headlift.invert.result import InversionState, Target
from headlift.invert.task import Moment, Task, Terms, mean_terms, no_terms
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
class Pivot:
    """What the first stage found, and tuning starts from."""

    generator: Eg3d
    """The prior with the noise images found with the code; untuned."""
    ws: Float[Tensor, "1 l w"]
    cameras: tuple[Camera, ...]
    """One for each photo."""
    history: tuple[Step, ...]
    stopped: str = ""
    """Why the search was ended before its time, if it was."""


@torch.no_grad()
def code_statistics(generator: Eg3d, config: LatentConfig, camera: Camera | None = None) -> CodeStatistics:
    """Mean and spread of w over random codes (600, NumPy's legacy seed 123), mapped with `camera` or the frontal."""
    random = np.random.RandomState(config.w_stats_seed)
    z = torch.from_numpy(random.randn(config.w_stats_samples, generator.spec.mapping.z_dim)).float()
    w = generator.mapping(z.to(_device(generator)), camera)[:, 0]
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
    if not config.candidates:
        return start
    best = float("inf")
    for index in range(config.candidates + 1):
        w = statistics.mean[None, None]
        if index:
            z = torch.randn(1, generator.spec.mapping.z_dim, generator=rng).to(_device(generator))
            w = statistics.mean.lerp(generator.mapping(z, None)[:, :1], 0.7)
        volume = generator.volume(generator.planes(_broadcast(w, generator.num_ws)), camera, COARSE)
        side = volume.depth.shape[-1]
        error = float(squared_error(volume.features[:, :3], resize(target.image, side)))
        if target.white:
            error += config.alpha * float(alpha_error(volume.alpha, resize(target.mask, side)))
        if error < best:
            start, best = w, error
    return start


def find_latent(task: Task, distance: Distance, terms: Terms = no_terms) -> Generator[Step, None, Pivot]:
    """Optimise code, noise and cameras; yields each step, returns what was found (or what there is when stopped).

    With several photos the losses are the means over them: one code, a camera each. `terms` are minimised beside them.
    A task that is resumed beyond this stage has its result in the state.
    """
    if task.resume and task.resume.stage != STAGE:
        return found_before(task, task.resume)
    config, options, resume = task.config, task.config.latent, task.resume
    generator = copy.deepcopy(task.generator).eval().requires_grad_(False)
    views = task.views
    rng = torch.Generator().manual_seed(task.seed)
    statistics = code_statistics(generator, options, views[0].camera if options.w_stats_at == "photo" else None)
    noises = noise_images(generator)
    twists = [torch.zeros(6, device=_device(generator)) for _ in views]
    camera_lr = camera_rate([view.covariance for view in views], config.camera)
    done = resume.step if resume else 0
    history = list(resume.history) if resume else []
    split_at = round(options.split * options.steps) if options.space == "w" and options.split < 1 else options.steps + 1
    preheat = round(config.camera.preheat * options.steps) if config.camera.enabled else 0
    if resume:
        code = resume.tensors["code"].to(twists[0])
        twists = [resume.tensors[_numbered("twist", k)].to(twists[0]) for k in range(len(views))]
        for name, noise in noises.items():
            noise.copy_(resume.tensors[f"noise.{name}"])
        rng.set_state(resume.tensors["rng"])
    else:
        code = best_start(generator, views[0].target, views[0].camera, statistics, options, rng)
        if options.space == "w+":
            code = _broadcast(code, generator.num_ws)
        for noise in noises.values():
            noise.copy_(torch.randn(noise.shape, generator=rng))
    code, twists = _leaves(code, twists, noises)
    _install(generator, noises)
    optimiser = _optimiser(code, twists, list(noises.values()))
    if resume:
        optimiser.restore(resume.tensors)
    prepared = [distance.prepare(view.target.image) for view in views]

    def state() -> InversionState:
        tensors = {"code": code.detach().clone(), "rng": rng.get_state()}
        tensors |= {_numbered("twist", k): twist.detach().clone() for k, twist in enumerate(twists)}
        tensors |= {f"noise.{name}": noise.detach().clone() for name, noise in noises.items()}
        return InversionState(STAGE, done, tensors | optimiser.tensors(), tuple(history))

    while done < options.steps and not task.should_stop():
        t = done / options.steps
        t_code = max(0, done - preheat) / (options.steps - preheat) if options.steps > preheat else 1.0
        if done == split_at:
            code, twists = _leaves(_broadcast(code.detach(), generator.num_ws), twists, noises)
            optimiser = _optimiser(code, twists, list(noises.values()))
        searching = done >= preheat
        for leaf in (code, *noises.values()):
            leaf.requires_grad_(searching)
        moving = config.camera.enabled and (t >= config.camera.start or not searching)
        ramp = learning_rate_ramp(t_code, options.rampup, options.rampdown)
        optimiser.groups[0].rate = options.lr * ramp
        optimiser.groups[1].rate = camera_lr * (ramp if searching else 1.0) if moving else 0.0
        jitter = statistics.spread * jitter_scale(t_code, options.w_noise, options.w_noise_ramp) if searching else 0.0
        shaken = code + torch.randn(code.shape, generator=rng).to(code) * jitter
        ws = _broadcast(shaken, generator.num_ws)
        planes = generator.planes(ws)
        cameras = tuple(
            moved_camera(view.camera, twist, config.camera.on_sphere) if moving else view.camera
            for view, twist in zip(views, twists, strict=True)
        )
        outputs = tuple(generator.render(planes, ws, camera, options.neural_resolution, cut=CUT) for camera in cameras)
        each = []
        for view, camera, output, wanted in zip(views, cameras, outputs, prepared, strict=True):
            seen = {"perceptual": distance(wanted, output.image).sum()}
            if options.mse:
                small = area_downsample(view.target.image, 256)
                seen["mse"] = options.mse * squared_error(area_downsample(output.image, 256), small)
            each.append(seen | volume_terms(output, camera, view, options))
        losses = mean_terms(each)
        if options.near_mean:
            away = (code - statistics.mean).square().sum(-1).mean() / statistics.spread**2
            losses["near_mean"] = options.near_mean * away
        if noises:
            losses["noise"] = options.noise_reg * noise_regularizer(noises.values()).to(code.device)
        if moving:
            priors = [
                {"camera": CAMERA_PRIOR * camera_prior(twist, view.camera, view.covariance, config.camera)}
                for view, twist in zip(views, twists, strict=True)
            ]
            losses |= mean_terms(priors)
        losses |= terms(Moment(generator, planes, ws, cameras, outputs, done))
        numbers = descend(optimiser, losses)
        if searching:
            normalize_noise(noises.values())
        done += 1
        step = Step(STAGE, done, options.steps, numbers)
        history.append(step)
        if config.keep_every and done % config.keep_every == 0:
            task.on_state(state())
        yield preview(step, outputs[0].image, config.preview_every)
    task.on_state(state())
    found = tuple(
        moved_camera(view.camera, twist.detach(), config.camera.on_sphere) if config.camera.enabled else view.camera
        for view, twist in zip(views, twists, strict=True)
    )
    ws = _broadcast(code.detach(), generator.num_ws).clone()
    _install(generator, {name: noise.detach().clone() for name, noise in noises.items()})
    stopped = f"stopped on request after {done} latent steps" if done < options.steps else ""
    return Pivot(generator, ws, found, tuple(history), stopped)


def pivot_tensors(pivot: Pivot) -> dict[str, Tensor]:
    """A pivot for the states of later stages; `found_before` reads it."""
    tensors = {"ws": pivot.ws}
    tensors |= {_numbered("camera", k): camera.label for k, camera in enumerate(pivot.cameras)}
    return tensors | {f"noise.{name}": noise for name, noise in noise_images(pivot.generator).items()}


def found_before(task: Task, state: InversionState) -> Pivot:
    """The pivot that a later stage's state holds."""
    generator = copy.deepcopy(task.generator).eval().requires_grad_(False)
    device = _device(generator)
    labels = [state.tensors[_numbered("camera", k)].to(device) for k in range(len(task.views))]
    buffers = dict(generator.named_buffers())
    for name, value in state.tensors.items():
        if name.startswith("noise."):
            buffers[name.removeprefix("noise.")].copy_(value)
    ws = state.tensors["ws"].to(device)
    return Pivot(generator, ws, tuple(Camera.from_label(label) for label in labels), tuple(state.history))


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
    code: Float[Tensor, "1 l w"], twists: Sequence[Float[Tensor, 6]], noises: Mapping[str, Float[Tensor, "r r"]]
) -> tuple[Tensor, list[Tensor]]:
    for noise in noises.values():
        noise.requires_grad_()
    return code.detach().clone().requires_grad_(), [twist.detach().clone().requires_grad_() for twist in twists]


def _optimiser(code: Tensor, twists: list[Tensor], noises: list[Tensor]) -> AdamAndMuon:
    return AdamAndMuon([Group([code, *noises]), Group(twists)])


def _numbered(name: str, index: int) -> str:
    return f"{name}{index}" if index else name


def _broadcast(code: Float[Tensor, "1 k w"], layers: int) -> Float[Tensor, "1 l w"]:
    return code.expand(-1, layers, -1) if code.shape[1] == 1 else code


def _device(generator: Eg3d) -> torch.device:
    return next(generator.parameters()).device
