"""The relief of a head from one photo: a small network that guesses, for each pixel, where the head begins and ends.

SPI (Yin et al. 2023) holds an inversion to a monocular depth network; this is headlift's own, trained by
`prior/depth.py` on synthetic heads of known depth. A photo in EG3D's crop has the eyes and the mouth where the camera
puts them, so that depth comes in world units and not only up to a scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from headlift.invert.losses import resize
from headlift.invert.unet import UNet, load_net

SIDE = 128
"""Side of the photos that the network sees and of its depth maps, pixels."""
WIDTHS = (32, 64, 96, 128)
"""Channels at 64, 32, 16 and 8 pixels."""
MIDDLE, LAST_MIDDLE, SCALE = 2.6, 2.9, 0.1
"""Depth that the network's 0 stands for, that of the last surface, and what 1 adds to either, world units."""
SMALLEST_SPREAD = 0.002
"""The network cannot be surer than this, world units."""
FILE = "depth.safetensors"


@dataclass(frozen=True)
class DepthGuess:
    """What the network says of a photo, at `SIDE` pixels; it means something where the mask shows the head."""

    depth: Float[Tensor, "n 1 s s"]
    """Distance along the ray, world units."""
    spread: Float[Tensor, "n 1 s s"]
    """Scale of a Laplace distribution around it (its mean absolute error), world units."""
    last: Float[Tensor, "n 1 s s"]
    """Distance at which the ray leaves the head for good (the back of hair or neck), world units."""
    last_spread: Float[Tensor, "n 1 s s"]
    """Scale of a Laplace distribution around that."""


class DepthNet(UNet):
    """From a photo and its mask to depth."""

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__(4, 4, widths)

    def forward(self, image: Float[Tensor, "n 3 s s"], mask: Float[Tensor, "n 1 s s"]) -> DepthGuess:
        """Depth for photos on white (RGB in [-1, 1]) with their masks in [0, 1], at `SIDE` pixels."""
        first, wide, last, last_wide = self.picture(torch.cat([image, mask * 2 - 1], 1)).split(1, 1)
        return DepthGuess(MIDDLE + SCALE * first, _spread(wide), LAST_MIDDLE + SCALE * last, _spread(last_wide))


def _spread(wide: Tensor) -> Tensor:
    return SMALLEST_SPREAD + SCALE * F.softplus(wide - 2)


@cache
def load_depth_net() -> DepthNet:
    """The network that is shipped. Raises WeightsError when its file is missing."""
    return load_net(DepthNet, FILE, "headlift.prior.depth")


@torch.no_grad()
def guess_depth(image: Float[Tensor, "n 3 h w"], mask: Float[Tensor, "n 1 h w"]) -> DepthGuess:
    """Depth of photos on white (RGB in [-1, 1], any size) with their masks, at `SIDE` pixels on the photo's device.

    The mean over each photo and its mirror image. Raises WeightsError when the network is missing.
    """
    net = load_depth_net().to(image.device)
    image, mask = resize(image, SIDE), resize(mask, SIDE)
    plain, mirrored = net(image, mask), net(image.flip(3), mask.flip(3))
    depth, last = (plain.depth + mirrored.depth.flip(3)) / 2, (plain.last + mirrored.last.flip(3)) / 2
    spread = (plain.spread + mirrored.spread.flip(3)) / 2 + (depth - plain.depth).abs()
    last_spread = (plain.last_spread + mirrored.last_spread.flip(3)) / 2 + (last - plain.last).abs()
    return DepthGuess(depth, spread, last, last_spread)
