"""StyleGAN2's synthesis network, whose picture is the three planes (EG3D section 4.1)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headlift.eg3d.layers import SynthesisBlock, noise_source
from headlift.eg3d.mapping import MappingNetwork
from headlift.eg3d.spec import BackboneSpec, MappingSpec, NoiseMode


class SynthesisNetwork(nn.Module):
    """Blocks b4, b8 ... (or from a larger one on).

    Each takes the codes of its layers and one for its ToRGB, which the next block shares.
    """

    def __init__(self, spec: BackboneSpec, w_dim: int, image_channels: int, published: bool = False) -> None:
        super().__init__()
        self.sides = spec.sides
        inputs = 0
        for side, width in zip(self.sides, spec.channels, strict=True):
            block = SynthesisBlock(
                inputs, width, w_dim, side, image_channels, clamp=spec.conv_clamp, published=published
            )
            self.add_module(f"b{side}", block)
            inputs = width
        self.num_ws = 2 * len(self.sides)

    def forward(
        self,
        ws: Float[Tensor, "n k w"],
        noise_mode: NoiseMode = "const",
        generator: torch.Generator | None = None,
        fused: bool | None = None,
    ) -> Float[Tensor, "n c p p"]:
        """The picture, float32. `generator` draws the noise of mode "random"; without one it is always the same."""
        assert ws.shape[1] == self.num_ws, f"{self.num_ws} codes are needed, not {ws.shape[1]}"
        generator = noise_source(noise_mode, generator, ws.device)
        x: Tensor | None = None
        image: Tensor | None = None
        first = 0
        for side in self.sides:
            block = self.get_submodule(f"b{side}")
            assert isinstance(block, SynthesisBlock)
            codes = ws[:, first : first + block.num_convs + 1]
            x, image = block(x, image, codes, noise_mode, generator, fused)
            first += block.num_convs
        assert image is not None
        return image


class Backbone(nn.Module):
    """Mapping and synthesis together, under the published names."""

    def __init__(self, mapping: MappingSpec, spec: BackboneSpec, image_channels: int, published: bool = False) -> None:
        super().__init__()
        self.synthesis = SynthesisNetwork(spec, mapping.w_dim, image_channels, published)
        self.mapping = MappingNetwork(mapping, published=published)
