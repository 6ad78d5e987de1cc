"""Stage 2: pivotal tuning of the generator (PTI, Roich et al. 2022), with a guard on the other views.

The code and the camera stay; Adam moves all parameters of the generator so that it shows the photo: squared error at
full resolution plus the perceptual distance, until that distance is small enough (checked before the step). PTI alone
may flatten the head into a relief that is right from the front only; the guard (`sides.py`) holds depth, opacity and
tones of other views.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from headlift.config import InversionConfig
from headlift.eg3d.generator import Generator as Eg3d
from headlift.invert.face_points import FacePoints
from headlift.invert.latent import code_statistics, noise_images
from headlift.invert.losses import depth_error, learning_rate_ramp, resize, squared_error
from headlift.invert.perceptual import Distance, calibrated_stop
from headlift.invert.preview import preview
from headlift.invert.result import InversionState, Target
from headlift.invert.sides import guard_losses, side_views
from headlift.invert.state import adam_tensors, restore_adam
from headlift.invert.terms import descend, volume_terms
from headlift.values import Camera, Step

STAGE = "tuning"
LOCALITY_SHARE = 0.1
"""PTI's factor on both of the locality regularisation's terms."""
SMALL = 10_000_000
"""Generators with fewer parameters are small (the published ones have 30 million)."""
SMALL_GAIN = 10.0
"""Measured on the embedded prior with the photos of `benchmarks/inversion_check.py`."""
GUARD = {"side_depth": 100.0, "side_alpha": 1.0}
"""Weights of the guard's terms: a depth error of 0.1 units costs as much as a picture error of 1."""


@dataclass(frozen=True)
class Tuned:
    """What the second stage made."""

    generator: Eg3d
    reason: str


def tunable(generator: Eg3d) -> dict[str, torch.nn.Parameter]:
    """The parameters that a fixed code's picture depends on: all but the mapping network's."""
    return {name: p for name, p in generator.named_parameters() if "mapping." not in name}


def calibrated_gain(generator: Eg3d) -> float:
    """Factor on PTI's learning rate: 1 for networks of the published size, `SMALL_GAIN` below `SMALL` parameters.

    Equalised learning rates make a step's effect grow with the width, and a small prior is further from a photo.
    """
    return SMALL_GAIN if sum(p.numel() for p in generator.parameters()) < SMALL else 1.0


def tune(
    base: Eg3d,
    ws: Float[Tensor, "1 l w"],
    camera: Camera,
    target: Target,
    config: InversionConfig,
    distance: Distance,
    face: FacePoints | None,
    seed: int,
    should_stop: Callable[[], bool],
    resume: InversionState | None,
    on_state: Callable[[InversionState], None],
    history: list[Step],
) -> Generator[Step, None, Tuned]:
    """Tune a copy of `base` to show the target at (ws, camera); yields each step. `history` grows with them."""
    options = config.tuning
    rng = torch.Generator().manual_seed(seed + 1)
    generator = copy.deepcopy(base)
    views = side_views(base, ws, camera, target, options.side_views, rng) if options.geometry else ()
    with torch.no_grad():
        before = base.volume(base.planes(ws), camera)
    parameters = tunable(generator)
    for parameter in parameters.values():
        parameter.requires_grad_()
    rate = options.lr * (calibrated_gain(base) if options.lr_gain is None else options.lr_gain)
    optimiser = torch.optim.Adam(parameters.values(), lr=rate, betas=(0.9, 0.999))
    done = 0
    if resume:
        done = resume.step
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(resume.tensors[f"weight.{name}"])
        restore_adam(optimiser, resume.tensors)
        rng.set_state(resume.tensors["rng"])
    stop = calibrated_stop(distance.kind) if options.stop is None else options.stop
    prepared = distance.prepare(target.image)
    locality = Locality(base, ws, config, distance) if options.locality else None

    def state() -> InversionState:
        tensors = {"ws": ws, "camera": camera.label, "rng": rng.get_state()}
        tensors |= {f"noise.{name}": noise for name, noise in noise_images(base).items()}
        tensors |= {f"weight.{name}": p.detach().clone() for name, p in parameters.items()}
        return InversionState(STAGE, done, tensors | adam_tensors(optimiser), tuple(history))

    reason = f"all {options.steps} tuning steps were done"
    while done < options.steps:
        if should_stop():
            reason = f"stopped on request after {done} tuning steps"
            break
        planes = generator.planes(ws)
        output = generator.render(planes, ws, camera)
        near = distance(prepared, output.image).sum()
        if float(near.detach()) <= stop:
            reason = f"the perceptual distance fell to {float(near.detach()):.3f} (limit {stop:g}) after {done} steps"
            break
        losses = {
            "mse": options.mse * squared_error(output.image, target.image),
            "perceptual": options.perceptual * near,
        }
        losses |= volume_terms(output, camera, target, face, options)
        if options.geometry:
            side = output.depth.shape[-1]
            solid = before.alpha * resize(target.mask, side) if target.white else before.alpha
            moved = depth_error(output.depth, before.depth, solid)
            losses["depth"] = options.geometry * GUARD["side_depth"] * moved
        if views and done % options.geometry_every == 0:
            view = views[(done // options.geometry_every) % len(views)]
            for name, value in guard_losses(generator, planes, ws, view, options.side_colour > 0).items():
                factor = options.side_colour if name == "side_colour" else options.geometry * GUARD[name]
                losses[name] = factor * value
        if locality:
            losses["locality"] = options.locality * locality(generator, rng)
        optimiser.param_groups[0]["lr"] = rate * learning_rate_ramp(done / options.steps, 0.0, options.rampdown)
        numbers = descend(optimiser, losses)
        done += 1
        step = Step(STAGE, done, options.steps, numbers)
        history.append(step)
        if config.keep_every and done % config.keep_every == 0:
            on_state(state())
        yield preview(step, output.image, config.preview_every)
    on_state(state())
    return Tuned(generator.eval().requires_grad_(False), reason)


class Locality:
    """PTI's locality regularisation (eq. 4): codes near the pivot must give the pictures they gave before tuning."""

    def __init__(self, base: Eg3d, ws: Float[Tensor, "1 l w"], config: InversionConfig, distance: Distance) -> None:
        self.base, self.ws, self.distance = base, ws, distance
        self.alpha = config.tuning.locality_alpha
        self.mean = code_statistics(base, config.latent).mean

    def __call__(self, generator: Eg3d, rng: torch.Generator) -> Float[Tensor, ""]:
        z = torch.randn(1, self.base.spec.mapping.z_dim, generator=rng).to(self.ws)
        with torch.no_grad():
            code = self.mean.lerp(self.base.mapping(z, None), 0.5)
            towards = code - self.ws
            length = torch.linalg.vector_norm(towards, dim=-1, keepdim=True).clamp_min(1e-8)
            ws = self.ws + self.alpha * towards / length
            front = self.base.frontal_camera()
            wanted = self.base.render(self.base.planes(ws), ws, front).image
        image = generator.render(generator.planes(ws), ws, front).image
        error = squared_error(image, wanted) + self.distance(self.distance.prepare(wanted), image).sum()
        return LOCALITY_SHARE * error
