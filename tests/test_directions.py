"""Directions in W: moving along them, keeping them in a file, and refusing those of another generator."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from headlift.editing.directions import Direction, Directions, load_directions, move, save_directions
from headlift.errors import CheckpointError, ConfigError, WeightsError

SHA = "ab" * 32


def some(w: int = 6) -> Directions:
    entries = (
        Direction("age", "older", "years", 18.3, 0.87),
        Direction("smile", "corners of the mouth up", "", 0.26, 0.7),
        Direction("beard", "fuller beard", "", 0.2, math.nan),
    )
    vectors = torch.randn(3, w, generator=torch.Generator().manual_seed(1))
    return Directions(entries, vectors, torch.eye(3) + 0.1, SHA)


@given(a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_moves_add_up_and_can_be_undone(a: float, b: float) -> None:
    ws = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    directions = some()
    both = move(ws, directions, {"age": a, "smile": b})
    assert torch.allclose(move(move(ws, directions, {"smile": b}), directions, {"age": a}), both, atol=1e-5)
    assert torch.allclose(move(both, directions, {"age": -a, "smile": -b}), ws, atol=1e-5)


def test_a_move_is_the_vector_times_the_amount_on_all_layers() -> None:
    ws, directions = torch.zeros(1, 3, 6), some()
    moved = move(ws, directions, {"smile": 1.5})
    assert torch.allclose(moved, 1.5 * directions.vectors[1].expand(1, 3, -1))
    assert torch.equal(move(ws, directions, {}), ws)
    assert not torch.equal(moved, ws)
    assert torch.equal(ws, torch.zeros(1, 3, 6))


def test_wrong_moves_are_explained() -> None:
    directions = some()
    with pytest.raises(ConfigError, match="did you mean smile"):
        move(torch.zeros(1, 3, 6), directions, {"smlie": 1.0})
    with pytest.raises(ConfigError, match="There are: age, smile, beard"):
        move(torch.zeros(1, 3, 6), directions, {"weight": 1.0})
    with pytest.raises(ConfigError, match="no distance"):
        move(torch.zeros(1, 3, 6), directions, {"age": math.nan})
    with pytest.raises(ConfigError, match="another generator"):
        move(torch.zeros(1, 3, 7), directions, {"age": 1.0})


def test_cosines() -> None:
    directions = replace(some(2), vectors=torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]]))
    half = math.sqrt(0.5)
    expected = torch.tensor([[1, 0, half], [0, 1, half], [half, half, 1]])
    assert torch.allclose(directions.cosines, expected, atol=1e-6)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path, directions = tmp_path / "d.safetensors", some()
    save_directions(path, directions)
    found = load_directions(path, SHA)
    assert found.names == ("age", "smile", "beard")
    assert found.entries[:2] == directions.entries[:2]
    assert math.isnan(found.entries[2].correlation)
    assert torch.equal(found.vectors, directions.vectors)
    assert torch.equal(found.entanglement, directions.entanglement)
    assert found.std == {"age": 18.3, "smile": 0.26, "beard": 0.2}
    assert load_directions(path).base_sha256 == SHA


def test_other_generators_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    save_directions(path, some())
    with pytest.raises(CheckpointError, match="belong to the generator"):
        load_directions(path, "cd" * 32)
    with pytest.raises(WeightsError, match="headlift directions learn"):
        load_directions(tmp_path / "none.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_directions(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="damaged"):
        load_directions(path)
    save_file({"vectors": torch.zeros(3, 6)}, path)
    with pytest.raises(CheckpointError, match="not a file of directions"):
        load_directions(path)
    save_directions(path, replace(some(), vectors=torch.full((3, 6), math.inf)))
    with pytest.raises(CheckpointError, match="not finite"):
        load_directions(path)
