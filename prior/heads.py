"""Reading the synthetic heads: zips of RGBA pictures in EG3D's dataset form, with the parameters of each head.

A folder holds `heads-*.zip`; each has `dataset.json` (`labels: [[name, 25 numbers], ...]`), the pictures and
`params/headNNNNNN.json`. The numbers in the names count over the whole folder: `views` pictures a head, in order.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from headlift.errors import PhotoError

HELD_OUT = range(2800, 3000)
"""Heads that nothing may learn from."""

MIN_PITCH = -0.45
"""Cameras further below than this (radians) look into the open bottom of the bust."""


@dataclass(frozen=True)
class Heads:
    """Pictures of heads with their cameras and parameters; rows of `images` and `labels` belong together."""

    images: UInt8[np.ndarray, "n s s 4"]
    """RGBA, straight alpha; possibly a memory map."""
    labels: Float[np.ndarray, "n 25"]
    """EG3D camera labels."""
    head: Int[np.ndarray, " n"]
    """Number of the head that a picture shows."""
    params: dict[int, dict[str, Any]]
    """Parameters by the number of the head."""
    digest: str = ""
    """Of everything in the archives: what is derived from them is theirs as long as it stays the same."""

    @property
    def pitch(self) -> Float[np.ndarray, " n"]:
        """Elevation of each camera above the horizon, radians."""
        position = self.labels[:, [3, 7, 11]]
        return np.arcsin(position[:, 1] / np.linalg.norm(position, axis=1))

    @property
    def wide(self) -> np.ndarray:
        """Which pictures are taken with the wider lens, from anywhere all round."""
        return self.labels[:, 16] < 4.0

    def views(self, heads: Sequence[int]) -> dict[int, Int[np.ndarray, " v"]]:
        """Rows of the usable pictures of each head, those from far below left out."""
        usable = self.pitch > MIN_PITCH
        return {h: np.flatnonzero((self.head == h) & usable) for h in heads}


@dataclass(frozen=True)
class Index:
    """What a folder of heads says of its pictures, without the pictures; rows belong together."""

    names: tuple[tuple[Path, str], ...]
    """Archive and name of each picture."""
    labels: Float[np.ndarray, "n 25"]
    """EG3D camera labels."""
    head: Int[np.ndarray, " n"]
    """Number of the head that a picture shows."""
    params: dict[int, dict[str, Any]]
    """Parameters by the number of the head."""
    digest: str = ""
    """Of everything in the archives, by the checksums that they hold."""


def read_index(folder: Path, limit: int | None = None) -> Index:
    """Names, labels and parameters of a folder of zips (or of a single zip); `limit` stops after so many heads.

    Raises PhotoError when there is nothing to read or when a zip lacks its labels.
    """
    zips = [folder] if folder.suffix == ".zip" else sorted(folder.glob("heads-*.zip"))
    if not zips:
        raise PhotoError(f"No heads-*.zip in {folder}. Give the folder that holds the archives of synthetic heads.")
    names: list[tuple[Path, str]] = []
    labels: list[list[float]] = []
    params: dict[int, dict[str, Any]] = {}
    digest = hashlib.sha256(str(limit).encode())
    for path in zips:
        with zipfile.ZipFile(path) as archive:
            digest.update(json.dumps([[path.name], *([i.filename, i.CRC] for i in archive.infolist())]).encode())
            entries = set(archive.namelist())
            if "dataset.json" not in entries:
                raise PhotoError(f"{path} has no dataset.json: it is not an archive of pictures with camera labels.")
            for name, label in json.loads(archive.read("dataset.json"))["labels"]:
                names.append((path, name))
                labels.append(label)
            for name in entries:
                if name.startswith("params/head"):
                    params[int(name[len("params/head") : -len(".json")])] = json.loads(archive.read(name))
    views = len(names) // len(params)
    head = np.array([int(name.rsplit("img", 1)[1].split(".")[0]) // views for _, name in names])
    if limit is not None:
        keep = np.flatnonzero(head < np.sort(np.unique(head))[:limit].max() + 1)
        names, labels, head = [names[i] for i in keep], [labels[i] for i in keep], head[keep]
        params = {h: p for h, p in params.items() if h in set(head.tolist())}
    return Index(tuple(names), np.asarray(labels, np.float32), head, params, digest.hexdigest())


def read_heads(folder: Path, cache: Path | None = None, threads: int = 2, limit: int | None = None) -> Heads:
    """Read all heads of a folder of zips (or of a single zip).

    `cache` names a file in which the decoded pictures are kept as one array and mapped from the next time on, as long
    as the archives stay as they are; without it they are decoded into memory. `limit` stops after so many heads.
    Raises PhotoError when there is nothing to read or when a zip lacks its labels.
    """
    index = read_index(folder, limit)
    return Heads(_cached_images(index, cache, threads), index.labels, index.head, index.params, index.digest)


def _cached_images(index: Index, cache: Path | None, threads: int) -> UInt8[np.ndarray, "n s s 4"]:
    names = index.names
    if cache is not None:
        kept_of = cache.with_suffix(".sha256")
        if cache.exists() and kept_of.exists() and kept_of.read_text() == index.digest:
            kept: np.ndarray = np.load(cache, mmap_mode="r")
            return kept
        kept_of.unlink(missing_ok=True)
    first = next(_decode(names[:1]))
    shape = (len(names), *first.shape)
    images: np.ndarray
    if cache is None:
        images = np.empty(shape, np.uint8)
    else:
        cache.parent.mkdir(parents=True, exist_ok=True)
        part = cache.with_suffix(".part")
        images = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
    bounds = np.linspace(0, len(names), threads + 1).astype(int)

    def fill(worker: int) -> None:
        for i, image in enumerate(_decode(names[bounds[worker] : bounds[worker + 1]]), start=bounds[worker]):
            images[i] = image

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, range(threads)))
    if cache is not None:
        assert isinstance(images, np.memmap)
        images.flush()
        part.replace(cache)
        kept_of.write_text(index.digest)
        images = np.load(cache, mmap_mode="r")
    return images


def _decode(names: Sequence[tuple[Path, str]]) -> Iterator[UInt8[np.ndarray, "s s 4"]]:
    from PIL import Image

    archive, opened = None, None
    for path, name in names:
        if path != opened:
            archive, opened = zipfile.ZipFile(path), path
        assert archive is not None
        with Image.open(io.BytesIO(archive.read(name))) as image:
            yield np.asarray(image.convert("RGBA"))
