"""Tones: the photo's colours for what it does not show, from points of the untuned head that are like those it does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from headlift.invert.likeness import by_likeness
from headlift.invert.losses import resize
from headlift.invert.result import Target
from headlift.invert.sheet import erode
from headlift.invert.warp import surface_points
from headlift.values import Camera

COLOUR_SCALE = 0.25
"""Colours this far apart, in units of [-1, 1], are unlike."""
PLACE_SCALE = 0.2
"""Points this far apart are unlike, world units; the head is taken as its own mirror image."""


@dataclass(frozen=True)
class Tones:
    """Seen points: the pivot's colour and place there, and the photo's colour."""

    keys: Float[Tensor, "k 6"]
    colour: Float[Tensor, "k 3"]


def tone_samples(
    raw: Float[Tensor, "1 3 r r"],
    depth: Float[Tensor, "1 1 r r"],
    alpha: Float[Tensor, "1 1 r r"],
    camera: Camera,
    target: Target,
) -> Tones:
    """The photo's colours at the points that it and the pivot's surface share."""
    side = raw.shape[-1]
    photo = resize(target.image, side)
    solid = ((alpha > 0.9) & (erode(resize(target.mask, side), 1) > 0.95)).flatten()
    keys = tone_keys(raw.flatten(2)[0].T, surface_points(depth, camera)[0])
    return Tones(keys[solid], photo.flatten(2)[0].T[solid])


def tone_keys(colours: Float[Tensor, "k 3"], points: Float[Tensor, "k 3"]) -> Float[Tensor, "k 6"]:
    """What makes two points alike: colour, and place up to the mirror."""
    mirrored = torch.cat([points[:, :1].abs(), points[:, 1:]], 1)
    return torch.cat([colours / COLOUR_SCALE, mirrored / PLACE_SCALE], 1)


def transfer_tones(
    raw: Float[Tensor, "1 3 r r"], points: Float[Tensor, "1 m 3"], tones: Tones
) -> Float[Tensor, "1 3 r r"]:
    """The photo's mean colour over the seen points, weighted by their likeness to each point (a Gaussian kernel)."""
    if not len(tones.keys):
        return raw
    keys = tone_keys(raw.flatten(2)[0].T, points[0])
    return by_likeness(keys, tones.keys, tones.colour).T.reshape(raw.shape)
