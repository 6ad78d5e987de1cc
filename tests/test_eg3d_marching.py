"""Sampling along rays and compositing: numbers worked out by hand, and laws."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headlift.eg3d import rays
from headlift.eg3d.marching import composite, interval_weights, sample_weights
from headlift.eg3d.rays import Jitter
from headlift.errors import ConfigError


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_two_intervals_by_hand() -> None:
    depths = torch.tensor([[[1.0, 2.0, 4.0]]])
    sigma = torch.tensor([[[0.0, 2.0, 4.0]]])
    first = 1 - math.exp(-softplus(0.0) * 1)  # mean sigma 1, length 1
    second = 1 - math.exp(-softplus(2.0) * 2)  # mean sigma 3, length 2
    weights = interval_weights(depths, sigma)
    assert weights.flatten().tolist() == pytest.approx([first, (1 - first) * second], rel=1e-6)
    depth, alpha = composite(depths, weights)
    total = first + (1 - first) * second
    assert float(alpha) == pytest.approx(total, rel=1e-6)
    assert float(depth) == pytest.approx((first * 1.5 + (1 - first) * second * 3) / total, rel=1e-6)
    # the middles of colours 0, 1, 4 are 0.5 and 2.5
    colors = torch.tensor([0.0, 1.0, 4.0])
    blended = float((sample_weights(weights).flatten() * colors).sum())
    assert blended == pytest.approx(first * 0.5 + (1 - first) * second * 2.5, rel=1e-6)


def test_the_relu_clamp_lets_negative_densities_be_nothing() -> None:
    depths = torch.tensor([[[0.0, 1.0, 2.0]]])
    weights = interval_weights(depths, torch.tensor([[[-3.0, 1.0, 3.0]]]), "relu")
    assert weights.flatten().tolist() == pytest.approx([0.0, 1 - math.exp(-2.0)], rel=1e-6)


@given(st.lists(st.floats(-60, 60), min_size=3, max_size=12), st.floats(0.01, 3.0))
def test_transmittance_never_rises_and_opacity_is_a_share(values: list[float], spacing: float) -> None:
    sigma = torch.tensor([[values]])
    depths = (torch.arange(len(values)) * spacing + 0.5)[None, None]
    weights = interval_weights(depths, sigma)
    assert float(weights.min()) >= 0
    passed = 1 - weights.cumsum(-1)
    assert float(passed.min()) >= -1e-5
    assert bool((passed.diff(dim=-1) <= 1e-6).all())
    depth, alpha = composite(depths, weights)
    assert -1e-6 <= float(alpha) <= 1 + 1e-5
    assert depths[0, 0, 0] - 1e-4 <= float(depth) <= depths[0, 0, -1] + 1e-4


def test_an_empty_ray_has_its_last_depth_and_finite_gradients() -> None:
    depths = torch.tensor([[[1.0, 2.0, 3.5], [1.0, 2.0, 3.5]]], requires_grad=True)
    sigma = torch.tensor([[[-200.0, -200.0, -200.0], [1.0, 1.0, 1.0]]], requires_grad=True)
    weights = interval_weights(depths, sigma)
    depth, alpha = composite(depths, weights)
    assert float(alpha[0, 0]) == 0
    assert float(depth[0, 0]) == 3.5
    (depth.sum() + alpha.sum()).backward()
    for leaf in (depths, sigma):
        assert leaf.grad is not None
        assert bool(torch.isfinite(leaf.grad).all())
    assert sigma.grad is not None
    assert float(sigma.grad[0, 1].abs().sum()) > 0


def test_nearly_empty_rays_round_as_the_reference_does() -> None:
    """An opacity of 0.4 units in the last place of 1 is none; one of 0.6 is one unit (2^-24)."""
    depths = torch.tensor([[[0.0, 1.0, 2.0]]])
    sigma = torch.tensor([math.log(math.expm1(x * 2**-24)) + 1 for x in (0.4, 0.4, 0.8)])[None, None]
    weights = interval_weights(depths, sigma).flatten() / 2**-24
    assert float(weights[0]) == 0
    assert float(weights[1]) == pytest.approx(1)


def test_stratified_samples_by_hand() -> None:
    uniform = torch.full((1, 1, 5), 0.5)
    even = rays.stratified_samples(2.0, 4.0, uniform)
    assert even.flatten().tolist() == pytest.approx([2.25, 2.75, 3.25, 3.75, 4.25])
    own = rays.stratified_samples(torch.full((1, 1), 2.0), torch.full((1, 1), 4.0), uniform)
    assert torch.allclose(even, own)
    disparity = rays.stratified_samples(1.0, 4.0, torch.zeros(1, 1, 4), disparity=True)
    assert (1 / disparity).flatten().tolist() == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_importance_samples_follow_the_weights() -> None:
    depths = torch.linspace(0, 10, 11)[None, None]
    weights = torch.zeros(1, 1, 10)
    weights[..., 4] = 1.0
    uniform = ((torch.arange(200) + 0.5) / 200)[None, None]
    found = rays.importance_samples(depths, weights, uniform)
    near = ((found > 3) & (found < 6.6)).float().mean()
    assert float(near) > 0.8
    assert bool((found.diff(dim=-1) >= 0).all())


def test_importance_samples_of_even_weights_are_even() -> None:
    """Quantiles of a flat density between the first and the last but one middle of the intervals."""
    depths = torch.linspace(0, 1, 9)[None, None]
    uniform = torch.tensor([[[0.0, 0.5, 0.999999]]])
    found = rays.importance_samples(depths, torch.full((1, 1, 8), 0.3), uniform).flatten()
    middles = (depths[..., 1:] + depths[..., :-1]).flatten() / 2
    low, high = float(middles[0]), float(middles[-2])
    assert found.tolist() == pytest.approx([low, (low + high) / 2, high], abs=1e-4)


def test_limits_of_the_box_by_hand() -> None:
    origins = torch.tensor([[[0.0, 0.0, 3.0], [0.0, 2.0, 3.0], [0.0, 0.0, 3.0], [0.1, 0.0, 0.0]]])
    directions = torch.tensor([[[0.0, 0.0, -1.0], [0.0, 0.0, -1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]])
    start, end = rays.box_limits(origins, directions, 1.0)
    # through the middle; past the box: nothing at the nearest point; away from it; from inside
    assert start[0].tolist() == pytest.approx([2.5, 3.0, 0.0, 0.0])
    assert end[0].tolist() == pytest.approx([3.5, 3.0, 0.0, 0.5])
    start, end = rays.box_limits(origins[:, :2], directions[:, :2], 1.0, published_faults=True)
    assert start[0].tolist() == pytest.approx([2.5, 2.5])
    assert end[0].tolist() == pytest.approx([3.5, 2.5])


def test_jitter_of_another_shape_is_refused() -> None:
    jitter = Jitter.draw(torch.Generator().manual_seed(0), 1, 4, 5, 6)
    jitter.check(1, 4, 5, 6)
    with pytest.raises(ConfigError, match="shapes"):
        jitter.check(1, 4, 5, 7)
    with pytest.raises(ConfigError, match="shapes"):
        Jitter(jitter.coarse).check(1, 4, 5, 6)
