"""Stage 2: pivotal tuning of the generator (PTI, Roich et al. 2022).

The code and the cameras stay; Adam moves all parameters of the generator so that it shows the photo: squared error at
full resolution plus the perceptual distance, until that distance is small enough (checked before the step). Methods
add terms of their own; `best` moves kernels by Muon's steps (`invert/optimiser.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from headlift.config import InversionConfig, TuningConfig
from headlift.eg3d.active import CUT, FirstLook
from headlift.eg3d.generator import Generator as Eg3d
from headlift.eg3d.own_planes import OWN, with_own_planes
from headlift.invert.gathering import GatheringBackbone
from headlift.invert.latent import Pivot, code_statistics, pivot_tensors
from headlift.invert.losses import learning_rate_ramp, squared_error
from headlift.invert.optimiser import AdamAndMuon, Group
from headlift.invert.perceptual import Distance, calibrated_stop
from headlift.invert.preview import preview
from headlift.invert.result import InversionState
from headlift.invert.task import Moment, Task, Terms, mean_terms, no_terms
from headlift.invert.terms import descend, volume_terms
from headlift.values import RenderOutput, Step

STAGE = "tuning"
LOCALITY_SHARE = 0.1
"""PTI's factor on both of the locality regularisation's terms."""
SMALL = 10_000_000
"""Generators with fewer parameters are small (the published ones have 30 million)."""
SMALL_GAIN = 20.0
"""On the embedded prior: 60 steps at 20 or at 40 showed a head as well as 75 at 10, from all sides."""

LOOK_EVERY = 4
"""Steps that go by one first look along the photos' rays (`eg3d/active.py`)."""
LOOK = ("depths", "sigma")
"""What a look's tensors are called in states."""
TUNED = "tuned."
"""Before the names of the tensors that an earlier tuning made, in a later one's states."""
REASON = "tuned-reason"
"""Why that tuning ended, in states: the text's bytes."""
CONSTANT = ".const"
"""How the name of the backbone's learned constant ends."""


@dataclass(frozen=True)
class Tuned:
    """What the second stage made."""

    generator: Eg3d
    """In eval mode, its parameters frozen."""
    history: tuple[Step, ...]
    """All steps so far, those of earlier stages too."""
    reason: str
    """Why it ended, in a sentence."""
    stopped: bool = False
    """It was ended on request."""


def untuned(pivot: Pivot, reason: str, stopped: bool = False) -> Tuned:
    """The prior itself as the result."""
    return Tuned(copy.deepcopy(pivot.generator), pivot.history, reason, stopped)


def tuning_rng(task: Task) -> torch.Generator:
    """The randomness of tuning and of the terms that a method adds to it."""
    return torch.Generator().manual_seed(task.seed + 1)


def tunable(generator: Eg3d) -> dict[str, torch.nn.Parameter]:
    """The parameters that a fixed code's picture depends on: all but the mapping network's."""
    return {name: p for name, p in generator.named_parameters() if "mapping." not in name}


def calibrated_gain(generator: Eg3d) -> float:
    """Factor on PTI's learning rate: 1 for networks of the published size, `SMALL_GAIN` below `SMALL` parameters.

    Equalised learning rates make a step's effect grow with the width, and a small prior is further from a photo.
    """
    return SMALL_GAIN if sum(p.numel() for p in generator.parameters()) < SMALL else 1.0


def learning_rate(generator: Eg3d, options: TuningConfig) -> float:
    """Adam's rate before a group's own factor and the schedule."""
    return options.lr * (calibrated_gain(generator) if options.lr_gain is None else options.lr_gain)


def groups(parameters: Mapping[str, torch.nn.Parameter], options: TuningConfig) -> list[Group]:
    """Parameters by the factor on their rate, and by whose steps they take."""

    def settings(name: str) -> tuple[float, float]:
        if name.endswith(CONSTANT):
            return options.const_gain, 0.0
        if name in OWN:
            return options.photo_gain, 0.0
        kernel = parameters[name].ndim == 4 and parameters[name].shape[-1] > 1
        return 1.0, options.muon if kernel else 0.0

    alike: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        alike.setdefault(settings(name), []).append(parameter)
    return [Group(alike[gain, muon], gain=gain, muon=muon) for gain, muon in sorted(alike)]


