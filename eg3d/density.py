"""Density on grids."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def published_grid(resolution: int, side: float) -> tuple[Float[Tensor, "1 m 3"], Float[np.ndarray, "3"], float]:
    """The published code's grid of points (world units), its corner and its spacing; z runs fastest.

    Its x and y indices are not rounded down, so that the grid is sheared by up to one voxel and x overshoots the cube.
    Only for comparisons with published meshes; `density_grid` has the exact grid.
    """
    spacing = side / (resolution - 1)
    index = torch.arange(resolution**3)
    z = (index % resolution).float()
    y = (index.float() / resolution) % resolution
    x = (index.float() / resolution / resolution) % resolution
    corner = np.zeros(3) - side / 2
    return (torch.stack([x, y, z], dim=-1) * spacing + corner[0])[None], corner, spacing
