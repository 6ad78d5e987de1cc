"""Growing a run: where the backbone's constant comes from, at the start and when the blocks before it are cut off."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from headlift.eg3d.spec import GeneratorSpec
from headlift.eg3d.training.fast import affine, double, layer, to_rgb


@torch.no_grad()
def start_later(
    old: Mapping[str, Tensor], new: Mapping[str, Tensor], spec: GeneratorSpec, w: Float[Tensor, "1 w"]
) -> None:
    """Cut the first blocks off a backbone: its constant becomes what they make of the mean head.

    A larger constant learns detail faster, texel by texel. What the first blocks drew into the planes goes to the first
    ToRGB that is left, by least squares over the mean head's texels. `old` names the tensors of the backbone as it
    was, `new` those of the shorter one, which are changed in place.
    """
    first = spec.backbone.sides[0]
    x: Tensor | None = None
    image: Tensor | None = None
    side = min(int(k.split(".b")[1].split(".")[0]) for k in old if k.endswith(".const"))
    while True:
        name = f"backbone.synthesis.b{side}"
        x = old[f"{name}.const"][None] if x is None else layer(old, f"{name}.conv0", x, w, up=True, clamp=None)
        if side == first:
            new[f"{name}.const"].copy_(x[0])
        x = layer(old, f"{name}.conv1", x, w, up=False, clamp=None)
        rgb = to_rgb(old, f"{name}.torgb", x, w, clamp=None).permute(0, 2, 3, 1)
        image = rgb if image is None else double(image) + rgb
        if side == first:
            break
        side *= 2
    style = affine(old, f"{name}.torgb.affine", w) / x.shape[1] ** 0.5
    inputs = (x * style[:, :, None, None])[0].flatten(1).T
    inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
    found = torch.linalg.lstsq(inputs, image.reshape(len(inputs), -1)).solution
    new[f"{name}.torgb.weight"].copy_(found[:-1].T[:, :, None, None])
    new[f"{name}.torgb.bias"].copy_(found[-1])


def waves(channels: int, side: int, spread: float) -> Float[Tensor, "channels side side"]:
    """Plane waves of random direction, frequency and phase, of unit variance (random Fourier features)."""
    frequency, phase = torch.randn(channels, 2, 1, 1) * spread, torch.rand(channels, 1, 1)
    line = (torch.arange(side) + 0.5) / side
    turns = frequency[:, 0] * line + frequency[:, 1] * line[:, None] + phase
    return 2**0.5 * torch.cos(2 * torch.pi * turns)
