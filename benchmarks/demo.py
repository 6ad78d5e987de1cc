"""The main job on a real photo: `python benchmarks/demo.py [FOLDER]`.

Reconstructs scikit-image's astronaut (a public-domain portrait of Eileen Collins, by NASA) with the embedded prior and
the `fast` preset, prints the table that says whether the head came out well, and fails when it did not.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from rich.console import Console
from rich.table import Table

from headlift.config import preset
from headlift.eg3d.camera import orbit
from headlift.errors import HeadliftError
from headlift.evaluate.check import MAX_DEPTH_MOVED, MAX_YAW_ERROR, MIN_PSNR, HeadCheck
from headlift.evaluate.cost import peak_memory
from headlift.export.files import write_bytes
from headlift.export.images import grid, jpeg_bytes, to_uint8
from headlift.export.views import orbit_cameras, render_views
from headlift.pipeline import Reconstruction
from headlift.progress import StepProgress
from headlift.run_folder import reconstruct_into


def check_table(rows: dict[str, HeadCheck]) -> Table:
    """Heads by name against the limits."""
    table = Table(title="Is it a head?")
    table.add_column("photo")
    for heading in (f"PSNR (>= {MIN_PSNR:.0f} dB)", f"yaw found (within {MAX_YAW_ERROR:.0f}°)"):
        table.add_column(heading, justify="right")
    table.add_column(f"depth moved (<= {MAX_DEPTH_MOVED})", justify="right")
    table.add_column("")
    for name, check in rows.items():
        found = [f"{v.yaw:+.0f}: " + ("no face" if v.found is None else f"{v.found:+.1f}") for v in check.views]
        table.add_row(
            name, f"{check.psnr:.1f}", ",  ".join(found), f"{check.depth_moved:.4f}", "ok" if check.ok else "FAILED"
        )
    return table


@torch.no_grad()
def summary(result: Reconstruction) -> UInt8[np.ndarray, "h w 3"]:
    """The README's picture: the crop, the head from the same camera, and the head from both sides and behind."""
    inversion, planes = result.inversion, result.planes
    yaw = torch.tensor([-30.0, 30.0, 90.0, 180.0]).deg2rad()
    seen = [inversion.generator.render(planes, inversion.ws, inversion.camera)]
    seen += render_views(inversion.generator, planes, inversion.ws, orbit(yaw[:2], torch.zeros(2)))
    seen += render_views(inversion.generator, planes, inversion.ws, orbit_cameras(yaw[2:]))
    crop = F.interpolate(result.crop.image, seen[0].image.shape[-2:], mode="area")
    labels = ["photo", "head", "yaw -30", "yaw +30", "yaw +90", "yaw 180"]
    return grid([to_uint8(crop)] + [to_uint8(out.image) for out in seen], labels, columns=6)


def main() -> int:
    import skimage.data
    from PIL import Image

    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out/demo")
    photo = out.parent / "astronaut.png"
    photo.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(skimage.data.astronaut()).save(photo)
    start = time.perf_counter()
    with StepProgress(quiet=False) as progress:
        result = reconstruct_into(
            photo, preset("fast"), out, overwrite=True, on_step=progress.show, notice=progress.note
        )
    assert result is not None, "overwriting never finds a run done"
    seconds = time.perf_counter() - start
    write_bytes(out / "summary.jpg", jpeg_bytes(summary(result)))
    console = Console()
    console.print(check_table({"astronaut": result.check}))
    parts = "  ".join(f"{name} {value:.1f} s" for name, value in result.seconds.items())
    console.print(f"{seconds:.0f} s in all ({parts});  peak memory {peak_memory():.2f} GiB")
    console.print(f"Look at {out / 'report.html'} (the whole story), {out / 'summary.jpg'} and {out / 'mesh.glb'}.")
    for complaint in result.check.complaints:
        console.print(f"The demo failed: {complaint}.")
    return 0 if result.check.ok else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HeadliftError as error:
        sys.exit(f"headlift: {error}")
