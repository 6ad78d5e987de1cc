"""Inversions run to their end, and compared bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from headlift.config import InversionConfig
from headlift.eg3d.generator import Generator
from headlift.invert.follow import follow
from headlift.invert.invert import invert
from headlift.invert.result import Inversion
from headlift.values import Crop, Step


def run(
    generator: Generator, crops: Crop | Sequence[Crop], config: InversionConfig, **more: Any
) -> tuple[Inversion, list[Step]]:
    """The result and all steps; `more` as in `invert`."""
    seen: list[Step] = []
    return follow(invert(generator, crops, config, **more), seen.append), seen


def same(a: Inversion, b: Inversion) -> bool:
    """Whether weights, code and camera are equal to the bit."""
    first, second = a.generator.state_dict(), b.generator.state_dict()
    weights = all(torch.equal(first[name], second[name]) for name in first)
    return weights and torch.equal(a.ws, b.ws) and torch.equal(a.camera.cam2world, b.camera.cam2world)
