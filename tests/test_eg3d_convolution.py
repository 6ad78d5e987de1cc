"""Convolutions with quick gradients against PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from headlift.eg3d import convolution as quick
from headlift.eg3d.convolution import convolution, doubling, kernel_gradient


def plain_doubling(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)


CASES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "same size": (lambda x, w: convolution(x, w, padding=1), lambda x, w: F.conv2d(x, w, padding=1)),
    "half": (lambda x, w: convolution(x, w, stride=2), lambda x, w: F.conv2d(x, w, stride=2)),
    "inner part": (convolution, F.conv2d),
    "double": (lambda x, w: doubling(x, w.transpose(0, 1)), plain_doubling),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_values_gradients_and_theirs_are_those_of_pytorch(case: str, layout: torch.memory_format) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 9, 7, generator=random).contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(6, 5, 3, 3, generator=random, requires_grad=True)
    results = []
    for apply in CASES[case]:
        value = apply(x, weight)
        first = torch.autograd.grad(value.square().sum(), (x, weight), create_graph=True)
        second = torch.autograd.grad(sum(grad.square().sum() for grad in first), (x, weight))
        results.append((value, *first, *second))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("block", [7, 10_000])
def test_a_kernels_gradient_is_summed_over_blocks_of_pixels(
    size: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick, "BLOCK", block)
    random = torch.Generator().manual_seed(0)
    x, grad = torch.randn(2, 3, 6, 8, generator=random), torch.randn(2, 4, 6, 8, generator=random)
    wanted = torch.nn.grad.conv2d_weight(x, (4, 3, size, size), grad, padding=size // 2)
    torch.testing.assert_close(kernel_gradient(x, grad, size), wanted, rtol=1e-5, atol=1e-5)


def test_what_has_no_gradient_gets_none() -> None:
    x, weight = torch.randn(1, 3, 6, 6), torch.randn(4, 3, 3, 3, requires_grad=True)
    convolution(x, weight, padding=1).sum().backward()
    assert x.grad is None
    assert weight.grad is not None
    assert convolution(x, weight.detach(), padding=1).grad_fn is None


def test_autocast_reaches_them() -> None:
    x, weight = torch.randn(1, 3, 6, 6), torch.randn(4, 3, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert convolution(x, weight, padding=1).dtype == torch.bfloat16
        assert doubling(x, weight.transpose(0, 1)).dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert convolution(x, weight, padding=1).dtype == torch.float32
