"""Random heads of the embedded prior."""

from __future__ import annotations

import torch
from torch import Tensor

from headlift.eg3d.generator import Generator
from headlift.weights import load_generator


def embedded_head(seed: int) -> tuple[Generator, Tensor, Tensor]:
    """The generator, tri-planes and codes of a random head."""
    generator, _ = load_generator("embedded", torch.device("cpu"))
    z = torch.randn(1, generator.spec.mapping.z_dim, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        ws = generator.mapping(z, truncation_psi=0.8)
        return generator, generator.planes(ws), ws
