"""S, the space of style factors: what the affine layers make of the code, one number a channel (Wu et al. 2021).

A style is `affine(w)`, before any gain, for each modulated convolution in the order in which the picture is made:
`conv0`, `conv1`, `torgb` of each block of the backbone, then of the super-resolution. A shift of the styles is a shift
of the affine layers' biases, so a head that was edited in S is a head like any other.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from headlift.editing.directions import row_mask
from headlift.eg3d.generator import Generator
from headlift.eg3d.layers import FullyConnected, SynthesisBlock


@dataclass(frozen=True)
class StyleLayer:
    """One affine layer."""

    name: str
    """Where it stands in the generator, such as `backbone.synthesis.b8.conv0.affine`."""
    row: int
    """The row of the code that it reads."""
    width: int
    """Styles that it makes."""


def style_layers(generator: Generator) -> tuple[StyleLayer, ...]:
    """All affine layers of the synthesis, in the order of S."""
    found = []
    first = 0
    for side in generator.backbone.synthesis.sides:
        name = f"backbone.synthesis.b{side}"
        block = generator.get_submodule(name)
        assert isinstance(block, SynthesisBlock)
        found += _of_block(name, block, first)
        first += block.num_convs
    last = generator.num_ws - 1
    for name in ("superresolution.block0", "superresolution.block1"):
        block = generator.get_submodule(name)
        assert isinstance(block, SynthesisBlock)
        found += [StyleLayer(layer.name, last, layer.width) for layer in _of_block(name, block, 0)]
    return tuple(found)


def _of_block(name: str, block: SynthesisBlock, first: int) -> list[StyleLayer]:
    parts = ("conv0", "conv1", "torgb")[2 - block.num_convs :]
    return [
        StyleLayer(f"{name}.{part}.affine", first + i, len(block.get_parameter(f"{part}.affine.bias")))
        for i, part in enumerate(parts)
    ]


def affine(generator: Generator, layer: StyleLayer) -> FullyConnected:
    """The layer itself."""
    module = generator.get_submodule(layer.name)
    assert isinstance(module, FullyConnected)
    return module


def styles(generator: Generator, ws: Float[Tensor, "n l w"]) -> Float[Tensor, "n s"]:
    """The styles of codes, all layers one after the other."""
    return torch.cat([affine(generator, layer)(ws[:, layer.row]) for layer in style_layers(generator)], dim=1)


def shift_styles(generator: Generator, shift: Float[Tensor, " s"], layers: Sequence[int] | None = None) -> Generator:
    """A copy of the generator whose styles are shifted, whatever the code.

    Args:
        layers: only styles that read these rows of the code are shifted; all when not given.

    Raises:
        ConfigError: a layer that does not exist.
    """
    rows = row_mask(generator.num_ws, layers)
    known = style_layers(generator)
    moved = copy.deepcopy(generator)
    with torch.no_grad():
        for layer, part in zip(known, shift.split([layer.width for layer in known]), strict=True):
            module = affine(moved, layer)
            module.bias.add_((part * rows[layer.row]).to(module.bias) / module.bias_gain)
    return moved
