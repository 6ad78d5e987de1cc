"""From random numbers and a camera label to w (Karras et al. 2019; conditioned on the camera in EG3D, section 4.4)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headlift.eg3d.layers import FullyConnected
from headlift.eg3d.spec import MappingSpec


class MappingNetwork(nn.Module):
    """z and the embedded label, each brought to unit mean square, through a few layers to w; all in float32."""

    def __init__(self, spec: MappingSpec, average: bool = True, published: bool = False) -> None:
        """Without `average` there is no running mean of w, and no truncation (the discriminator's mapping).

        `published` rounds as `FullyConnected` says.
        """
        super().__init__()
        self.spec = spec
        embedded = 0
        if spec.label_dim:
            embedded = spec.embed_features or spec.w_dim
            self.embed = FullyConnected(spec.label_dim, embedded, published=published)
        hidden = spec.layer_features or spec.w_dim
        widths = [spec.z_dim + embedded, *[hidden] * (spec.layers - 1), spec.w_dim]
        for i in range(spec.layers):
            layer = FullyConnected(
                widths[i], widths[i + 1], activate=True, lr_multiplier=spec.lr_multiplier, published=published
            )
            self.add_module(f"fc{i}", layer)
        if average:
            self.register_buffer("w_avg", torch.zeros(spec.w_dim))
        self.w_avg: Tensor

    def forward(self, z: Float[Tensor, "n z"] | None, label: Float[Tensor, "n l"] | None) -> Float[Tensor, "n w"]:
        """w without truncation. The label is scaled or zeroed as the spec says."""
        parts = []
        if self.spec.z_dim:
            assert z is not None, "this mapping needs z"
            assert z.shape[1] == self.spec.z_dim, "z does not fit the mapping"
            parts.append(unit_mean_square(z.float()))
        if self.spec.label_dim:
            assert label is not None, "this mapping needs a camera label"
            assert label.shape[1] == self.spec.label_dim, "the label does not fit the mapping"
            scale = 0.0 if self.spec.zero_label else self.spec.label_scale
            parts.append(unit_mean_square(self.embed(label.float() * scale)))
        x = torch.cat(parts, dim=1)
        for i in range(self.spec.layers):
            x = self.get_submodule(f"fc{i}")(x)
        return x

    @torch.no_grad()
    def update_average(self, w: Float[Tensor, "n w"]) -> None:
        """Move the running mean of w towards the mean of a batch (training only)."""
        self.w_avg.copy_(w.detach().float().mean(dim=0).lerp(self.w_avg, self.spec.w_avg_beta))


def unit_mean_square(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """x / sqrt(mean(x^2) + 1e-8), row by row."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


def truncate(
    ws: Float[Tensor, "n k w"], average: Float[Tensor, " w"], psi: float, cutoff: int | None = None
) -> Float[Tensor, "n k w"]:
    """average + psi (w - average) for the first `cutoff` codes of each row (all without it); the rest stay."""
    if psi == 1:
        return ws
    cutoff = ws.shape[1] if cutoff is None else cutoff
    return torch.cat([average.lerp(ws[:, :cutoff], psi), ws[:, cutoff:]], dim=1)
