"""The shape of headlift's small networks from picture to picture: a U-Net on blocks of 2 x 2 pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from typing import TypeVar

import torch
from jaxtyping import Float
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F

from headlift.errors import WeightsError

Net = TypeVar("Net", bound="UNet")


class UNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015): two 3x3 convolutions and a normalisation a level, half the pixels a level."""

    def __init__(self, inputs: int, outputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            level(before, after) for before, after in zip((4 * inputs, *widths[:-1]), widths, strict=True)
        )
        self.up = nn.ModuleList(
            level(below + here, here) for below, here in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.out = nn.Conv2d(widths[0], 4 * outputs, 1)

    def picture(self, x: Float[Tensor, "n i s s"]) -> Float[Tensor, "n o s s"]:
        """From input channels to output channels; `s` is a multiple of 2 for each level."""
        x, skipped = F.pixel_unshuffle(x, 2), []
        for index, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if index else x)
            skipped.append(x)
        for block, skip in zip(self.up, skipped[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], 1))
        return F.pixel_shuffle(self.out(x).float(), 2)


def level(before: int, after: int) -> nn.Sequential:
    """Two convolutions at one resolution."""
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
    return nn.Sequential(*layers)


def load_net(kind: type[Net], file: str, trainer: str) -> Net:
    """A network that is shipped, frozen; `kind` is made with the widths that its file tells.

    Raises WeightsError, which names the `trainer`, when the file is missing.
    """
    try:
        data = resources.files("headlift").joinpath("prior", "data", file).read_bytes()
    except OSError as error:
        raise WeightsError(
            f"headlift's {file} is missing ({error.strerror}): install headlift again, or train it with "
            f"`python -m {trainer}`."
        ) from None
    length = int.from_bytes(data[:8], "little")
    net = kind(widths=json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["widths"]))  # type: ignore[call-arg]
    net.load_state_dict({name: value.float() for name, value in load(data).items()})
    return net.eval().requires_grad_(False)
