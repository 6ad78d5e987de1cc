"""Directions in the latent space that change one thing about a head: how they are kept, and moving along them.

Directions live in one of three spaces: W (one vector for all layers), W+ (one for each layer: Abdal et al. 2019) or S
(the style factors of each modulated convolution: Wu et al. 2021; see `styles.py`). A file of directions is
`.safetensors`: the vectors, what each is called and measured in, and the sha256 of the generator that they belong to:
in another generator's latent space the same numbers mean nothing.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from headlift.errors import CheckpointError, ConfigError, WeightsError
from headlift.export.files import write_bytes

Space = Literal["w", "w+", "s"]
KIND = "headlift directions"
"""What the metadata's `kind` says."""
EMBEDDED_FILE = "directions.safetensors"
"""The embedded prior's directions, beside its weights."""


@dataclass(frozen=True)
class Direction:
    """What is known of one direction."""

    name: str
    """How it is asked for, such as `age`."""
    about: str
    """What moving forwards does, in a few words."""
    unit: str
    """What its attribute is measured in; empty for a plain number."""
    std: float
    """Standard deviation of the attribute over the heads that it was fitted on, in that unit."""
    correlation: float
    """Of the attribute read from the code with the true one, over heads that nothing was fitted on; NaN if unknown."""


@dataclass(frozen=True)
class Directions:
    """Directions in one generator's W, W+ or S."""

    entries: tuple[Direction, ...]
    vectors: Float[Tensor, "k ..."]
    """What an amount of 1 adds, about one standard deviation of the attribute: [k, w] in W, [k, layers, w] in W+,
    [k, s] in S."""
    entanglement: Float[Tensor, "k k"]
    """Row j: how many standard deviations each attribute changes, as read from the code, for an amount of 1 along j."""
    base_sha256: str
    """Of the generator's file."""
    space: Space = "w"
    source: str = ""
    """How they were found, in a few words."""
    licence: str = "Apache-2.0"

    @property
    def names(self) -> tuple[str, ...]:
        """The directions' names, in the order of the vectors."""
        return tuple(entry.name for entry in self.entries)

    @property
    def std(self) -> dict[str, float]:
        """Standard deviation of each attribute, in its own unit, by name."""
        return {entry.name: entry.std for entry in self.entries}

    @property
    def cosines(self) -> Float[Tensor, "k k"]:
        """Cosines between the vectors."""
        unit = torch.nn.functional.normalize(self.vectors.flatten(1), dim=1)
        return unit @ unit.T

    def index(self, name: str) -> int:
        """Where a direction stands. Raises ConfigError, with the names that there are, for an unknown one."""
        if name in self.names:
            return self.names.index(name)
        near = difflib.get_close_matches(name, self.names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"there is no direction {name!r}{hint} There are: {', '.join(self.names)}.")

    def check_base(self, sha256: str, where: str = "the directions") -> None:
        """Raises CheckpointError when they belong to another generator than the one with this sha256."""
        if sha256 != self.base_sha256:
            raise CheckpointError(
                f"{where} belong to the generator with the sha256 {self.base_sha256[:12]}..., and this one has "
                f"{sha256[:12]}...: in its latent space they mean nothing. Fit them anew (headlift directions learn), "
                "or use the generator they were made for."
            )


def total(directions: Directions, amounts: Mapping[str, float]) -> Float[Tensor, ...]:
    """The sum of the vectors times their amounts.

    Raises:
        ConfigError: an unknown direction, or an amount that is not finite.
    """
    step = torch.zeros_like(directions.vectors[0])
    for name, amount in amounts.items():
        if not math.isfinite(amount):
            raise ConfigError(f"the amount for {name!r} is {amount}, which is no distance to move by")
        step = step + amount * directions.vectors[directions.index(name)]
    return step


