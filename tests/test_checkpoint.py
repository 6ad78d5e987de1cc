"""Networks go through their files unchanged; files that do not hold what they claim are told apart."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_networks import DISCRIMINATOR, SPEC, picture, random_discriminator, random_generator

from headlift.eg3d.checkpoint import (
    GENERATOR,
    _outline,
    build_generator,
    compare_shapes,
    load_checkpoint,
    load_discriminator,
    read_metadata,
    read_spec,
    save_checkpoint,
)
from headlift.eg3d.generator import Generator
from headlift.eg3d.published import discriminator_spec_from_published, spec_from_published
from headlift.eg3d.spec import DiscriminatorSpec, GeneratorSpec
from headlift.errors import CheckpointError, OutputError


def test_a_generator_survives_its_file_exactly(tmp_path: Path) -> None:
    generator = random_generator()
    path = tmp_path / "g.safetensors"
    save_checkpoint(path, generator, {"licence": "mine"})
    loaded = load_checkpoint(path)
    assert loaded.spec == SPEC == read_spec(path)
    assert not loaded.training
    assert list(loaded.state_dict()) == list(generator.state_dict())
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in generator.state_dict().items())
    assert torch.equal(picture(loaded), picture(generator))
    assert read_metadata(path)["licence"] == "mine"
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644
    path.unlink()  # nothing of the network lies in the file any more
    assert torch.equal(picture(loaded), picture(generator))


def test_metadata_that_is_no_text_is_kept_as_far_as_it_is(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.pkl")  # a name of a file that is no UTF-8
    save_checkpoint(tmp_path / "g.safetensors", random_generator(), {"source": name, "licence": "caf\u00e9"})
    metadata = read_metadata(tmp_path / "g.safetensors")
    assert (metadata["source"], metadata["licence"]) == ("caf?.pkl", "caf\u00e9")


def test_a_loaded_generator_can_be_tuned(tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    save_checkpoint(path, random_generator())
    before = path.read_bytes()
    loaded = load_checkpoint(path)
    loaded.decoder.net[0].weight.sum().backward()
    with torch.no_grad():
        loaded.decoder.net[0].weight += loaded.decoder.net[0].weight.grad
    assert path.read_bytes() == before


def test_a_discriminator_survives_its_file_exactly(tmp_path: Path) -> None:
    critic = random_discriminator()
    path = tmp_path / "d.safetensors"
    save_checkpoint(path, critic)
    loaded = load_discriminator(path)
    assert loaded.spec == DISCRIMINATOR == read_spec(path)
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in critic.state_dict().items())
    with pytest.raises(CheckpointError, match="holds a headlift discriminator, where a headlift generator"):
        load_checkpoint(path)


def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path: Path) -> None:
    spec = replace(SPEC, mapping=replace(SPEC.mapping, z_dim=128, w_dim=128, layer_features=128, embed_features=128))
    generator = random_generator(spec)
    save_checkpoint(tmp_path / "whole.safetensors", generator)
    save_checkpoint(tmp_path / "half.safetensors", generator, half=True)
    stored = load_file(tmp_path / "half.safetensors")
    loaded = load_checkpoint(tmp_path / "half.safetensors")
    for name, tensor in generator.state_dict().items():
        large = tensor.numel() >= 4096
        assert stored[name].dtype == (torch.float16 if large else torch.float32)
        assert loaded.state_dict()[name].dtype == torch.float32
        assert torch.equal(loaded.state_dict()[name], tensor.half().float() if large else tensor)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.7 * sizes[1]


def test_numbers_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    generator = random_generator()
    with torch.no_grad():
        generator.backbone.mapping.w_avg[0] = float("nan")
    with pytest.raises(CheckpointError, match=r"backbone.mapping.w_avg holds numbers that are not finite"):
        save_checkpoint(tmp_path / "g.safetensors", generator)
    spec = replace(SPEC, mapping=replace(SPEC.mapping, z_dim=128, w_dim=128, layer_features=128, embed_features=128))
    generator = random_generator(spec)
    with torch.no_grad():
        generator.backbone.mapping.fc0.weight[0, 0] = 1e5
    with pytest.raises(CheckpointError, match="beyond 65504"):
        save_checkpoint(tmp_path / "g.safetensors", generator, half=True)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="could not be written"):
        save_checkpoint(tmp_path / "file" / "g.safetensors", random_generator())


def altered(tmp_path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> Path:
    """A generator's file whose tensors and spec were changed."""
    path = tmp_path / "altered.safetensors"
    generator = random_generator()
    state = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    spec = generator.spec.to_dict()
    change(state, spec)
    save_file(state, path, {"kind": GENERATOR, "spec": json.dumps(spec)})
    return path


def test_mismatches_say_which_and_what_was_expected(tmp_path: Path) -> None:
    def change(state: dict[str, torch.Tensor], spec: dict[str, Any]) -> None:
        state["decoder.net.0.bias"] = torch.zeros(9)
        del state["backbone.mapping.w_avg"]
        state["more"] = torch.zeros(2, 3)

    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(altered(tmp_path, change))
    for words in (
        "decoder.net.0.bias has shape 9, expected 8",
        "backbone.mapping.w_avg 8 is missing",
        "more 2x3 is not part of it",
    ):
        assert words in str(caught.value)


