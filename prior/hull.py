"""Where heads are: the share of heads whose visual hull covers each cell of the box.

The visual hull of one head is what no picture of it carves away (Laurentini 1994). Training looks at no point that
hardly any head covers, and teaches the generator that such points are empty.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from headlift.prior.heads import Heads


def cell_centres(resolution: int, box: float) -> Float[np.ndarray, "n 3"]:
    """Centres of the cells of a cube of side `box` about the origin, world units, in the order [x, y, z]."""
    line = ((np.arange(resolution) + 0.5) / resolution - 0.5) * box
    return np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.float32)


def head_cover(heads: Heads, which: list[int], resolution: int, box: float) -> Float[np.ndarray, "r r r"]:
    """Share of the heads `which` whose visual hull covers each cell, indexed [x, y, z].

    A cell is carved when a picture of the head sees it and shows nothing there; half of the views must see it.
    """
    points = cell_centres(resolution, box)
    homogeneous = np.concatenate([points, np.ones((len(points), 1), np.float32)], axis=1)
    inside = np.zeros(len(points), np.float32)
    seen_by = np.zeros(len(points), np.float32)
    views = heads.views(which)
    for head in which:
        kept, seen = np.ones(len(points), bool), np.zeros(len(points), int)
        for row in views[head]:
            world2cam = np.linalg.inv(heads.labels[row, :16].reshape(4, 4).astype(np.float64)).astype(np.float32)
            camera = homogeneous @ world2cam[:3].T
            intrinsics = heads.labels[row, 16:].reshape(3, 3)
            uv = camera @ intrinsics.T
            uv = uv[:, :2] / uv[:, 2:]
            alpha = heads.images[row, ..., 3]
            side = alpha.shape[0]
            column, line = np.floor(uv * side).astype(int).T
            visible = (column >= 0) & (line >= 0) & (column < side) & (line < side)
            covered = np.zeros(len(points), bool)
            covered[visible] = alpha[line[visible], column[visible]] > 25
            kept &= covered | ~visible
            seen += visible
        trusted = seen * 2 >= len(views[head])
        inside += kept & trusted
        seen_by += trusted
    return (inside / np.maximum(seen_by, 1)).reshape(resolution, resolution, resolution)


def dilate(cells: Bool[np.ndarray, "r r r"], steps: int = 1) -> Bool[np.ndarray, "r r r"]:
    """Grow a set of cells by its six neighbours, `steps` times."""
    for _ in range(steps):
        padded = np.pad(cells, 1)
        grown = padded.copy()
        for axis in range(3):
            grown |= np.roll(padded, 1, axis) | np.roll(padded, -1, axis)
        cells = grown[1:-1, 1:-1, 1:-1]
    return cells
