"""Snapshots of the official structure, written here from networks of our own, come back as the same networks."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official_files import MARK, PLANE_AXES, Style, module_state, official_file
from small_networks import DISCRIMINATOR, SPEC, picture, random_discriminator, random_generator

from headlift.eg3d.camera import orbit
from headlift.eg3d.checkpoint import network_from_official
from headlift.eg3d.discriminator import Discriminator
from headlift.eg3d.generator import Generator
from headlift.eg3d.pickles import generator_spec, read_network, read_official
from headlift.errors import CheckpointError

OFFICIAL_OPCODES = """
    PROTO FRAME MARK STOP MEMOIZE BINGET LONG_BINGET EMPTY_DICT EMPTY_LIST EMPTY_SET EMPTY_TUPLE TUPLE TUPLE1 TUPLE2
    TUPLE3 APPENDS SETITEM SETITEMS SHORT_BINUNICODE BINUNICODE SHORT_BINBYTES BINBYTES BININT BININT1 BININT2 BINFLOAT
    NEWTRUE NEWFALSE NONE STACK_GLOBAL REDUCE NEWOBJ BUILD
"""


STYLES = {
    "numpy 2": Style(numpy2=True),
    "torch 1": Style(ordered=True),
    "Python 3.8": Style(ordered=True, empty_state=True),
    "protocol 5": Style(protocol=5),
}


def same(network: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Names, their order, and every number."""
    ours, theirs = network.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_imported_networks_are_those_that_were_written() -> None:
    original, critic = random_generator(), random_discriminator()
    data = official_file(original, critic)
    os.environ.pop(MARK, None)
    snapshot = read_official(io.BytesIO(data))
    assert set(snapshot.roles) == {"G_ema", "G", "D"}
    imported = network_from_official(read_network(snapshot))
    assert isinstance(imported, Generator)
    assert imported.spec == SPEC
    assert same(imported, original)
    assert torch.equal(picture(imported), picture(original))
    other = network_from_official(read_network(snapshot, "G"))
    assert torch.equal(other.state_dict()["decoder.net.0.bias"], original.state_dict()["decoder.net.0.bias"] + 1)
    judge = network_from_official(read_network(snapshot, "D"))
    assert isinstance(judge, Discriminator)
    assert judge.spec == DISCRIMINATOR
    assert same(judge, critic)
    image, raw = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    label = orbit(torch.tensor([0.3, -0.2]), torch.tensor([0.1, 0.0])).label
    assert torch.equal(judge(image, raw, label), critic(image, raw, label))
    assert MARK not in os.environ
    assert "torch_utils.persistence" not in sys.modules


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_the_spellings_of_other_versions_are_read(style: Style) -> None:
    original = random_generator()
    os.environ.pop(MARK, None)
    imported = network_from_official(read_network(read_official(io.BytesIO(official_file(original, style=style)))))
    assert imported.spec == SPEC
    assert same(imported, original)
    assert MARK not in os.environ


def test_the_files_written_here_have_the_official_structure() -> None:
    """Opcodes and globals are those that official files have, so that reading ours says something about theirs."""
    data = official_file(random_generator(), random_discriminator())
    assert {op.name for op, _, _ in pickletools.genops(data)} <= set(OFFICIAL_OPCODES.split())
    assert b"_reconstruct_persistent_obj" in data
    assert b"numpy.core.multiarray" in data
    assert b"numpy._core.multiarray" in official_file(random_generator(), style=Style(numpy2=True))
    assert data.count(b"# filler") == 40  # the source once, shared through the memo


def test_the_source_in_the_file_would_leave_a_mark() -> None:
    """The bait works: whoever runs the source finds the mark."""
    from official_files import SOURCE

    with pytest.raises(SystemExit):
        exec(SOURCE, {})
    assert os.environ.pop(MARK) == "run"


@pytest.mark.parametrize("layout", ["official", "zy", "yz"])
def test_the_layout_of_the_planes_comes_from_the_renderer(layout: Any) -> None:
    original = random_generator(replace(SPEC, plane_layout=layout))
    imported = network_from_official(read_network(read_official(io.BytesIO(official_file(original)))))
    assert imported.spec == original.spec
    assert torch.equal(picture(imported), picture(original))  # type: ignore[arg-type]


def test_the_renderers_own_settings_win_over_those_of_the_constructor() -> None:
    from official_files import official_settings

    kwargs = official_settings(SPEC)["rendering_kwargs"]
    data = official_file(random_generator(), rendering_kwargs={**kwargs, "depth_resolution": 9}, neural_resolution=12)
    spec = generator_spec(read_network(read_official(io.BytesIO(data))))
    assert spec.render.depth_samples == 9
    assert spec.neural_resolution == 12


def test_a_real_file_is_read_like_a_stream(tmp_path: Path) -> None:
    original = random_generator()
    path = tmp_path / "network.pkl"
    path.write_bytes(official_file(original))
    with path.open("rb") as stream:
        network = read_network(read_official(stream))
    path.unlink()  # the tensors are copies
    assert all(torch.equal(network.state[n], t) for n, t in original.state_dict().items())


def test_weights_of_another_shape_are_told_apart() -> None:
    data = official_file(random_generator())
    network = read_network(read_official(io.BytesIO(data)))
    changed = {**network.state, "decoder.net.0.bias": torch.zeros(9)}
    del changed["backbone.mapping.w_avg"]
    changed["backbone.extra"] = torch.zeros(2)
    with pytest.raises(CheckpointError) as caught:
        network_from_official(replace(network, state=changed))
    message = str(caught.value)
    assert "decoder.net.0.bias has shape 9, expected 8" in message
    assert "backbone.mapping.w_avg 8 is missing" in message
    assert "backbone.extra 2 is not part of it" in message


def test_a_file_with_numpy_arrays_and_latin1_bytes_is_read() -> None:
    """Older files: protocol 2 spells bytes as `_codecs.encode` and arrays as `_reconstruct` and BUILD."""
    from headlift.eg3d.pickles import _OUTER, Limits, _Array, _Budget, _Machine

    arrays = [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)), np.float32([7])]
    for array in arrays:
        for protocol in (2, 3, 4):
            data = pickle.dumps(array, protocol=protocol)
            read = _Machine(io.BytesIO(data), memoryview(data), _OUTER, _Budget(Limits(), 10**4, 10**4)).run()
            assert isinstance(read, _Array)
            assert torch.equal(read.tensor(), torch.from_numpy(array.astype(array.dtype.newbyteorder("="))))
    for scalar in (np.float64(1.5), np.float32(-2), np.int64(7), np.bool_(True), np.float16(0.5)):
        for protocol in (2, 4):
            data = pickle.dumps(scalar, protocol=protocol)
            value = _Machine(io.BytesIO(data), memoryview(data), _OUTER, _Budget(Limits(), 10**4, 10**4)).run()
            assert value == scalar.item()
            assert type(value) is type(scalar.item())


def test_every_known_layout_has_axes_of_its_own() -> None:
    assert len({str(axes) for axes in PLANE_AXES.values()}) == 3
    assert "training" in module_state(Style())
