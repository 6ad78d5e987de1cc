"""From the mean of the planes' features to density and colour features (EG3D section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headlift.eg3d.layers import FullyConnected, softplus
from headlift.eg3d.rounding import chained_product
from headlift.eg3d.spec import DecoderSpec

SIGMOID_MARGIN = 0.001
"""Colours reach a little beyond [0, 1] (Mip-NeRF), so that 0 and 1 need no infinite logits."""


class Decoder(nn.Module):
    """One hidden layer with softplus; always in float32, for the density is exponentiated later."""

    def __init__(self, inputs: int, spec: DecoderSpec, published: bool = False) -> None:
        """`published` makes `rows` round as the published numbers are, on any processor (slower)."""
        super().__init__()
        self.published = published
        self.net = nn.Sequential(
            FullyConnected(inputs, spec.hidden, lr_multiplier=spec.lr_multiplier),
            nn.Softplus(),
            FullyConnected(spec.hidden, 1 + spec.features, lr_multiplier=spec.lr_multiplier),
        )

    def layers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights and biases as they act: first [h, c], [h], second [1 + f, h], [1 + f]; row 0 gives the density."""
        first, second = self.net[0], self.net[2]
        assert isinstance(first, FullyConnected)
        assert isinstance(second, FullyConnected)
        return (*first.effective(), *second.effective())

    def forward(self, features: Float[Tensor, "n c m"]) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n f m"]]:
        """Density before any activation, and colour features in about [0, 1], of m points in float32."""
        with torch.autocast(features.device.type, enabled=False):
            w1, b1, w2, b2 = self.layers()
            out = torch.baddbmm(b2[:, None], w2.expand(len(features), -1, -1), _hidden(features, w1, b1))
            return out[:, 0], _colors(out[:, 1:])

    def density(self, features: Float[Tensor, "n c m"]) -> Float[Tensor, "n m"]:
        """The density alone, before any activation."""
        with torch.autocast(features.device.type, enabled=False):
            w1, b1, w2, b2 = self.layers()
            return torch.einsum("h,nhm->nm", w2[0], _hidden(features, w1, b1)) + b2[0]

    def rows(self, features: Float[Tensor, "n m c"]) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n f m"]]:
        """The same for points in rows."""
        with torch.autocast(features.device.type, enabled=False):
            w1, b1, w2, b2 = self.layers()
            x = features.float().flatten(0, 1)
            if self.published:
                out = chained_product(F.softplus(chained_product(x, w1) + b1), w2) + b2
            else:
                out = torch.addmm(b2, softplus(torch.addmm(b1, x, w1.T)), w2.T)
            out = out.reshape(*features.shape[:2], -1)
            return out[..., 0], _colors(out[..., 1:]).mT


def _hidden(
    features: Float[Tensor, "n c m"], weight: Float[Tensor, "h c"], bias: Float[Tensor, " h"]
) -> Float[Tensor, "n h m"]:
    return softplus(torch.baddbmm(bias[:, None], weight.expand(len(features), -1, -1), features.float()))


def _colors(logits: Tensor) -> Tensor:
    return torch.sigmoid(logits) * (1 + 2 * SIGMOID_MARGIN) - SIGMOID_MARGIN
