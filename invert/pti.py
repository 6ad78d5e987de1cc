"""Method `pti`: pivotal tuning as published (Roich et al. 2022), with EG3D's renderer (EG3D-projector)."""

from __future__ import annotations

from collections.abc import Generator

from headlift.invert.conclude import conclude
from headlift.invert.latent import find_latent
from headlift.invert.perceptual import load_distance
from headlift.invert.result import Inversion
from headlift.invert.task import Task
from headlift.invert.tuning import tune, tuning_rng
from headlift.values import Step


def pti(task: Task) -> Generator[Step, None, Inversion]:
    """A code, then the generator, nothing else; yields every step, returns the head."""
    device = next(task.generator.parameters()).device
    pivot = yield from find_latent(task, load_distance(task.config.perceptual, "latent", device))
    distance = load_distance(task.config.perceptual, "tuning", device)
    tuned = yield from tune(task, pivot, distance, tuning_rng(task))
    return conclude(task, pivot, tuned)
