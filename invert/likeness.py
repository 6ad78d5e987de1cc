"""Kernel regression: what holds at some places, told from others that are like them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def by_likeness(
    asked: Float[Tensor, "m k"], known: Float[Tensor, "n k"], values: Float[Tensor, "n c"], doubt: float = 0.0
) -> Float[Tensor, "m c"]:
    """Means of `values`, weighted by the likeness exp(-d^2 / 2) of what was asked to what is known (n > 0), d being
    their distance; with a `doubt` above 0, so much likeness more speaks for 0.

    As -d^2 / 2 is the product a k less a^2 / 2, the same for all n, and k^2 / 2, this is attention with one more number
    in each key. Doubt is one key more, whose score makes up for a^2 / 2.
    """
    score = -0.5 * known.square().sum(1, keepdim=True)
    queries, keys = F.pad(asked, (0, 1), value=1.0), torch.cat([known, score], 1)
    if doubt:
        queries = torch.cat([queries, 0.5 * asked.square().sum(1, keepdim=True)], 1)
        none = keys.new_tensor([[0.0] * known.shape[1] + [math.log(doubt), 1.0]])
        keys, values = torch.cat([F.pad(keys, (0, 1)), none]), F.pad(values, (0, 0, 0, 1))
    width = max(keys.shape[1], values.shape[1])
    q, k, v = (F.pad(x, (0, width - x.shape[1]))[None, None] for x in (queries, keys, values))
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)[0, 0, :, : values.shape[1]]
