"""Method `multi`: several photos of one person, one head: one code, one tuned generator, a camera for each photo.

Pivotal tuning in which every loss is the mean over the photos; each camera is refined beside the code, because photos
of one head must agree on where it is. There is no published form for EG3D; the constants are PTI's. The photos should
show one expression: the head has but one.
"""

from __future__ import annotations

from collections.abc import Generator

from headlift.invert.pti import pti
from headlift.invert.result import Inversion
from headlift.invert.task import Task
from headlift.values import Step


def multi(task: Task) -> Generator[Step, None, Inversion]:
    """Code and cameras, then the generator, over all photos; yields every step, returns the head."""
    return (yield from pti(task))
