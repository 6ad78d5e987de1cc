"""What the search for the code and the tuning of the generator minimise alike, and the step that both take."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from headlift.config import LatentConfig, TuningConfig
from headlift.errors import InversionError
from headlift.invert.face_points import relief_error
from headlift.invert.losses import alpha_error, resize, squared_error
from headlift.invert.optimiser import AdamAndMuon
from headlift.invert.surface import surface_error
from headlift.invert.task import View
from headlift.values import Camera, RenderOutput


def volume_terms(
    output: RenderOutput, camera: Camera, view: View, options: LatentConfig | TuningConfig
) -> dict[str, Tensor]:
    """The weighted terms that hold the volume itself, before super-resolution: its picture, opacity and geometry."""
    side, target = output.raw.shape[-1], view.target
    terms = {}
    if options.raw:
        terms["raw"] = options.raw * squared_error(output.raw, resize(target.image, side))
    if target.white and options.alpha:
        terms["alpha"] = options.alpha * alpha_error(output.alpha, resize(target.mask, side))
    if view.face and options.relief:
        terms["relief"] = options.relief * relief_error(output.depth, output.alpha, camera, view.face)
    if view.surface and options.depth:
        terms["depth"] = options.depth * surface_error(output.depth, view.surface)
    return terms


def descend(
    optimiser: AdamAndMuon, losses: dict[str, Tensor], finish: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """One step down the sum of the losses; returns their values before it, with their `total`.

    `finish` is called with the gradients there, before anything moves. Raises InversionError when the sum is no number.
    """
    total = torch.stack([value.reshape(()) for value in losses.values()]).sum()
    if not torch.isfinite(total):
        bad = ", ".join(name for name, value in losses.items() if not torch.isfinite(value).all())
        raise InversionError(f"The optimisation went astray: {bad} is no number any more. Lower its learning rates.")
    optimiser.zero_grad()
    total.backward()
    finish()
    optimiser.step()
    return {name: float(value.detach()) for name, value in losses.items()} | {"total": float(total.detach())}
