"""Specs: round trips, refusals, and what published settings mean."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from headlift.eg3d.published import discriminator_spec_from_published, plane_layout_from_axes, spec_from_published
from headlift.eg3d.spec import (
    BackboneSpec,
    DiscriminatorSpec,
    GeneratorSpec,
    MappingSpec,
    RenderSpec,
    SuperresSpec,
    stylegan_channels,
)
from headlift.errors import CheckpointError, ConfigError

MICRO = Path(__file__).parent / "data" / "eg3d_micro"


def test_the_defaults_are_the_published_512_pixel_network() -> None:
    spec = GeneratorSpec()
    assert spec.backbone.channels == (512, 512, 512, 512, 512, 256, 128)
    assert spec.num_ws == 14
    assert stylegan_channels(512)[-1] == 64


@pytest.mark.parametrize(
    "spec",
    [
        GeneratorSpec(),
        GeneratorSpec(render=RenderSpec(ray_start="auto", ray_end="auto", box_warp=2.0), plane_layout="yz"),
        GeneratorSpec(mapping=MappingSpec(layer_features=3, zero_label=True), published_faults=True),
        DiscriminatorSpec(conv_clamp=None),
    ],
)
def test_json_gives_the_same_spec_back(spec: GeneratorSpec | DiscriminatorSpec) -> None:
    assert type(spec).from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("plane_layout",), "xx"),
        (("plane_layout",), ["official"]),
        (("backbone", "channels"), []),
        (("backbone", "channels"), "wide"),
        (("backbone", "resolution"), 100),
        (("backbone", "resolution"), True),
        (("render", "ray_start"), "auto"),
        (("render", "ray_start"), float("nan")),
        pytest.param(("render", "box_warp"), 10**400, id="beyond all floats"),
        (("mapping", "layers"), 0),
        (("mapping", "layers"), 2.5),
        (("superres",), None),
        (("image_resolution",), 256),
        (("surprise",), 1),
    ],
)
def test_damaged_specs_are_refused(path: tuple[str, ...], value: object) -> None:
    values = GeneratorSpec().to_dict()
    table = values
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    with pytest.raises(CheckpointError):
        GeneratorSpec.from_dict(values)


def test_contradictions_are_refused_when_made() -> None:
    with pytest.raises(ConfigError, match="ray_start"):
        RenderSpec(ray_start=3.0, ray_end=2.0)
    with pytest.raises(ConfigError, match="power of two"):
        BackboneSpec(resolution=96)
    with pytest.raises(ConfigError, match="image_resolution"):
        GeneratorSpec(superres=SuperresSpec("4X", 128, (8, 8)))


def test_published_settings_and_weights_give_the_spec() -> None:
    init = json.loads((MICRO / "settings.json").read_text())["init_kwargs"]
    spec = spec_from_published(init, load_file(MICRO / "G_ema.safetensors"))
    assert spec.backbone == BackboneSpec(64, (16, 16, 16, 16, 8))
    assert spec.superres == SuperresSpec("2X", 64, (16, 8))
    assert (spec.mapping.w_dim, spec.mapping.z_dim, spec.render.depth_samples) == (64, 64, 12)
    assert spec.neural_resolution == 32
    assert not spec.published_faults
    judge = discriminator_spec_from_published(init, load_file(MICRO / "D.safetensors"))
    assert judge.channels == (16, 16, 16, 16, 8, 4)
    assert judge.mapping.layers == 8


def test_a_missing_c_scale_means_no_conditioning_as_published() -> None:
    init = json.loads((MICRO / "settings.json").read_text())["init_kwargs"]
    del init["G_kwargs"]["rendering_kwargs"]["c_scale"]
    weights = load_file(MICRO / "G_ema.safetensors")
    assert spec_from_published(init, weights).mapping.label_scale == 0
    init["G_kwargs"]["rendering_kwargs"]["superresolution_module"] = "training.superresolution.Other"
    with pytest.raises(CheckpointError, match="Other"):
        spec_from_published(init, weights)
    del weights["decoder.net.0.weight"]
    with pytest.raises(CheckpointError):
        spec_from_published(init, weights)


def test_plane_axes_name_the_layout() -> None:
    first = [[[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 0, 1], [0, 1, 0]]]
    assert plane_layout_from_axes(torch.tensor([*first, [[0, 0, 1], [1, 0, 0], [0, 1, 0]]])) == "official"
    assert plane_layout_from_axes(torch.tensor([*first, [[0, 0, 1], [0, 1, 0], [1, 0, 0]]])) == "zy"
    assert plane_layout_from_axes(torch.tensor([*first, [[0, 1, 0], [0, 0, 1], [1, 0, 0]]]).float()) == "yz"
    with pytest.raises(CheckpointError, match="axes"):
        plane_layout_from_axes(torch.tensor([*first, [[1, 0, 0], [0, 1, 0], [0, 0, 1]]]))


def test_replacing_a_field_checks_again() -> None:
    with pytest.raises(ConfigError):
        replace(GeneratorSpec(), neural_resolution=0)
