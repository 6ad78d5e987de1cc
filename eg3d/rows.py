"""Bilinear look-ups in one head's planes as sums of rows, for processors.

PyTorch's `grid_sample` reads one channel after the other, each from another corner of memory. Here a texel's channels
lie side by side, and a point is a weighted sum of a few such rows (`embedding_bag`, made for tables of words, is just
that). So is the gradient: a texel's is a weighted sum of the rows of the points beside it, once these are sorted by the
cells between texels that they lie in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def pays(planes: Float[Tensor, "n k c p p"], unit: Float[Tensor, "n m 3"]) -> bool:
    """Whether `summed_rows` can take these, and faster than `grid_sample` does."""
    return len(planes) == 1 and planes.device.type == "cpu" and not unit.requires_grad


def summed_rows(
    planes: Float[Tensor, "1 k c p p"],
    unit: Float[Tensor, "1 m 3"],
    axes: Sequence[tuple[int, int]],
    shares: Sequence[Float[Tensor, "1 m"] | None],
) -> Float[Tensor, "m c"]:
    """Sum over the planes of their features at points given in [-1, 1]^3 (bilinear, zero outside), in float32.

    The planes get gradients, the points do not.

    Args:
        axes: what runs along the width and the height of each plane.
        shares: how much each plane counts at each point; None for fully.
    """
    k, c, side = planes.shape[1:4]
    # The memory as it lies, if a texel's channels do so side by side.
    table = planes[0].permute(2, 3, 0, 1).reshape(-1, c)
    each = [None if share is None else share[0] for share in shares]
    return _SummedRows.apply(table, _Corners(unit[0].detach(), side, axes, each))  # type: ignore[no-any-return]


class _Corners:
    """Where points lie between texels, as each of the planes sees them."""

    def __init__(
        self,
        unit: Float[Tensor, "m 3"],
        side: int,
        axes: Sequence[tuple[int, int]],
        shares: Sequence[Float[Tensor, " m"] | None],
    ) -> None:
        self.side, self.axes = side, axes
        place = ((unit + 1) * (side / 2) - 0.5).T.contiguous()
        low = place.floor()
        after = place - low
        inside = (place > -1) & (place < side)
        low = low.clamp_(-1, side - 1).to(torch.int32)
        self.low = low
        """The texel before each point along each axis, from -1."""
        weights = (torch.where(inside & (low >= 0), 1 - after, 0), torch.where(inside & (low < side - 1), after, 0))
        self.weights = torch.stack(
            [self._around(weights, *pair, share) for pair, share in zip(axes, shares, strict=True)]
        )
        """What the four texels around each point count: at the lower and the higher row, left and right."""

    @staticmethod
    def _around(weights: tuple[Tensor, Tensor], across: int, down: int, share: Tensor | None) -> Float[Tensor, "4 m"]:
        rows = [weight[down] if share is None else weight[down] * share for weight in weights]
        return torch.stack([row * weight[across] for row in rows for weight in weights])

    def table_rows(self) -> Int[Tensor, "k4 m"]:
        """Their rows in a table of texels, of which each has a row for every plane."""
        count = len(self.axes)
        texels = (self.low.clamp_min(0), (self.low + 1).clamp_max(self.side - 1))
        starts = [row * (self.side * count) for row in texels]
        steps = [texel * count for texel in texels]
        return torch.stack(
            [
                start[down] + step[across] + plane
                for plane, (across, down) in enumerate(self.axes)
                for start in starts
                for step in steps
            ]
        )

    def cells(self, plane: int) -> Int[Tensor, " m"]:
        """The cell between four texels that each point lies in; the first begins half a texel before the plane."""
        across, down = self.axes[plane]
        return (self.low[down] + 1) * (self.side + 1) + self.low[across] + 1


class _SummedRows(torch.autograd.Function):
    """Texels in rows, `k` rows for each texel, one after the other."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, corners: _Corners) -> Tensor:
        ctx.corners = corners
        weights = corners.weights.flatten(0, 1).T.contiguous()
        return F.embedding_bag(corners.table_rows().T.contiguous(), table, per_sample_weights=weights, mode="sum")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        corners: _Corners = ctx.corners
        rows, side = grads[0].contiguous(), corners.side
        out = []
        for plane, weights in enumerate(corners.weights):
            cells, order = corners.cells(plane).sort(stable=True)
            counts = cells.bincount(minlength=(side + 1) ** 2)
            starts, order = (counts.cumsum(0) - counts).to(torch.int32), order.to(torch.int32)
            (a, b), (c, d) = (
                [
                    F.embedding_bag(order, rows, starts, per_sample_weights=weight[order], mode="sum").view(
                        side + 1, side + 1, -1
                    )
                    for weight in pair
                ]
                for pair in weights.view(2, 2, -1)
            )
            out.append(a[1:, 1:] + b[1:, :-1] + c[:-1, 1:] + d[:-1, :-1])
        return torch.stack(out, dim=2).flatten(0, 2), None
