"""The depth of pictures that are there already: drawn anew from the parameters and cameras in their archives.

One array for a whole folder of archives, its rows in the order of their pictures: 16 bits, distance along the ray in
counts of `DEPTH_UNIT`, 0 outside. It is what the prior's geometry and the depth network learn from.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt16

from headlift.errors import OutputError
from headlift.export.files import atomic_path, write_text
from headlift.prior.dataset import DEPTH_UNIT, beside
from headlift.prior.heads import read_index
from headlift.prior.synthetic.bundle import bundle_digest, load_bundle
from headlift.prior.synthetic.cameras import ray_lengths
from headlift.prior.synthetic.dataset import Studio
from headlift.prior.synthetic.processes import spread
from headlift.prior.synthetic.sampling import HeadParams

SIDE = 128
"""Side of the depth maps, pixels."""


def write_depths(
    bundle: Path,
    heads: Path,
    out: Path,
    procs: int = 1,
    progress: Callable[[int, int], None] | None = None,
    last: bool = False,
) -> int:
    """Draw the depth of every picture in `heads` into the file `out`; returns the number of pictures. With `last`, the
    depth of the last surface behind each pixel instead of the first.

    What an interrupted call has drawn lies in `out.part`, and the next one goes on from there; `out.json` says what it
    is drawn from, and stays. `progress` is called with the number of heads done and of all.

    Raises:
        OutputError: `out` is there already, or what was begun is of other pictures, assets or the other surface.
        DataError, PhotoError: no bundle, or no archives.
        DeviceError: there is no OpenGL.
        ConfigError: less than one process.
    """
    if out.exists():
        raise OutputError(f"{out} is there already. Give another name, or delete it.")
    index = read_index(heads)
    load_bundle(bundle)
    stored = _begun(out, len(index.names), {"pictures": index.digest, "last": last, "bundle": bundle_digest(bundle)})
    rows = {number: np.flatnonzero(index.head == number) for number in index.params}
    missing = [number for number, mine in rows.items() if not stored[mine].any()]
    tasks = [(index.params[number], index.labels[rows[number]], number) for number in missing]
    with closing(spread(partial(_studio, bundle), partial(_draw_head, last), tasks, procs)) as drawn:
        for done, ((*_, number), maps) in enumerate(drawn, start=len(rows) - len(missing) + 1):
            stored[rows[number]] = maps
            if progress:
                progress(done, len(rows))
    stored.flush()
    _part(out).replace(out)
    return len(stored)


def _part(out: Path) -> Path:
    return out.with_name(f"{out.name}.part")


def _begun(out: Path, pictures: int, of: dict[str, str | bool]) -> np.memmap:
    """The array [pictures, side, side] of an interrupted call that drew the same, or a new one."""
    part, shape = _part(out), (pictures, SIDE, SIDE)
    if not part.exists():
        write_text(beside(out), json.dumps(of))
        with atomic_path(part) as new:
            np.lib.format.open_memmap(new, mode="w+", dtype=np.uint16, shape=shape).flush()
    try:
        before = json.loads(beside(out).read_bytes())
        stored = np.lib.format.open_memmap(part, mode="r+")
    except (OSError, ValueError) as error:
        raise OutputError(f"{part} cannot be gone on with ({error}). Delete it, or give another name.") from error
    differing = [name for name, value in of.items() if before.get(name) != value]
    if differing or stored.shape != shape:
        raise OutputError(
            f"{part} was begun for other pictures, assets or the other surface ({', '.join(differing) or 'shape'}). "
            "Delete it, or give another name."
        )
    return stored


def _studio(bundle: Path) -> Studio:
    return Studio(load_bundle(bundle), SIDE, 1)


def _draw_head(
    last: bool, studio: Studio, task: tuple[dict[str, Any], Float[np.ndarray, "v 25"], int]
) -> UInt16[np.ndarray, "v s s"]:
    """The depth of a head for its cameras, as it is stored."""
    params, labels = HeadParams.from_json(task[0]), task[1]
    with studio.renderer.scene(studio.body.build(params), params, None) as scene:
        maps = [scene.depth(label, last) * ray_lengths(SIDE, float(label[16])) for label in labels]
    return np.clip(np.stack(maps) / DEPTH_UNIT + 0.5, 0, 65535).astype(np.uint16)
