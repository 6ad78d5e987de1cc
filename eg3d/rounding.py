"""Sums in the order in which the published numbers were computed; for comparisons with them, not for speed.

Reference arrays were made by PyTorch on a processor whose MKL takes, for few rows, products of SSE registers (four
partial sums that start where a row is aligned to 16 bytes) and, for many, a chain of fused multiply-adds. Importance
sampling and nearly cancelling gradients amplify one unit of the last place up to some 1e-4, so that a comparison to
1e-4 needs the same order. Here it is spelled out, in a form that gives the same bits whatever code MKL picks: codes,
planes, densities, colours and composited rays of three references come out equal bit for bit (but for one ray in
8192), those of a fourth, whose last layers have two channels, within 1e-7 up to the densities.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LANES = 4
"""Floats in an SSE register."""
FEW = 3
"""Rows up to which MKL multiplies in lanes."""
ONEDNN = 2
"""A dilation that changes nothing for 1 x 1 kernels, but without which PyTorch computes them by MKL on one thread, and
by oneDNN on several."""
ROWS = 256
"""Rows at once of a product with more terms than a quarter of this."""
SMALL = 20480
"""Numbers in one picture up to which PyTorch convolves it, ungrouped, by MKL."""


def chained_product(x: Float[Tensor, "m k"], weight: Float[Tensor, "o k"]) -> Float[Tensor, "m o"]:
    """x W^T, each sum a chain of fused multiply-adds from the first term on.

    That is what oneDNN's 1 x 1 convolution does, with up to some 150 terms where there are not too many rows.
    """
    if len(x) > ROWS and x.shape[1] > ROWS // 4:
        return torch.cat([chained_product(part, weight) for part in x.split(ROWS)])
    image = x.T[None, :, None]
    if _small(image):
        image = image.expand(2, -1, -1, -1)
    return F.conv2d(image, weight[:, :, None, None], dilation=ONEDNN)[0, :, 0].T


def published_convolution(
    x: Float[Tensor, "n i h w"], weight: Float[Tensor, "o j k k"], padding: int, groups: int = 1
) -> Float[Tensor, "n o h w"]:
    """Without a stride: by oneDNN, or for one small picture as a product with its patches."""
    size = weight.shape[-1]
    if not (_small(x) and groups == 1):
        return F.conv2d(x, weight, padding=padding, groups=groups, dilation=ONEDNN if size == 1 else 1)
    patches = F.unfold(x, size, padding=padding)[0]
    return chained_product(patches.T, weight.flatten(1)).T.reshape(1, -1, *x.shape[2:])


def published_doubling(x: Float[Tensor, "n i h w"], weight: Float[Tensor, "i o k k"]) -> Float[Tensor, "n o h2 w2"]:
    """The transposed convolution with stride 2: by oneDNN, or for a small picture as a product whose patches add up."""
    if not _small(x):
        return F.conv_transpose2d(x, weight, stride=2)
    size = weight.shape[-1]
    patches = chained_product(x[0].flatten(1).T, weight.flatten(1).T).T
    height, width = ((side - 1) * 2 + size for side in x.shape[2:])
    return F.fold(patches[None], (height, width), size, stride=2)


def _small(x: Float[Tensor, "n c h w"]) -> bool:
    """One picture that PyTorch leaves to MKL."""
    return len(x) == 1 and x.numel() <= SMALL


def laned_product(x: Float[Tensor, "m k"], weight: Float[Tensor, "o k"]) -> Float[Tensor, "m o"]:
    """x W^T for few rows: four partial sums, folded in halves, then what is left over.

    A row's terms before its first one at 16 bytes open the first sum, in their order; a single row is cut so that
    nothing is left over. The gradient is that of the plain product.
    """
    product = F.linear(x, weight)
    m, k = x.shape
    if m > FEW:
        return product
    with torch.no_grad():
        rows = []
        for i, row in enumerate(x):
            terms = row * weight
            head = (k - 1) % LANES + 1 if m == 1 else -i * k % LANES
            end = k - (k - head) % LANES
            sums = terms.new_zeros(len(weight), LANES)
            for term in terms[:, :head].unbind(dim=1):
                sums[:, 0] += term
            for four in terms[:, head:end].unflatten(1, (-1, LANES)).unbind(dim=1):
                sums += four
            total = (sums[:, 0] + sums[:, 2]) + (sums[:, 1] + sums[:, 3])
            for term in terms[:, end:].unbind(dim=1):
                total += term
            rows.append(total)
        rounding = torch.stack(rows) - product
    return product + rounding


def multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a b + c, rounded once."""
    return (a.double() * b.double() + c.double()).to(c.dtype)


def blend_middles(colors: Float[Tensor, "n m s f"], weights: Float[Tensor, "n m s1"]) -> Float[Tensor, "n f m"]:
    """Sum over a ray's intervals of the colour in their middle times their weight, term by term."""
    middle = (colors[:, :, :-1] + colors[:, :, 1:]) / 2
    return (weights[..., None] * middle).sum(dim=2).mT
