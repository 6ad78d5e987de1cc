"""Running an optimisation to its end."""

from __future__ import annotations

from collections.abc import Callable, Generator

from headlift.invert.result import Inversion
from headlift.values import Step


def follow(steps: Generator[Step, None, Inversion], on_step: Callable[[Step], None]) -> Inversion:
    """Run an optimisation to its end, reporting each step; returns its result."""
    while True:
        try:
            on_step(next(steps))
        except StopIteration as finished:
            result: Inversion = finished.value
            return result
