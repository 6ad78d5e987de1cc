"""Codes from seeds, mixtures and walks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import solid_generator

from headlift import generate
from headlift.config import GenerateConfig, MeshConfig
from headlift.editing.mix import style_mix, walk
from headlift.errors import ConfigError
from headlift.generate import parse_seeds


def codes(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 6, 4, generator=torch.Generator().manual_seed(seed))


def test_seeds() -> None:
    assert parse_seeds("0-3,7") == (0, 1, 2, 3, 7)
    assert parse_seeds("5") == (5,)
    assert parse_seeds("9-9, 2") == (9, 2)
    for bad in ("", "a", "3-1", "1,,2", "-4", "0-99999", "1.5", "\u00b2", "1-\u00b2", "9" * 5000, "0-" + "9" * 5000):
        with pytest.raises(ConfigError):
            parse_seeds(bad)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"columns": -2}, "--columns is -2"),
        ({"columns": 0}, "--columns is 0"),
        ({"video": True, "frames": -1}, "--frames is -1"),
        ({"video": True, "fps": 0}, "--fps is 0"),
        ({"truncation_cutoff": -1}, "--truncation-cutoff is -1"),
        ({"mix": "1", "mix_layer": -1}, "--mix-layer is -1"),
        ({"yaw": ()}, "--yaw"),
        ({"seeds": "\u00b2"}, "seeds"),
        ({"meshes": ("gbl",)}, "unknown mesh format 'gbl'"),
    ],
)
def test_numbers_that_cannot_be_are_refused_before_a_generator_is_loaded(
    changed: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def load(*arguments: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(generate, "load_generator", load)
    with pytest.raises(ConfigError, match=words):
        generate.generate_into(tmp_path, GenerateConfig(**changed))
    with pytest.raises(AssertionError, match="loaded"):
        generate.generate_into(tmp_path, GenerateConfig(frames=-1))


def test_meshes_of_random_heads_carry_their_licence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(generate, "load_generator", lambda name, device: (solid_generator(), "ab" * 32))
    mesh = MeshConfig(resolution=24, colors=False)
    config = GenerateConfig(seeds="3", weights="mine/cats.safetensors", meshes=("glb",), mesh=mesh, device="cpu")
    generate.generate_into(tmp_path, config)
    data = (tmp_path / "seed0003.glb").read_bytes()
    about = json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])["asset"]["extras"]["headlift"]
    assert about["weights"] == "cats.safetensors"
    assert about["weights_sha256"] == "ab" * 32
    assert about["licence"] == "that of its weights"


def test_a_layer_that_does_not_exist_is_refused_before_anything_is_rendered(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--mix-layer is 99"):
        generate.generate_into(tmp_path, GenerateConfig(seeds="0", mix="1", mix_layer=99, device="cpu"))
    assert list(tmp_path.iterdir()) == []


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
