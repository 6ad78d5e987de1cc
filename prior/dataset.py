"""What training reads: the synthetic heads with what is derived from them once, and pictures on white."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8, UInt16
from torch import Tensor

from headlift.errors import DataError
from headlift.export.files import atomic_path
from headlift.prior.codes import Density, feature_table, fit_density
from headlift.prior.heads import HELD_OUT, Heads, read_heads
from headlift.prior.hull import dilate, head_cover

DEPTH_UNIT = 1e-4
"""World units that one step of a stored depth is worth."""
ONE_SURFACE = 0.03
"""Depths in a pixel that differ by less lie on one surface, world units."""


@dataclass(frozen=True)
class Data:
    """What training reads: pictures, thumbnails, codes and the hull."""

    heads: Heads
    views: Mapping[int, np.ndarray]
    thumbnails: UInt8[np.ndarray, "n 16 16 4"]
    density: Density
    table: Float[np.ndarray, "h f"]
    numbers: tuple[int, ...]
    """Heads to learn from."""
    held_out: tuple[int, ...]
    hull: Tensor
    core: Float[Tensor, "k 3"]
    """Points that lie inside every head, world units."""
    outside: Float[Tensor, "j 3"]
    """Centres of cells outside the hull, world units."""
    depth: UInt16[np.ndarray, "n d d"] | None
    """Distance along the ray of each picture's pixels, coarser, in counts of `DEPTH_UNIT`; 0 where nothing is."""


def load_data(folder: Path, cache: Path | None, cells: int, box: float, seed: int, depths: Path | None = None) -> Data:
    """Read the heads and derive what does not change: thumbnails, density of codes, hull.

    The hull is a grid of `cells` along each side of the cube of `box` world units; `seed` breaks ties of codes. What
    is derived is kept in `cache` beside the decoded pictures. `depths` is a file that `prior.synthetic depths` wrote.

    Raises:
        DataError: the depths are of other pictures.
    """
    heads = read_heads(folder, None if cache is None else cache / "images.npy", os.cpu_count() or 1)
    everyone = sorted(heads.params)
    numbers = tuple(h for h in everyone if h not in HELD_OUT)
    held_out = tuple(h for h in everyone if h in HELD_OUT)
    density_, table = known_codes(heads, seed)
    derived = None if cache is None else cache / "derived.npz"
    of = f"{heads.digest} {cells} {box}"
    stored = np.load(derived) if derived is not None and derived.exists() else {}
    if "of" in stored and str(stored["of"]) == of:
        thumbnails, cover = stored["thumbnails"], stored["cover"]
    else:
        thumbnails = np.stack([_thumbnail(image) for image in heads.images])
        wide = sorted(set(heads.head[heads.wide].tolist()) - set(HELD_OUT))
        chosen = (wide or list(numbers))[:: max(1, len(wide or numbers) // 300)]
        cover = head_cover(heads, chosen, cells, box)
        if derived is not None:
            with atomic_path(derived) as part:
                np.savez(part, thumbnails=thumbnails, cover=cover, of=of)
    hull = dilate(cover > 0.4, round(0.06 / box * len(cover)))
    hull[..., : round(0.08 * len(cover))] = False  # few pictures look there, and no head reaches the wall behind it
    core = ~dilate(~(cover > 0.97), round(0.05 / box * len(cover)))
    line = ((np.arange(len(cover)) + 0.5) / len(cover) - 0.5) * box
    centres = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).astype(np.float32)
    return Data(
        heads,
        heads.views(everyone),
        thumbnails,
        density_,
        table,
        numbers,
        held_out,
        torch.from_numpy(hull),
        torch.from_numpy(centres[core]),
        torch.from_numpy(centres[~hull]),
        None if depths is None else read_depths(depths, heads),
    )


def known_codes(heads: Heads, seed: int) -> tuple[Density, Float[np.ndarray, "h f"]]:
    """The density of codes, fitted to the heads that are learned from, and the features of all, by their numbers."""
    everyone = sorted(heads.params)
    names, table = feature_table([heads.params[h] for h in everyone])
    learned = [i for i, h in enumerate(everyone) if h not in HELD_OUT]
    return fit_density(names, table[learned], seed), table


def beside(depths: Path) -> Path:
    """The file that says what a file of depths was drawn from (`pictures`, their digest) and which surface (`last`)."""
    return depths.with_name(f"{depths.name}.json")


def read_depths(path: Path, heads: Heads, last: bool = False) -> UInt16[np.ndarray, "n d d"]:
    """The depths of all pictures, mapped from their file: of the first surface, or of the last.

    Raises DataError when they are of other pictures or of the other surface. A file of before says its number of
    pictures alone.
    """
    try:
        found: np.ndarray = np.load(path, mmap_mode="r")
        told = json.loads(beside(path).read_bytes()) if beside(path).exists() else None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no array of depths ({error}). `prior.synthetic depths` writes one.") from None
    if found.dtype != np.uint16 or found.ndim != 3 or len(found) != len(heads.images):
        raise DataError(
            f"{path} holds {found.dtype} of shape {found.shape}, and there are {len(heads.images)} pictures: write the "
            "depths of this folder with `prior.synthetic depths`."
        )
    if told is not None and told["pictures"] != heads.digest:
        raise DataError(
            f"{path} was drawn from other archives ({beside(path).name} says so): write the depths of this folder with "
            "`prior.synthetic depths`."
        )
    if told is not None and told["last"] != last:
        asked, there = ("last", "first") if last else ("first", "last")
        raise DataError(f"{path} holds the {there} surface and the {asked} is wanted: name the other file.")
    return found


def block_depth(depth: UInt16[np.ndarray, "d d"], side: int) -> Float[np.ndarray, "r r"]:
    """Mean depth of blocks that lie on one surface; 0 for those that show a contour or nothing at all."""
    k = len(depth) // side
    blocks = depth.reshape(side, k, side, k).transpose(0, 2, 1, 3).reshape(side, side, k * k).astype(np.float64)
    return blocks.mean(-1) * ((blocks.min(-1) > 0) & (np.ptp(blocks, axis=-1) * DEPTH_UNIT < ONE_SURFACE))


def _thumbnail(image: UInt8[np.ndarray, "s s 4"]) -> UInt8[np.ndarray, "16 16 4"]:
    """16 x 16 means of the picture, premultiplied by alpha."""
    small = image[:: image.shape[0] // 64, :: image.shape[1] // 64].astype(np.float32)
    small[..., :3] *= small[..., 3:] / 255
    return small.reshape(16, 4, 16, 4, 4).mean((1, 3)).astype(np.uint8)


def shuffled(count: int, seed: int, index: int) -> int:
    """The index-th entry of endless random permutations of 0 ... count - 1, one after the other."""
    return int(_permutation(count, seed, index // count)[index % count])


@lru_cache(maxsize=8)
def _permutation(count: int, seed: int, turn: int) -> Int[np.ndarray, " n"]:
    return np.random.default_rng((seed, turn)).permutation(count)


def on_white(rgba: UInt8[np.ndarray, "*b 4"]) -> Float[np.ndarray, "*b 4"]:
    """RGB on white and alpha, in [0, 1]."""
    values = rgba.astype(np.float32) / 255
    alpha = values[..., 3:]
    return np.concatenate([values[..., :3] * alpha + 1 - alpha, alpha], axis=-1)
