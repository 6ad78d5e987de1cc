"""From the rendered feature map to the picture: two more StyleGAN2 blocks (EG3D section 4.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headlift.eg3d.layers import SynthesisBlock, noise_source, resample_filter
from headlift.eg3d.spec import NoiseMode, SuperresSpec
from headlift.errors import ConfigError


class Superresolution(nn.Module):
    """The published 2X, 4X, 8X and 8XDC modules: they differ in widths and in whether the first block upsamples."""

    def __init__(self, spec: SuperresSpec, inputs: int, w_dim: int, published: bool = False) -> None:
        super().__init__()
        self.spec = spec
        grows = spec.kind in ("8X", "8XDC")
        side = spec.input_resolution
        first, second = spec.channels
        up, middle = (2, side * 2) if grows else (1, side)
        clamp = spec.conv_clamp
        self.block0 = SynthesisBlock(inputs, first, w_dim, middle, 3, up, clamp, published)
        self.block1 = SynthesisBlock(first, second, w_dim, spec.output_resolution, 3, 2, clamp, published)
        if spec.kind != "8XDC":  # a buffer that the other published modules carry and never use
            self.register_buffer("resample_filter", resample_filter())

    def forward(
        self,
        features: Float[Tensor, "n f r r"],
        ws: Float[Tensor, "s k d"],
        noise_mode: NoiseMode | None = None,
        generator: torch.Generator | None = None,
        fused: bool | None = None,
    ) -> tuple[Float[Tensor, "n 3 h w"], Float[Tensor, "n 3 a a"]]:
        """The picture, and the one that the first block left.

        `features` start with the raw picture; `ws` is one head's codes, or those of each image, of which the last
        steers all layers. `noise_mode` defaults to the spec's; `generator` draws the noise of mode "random", which
        without one is always the same. Raises ConfigError when noise is asked for beside the spec's `margin`.
        """
        mode = noise_mode or self.spec.noise_mode
        margin = self.spec.margin
        if margin and mode != "none":
            raise ConfigError(
                f"noise of mode {mode!r} has no place in the margin of this super-resolution: take 'none'"
            )
        generator = noise_source(mode, generator, features.device)
        codes = ws[:, -1:].expand(-1, 3, -1)
        side = self.spec.input_resolution
        if features.shape[-1] != side:
            features = F.interpolate(
                features, size=(side, side), mode="bilinear", align_corners=False, antialias=self.spec.antialias
            )
        if margin:
            features = F.pad(features, (margin,) * 4, mode="replicate")
        x, first = self.block0(features, features[:, :3], codes, mode, generator, fused)
        _, image = self.block1(x, first, codes, mode, generator, fused)
        return self._inside(image), self._inside(first)

    def _inside(self, image: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 a a"]:
        """Without what the margin has become."""
        whole = self.spec.input_resolution + 2 * self.spec.margin
        edge = self.spec.margin * image.shape[-1] // whole
        return image[..., edge : image.shape[-2] - edge, edge : image.shape[-1] - edge]
