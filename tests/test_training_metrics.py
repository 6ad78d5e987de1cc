"""The sliced Wasserstein distance: laws, and numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch

from headlift.eg3d.training.adversarial import blur
from headlift.eg3d.training.metrics import (
    double,
    halve,
    laplacian_pyramid,
    sliced_distance,
    sliced_wasserstein,
)


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(seed: int, count: int = 12, side: int = 32) -> torch.Tensor:
    """Noise with a little of every frequency."""
    noise = torch.randn(count, 3, side, side, generator=random(seed))
    return noise + 3 * blur(noise, 2.0)


def swd(a: torch.Tensor, b: torch.Tensor, seed: int = 5) -> dict[int, float]:
    return sliced_wasserstein(a, b, random(seed), projections=64, draws=2, patches=32)


def test_the_distance_along_given_directions_by_hand() -> None:
    a = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 1.0]])
    b = torch.tensor([[2.0, 5.0], [0.0, 0.0], [1.0, 1.0]])
    # first axis: sorted 0 1 3 and 0 1 2, apart by 1/3; second: 0 1 2 and 0 1 5, apart by 1
    assert sliced_distance(a, b, torch.eye(2)).item() == pytest.approx((1 / 3 + 1) / 2)


def test_the_distance_grows_with_a_shift_in_proportion() -> None:
    points = torch.randn(50, 4, generator=random())
    directions = torch.nn.functional.normalize(torch.randn(4, 8, generator=random(1)), dim=0)
    shift = torch.tensor([1.0, -2.0, 0.5, 0.0])
    one, two = (sliced_distance(points, points + k * shift, directions).item() for k in (1, 2))
    assert one == pytest.approx((shift @ directions).abs().mean().item(), rel=1e-5)
    assert two == pytest.approx(2 * one, rel=1e-5)


def test_a_set_is_at_no_distance_from_itself_and_the_distance_is_symmetric() -> None:
    a, b = pictures(0), pictures(1)
    assert swd(a, a) == {32: 0.0, 16: 0.0}
    assert swd(a, b) == pytest.approx(swd(b, a), rel=1e-6)
    assert all(value > 0 for value in swd(a, b).values())


def test_what_differs_on_a_level_shows_there_and_grows_with_the_difference() -> None:
    a, b = pictures(0, 24), pictures(1, 24)
    floor = swd(a, b)
    found = [swd(a, blur(b, sigma)) for sigma in (0.8, 2.0)]
    assert floor[32] < found[0][32] < found[1][32]
    stripes = b + 4 * torch.sign(torch.sin(torch.arange(32) * math.pi / 8 + 0.1))
    assert swd(a, stripes)[16] > 2 * floor[16]


def test_brightness_and_contrast_of_a_whole_set_do_not_count() -> None:
    a, b = pictures(0), pictures(1)
    for side, value in swd(a, b).items():
        assert swd(a, 2 * b + 0.5)[side] == pytest.approx(value, rel=1e-3)


def test_the_pyramid_adds_up_again() -> None:
    image = pictures(0, 2, 64)
    levels = laplacian_pyramid(image)
    assert [level.shape[-1] for level in levels] == [64, 32, 16]
    total = levels[-1]
    for level in levels[-2::-1]:
        total = double(total) + level
    assert torch.allclose(total, image, atol=1e-5)
    flat = torch.full((1, 3, 32, 32), 0.3)
    assert torch.allclose(halve(flat), torch.full((1, 3, 16, 16), 0.3))
    assert torch.allclose(double(flat)[..., 4:-4, 4:-4], torch.tensor(0.3))