def tune(
    task: Task,
    pivot: Pivot,
    distance: Distance,
    rng: torch.Generator,
    terms: Terms = no_terms,
    options: TuningConfig | None = None,
    stage: str = STAGE,
    history: Sequence[Step] | None = None,
    carried: Mapping[str, Tensor] | None = None,
    chosen: Callable[[Eg3d], dict[str, torch.nn.Parameter]] = tunable,
    photo_every: int = 1,
) -> Generator[Step, None, Tuned]:
    """Tune a copy of the pivot's generator to show every photo at the pivot's code and cameras; yields each step.

    Args:
        rng: what `terms` and the locality regularisation draw from; its state is kept with the rest.
        terms: what a method adds; all that it draws at random comes from `rng`.
        options: the task's own tuning settings, unless a method has several tunings.
        stage: the name under which steps and states go.
        history: the steps before this stage, if not the pivot's.
        carried: tensors that later steps of the method need, kept in the states.
        chosen: the parameters that move.
        photo_every: the photos are rendered and compared once in so many steps; in the others `terms` are all that is
            minimised.
    """
    if pivot.stopped:
        return untuned(pivot, pivot.stopped, stopped=True)
    config, options, base, ws = task.config, options or task.config.tuning, pivot.generator, pivot.ws
    resume = task.resumed(stage)
    steps = list(resume.history if resume else pivot.history if history is None else history)
    generator = copy.deepcopy(base)
    parameters = chosen(generator)
    for parameter in parameters.values():
        parameter.requires_grad_()
    rate = learning_rate(base, options)
    optimiser = AdamAndMuon(groups(parameters, options))
    # Locality regularisation goes back through the backbone in each step anyway.
    backbone = GatheringBackbone(generator, ws, 1 if options.locality else options.backbone_every)
    done, looks = 0, [FirstLook() for _ in pivot.cameras]
    if resume:
        done, looks = resume.step, looks_before(resume.tensors, len(looks), ws.device)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(resume.tensors[f"weight.{name}"])
        optimiser.restore(resume.tensors)
        backbone.restore(resume.tensors)
        rng.set_state(resume.tensors["rng"])
    stop = calibrated_stop(distance.kind, options.stop)
    prepared = [distance.prepare(view.target.image) for view in task.views]
    locality = Locality(base, ws, config, distance) if options.locality else None

    def state() -> InversionState:
        tensors = pivot_tensors(pivot) | {"rng": rng.get_state()} | dict(carried or {})
        tensors |= {f"weight.{name}": p.detach().clone() for name, p in parameters.items()}
        tensors |= look_tensors(looks) | backbone.tensors() | optimiser.tensors()
        return InversionState(stage, done, tensors, tuple(steps))

    reason, stopped = f"all {options.steps} tuning steps were done", False
    while done < options.steps:
        if task.should_stop():
            reason, stopped = f"stopped on request after {done} steps of {stage}", True
            break
        planes = backbone.planes()
        outputs: tuple[RenderOutput, ...] = ()
        losses: dict[str, Tensor] = {}
        if done % photo_every == 0:
            if done % LOOK_EVERY == 0:
                looks = [FirstLook() for _ in looks]
            outputs = tuple(
                generator.render(planes, ws, camera, cut=CUT, look=first)
                for camera, first in zip(pivot.cameras, looks, strict=True)
            )
            nears = [distance(wanted, output.image).sum() for wanted, output in zip(prepared, outputs, strict=True)]
            near = sum(float(value.detach()) for value in nears) / len(nears)
            if near <= stop:
                reason = f"the perceptual distance fell to {near:.3f} (limit {stop:g}) after {done} steps"
                break
            each = []
            for view, camera, output, apart in zip(task.views, pivot.cameras, outputs, nears, strict=True):
                seen = {
                    "mse": options.mse * squared_error(output.image, view.target.image),
                    "perceptual": options.perceptual * apart,
                }
                each.append(seen | volume_terms(output, camera, view, options))
            losses = mean_terms(each)
        losses |= terms(Moment(generator, planes, ws, pivot.cameras, outputs, done))
        if locality:
            losses["locality"] = options.locality * locality(generator, rng)
        for group in optimiser.groups:
            group.rate = group.gain * rate * learning_rate_ramp(done / options.steps, 0.0, options.rampdown)
        last = done + 1 == options.steps
        numbers = descend(optimiser, losses, partial(backbone.go_back, done, last))
        done += 1
        step = Step(stage, done, options.steps, numbers)
        steps.append(step)
        if config.keep_every and done % config.keep_every == 0:
            task.on_state(state())
        yield preview(step, outputs[0].image, config.preview_every) if outputs else step
    task.on_state(state())
    return Tuned(generator.eval().requires_grad_(False), tuple(steps), reason, stopped)


def carried_with(tuned: Tuned) -> dict[str, Tensor]:
    """What a further tuning keeps of the one before it in its states; `tuned_before` reads it."""
    tensors = {TUNED + name: p.detach().clone() for name, p in tunable(tuned.generator).items()}
    return tensors | {REASON: torch.tensor(list(tuned.reason.encode()), dtype=torch.uint8)}


def tuned_before(task: Task, stage: str, like: Eg3d) -> Tuned | None:
    """What a task that is resumed in this stage had tuned before it; `like` is a generator of that kind, which may lack
    the planes of its own (`eg3d/own_planes.py`)."""
    again = task.resumed(stage)
    if again is None:
        return None
    generator = with_own_planes(like, *(name for name in OWN if TUNED + name in again.tensors))
    with torch.no_grad():
        for name, parameter in tunable(generator).items():
            parameter.copy_(again.tensors[TUNED + name])
    return Tuned(generator, again.history, bytes(again.tensors[REASON].tolist()).decode())


def look_tensors(looks: Sequence[FirstLook]) -> dict[str, Tensor]:
    """First looks for the states; `looks_before` reads them."""
    return {
        f"look{k}.{name}": value
        for k, look in enumerate(looks)
        if look.found
        for name, value in zip(LOOK, look.found, strict=True)
    }


def looks_before(tensors: Mapping[str, Tensor], count: int, device: torch.device) -> list[FirstLook]:
    """The first looks that a state holds, empty where it holds none."""

    def look(k: int) -> FirstLook:
        names = [f"look{k}.{name}" for name in LOOK]
        if names[0] not in tensors:
            return FirstLook()
        depths, sigma = (tensors[name].to(device) for name in names)
        return FirstLook((depths, sigma))

    return [look(k) for k in range(count)]


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
        image = generator.render(generator.planes(ws), ws, front, cut=CUT).image
        error = squared_error(image, wanted) + self.distance(self.distance.prepare(wanted), image).sum()
        return LOCALITY_SHARE * error
