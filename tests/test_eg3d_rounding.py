"""The published order of sums: against sums spelled out term by term, and against the plain operations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from headlift.eg3d import rounding
from headlift.eg3d.marching import sample_weights


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def laned(x: Tensor, w: Tensor, head: int) -> np.float32:
    """One sum in float32: the first terms into lane 0, then four lanes, folded in halves, then the rest."""
    terms = [np.float32(a * b) for a, b in zip(x.numpy(), w.numpy(), strict=True)]
    end = len(terms) - (len(terms) - head) % 4
    lanes = [np.float32(0)] * 4
    for j in range(end):
        lane = 0 if j < head else (j - head) % 4
        lanes[lane] = lanes[lane] + terms[j]
    total = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])
    for term in terms[end:]:
        total = total + term
    return total


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("terms", [8, 25, 26, 64])
def test_few_rows_are_summed_in_lanes_from_where_they_are_aligned(count: int, terms: int) -> None:
    x, w = normal(count, terms), normal(5, terms)
    found = rounding.laned_product(x, w)
    assert torch.allclose(found, x @ w.T, rtol=1e-5, atol=1e-5)
    for i in range(count):
        head = (terms - 1) % 4 + 1 if count == 1 else -i * terms % 4
        assert found[i].tolist() == [float(laned(x[i], row, head)) for row in w]


def test_the_gradient_of_few_rows_is_that_of_the_plain_product() -> None:
    x, w = normal(2, 25).requires_grad_(), normal(5, 25).requires_grad_()
    towards = normal(2, 5)
    ours = torch.autograd.grad((rounding.laned_product(x, w) * towards).sum(), [x, w])
    plain = torch.autograd.grad((F.linear(x, w) * towards).sum(), [x, w])
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


@pytest.mark.parametrize(("rows", "terms"), [(7, 32), (2000, 64), (600, 144)])
def test_many_rows_agree_with_the_plain_product(rows: int, terms: int) -> None:
    x, w = normal(rows, terms), normal(33, terms)
    assert torch.allclose(rounding.chained_product(x, w), x @ w.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("size", [1, 3])
def test_convolutions_agree_with_the_plain_ones(images: int, size: int) -> None:
    x, w = normal(images, 6, 8, 8), normal(4, 6, size, size)
    found = rounding.published_convolution(x, w, padding=size // 2)
    assert torch.allclose(found, F.conv2d(x, w, padding=size // 2), rtol=1e-4, atol=1e-4)
    found = rounding.published_doubling(x, w.transpose(0, 1))
    assert torch.allclose(found, F.conv_transpose2d(x, w.transpose(0, 1), stride=2), rtol=1e-4, atol=1e-4)


def test_a_product_and_a_sum_are_rounded_once() -> None:
    a = torch.tensor(1 + 2**-12)
    assert float(rounding.multiply_add(a, a, torch.tensor(-1.0))) == 2**-11 + 2**-24  # a a rounds to 1 + 2^-11


def test_colours_in_the_middles_give_what_shares_of_samples_give() -> None:
    colors, weights = normal(2, 3, 7, 4), normal(2, 3, 6).abs()
    expected = torch.einsum("nmsf,nms->nfm", colors, sample_weights(weights))
    assert torch.allclose(rounding.blend_middles(colors, weights), expected, atol=1e-5)
