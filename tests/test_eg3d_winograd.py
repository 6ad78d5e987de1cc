"""Winograd's convolution against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from headlift.eg3d import layers, winograd
from headlift.eg3d.winograd import WIDE, convolve, pays


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 16, 8)])
def test_it_is_a_convolution_in_value_and_gradients(shape: tuple[int, int, int]) -> None:
    n, h, w = shape
    random = torch.Generator().manual_seed(0)
    x = torch.randn(n, 5, h, w, generator=random, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(7, 5, 3, 3, generator=random, requires_grad=True)
    wanted, found = F.conv2d(x, weight, padding=1), convolve(x, weight)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    towards = torch.randn(wanted.shape, generator=random)
    for a, b in zip(*(torch.autograd.grad(y, (x, weight), towards) for y in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4 * float(b.abs().max()))


def test_second_derivatives_pass_through() -> None:
    x, weight = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(3, 2, 3, 3)

    def twice(y: torch.Tensor) -> torch.Tensor:
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    wanted = twice(F.conv2d(x, weight, padding=1))
    torch.testing.assert_close(twice(convolve(x, weight)), wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


def test_wide_layers_take_it_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(1, WIDE, 8, 8), torch.randn(WIDE, WIDE, 3, 3)
    wanted = F.conv2d(x, weight, padding=1)
    seen = []
    monkeypatch.setattr(winograd, "convolve", lambda *args: seen.append(args) or convolve(*args))
    torch.testing.assert_close(layers.convolve(x, weight, None), wanted, rtol=0, atol=2e-4 * float(wanted.abs().max()))
    assert len(seen) == 1
    assert not pays(x[:, :64], weight[:, :64])
    assert not pays(x.bfloat16(), weight.bfloat16())
    assert not pays(x[..., :6], weight)
    assert not pays(x, weight[..., :1, :1])
    with torch.autocast("cpu", torch.bfloat16):
        assert not pays(x, weight)
