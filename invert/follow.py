"""Running an optimisation to its end."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from headlift.values import Step

T = TypeVar("T")


def follow(steps: Generator[Step, None, T], on_step: Callable[[Step], None]) -> T:
    """Run an optimisation to its end, reporting each step; returns its result."""
    while True:
        try:
            on_step(next(steps))
        except StopIteration as finished:
            result: T = finished.value
            return result
