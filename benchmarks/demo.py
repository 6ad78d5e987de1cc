"""The main job on a real photo: `python benchmarks/demo.py [FOLDER]`.

Reconstructs scikit-image's astronaut (a public-domain portrait of Eileen Collins, by NASA) with the embedded prior and
the `fast` preset, prints the table that says whether the head came out well, and fails when it did not.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from headlift.cli import peak_memory
from headlift.config import preset
from headlift.errors import HeadliftError
from headlift.evaluate import MAX_DEPTH_MOVED, MAX_YAW_ERROR, MIN_PSNR, HeadCheck
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
    console = Console()
    console.print(check_table({"astronaut": result.check}))
    parts = "  ".join(f"{name} {value:.1f} s" for name, value in result.seconds.items())
    console.print(f"{seconds:.0f} s in all ({parts});  peak memory {peak_memory():.2f} GiB")
    console.print(f"Look at {out / 'report.html'} (the whole story), {out / 'views.png'} and {out / 'mesh.glb'}.")
    for complaint in result.check.complaints:
        console.print(f"The demo failed: {complaint}.")
    return 0 if result.check.ok else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HeadliftError as error:
        sys.exit(f"headlift: {error}")