def move(
    ws: Float[Tensor, "n l w"],
    directions: Directions,
    amounts: Mapping[str, float],
    layers: Sequence[int] | None = None,
) -> Float[Tensor, "n l w"]:
    """Codes moved along directions in W or W+; an amount of 1 is about one standard deviation.

    Args:
        layers: only these rows of the codes move; all when not given.

    Raises:
        ConfigError: an unknown direction, an amount that is not finite, a layer that does not exist, codes of another
            length, or directions in S (which move the generator: `headlift.editing.edit.edit`).
    """
    if directions.space == "s":
        raise ConfigError("these directions lie in S: they move a generator's styles, not its codes (use `edit`)")
    wanted = directions.vectors.shape[-1]
    if ws.shape[-1] != wanted:
        raise ConfigError(
            f"the directions have {wanted} numbers and the codes {ws.shape[-1]}: they belong to another generator"
        )
    if directions.space == "w+" and directions.vectors.shape[1] != ws.shape[1]:
        raise ConfigError(
            f"the directions are for {directions.vectors.shape[1]} layers and the codes have {ws.shape[1]}: they "
            "belong to another generator"
        )
    step = total(directions, amounts).to(ws).expand(ws.shape[1:]) * row_mask(ws.shape[1], layers).to(ws)[:, None]
    return ws + step


def row_mask(count: int, layers: Sequence[int] | None) -> Float[Tensor, " count"]:
    """1 for the layers named (all when not given), 0 for the rest. Raises ConfigError for one that does not exist."""
    if layers is None:
        return torch.ones(count)
    outside = [layer for layer in layers if not 0 <= layer < count]
    if outside or not layers:
        named = f"layer {outside[0]} does not exist" if outside else "no layer is named"
        raise ConfigError(f"{named}: this generator has layers 0 to {count - 1}")
    mask = torch.zeros(count)
    mask[list(layers)] = 1
    return mask


def save_directions(path: Path, directions: Directions) -> None:
    """Write directions to a file. Raises OutputError when the place cannot be written."""
    tensors = {"vectors": directions.vectors, "entanglement": directions.entanglement}
    entries = [entry.__dict__ for entry in directions.entries]
    metadata = {
        "kind": KIND,
        "licence": directions.licence,
        "space": directions.space,
        "source": directions.source,
        "base_sha256": directions.base_sha256,
        "entries": json.dumps(entries),
    }
    write_bytes(path, save({name: t.float().contiguous().cpu() for name, t in tensors.items()}, metadata))


def load_directions(path: Path | None = None, base_sha256: str | None = None) -> Directions:
    """Directions from a file, or the embedded prior's.

    Args:
        base_sha256: of the generator that they are wanted for; without it they are not held against any.

    Raises:
        WeightsError: there is no such file.
        CheckpointError: it is damaged or something else, or it belongs to another generator.
    """
    source = resources.files("headlift").joinpath("prior", "data", EMBEDDED_FILE) if path is None else path
    where = "the embedded directions" if path is None else str(path)
    try:
        data = source.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"{where} cannot be read ({error.strerror}). Learn some with `headlift directions learn`, or give "
            "another file."
        ) from None
    found = _parsed(data, where)
    if base_sha256 is not None:
        found.check_base(base_sha256, where)
    return found


def _parsed(data: bytes, where: str) -> Directions:
    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        if metadata.get("kind") != KIND:
            raise CheckpointError(f"{where}: not a file of directions (its kind is {metadata.get('kind')!r}).")
        entries = tuple(Direction(**entry) for entry in json.loads(metadata["entries"]))
        vectors, entanglement = tensors["vectors"], tensors["entanglement"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: damaged ({type(error).__name__}: {str(error)[:200]}).") from None
    k = len(entries)
    space = metadata.get("space", "w")
    if space not in get_args(Space):
        raise CheckpointError(f"{where}: its directions lie in {str(space)[:20]!r}; known are w, w+ and s.")
    whole = vectors.ndim == (3 if space == "w+" else 2) and len(vectors) == k and entanglement.shape == (k, k)
    if not whole or not bool(torch.isfinite(vectors).all()):
        raise CheckpointError(f"{where}: damaged (the vectors do not go with the {k} names, or are not finite).")
    return Directions(
        entries,
        vectors,
        entanglement,
        metadata.get("base_sha256", ""),
        cast(Space, space),
        metadata.get("source", ""),
        metadata.get("licence", "unknown"),
    )
