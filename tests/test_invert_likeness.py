"""Kernel regression against its formula."""

from __future__ import annotations

import pytest
import torch

from headlift.invert.likeness import by_likeness


@pytest.mark.parametrize("doubt", [0.0, 0.05])
@pytest.mark.parametrize(("keys", "columns"), [(6, 3), (2, 7)])
def test_means_are_weighted_by_a_gaussian_of_the_distance(doubt: float, keys: int, columns: int) -> None:
    random = torch.Generator().manual_seed(0)
    asked, known = torch.randn(40, keys, generator=random) * 2, torch.randn(30, keys, generator=random) * 2
    values = torch.randn(30, columns, generator=random)
    alike = torch.exp(-0.5 * torch.cdist(asked.double(), known.double()).square())
    wanted = alike @ values.double() / (alike.sum(1, keepdim=True) + doubt)
    torch.testing.assert_close(by_likeness(asked, known, values, doubt).double(), wanted, rtol=1e-4, atol=1e-5)


def test_what_is_like_nothing_takes_the_nearest_or_with_doubt_nothing() -> None:
    known, values = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0], [2.0]])
    far = torch.tensor([[30.0, 0.0]])
    assert float(by_likeness(far, known, values)) == pytest.approx(2.0)
    assert float(by_likeness(far, known, values, doubt=0.1)) == pytest.approx(0.0, abs=1e-6)
