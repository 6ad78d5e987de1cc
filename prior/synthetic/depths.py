"""The depth of pictures that are there already: drawn anew from the parameters and cameras in their archives.

One array for a whole folder of archives, its rows in the order of their pictures: 16 bits, distance along the ray in
counts of `DEPTH_UNIT`, 0 outside. It is what the prior's geometry and the depth network learn from.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt16

from headlift.errors import OutputError
from headlift.prior.dataset import DEPTH_UNIT
from headlift.prior.heads import read_index
from headlift.prior.synthetic.body import Body
from headlift.prior.synthetic.bundle import load_bundle
from headlift.prior.synthetic.cameras import ray_lengths
from headlift.prior.synthetic.render import Renderer
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

    What an interrupted call has drawn lies in `out.part`, and the next one goes on from there. `progress` is called
    with the number of heads done and of all.

    Raises:
        OutputError: `out` is there already, or what was begun is of other pictures.
        DataError, PhotoError: no bundle, or no archives.
        DeviceError: there is no OpenGL.
    """
    if out.exists():
        raise OutputError(f"{out} is there already. Give another name, or delete it.")
    index = read_index(heads)
    part = out.with_name(f"{out.name}.part")
    shape = (len(index.names), SIDE, SIDE)
    if part.exists():
        stored = np.lib.format.open_memmap(part, mode="r+")
        if stored.shape != shape:
            raise OutputError(f"{part} was begun for other pictures. Delete it, or give another name.")
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        stored = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint16, shape=shape)
    rows = {number: np.flatnonzero(index.head == number) for number in index.params}
    missing = [number for number, mine in rows.items() if not stored[mine].any()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(procs, context, _set_up, (bundle,)) as pool:
        try:
            running = {pool.submit(_work, index.params[n], index.labels[rows[n]], last): n for n in missing}
            for done, future in enumerate(as_completed(running), start=len(rows) - len(missing) + 1):
                stored[rows[running.pop(future)]] = future.result()
                if progress:
                    progress(done, len(rows))
        finally:
            pool.shutdown(cancel_futures=True)
    stored.flush()
    part.replace(out)
    return len(stored)


def depth_maps(
    body: Body, renderer: Renderer, params: HeadParams, labels: Float[np.ndarray, "v 25"], last: bool = False
) -> UInt16[np.ndarray, "v s s"]:
    """The depth of a head for some cameras, as it is stored."""
    with renderer.scene(body.build(params), params, None) as scene:
        maps = [scene.depth(label, last) * ray_lengths(renderer.side, float(label[16])) for label in labels]
    return np.clip(np.stack(maps) / DEPTH_UNIT + 0.5, 0, 65535).astype(np.uint16)


_tools: list[tuple[Body, Renderer]] = []
"""Those of this process."""


def _set_up(bundle: Path) -> None:
    assets = load_bundle(bundle)
    _tools[:] = [(Body(assets), Renderer(assets, SIDE, 1))]


def _work(params: dict[str, Any], labels: Float[np.ndarray, "v 25"], last: bool) -> UInt16[np.ndarray, "v s s"]:
    return depth_maps(*_tools[0], HeadParams.from_json(params), labels, last)
