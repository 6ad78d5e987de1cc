"""Where the photo ends and a guess of the rest begins: what they differ by there holds for what is hidden, too.

A network that tells what the photo does not reach has a cheek a little paler and hair a little darker than the photo
has them. At the seam both are known, pixel beside pixel: what the photo adds there is added to all that is told, by
likeness in colour and place (a kernel regression). The rest of the cheek follows the cheek, the rest of the hair the
hair, from one view to the next and round the head. Pictures are joined so by their gradients (Pérez et al., Poisson
Image Editing, 2003); in space, with many views that must agree, a regression does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from headlift.invert.likeness import by_likeness

COLOUR_SCALE = 0.1
"""Told colours this far apart, in units of [-1, 1], are unlike."""
PLACE_SCALE = 0.2
"""Places this far apart are unlike, world units."""
ENOUGH = 0.05
"""So much likeness to the seam, in pixels of it, and half of the change is believed."""


@dataclass(frozen=True)
class Seam:
    """Pixels of the photo that lie beside hidden ones."""

    keys: Float[Tensor, "k 6"]
    """What is told beside them: colour and place."""
    change: Float[Tensor, "k 3"]
    """The photo's colour less that."""


def seam_of(
    told: Float[Tensor, "1 3 r r"],
    photo: Float[Tensor, "1 3 r r"],
    seen: Float[Tensor, "1 1 r r"],
    solid: Float[Tensor, "1 1 r r"],
    points: Float[Tensor, "1 m 3"],
) -> Seam:
    """The seam of one view: `photo` holds where `seen` is 1, `told` elsewhere on what is `solid` (1 or 0), at `points`
    of the world."""
    hidden = solid * (1 - seen)
    places = points[0].T.reshape(told.shape)
    share = F.avg_pool2d(hidden, 3, stride=1, padding=1)
    beside = F.avg_pool2d(torch.cat([told, places], 1) * hidden, 3, stride=1, padding=1) / share.clamp_min(1e-6)
    at = ((solid * seen > 0) & (share > 0))[0, 0]
    colour, place, there = beside[0, :3, at].T, beside[0, 3:, at].T, photo[0, :, at].T
    return Seam(_keys(colour, place), there - colour)


def joined(seams: Sequence[Seam]) -> Seam:
    """The seams of several views."""
    return Seam(torch.cat([s.keys for s in seams]), torch.cat([s.change for s in seams]))


def carried_on(told: Float[Tensor, "1 3 r r"], points: Float[Tensor, "1 m 3"], seam: Seam) -> Float[Tensor, "1 3 r r"]:
    """Told colours with what the seam adds to those that are like its own; far from all of it nothing."""
    if not len(seam.keys):
        return told
    change = by_likeness(_keys(told.flatten(2)[0].T, points[0]), seam.keys, seam.change, ENOUGH)
    return told + change.T.reshape(told.shape)


def _keys(colours: Float[Tensor, "k 3"], points: Float[Tensor, "k 3"]) -> Float[Tensor, "k 6"]:
    return torch.cat([colours / COLOUR_SCALE, points / PLACE_SCALE], 1)
