"""Look-ups as sums of rows against `grid_sample`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headlift.eg3d import triplane
from headlift.eg3d.rows import summed_rows
from headlift.eg3d.triplane import PLANES, Plane, in_rows, look_up

REACH = torch.rand(6, 6, generator=torch.Generator().manual_seed(1)) - 0.5
LAYOUTS = {
    "three": PLANES["zy"],
    "two": PLANES["yz"][:2],
    "reach": (*PLANES["zy"], Plane((0, 1), REACH)),
}


def sampled(planes: Tensor, each: tuple[Plane, ...], unit: Tensor) -> Tensor:
    n, k, c = planes.shape[:3]
    return triplane._sample(planes, each, unit).reshape(n, k, c, -1).sum(dim=1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_gradients_are_those_of_grid_sample(layout: str) -> None:
    each, random = LAYOUTS[layout], torch.Generator().manual_seed(0)
    planes = torch.randn(1, len(each), 5, 6, 6, generator=random, requires_grad=True)
    # Inside, beside the border, and far outside; some points lie on texels' centres and on the cube's walls.
    unit = torch.rand(1, 400, 3, generator=random) * 3 - 1.5
    unit[:, :20] = (unit[:, :20] * 3).round() / 3 - 1 / 6
    unit[:, 20:30] = unit[:, 20:30].sign()
    towards = torch.randn(1, 5, 400, generator=random)
    for lay in (lambda x: x, in_rows):
        found, wanted = look_up(lay(planes), each, unit), sampled(planes, each, unit)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        grads = [torch.autograd.grad(value, planes, towards)[0] for value in (found, wanted)]
        torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-5)


def test_points_with_gradients_go_by_grid_sample() -> None:
    planes, unit = torch.randn(1, 3, 5, 6, 6), (torch.rand(1, 40, 3) * 2 - 1).requires_grad_()
    found = torch.autograd.grad(look_up(planes, PLANES["zy"], unit).square().sum(), unit)[0]
    wanted = torch.autograd.grad(sampled(planes, PLANES["zy"], unit).square().sum(), unit)[0]
    assert float(wanted.abs().max()) > 0
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_a_single_point_stays_where_it_is() -> None:
    planes, unit = torch.randn(1, 3, 5, 6, 6), torch.tensor([[[0.1, -0.2, 0.3]]])
    found = look_up(planes, PLANES["zy"], unit)
    torch.testing.assert_close(found, sampled(planes, PLANES["zy"], unit), rtol=0, atol=1e-6)
    assert torch.equal(unit, torch.tensor([[[0.1, -0.2, 0.3]]]))


def test_no_points_give_no_rows_and_a_gradient_of_zero() -> None:
    planes = torch.randn(1, 3, 5, 6, 6, requires_grad=True)
    axes = [plane.axes for plane in PLANES["zy"]]
    found = summed_rows(planes, torch.zeros(1, 0, 3), axes, [None] * 3)
    assert found.shape == (0, 5)
    found.sum().backward()
    assert planes.grad is not None
    assert not planes.grad.any()


def test_rows_lie_side_by_side() -> None:
    planes = torch.randn(1, 3, 5, 6, 6)
    laid = in_rows(planes)
    assert torch.equal(laid, planes)
    assert laid.stride()[2] == 1
    assert in_rows(laid).data_ptr() == laid.data_ptr()
