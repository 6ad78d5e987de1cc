"""Reading the synthetic heads: zips of RGBA pictures in EG3D's dataset form, with the parameters of each head.

A folder holds `heads-*.zip`; each has `dataset.json` (`labels: [[name, 25 numbers], ...]`), the pictures and
`params/headNNNNNN.json`. The numbers in the names count from head 0 on: picture n shows head n // views, and all heads
of an archive have as many views.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from headlift.errors import PhotoError
from headlift.export.files import atomic_path, write_text

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

    Raises PhotoError when there is nothing to read, or when a zip is damaged or lacks its labels or parameters.
    """
    zips = [folder] if folder.suffix == ".zip" else sorted(folder.glob("heads-*.zip"))
    if not zips:
        raise PhotoError(f"No heads-*.zip in {folder}. Give the folder that holds the archives of synthetic heads.")
    names: list[tuple[Path, str]] = []
    labels: list[list[float]] = []
    owners: list[int] = []
    params: dict[int, dict[str, Any]] = {}
    digest = hashlib.sha256(str(limit).encode())
    for path in zips:
        with _damage_told(path), zipfile.ZipFile(path) as archive:
            digest.update(json.dumps([[path.name], *([i.filename, i.CRC] for i in archive.infolist())]).encode())
            entries = set(archive.namelist())
            if "dataset.json" not in entries:
                raise PhotoError(f"{path} has no dataset.json: it is not an archive of pictures with camera labels.")
            listed = json.loads(archive.read("dataset.json"))["labels"]
            described = {
                int(name[len("params/head") : -len(".json")]): json.loads(archive.read(name))
                for name in entries
                if name.startswith("params/head")
            }
            shown = _owners([name for name, _ in listed], len(described))
        if not described or set(shown) != set(described):
            raise PhotoError(
                f"{path} has {len(listed)} pictures and the parameters of {len(described)} heads, which do not belong "
                "together: picture n shows head n // views. Draw it anew."
            )
        names += [(path, name) for name, _ in listed]
        labels += [label for _, label in listed]
        owners += shown
        params |= described
    head = np.array(owners)
    if limit is not None:
        keep = np.flatnonzero(head < np.sort(np.unique(head))[:limit].max() + 1)
        names, labels, head = [names[i] for i in keep], [labels[i] for i in keep], head[keep]
        params = {h: p for h, p in params.items() if h in set(head.tolist())}
    return Index(tuple(names), np.asarray(labels, np.float32), head, params, digest.hexdigest())


def read_heads(folder: Path, cache: Path | None = None, threads: int = 2, limit: int | None = None) -> Heads:
    """Read all heads of a folder of zips (or of a single zip).

    `cache` names a file in which the decoded pictures are kept as one array and mapped from the next time on, as long
    as the archives stay as they are; without it they are decoded into memory. `limit` stops after so many heads.
    Raises PhotoError when there is nothing to read, or when a zip is damaged or lacks its labels or parameters.
    """
    index = read_index(folder, limit)
    return Heads(_cached_images(index, cache, threads), index.labels, index.head, index.params, index.digest)


def decoded(names: Sequence[tuple[Path, str]]) -> Iterator[UInt8[np.ndarray, "s s 4"]]:
    """The pictures of these names (`Index.names`), one after the other. Raises PhotoError when one is damaged."""
    from PIL import Image

    archive, opened = None, None
    for path, name in names:
        with _damage_told(path):
            if path != opened:
                archive, opened = zipfile.ZipFile(path), path
            assert archive is not None
            with Image.open(io.BytesIO(archive.read(name))) as image:
                pixels = np.asarray(image.convert("RGBA"))
        yield pixels


def _owners(names: Sequence[str], heads: int) -> list[int]:
    """Which head each picture of an archive shows; none when the pictures do not share out among so many heads."""
    if not heads or len(names) % heads:
        return []
    views = len(names) // heads
    return [int(name.rsplit("img", 1)[1].split(".")[0]) // views for name in names]


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """Raises PhotoError for what goes wrong while the archive is read."""
    try:
        yield
    except (OSError, KeyError, ValueError, IndexError, TypeError, zipfile.BadZipFile) as error:
        raise PhotoError(f"{path} is damaged or no archive of heads ({error!r}). Draw or copy it anew.") from error


def _cached_images(index: Index, cache: Path | None, threads: int) -> UInt8[np.ndarray, "n s s 4"]:
    names = index.names
    kept: np.ndarray
    if cache is not None:
        kept_of = cache.with_suffix(".sha256")
        if cache.exists() and kept_of.exists() and kept_of.read_text() == index.digest:
            kept = np.load(cache, mmap_mode="r")
            return kept
        kept_of.unlink(missing_ok=True)
    shape = (len(names), *next(decoded(names[:1])).shape)
    bounds = np.linspace(0, len(names), threads + 1).astype(int)

    def fill(images: np.ndarray) -> None:
        def share(worker: int) -> None:
            mine = names[bounds[worker] : bounds[worker + 1]]
            for i, image in enumerate(decoded(mine), start=bounds[worker]):
                images[i] = image

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(share, range(threads)))

    if cache is None:
        images = np.empty(shape, np.uint8)
        fill(images)
        return images
    with atomic_path(cache) as part:
        mapped = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
        fill(mapped)
        mapped.flush()
    write_text(kept_of, index.digest)
    kept = np.load(cache, mmap_mode="r")
    return kept
