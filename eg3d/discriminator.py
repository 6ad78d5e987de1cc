"""EG3D's dual discriminator (section 4.3): StyleGAN2's residual one on picture and raw picture, given the camera."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headlift.eg3d.layers import Convolution, FullyConnected, resample_filter
from headlift.eg3d.mapping import MappingNetwork
from headlift.eg3d.spec import DiscriminatorSpec, resolutions
from headlift.values import Camera


class Discriminator(nn.Module):
    """Logits of pairs (picture, raw picture) under their cameras. Parameters carry the published names."""

    def __init__(self, spec: DiscriminatorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.sides = resolutions(spec.image_resolution)[:0:-1]
        self.register_buffer("resample_filter", resample_filter())
        widths = dict(zip(resolutions(spec.image_resolution), spec.channels, strict=True))
        for side in self.sides:
            first = spec.image_channels if side == spec.image_resolution else 0
            self.add_module(f"b{side}", DiscriminatorBlock(first, widths[side], widths[side // 2], spec.conv_clamp))
        self.mapping = MappingNetwork(spec.mapping, average=False)
        self.b4 = DiscriminatorEpilogue(spec, widths[4])

    def forward(
        self,
        image: Float[Tensor, "n 3 h h"],
        raw: Float[Tensor, "n c r r"],
        label: Float[Tensor, "n 25"] | Camera,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "n 1"]:
        """Large for real. The raw picture is resized to the picture's side (bilinear, antialiased).

        With 7 `image_channels` the raw picture has its opacity (in [-1, 1]) as a fourth channel.

        `generator` draws the noise on the labels where the spec asks for it; without one there is none.
        """
        if isinstance(label, Camera):
            label = label.label
        if self.spec.label_noise and generator is not None:
            noise = torch.randn(label.shape, generator=generator, device=generator.device).to(label)
            label = label + noise * label.std(dim=0) * self.spec.label_noise
        x = torch.cat([image, resize(raw, image.shape[-1])], dim=1)
        for side in self.sides:
            x = self.get_submodule(f"b{side}")(x)
        logits: Tensor = self.b4(x, self.mapping(None, label))
        return logits


def resize(image: Float[Tensor, "n c h h"], side: int) -> Float[Tensor, "n c s s"]:
    """Bilinear, antialiased: what the discriminator sees the raw picture through."""
    return F.interpolate(image, size=(side, side), mode="bilinear", align_corners=False, antialias=True)


class DiscriminatorBlock(nn.Module):
    """Two convolutions, the second to half the resolution, beside a linear skip; the first block reads the picture."""

    def __init__(self, image_channels: int, inputs: int, outputs: int, clamp: float | None) -> None:
        super().__init__()
        self.register_buffer("resample_filter", resample_filter())
        self.fromrgb = Convolution(image_channels, inputs, 1, clamp=clamp) if image_channels else None
        self.conv0 = Convolution(inputs, inputs, 3, clamp=clamp)
        self.conv1 = Convolution(inputs, outputs, 3, down=2, clamp=clamp)
        self.skip = Convolution(inputs, outputs, 1, bias=False, activate=False, down=2)

    def forward(self, x: Float[Tensor, "n i h h"]) -> Float[Tensor, "n o h2 h2"]:
        if self.fromrgb is not None:
            x = self.fromrgb(x)
        skipped: Tensor = self.skip(x, gain=math.sqrt(0.5))
        changed: Tensor = self.conv1(self.conv0(x), gain=math.sqrt(0.5))
        return skipped + changed


class DiscriminatorEpilogue(nn.Module):
    """The spread over the group as one more channel, a convolution, two full layers, the dot product with the label.

    In float32, under autocast too: differences within a group are small beside what they are differences of.
    """

    def __init__(self, spec: DiscriminatorSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.conv = Convolution(width + spec.group_channels, width, 3, clamp=spec.conv_clamp)
        self.fc = FullyConnected(width * 16, width, activate=True)
        self.out = FullyConnected(width, spec.mapping.w_dim)

    def forward(self, x: Float[Tensor, "n c 4 4"], projection: Float[Tensor, "n d"]) -> Float[Tensor, "n 1"]:
        with torch.autocast(x.device.type, enabled=False):
            x, projection = x.float(), projection.float()
            if self.spec.group_channels:
                x = append_spread(x, self.spec.group_size, self.spec.group_channels)
            x = self.out(self.fc(self.conv(x).flatten(1)))
            logits: Tensor = (x * projection).sum(dim=1, keepdim=True) / math.sqrt(self.spec.mapping.w_dim)
        return logits


def append_spread(x: Float[Tensor, "n c h w"], group_size: int, channels: int) -> Float[Tensor, "n c2 h w"]:
    """Minibatch standard deviation (Karras et al. 2018): the mean spread within groups of images as extra channels.

    Image i is in group i mod (n / group size). The group is the largest divisor of n up to `group_size`.
    """
    n, c, h, w = x.shape
    size = next(g for g in range(min(group_size, n), 0, -1) if n % g == 0)
    grouped = x.reshape(size, n // size, channels, c // channels, h, w)
    spread = (grouped.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(2, 3, 4))
    return torch.cat([x, spread.repeat(size, 1)[:, :, None, None].expand(-1, -1, h, w)], dim=1)