def test_only_the_first_mismatches_are_listed() -> None:
    expected = {f"layer{i}": (i, 2) for i in range(50)}
    with pytest.raises(CheckpointError, match=r"layer5 5x2 is missing; and 44 more\."):
        compare_shapes(expected, {}, "FILE")
    compare_shapes(expected, dict(expected), "FILE")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state, spec: spec["backbone"].update(channels=[10**6] * 3), "has shape"),
        (lambda state, spec: spec["mapping"].update(w_dim=10**9), "has shape"),
        (lambda state, spec: spec["mapping"].update(w_dim=10**30), "make no network"),
        (lambda state, spec: spec["mapping"].update(layers=10**9), "claims 1000000000 mapping layers"),
        (lambda state, spec: spec["mapping"].update(layers=3), "fc2.weight 8x8 is missing"),
        (lambda state, spec: spec.update(plane_channels=2**40), "has shape"),
        (lambda state, spec: spec["backbone"].update(resolution=17), "power of two"),
        (lambda state, spec: spec["backbone"].update(resolution="16"), "resolution"),
        (lambda state, spec: spec.update(new_field=1), "unknown fields"),
        (lambda state, spec: state.update({"decoder.net.0.bias": torch.full((8,), torch.inf)}), "not finite"),
        (lambda state, spec: state.update({"decoder.net.0.bias": torch.ones(8, dtype=torch.int32)}), "real numbers"),
    ],
)
def test_a_file_is_held_against_its_spec(
    change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None], words: str, tmp_path: Path
) -> None:
    path = altered(tmp_path, change)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=words):
            load_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (None, "does not say what network it holds"),
        ({"kind": GENERATOR}, "does not say what network it holds"),
        ({"kind": "poem", "spec": "{}"}, "does not say what network it holds"),
        ({"kind": GENERATOR, "spec": "{"}, "settings in .* are damaged"),
        ({"kind": GENERATOR, "spec": "[" * 100_000}, "settings in .* are damaged"),
        ({"kind": GENERATOR, "spec": "[]"}, "no table"),
        ({"kind": GENERATOR, "spec": '{"render": 5}'}, "make no network"),
        ({"kind": GENERATOR, "spec": '{"render": {"box_warp": %s}}' % ("9" * 401)}, "make no network"),
        ({"kind": GENERATOR, "spec": '{"render": {"box_warp": %s}}' % ("9" * 5000)}, "settings in .* are damaged"),
    ],
)
def test_metadata_without_a_usable_spec_is_refused(metadata: dict[str, str] | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(path)


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(tmp_path)
    for content in (b"", b"text", b"\xff" * 64, (2**40).to_bytes(8, "little") + b"{}", b"\x80\x04N."):
        path = tmp_path / "x.pkl"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read as a .safetensors file.*headlift weights import"):
            load_checkpoint(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "g.safetensors"
    save_checkpoint(path, random_generator())
    return path.read_bytes()


def test_a_file_cut_short_anywhere_is_refused(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    for length in [0, 1, 7, 8, 9, 100, 3000, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


@given(position=st.integers(0, 9000), value=st.integers(1, 255))
def test_flipped_bits_give_a_checkpoint_error_or_a_generator(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    data = bytearray(whole)
    data[position] ^= value
    path = tmp_path_factory.mktemp("flipped") / "g.safetensors"
    path.write_bytes(data)
    try:
        loaded = load_checkpoint(path)
    except CheckpointError:
        return
    assert isinstance(loaded, Generator)


def test_a_generator_is_built_of_tensors_by_name() -> None:
    generator = random_generator()
    built = build_generator(SPEC, generator.state_dict())
    assert torch.equal(picture(built), picture(generator))


def test_the_default_specs_are_the_published_512_pixel_networks() -> None:
    """Names and shapes of every tensor, and the settings, as published for FFHQ; no numbers are needed for that."""
    published = json.loads((Path(__file__).parent / "data" / "ffhq512.json").read_text())
    for kind, spec in (("generator", GeneratorSpec()), ("discriminator", DiscriminatorSpec())):
        outline = _outline(spec, 1000, "here")
        shapes = {name: tuple(tensor.shape) for name, tensor in outline.state_dict().items()}
        expected = {n: tuple(map(int, s.split("x"))) if s else () for n, s in published[kind].items()}
        assert shapes == expected
    state = _outline(GeneratorSpec(), 1000, "here").state_dict()
    read = spec_from_published(published["G_kwargs"], state, neural_resolution=128)
    assert filled(read) == filled(GeneratorSpec())
    state = _outline(DiscriminatorSpec(), 1000, "here").state_dict()
    judge = discriminator_spec_from_published(published["D_kwargs"], state)
    assert filled(judge) == filled(DiscriminatorSpec())


def filled(spec: GeneratorSpec | DiscriminatorSpec) -> dict[str, Any]:
    """The spec as a table, widths that are given and widths that follow from others made alike."""
    table = spec.to_dict()
    for name in ("layer_features", "embed_features"):
        table["mapping"][name] = table["mapping"][name] or table["mapping"]["w_dim"]
    return table
