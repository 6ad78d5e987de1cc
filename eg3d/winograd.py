"""3 x 3 convolutions with fewer multiplications: Winograd's F(4x4, 3x3) (Lavin and Gray 2016, "Fast Algorithms for
Convolutional Neural Networks").

Tiles of 6 x 6 pixels that overlap by 2 and the kernels go through a small linear map each; there, 36 products of
matrices make what takes 144 otherwise, and a third map gives 4 x 4 pixels a tile. Graphics cards' libraries do this
by themselves, PyTorch's for processors does not. On wide layers it takes half of the time, and with gradients less.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

WIDE = 128
"""Channels on both sides from which it pays."""
TILE, STEP = 6, 4
"""Side of the tiles that go in and of those that come out, pixels."""


def _both_axes(rows: list[list[int]], over: int = 1) -> Tensor:
    matrix = torch.tensor(rows) / over
    return torch.kron(matrix, matrix)


PIXELS = _both_axes(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
"""[36, 36]: a tile of the picture to where it is multiplied (Lavin and Gray's B^T, along both axes)."""
KERNEL = _both_axes([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], over=24)
"""[36, 9]: a kernel to the same place (G)."""
BACK = _both_axes([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
"""[16, 36]: products to a tile of the result (A^T)."""


def pays(x: Float[Tensor, "n i h w"], weight: Float[Tensor, "o i k k"]) -> bool:
    """Whether `convolve` can take these, and faster than PyTorch does.

    Not under autocast: it would round the maps between pixels and products, whose numbers cancel, to bfloat16.
    """
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.shape[2] == 3
        and min(weight.shape[:2]) >= WIDE
        and x.shape[2] % STEP == x.shape[3] % STEP == 0
        and not torch.is_autocast_enabled("cpu")
    )


def convolve(x: Float[Tensor, "n i h w"], weight: Float[Tensor, "o i 3 3"]) -> Float[Tensor, "n o h w"]:
    """`F.conv2d(x, weight, padding=1)` up to rounding (some 1e-5 of the largest value), for sides that 4 divides."""
    n, inputs, h, w = x.shape
    outputs, across, down = weight.shape[0], w // STEP, h // STEP
    tiles = F.unfold(x, TILE, padding=1, stride=STEP).reshape(n, inputs, TILE**2, -1)
    moved = (PIXELS @ tiles.permute(2, 1, 0, 3).reshape(TILE**2, -1)).reshape(TILE**2, inputs, -1)
    kernels = (KERNEL @ weight.permute(2, 3, 0, 1).reshape(9, -1)).reshape(TILE**2, outputs, inputs)
    made = (BACK @ torch.bmm(kernels, moved).reshape(TILE**2, -1)).reshape(STEP, STEP, outputs, n, down, across)
    return made.permute(3, 2, 4, 0, 5, 1).reshape(n, outputs, h, w)
