"""Each term of the supervised stage against a case worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from headlift.eg3d.training import losses


def test_opacity_loss_is_the_mean_cross_entropy_of_the_counted_rays() -> None:
    alpha, target = torch.tensor([0.5, 0.8, 0.3]), torch.tensor([1.0, 1.0, 0.25])
    counted = torch.tensor([True, False, True])
    first = -math.log(0.5)
    third = -(0.25 * math.log(0.3) + 0.75 * math.log(0.7))
    assert losses.opacity_loss(alpha, target, counted) == pytest.approx((first + third) / 2, rel=1e-6)


def test_opacity_loss_has_a_slope_where_alpha_is_certain_and_wrong() -> None:
    alpha = torch.tensor([0.002], requires_grad=True)
    losses.opacity_loss(alpha, torch.ones(1), torch.ones(1, dtype=torch.bool)).backward()
    assert alpha.grad is not None
    assert alpha.grad.item() == pytest.approx(-1 / 0.002, rel=1e-4)


@pytest.mark.parametrize("wrong", [1e-5, 1 - 1e-5])
def test_opacity_loss_keeps_its_slope_beyond_the_margin(wrong: float) -> None:
    """There the logarithm goes on along its tangent, of slope 1 / margin."""
    alpha = torch.tensor([wrong], requires_grad=True)
    target = torch.tensor([float(wrong < 0.5)])
    loss = losses.opacity_loss(alpha, target, torch.ones(1, dtype=torch.bool))
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-3) + (1e-3 - 1e-5) / 1e-3, rel=1e-4)
    assert alpha.grad is not None
    assert alpha.grad.item() == pytest.approx(-1000 if wrong < 0.5 else 1000, rel=1e-4)


def test_opacity_loss_of_nothing_counted_is_zero() -> None:
    assert losses.opacity_loss(torch.ones(2), torch.zeros(2), torch.zeros(2, dtype=torch.bool)) == 0


def test_pyramid_loss_of_one_bright_pixel() -> None:
    """4 x 4, one pixel of 1: its 2 x 2 mean is 1/4, that of the whole 1/16.

    Level 1: |1 - 1/4| + 3 |0 - 1/4| = 3/2 over 16 pixels. Level 2: 3/4 * 1/4 + 3 * 1/16 = 3/8 over 4. Rest: 1/16.
    """
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 1, 2] = 1
    expected = 1.5 / 16 + 0.375 / 4 + 1 / 16
    assert losses.pyramid_loss(image, torch.zeros_like(image), levels=2) == pytest.approx(expected)


def test_pyramid_loss_asks_more_of_edges_than_of_an_offset() -> None:
    stripes = torch.tensor([0.1, -0.1]).repeat(4).expand(1, 1, 8, 8)
    offset = torch.full((1, 1, 8, 8), 0.1)
    zero = torch.zeros(1, 1, 8, 8)
    assert losses.pyramid_loss(stripes, zero, 3) == pytest.approx(0.1, rel=1e-5)
    assert losses.pyramid_loss(offset, zero, 3) == pytest.approx(0.1, rel=1e-5)
    assert losses.pyramid_loss(stripes + offset, zero, 3) == pytest.approx(0.2, rel=1e-5)  # L1 alone gives 0.1


def test_empty_and_solid_loss() -> None:
    assert losses.empty_loss(torch.tensor([-4.0]), -4.0) == pytest.approx(math.log(2))
    assert losses.empty_loss(torch.tensor([-50.0]), -4.0) == pytest.approx(0, abs=1e-6)
    assert losses.solid_loss(torch.tensor([30.0, 10.0]), 20.0) == pytest.approx(10 / 2 / 20)


def test_a_weighted_mean_is_one_however_small_the_weights() -> None:
    value = torch.tensor([1.0, 5.0])
    for share in (1.0, 0.01):
        assert losses.weighted_mean(value, torch.tensor([3.0, 1.0]) * share) == pytest.approx(2.0)
    assert losses.weighted_mean(value, torch.zeros(2)) == 0


def test_what_is_empty_enough_takes_no_gradient() -> None:
    """The sigmoid's own would be 1e-39 there, below float32's normal range."""
    sigma = torch.tensor([-14.0, -94.0], requires_grad=True)
    losses.empty_loss(sigma, -4.0).backward()
    assert sigma.grad is not None
    assert sigma.grad[0].item() == pytest.approx(1 / (1 + math.exp(10)) / 2, rel=1e-4)
    assert sigma.grad[1].item() == 0.0


def test_smooth_density_loss_is_the_mean_distance() -> None:
    assert losses.smooth_density_loss(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 0.0])) == pytest.approx(1.25)


def test_psnr_of_a_tenth_of_the_span() -> None:
    assert losses.psnr(torch.full((3,), 0.2), torch.zeros(3)) == pytest.approx(20.0)
