"""Methods `w` and `w+`: the code alone, the generator as it is (PTI's projector, as EG3D-projector has it)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Literal

from headlift.invert.conclude import conclude
from headlift.invert.latent import find_latent
from headlift.invert.perceptual import load_distance
from headlift.invert.result import Inversion
from headlift.invert.task import Task
from headlift.invert.tuning import untuned
from headlift.values import Step


def w(task: Task) -> Generator[Step, None, Inversion]:
    """One code for all layers; yields every step, returns the head."""
    return (yield from _code_alone(task, "w"))


def w_plus(task: Task) -> Generator[Step, None, Inversion]:
    """A code for each layer; yields every step, returns the head."""
    return (yield from _code_alone(task, "w+"))


def _code_alone(task: Task, space: Literal["w", "w+"]) -> Generator[Step, None, Inversion]:
    config = replace(task.config, latent=replace(task.config.latent, space=space, split=1.0))
    device = next(task.generator.parameters()).device
    pivot = yield from find_latent(replace(task, config=config), load_distance(config.perceptual, "latent", device))
    reason = pivot.stopped or f"all {config.latent.steps} latent steps were done"
    return conclude(task, pivot, untuned(pivot, reason))
