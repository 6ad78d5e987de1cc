"""Pictures of what a prior makes: `python -m headlift.prior.sheets WEIGHTS --samples FILE --turntables FILE`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from headlift.eg3d.camera import WHOLE_HEAD_FOCAL, WHOLE_HEAD_PIVOT, orbit
from headlift.eg3d.checkpoint import load_checkpoint
from headlift.eg3d.generator import Generator
from headlift.export.files import atomic_path
from headlift.prior.command import at_least, run_command

WIDE = {"pivot": WHOLE_HEAD_PIVOT, "focal": WHOLE_HEAD_FOCAL}
"""The camera that sees the whole head from any side, as in the training pictures."""


@torch.no_grad()
def views(
    generator: Generator, seed: int, yaws: list[float], psi: float, wide: bool
) -> list[UInt8[np.ndarray, "h w 3"]]:
    """One random head from several yaws (degrees); deterministic by seed."""
    z = torch.randn(1, generator.spec.mapping.z_dim, generator=torch.Generator().manual_seed(seed))
    ws = generator.mapping(z.to(generator.w_avg.device), truncation_psi=psi)
    planes = generator.planes(ws)
    pictures = []
    for yaw in yaws:
        camera = orbit(math.radians(yaw), 0.0, **(WIDE if wide else {}))  # type: ignore[arg-type]
        image = generator.render(planes, ws, camera.to(planes.device)).image[0].cpu()
        pictures.append(((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    return pictures


def sheet(rows: list[list[UInt8[np.ndarray, "h w 3"]]], side: int) -> UInt8[np.ndarray, "height width 3"]:
    """Pictures side by side, each `side` pixels wide; rows that are shorter than the first end in white."""
    from PIL import Image

    columns = len(rows[0])
    white = np.full((side, side, 3), 255, np.uint8)

    def small(picture: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS))

    padded = [[*map(small, row), *[white] * (columns - len(row))] for row in rows]
    return np.concatenate([np.concatenate(row, axis=1) for row in padded], axis=0)


def write(path: Path, picture: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write a picture by its suffix. Raises OutputError when the place cannot be written."""
    from PIL import Image

    with atomic_path(path) as part:
        Image.fromarray(picture).save(part, quality=85)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--samples", type=Path, help="sheet of random heads from the front")
    parser.add_argument("--turntables", type=Path, help="random heads from all round, one a row")
    parser.add_argument("--count", type=at_least(1), default=64, help="random heads of the sheet")
    parser.add_argument("--columns", type=at_least(1), default=8)
    parser.add_argument("--heads", type=at_least(1), default=8, help="heads of the turntables")
    parser.add_argument("--psi", type=float, default=1.0, help="truncation")
    parser.add_argument("--side", type=at_least(1), default=128, help="side of each picture, pixels")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = load_checkpoint(options.weights, "cpu").eval().requires_grad_(False)
    seed = options.seed
    if options.samples:
        seeds = range(seed, seed + options.count)
        fronts = [views(generator, s, [0.0], options.psi, wide=False)[0] for s in seeds]
        rows = [fronts[i : i + options.columns] for i in range(0, len(fronts), options.columns)]
        write(options.samples, sheet(rows, options.side))
    if options.turntables:
        yaws = [0.0, 45.0, 90.0, 135.0, 180.0, -135.0, -90.0, -45.0]
        rows = [views(generator, s, yaws, options.psi, wide=True) for s in range(seed, seed + options.heads)]
        write(options.turntables, sheet(rows, options.side))


if __name__ == "__main__":
    run_command(main)
