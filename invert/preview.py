"""The pictures that travel with steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from headlift.values import Step


def preview(step: Step, image: Float[Tensor, "n 3 h w"], every: int) -> Step:
    """The step with its render, when it is the first, the last or one of every so many."""
    if not every or not (step.index == 1 or step.index == step.total or step.index % every == 0):
        return step
    return replace(step, image=pixels(image))


def pixels(image: Float[Tensor, "n 3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """The first picture of a batch in [-1, 1] as 8-bit RGB."""
    scaled = (image[0].detach().clamp(-1, 1) + 1) * 127.5
    array: UInt8[np.ndarray, "h w 3"] = scaled.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return array
