"""Codes from seeds, mixtures and walks."""

from __future__ import annotations

import pytest
import torch

from headlift.editing.mix import style_mix, walk
from headlift.errors import ConfigError
from headlift.generate import parse_seeds


def codes(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 6, 4, generator=torch.Generator().manual_seed(seed))


def test_seeds() -> None:
    assert parse_seeds("0-3,7") == (0, 1, 2, 3, 7)
    assert parse_seeds("5") == (5,)
    assert parse_seeds("9-9, 2") == (9, 2)
    for bad in ("", "a", "3-1", "1,,2", "-4", "0-99999", "1.5"):
        with pytest.raises(ConfigError):
            parse_seeds(bad)


def test_style_mixing_takes_layers_from_either_side() -> None:
    a, b = codes(2, 1), codes(2, 2)
    mixed = style_mix(a, b, 2)
    assert torch.equal(mixed[:, :2], a[:, :2])
    assert torch.equal(mixed[:, 2:], b[:, 2:])
    assert torch.equal(style_mix(a, b, 6), a)
    assert torch.equal(style_mix(a, b, 0), b)
    with pytest.raises(ConfigError, match="7"):
        style_mix(a, b, 7)


def test_a_walk_passes_its_keyframes_and_closes_smoothly() -> None:
    keys = codes(4)
    path = walk(keys, 40)
    assert path.shape == (40, 6, 4)
    torch.testing.assert_close(path[::10], keys, rtol=0, atol=1e-6)
    steps = torch.cat([path, path[:2]]).diff(dim=0).flatten(1).norm(dim=1)
    bends = torch.cat([path, path[:2]]).diff(n=2, dim=0).flatten(1).norm(dim=1)
    assert steps[-2] < 1.5 * steps[:-2].max()  # from the last frame to the first: no jump,
    assert bends[-2:].max() < 1.5 * bends[:-2].max()  # and no kink


def test_an_open_walk_ends_on_its_last_keyframe() -> None:
    keys = codes(3)
    path = walk(keys, 21, loop=False)
    torch.testing.assert_close(path[[0, 10, 20]], keys, rtol=0, atol=1e-6)


def test_a_walk_on_one_keyframe_stays_there() -> None:
    keys = codes(1)
    torch.testing.assert_close(walk(keys, 5), keys.expand(5, -1, -1), rtol=0, atol=1e-6)
    assert torch.equal(walk(keys, 5, loop=False), keys.expand(5, -1, -1))
