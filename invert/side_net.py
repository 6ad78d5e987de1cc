"""What a camera beside the photo's would see: a small network that finishes what the photo alone cannot show.

A photo laid out in space (`surface.py`) leaves its other views with holes: the sides of hair, head and neck. Systems
that warp and fill in (WarpGAN, Huang et al. 2025; the inpainting of HFGI3D, Xie et al. 2023) have large networks for
them. This one is headlift's own, trained by `prior/sides.py` on synthetic heads that are known from several cameras:
it gets the photo as the other camera sees it, and what the space between the head's first and last surface covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from headlift.eg3d.camera import FFHQ_FOCAL
from headlift.invert.losses import resize
from headlift.invert.result import Target
from headlift.invert.sheet import carry, lay_out
from headlift.invert.surface import Surface
from headlift.invert.unet import UNet, load_net
from headlift.invert.warp import forward_splat, surface_points
from headlift.values import Camera

SIDE = 128
"""Side of the pictures that the network sees and makes, pixels."""
WIDTHS = (32, 64, 96, 128, 160)
"""Channels at 64, 32, 16, 8 and 4 pixels."""
CHANNELS, CAMERAS = 17, 7
"""Of its input (`asked`), and how many of them, the last ones, are the same in all pixels: the cameras' numbers."""
MIRROR = (-1.0, 1.0, 1.0, -1.0, 1.0, 1.0, 1.0)
"""What those are multiplied with in the mirror."""
LAYERS = (0.25, 0.5, 0.75, 1.0)
"""Where the head's inside is filled, as shares of the way from the first to the last surface."""
FILLED = 0.2
"""Of those layers what lies so far behind the nearest is hidden, world units."""
DISTANCE_SCALE = 0.25
"""World units that a distance of 1 stands for."""
FILE = "sides.safetensors"


class SideNet(UNet):
    """From what is known of a view to the view."""

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__(CHANNELS, 4, widths)

    def forward(self, known: Float[Tensor, "n c s s"]) -> tuple[Float[Tensor, "n 3 s s"], Float[Tensor, "n 1 s s"]]:
        """The picture on white (RGB, about [-1, 1]) and the logarithm of the odds of opacity, for `asked` views.

        Colours are the photo's where it reaches, with what the network adds.
        """
        change, odds = self.picture(known).split((3, 1), 1)
        opacity = odds.sigmoid()
        return opacity * (known[:, :3] + change) + 1 - opacity, odds


@torch.no_grad()
def asked(target: Target, surface: Surface, camera: Camera, view: Camera) -> Float[Tensor, "1 c s s"]:
    """What is known of a view of the head in a photo that `camera` took, for the network, at `SIDE` pixels.

    The photo where it reaches: colours, 1 or 0, distance; the head's inside, painted along the photo's rays: colours,
    how full, distance; the directions of both cameras and the lens of the view.
    """
    small = Target(resize(target.image, SIDE), resize(target.mask, SIDE), target.white)
    inside = (small.mask > 0.5).to(small.mask.dtype)
    colour, far, seen = carry(lay_out(small, camera, surface.depth, inside), view, SIDE)
    thick = (surface.last - surface.depth).clamp_min(0)
    layers = torch.cat([surface_points(surface.depth + share * thick, camera) for share in LAYERS], 1)
    away = torch.linalg.vector_norm(layers - view.origin[:, None], dim=-1).reshape(1, 1, -1, SIDE)
    source = torch.cat([torch.cat([small.image] * len(LAYERS), 2), away], 1)
    filled, full = forward_splat(source, layers, torch.cat([inside] * len(LAYERS), 2), view, SIDE, FILLED)
    radius = torch.linalg.vector_norm(view.origin)
    directions = torch.cat([view.origin[0] / radius, camera.origin[0] / torch.linalg.vector_norm(camera.origin)])
    constants = torch.cat([directions, view.intrinsics[0, :1, 0] / FFHQ_FOCAL])
    return torch.cat(
        [
            colour * seen,
            seen,
            (far - radius) / DISTANCE_SCALE * seen,
            filled[:, :3],
            full,
            (filled[:, 3:] - radius) / DISTANCE_SCALE * (full > 0),
            constants[None, :, None, None].expand(1, -1, SIDE, SIDE),
        ],
        1,
    )


def mirrored(known: Float[Tensor, "n c s s"]) -> Float[Tensor, "n c s s"]:
    """What is known of the mirrored view of the mirrored photo."""
    signs = torch.cat([known.new_ones(CHANNELS - CAMERAS), known.new_tensor(MIRROR)])
    return known.flip(3) * signs[None, :, None, None]


@cache
def load_side_net() -> SideNet:
    """The network that is shipped. Raises WeightsError when its file is missing."""
    return load_net(SideNet, FILE, "headlift.prior.sides")


@torch.no_grad()
def guess_view(
    target: Target, surface: Surface, camera: Camera, view: Camera
) -> tuple[Float[Tensor, "1 3 s s"], Float[Tensor, "1 1 s s"]]:
    """The picture on white (RGB in [-1, 1]) and the opacity that the network gives a view, at `SIDE` pixels.

    The mean over what is known of the view and its mirror image. Raises WeightsError when the network is missing.
    """
    net = load_side_net().to(target.image.device)
    known = asked(target, surface, camera, view)
    pictures, odds = net(torch.cat([known, mirrored(known)]))
    both = torch.cat([pictures.clamp(-1, 1), odds.sigmoid()], 1)
    picture, opacity = ((both[:1] + both[1:].flip(3)) / 2).split((3, 1), 1)
    return picture, opacity
