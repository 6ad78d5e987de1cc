"""Edits of a finished head: `Inversion -> Inversion`, `Head -> Head`; the tuned generator goes along.

An edit changes the code, in S and between heads the generator too. What comes back is of the kind that went in, so
edits can be chained and every export takes the result. Distances between two heads are straight lines: code and
weights are both linear in the share (`blend`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from headlift.editing.directions import Directions, move, row_mask, total
from headlift.editing.ranges import parse_ranges
from headlift.editing.styles import shift_styles, style_layers
from headlift.eg3d.generator import Generator
from headlift.eg3d.mapping import truncate
from headlift.eg3d.own_planes import OWN, REACH, own_planes, with_same_planes
from headlift.errors import ConfigError
from headlift.values import Camera


@runtime_checkable
class Subject(Protocol):
    """What can be edited: `headlift.invert.result.Inversion` or `headlift.head.Head`."""

    @property
    def ws(self) -> Float[Tensor, "1 l w"]: ...

    @property
    def camera(self) -> Camera: ...

    @property
    def generator(self) -> Generator: ...


S = TypeVar("S", bound=Subject)


def changed(subject: S, ws: Float[Tensor, "1 l w"], generator: Generator | None = None) -> S:
    """The same head with another code, and another generator if one is given (frozen here)."""
    whole: Any = subject
    frozen = whole.generator if generator is None else generator.eval().requires_grad_(False)
    edited: S = replace(whole, ws=ws, generator=frozen)
    return edited


def edit(
    subject: S,
    directions: Directions,
    amounts: Mapping[str, float],
    layers: Sequence[int] | None = None,
) -> S:
    """Move a head along directions, several at once; an amount of 1 is about one standard deviation.

    Args:
        layers: only these layers of the code move; all when not given. The last one also steers super-resolution.

    Raises:
        ConfigError: an unknown direction, an amount that is not finite, a layer that does not exist.
        CheckpointError: the directions belong to another generator than the one that the head was tuned from.
    """
    base = getattr(subject, "base_sha256", None)
    if base is not None:
        directions.check_base(base)
    generator, ws = moved_generator(subject.generator, subject.ws, directions, amounts, layers)
    return changed(subject, ws, generator)


def moved_generator(
    generator: Generator,
    ws: Float[Tensor, "1 l w"],
    directions: Directions,
    amounts: Mapping[str, float],
    layers: Sequence[int] | None = None,
) -> tuple[Generator, Float[Tensor, "1 l w"]]:
    """What a move makes of a generator (in S) or a code (in W and W+); raises ConfigError as `edit` does."""
    if directions.space != "s":
        return generator, move(ws, directions, amounts, layers)
    width = sum(layer.width for layer in style_layers(generator))
    if directions.vectors.shape[1] != width:
        raise ConfigError(
            f"the directions have {directions.vectors.shape[1]} styles and the generator {width}: they belong to "
            "another one"
        )
    return shift_styles(generator, total(directions, amounts), layers), ws


def truncated(subject: S, psi: float, layers: Sequence[int] | None = None) -> S:
    """The head drawn towards the mean head of its prior: 1 leaves it, 0 is the mean head's code (StyleGAN, app. B).

    What tuning added stays. Raises ConfigError for a layer that does not exist.
    """
    rows = row_mask(subject.ws.shape[1], layers).to(subject.ws)[None, :, None]
    drawn = truncate(subject.ws, subject.generator.w_avg, psi)
    return changed(subject, torch.where(rows > 0, drawn, subject.ws))


def mix(subject: S, other: Subject, layers: Sequence[int]) -> S:
    """Style mixing of two heads (StyleGAN, section 3.1): these layers come from the other head.

    A layer brings its row of the code and what tuning made of the weights that the row steers. Of the decoder, which no
    row steers, the other head gives as large a share as of the layers: with all layers, the result is the other head.

    Raises:
        ConfigError: a layer that does not exist, or heads of different priors.
    """
    check_same_base(subject, other)
    rows = row_mask(subject.ws.shape[1], layers)
    ws = torch.where(rows.to(subject.ws)[None, :, None] > 0, other.ws.to(subject.ws), subject.ws)
    share = float(rows.mean())
    row_of = {layer.name.removesuffix(".affine"): layer.row for layer in style_layers(subject.generator)}
    first = {name.rsplit(".", 1)[0]: row for name, row in reversed(row_of.items())}  # a block's constant

    def weight(name: str) -> float:
        for depth in (row_of, first):
            for module, row in depth.items():
                if name.startswith(module + "."):
                    return float(rows[row])
        return share

    return changed(subject, ws, _joined(subject.generator, other.generator, weight))


def blend(subject: S, other: Subject, share: float) -> S:
    """A head on the straight line between two: `subject` at 0, `other` at 1, and beyond them outside [0, 1].

    Code and tuned weights both go along. Raises ConfigError for heads of different priors.
    """
    check_same_base(subject, other)
    ws = subject.ws + share * (other.ws.to(subject.ws) - subject.ws)
    if other.generator is subject.generator:
        return changed(subject, ws)
    return changed(subject, ws, _joined(subject.generator, other.generator, lambda name: share))


def check_same_base(subject: Subject, other: Subject) -> None:
    """Raises ConfigError when two heads were not tuned from the same generator."""
    one, two = (getattr(head, "base_sha256", None) for head in (subject, other))
    first, second = subject.generator, other.generator
    none: dict[str, Any] = dict.fromkeys(OWN, False)
    parts = [(replace(g.spec, **none), g.state_dict().keys() - {*own_planes(g), REACH}) for g in (first, second)]
    if (first is not second and parts[0] != parts[1]) or (one and two and one != two):
        raise ConfigError(
            "the two heads were tuned from different generators: nothing in one's latent space means the same in the "
            "other's. Reconstruct both photos with the same --weights and --method."
        )


def _joined(first: Generator, second: Generator, share: Any) -> Generator:
    """Tensors between those of two generators: `share(name)` of the way from the first one's to the second's.

    Planes of their own that one of them has, the result has.
    """
    if first.spec != second.spec:
        first, second = with_same_planes(first, second)
    joined = copy.deepcopy(first)
    there = second.state_dict()
    with torch.no_grad():
        for name, tensor in joined.state_dict().items():
            part = share(name)
            if part and tensor.is_floating_point():
                end = there[name].to(tensor)
                tensor.copy_(end if part == 1 else tensor + part * (end - tensor))
    return joined


def parse_amounts(words: Iterable[str]) -> dict[str, float]:
    """Amounts from words such as `age=1.5`. Raises ConfigError for words of another form, or one name twice."""
    amounts: dict[str, float] = {}
    for word in words:
        name, equals, number = word.partition("=")
        try:
            value = float(number)
        except ValueError:
            raise ConfigError(f"{word!r} is no move; write NAME=AMOUNT, such as age=1.5 or smile=-1") from None
        if name in amounts:
            raise ConfigError(f"{name!r} is moved twice; name each direction once")
        amounts[name] = value
    return amounts


def parse_layers(text: str, count: int) -> tuple[int, ...]:
    """Layers from a list of numbers and ranges such as `0-3,7`, of a generator with `count` layers.

    Raises:
        ConfigError: it is no such list, or names a layer that does not exist.
    """
    return tuple(dict.fromkeys(parse_ranges(text, "layers", count)))
