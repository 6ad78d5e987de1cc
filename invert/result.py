"""What an inversion gives back, and what an interrupted one needs to go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from headlift.eg3d.generator import Generator
from headlift.values import Camera, Step


@dataclass(frozen=True)
class Target:
    """What the generator has to show: the crop as its prior knows pictures."""

    image: Float[Tensor, "1 3 r r"]
    """RGB in [-1, 1] at the generator's own resolution; on white by the mask where the prior's background is white."""
    mask: Float[Tensor, "1 1 r r"]
    """Head, neck and shoulders, 1 inside."""
    white: bool
    """The background is white, and the generator's opacity is held against the mask."""

    def to(self, device: torch.device) -> Target:
        """The same target on another device."""
        return Target(self.image.to(device), self.mask.to(device), self.white)


@dataclass(frozen=True)
class Shown:
    """A further photo of the same head."""

    camera: Camera
    """The refined camera of its crop."""
    target: Target


@dataclass(frozen=True)
class InversionState:
    """Where an interrupted inversion stands; with the same crop, config and seed it goes on as if nothing had been.

    Plain tensors and JSON values, so that it can be written to a file (`headlift.head.save_state`).
    """

    stage: str
    """The stage's name as its steps have it: `latent`, `tuning`, or one that a method has besides."""
    step: int
    """Steps done in that stage."""
    tensors: Mapping[str, Tensor]
    """Code, camera twist, weights, optimiser and random state, by name."""
    history: tuple[Step, ...] = ()
    """Steps so far, without pictures."""


@dataclass(frozen=True)
class Inversion:
    """A head: a code, a camera and the generator that was tuned to it."""

    ws: Float[Tensor, "1 l w"]
    """The latent code, one row for each layer."""
    camera: Camera
    """The refined camera of the crop."""
    generator: Generator
    """The tuned generator, in eval mode, its parameters frozen."""
    target: Target
    """What it was tuned to."""
    history: tuple[Step, ...]
    """All steps with their losses, without pictures."""
    reason: str
    """Why it ended, in a sentence."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """psnr [dB], ssim, perceptual, depth_moved, depth_moved_input, depth_moved_sides [world units]; with several photos
    psnr_photo_2 ... [dB]."""
    others: tuple[Shown, ...] = ()
    """Further photos, where the method takes several."""
