"""Directions in the latent space that change one thing about a head: how they are kept, and moving along them.

A file of directions is `.safetensors`: one vector a direction, what it is called and measured in, and the sha256 of the
generator that it belongs to: in another generator's latent space the same numbers mean nothing.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from headlift.errors import CheckpointError, ConfigError, WeightsError
from headlift.export.files import write_bytes

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
    """Directions in one generator's W."""

    entries: tuple[Direction, ...]
    vectors: Float[Tensor, "k w"]
    """What is added to w for an amount of 1: about one standard deviation of the attribute."""
    entanglement: Float[Tensor, "k k"]
    """Row j: how many standard deviations each attribute changes, as read from the code, for an amount of 1 along j."""
    base_sha256: str
    """Of the generator's file."""

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
        unit = torch.nn.functional.normalize(self.vectors, dim=1)
        return unit @ unit.T

    def index(self, name: str) -> int:
        """Where a direction stands. Raises ConfigError, with the names that there are, for an unknown one."""
        if name in self.names:
            return self.names.index(name)
        near = difflib.get_close_matches(name, self.names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"there is no direction {name!r}{hint} There are: {', '.join(self.names)}.")


def move(ws: Float[Tensor, "n l w"], directions: Directions, amounts: Mapping[str, float]) -> Float[Tensor, "n l w"]:
    """Codes moved along directions, all layers alike; an amount of 1 is about one standard deviation.

    Raises:
        ConfigError: an unknown direction, an amount that is not finite, or codes of another length.
    """
    if ws.shape[-1] != directions.vectors.shape[1]:
        raise ConfigError(
            f"the directions have {directions.vectors.shape[1]} numbers and the codes {ws.shape[-1]}: they belong to "
            "another generator"
        )
    step = torch.zeros_like(ws[0, 0])
    for name, amount in amounts.items():
        if not math.isfinite(amount):
            raise ConfigError(f"the amount for {name!r} is {amount}, which is no distance to move by")
        step = step + amount * directions.vectors[directions.index(name)].to(ws)
    return ws + step


def save_directions(path: Path, directions: Directions) -> None:
    """Write directions to a file. Raises OutputError when the place cannot be written."""
    tensors = {"vectors": directions.vectors, "entanglement": directions.entanglement}
    entries = [entry.__dict__ for entry in directions.entries]
    metadata = {
        "kind": KIND,
        "licence": "Apache-2.0",
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
            f"{where} cannot be read ({error.strerror}). Fit them with `python -m headlift.prior.handles`, or give "
            "another file."
        ) from None
    found = _parsed(data, where)
    if base_sha256 is not None and base_sha256 != found.base_sha256:
        raise CheckpointError(
            f"{where} belong to the generator with the sha256 {found.base_sha256[:12]}..., and this one has "
            f"{base_sha256[:12]}...: in its latent space they mean nothing. Fit them anew, or use the generator they "
            "were made for."
        )
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
    whole = vectors.ndim == 2 and len(vectors) == k and entanglement.shape == (k, k)
    if not whole or not bool(torch.isfinite(vectors).all()):
        raise CheckpointError(f"{where}: damaged (the vectors do not go with the {k} names, or are not finite).")
    return Directions(entries, vectors, entanglement, metadata.get("base_sha256", ""))
