"""How near is the textured mesh to the generator? Draws both from the photo's camera and from the sides.

    python benchmarks/texture.py HEAD [--picture FILE.jpg] [--splats]

`HEAD` is a head.safetensors. Prints the time from the tri-planes to the textured mesh and, for each view, the PSNR of
the mesh's drawing (its own colours, no light) against the generator's render, both on white, over the pixels that both
fill; with `--splats` also that of the Gaussian splats, over the whole picture.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch

from headlift.config import MeshConfig
from headlift.export.clean import quality
from headlift.export.files import write_bytes
from headlift.export.images import grid, jpeg_bytes, to_uint8
from headlift.export.raster import drawn, rasterise
from headlift.export.splats import draw_splats, splats_of
from headlift.export.views import orbit_cameras, render_views
from headlift.head import load_head
from headlift.outputs import head_mesh
from headlift.values import Camera

YAWS = (0, 45, 90, 180, -90, -45)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("head", type=Path)
    parser.add_argument("--picture", type=Path, default=None)
    parser.add_argument("--splats", action="store_true")
    args = parser.parse_args()
    head = load_head(args.head)
    with torch.no_grad():
        planes = head.generator.planes(head.ws)
    begin, cpu = time.perf_counter(), time.process_time()
    mesh = head_mesh(head, planes, MeshConfig())
    print(f"mesh: {time.perf_counter() - begin:.1f} s, {time.process_time() - cpu:.1f} s of one core")
    for line in quality(mesh).lines():
        print(line)
    splats = splats_of(head.generator, planes, mesh) if args.splats else None
    around = orbit_cameras(torch.tensor([math.radians(yaw) for yaw in YAWS]))
    cameras = Camera(
        torch.cat([head.camera.cam2world, around.cam2world]), torch.cat([head.camera.intrinsics, around.intrinsics])
    )
    rows: list[list[np.ndarray]] = [[], []]
    for i, view in enumerate(render_views(head.generator, planes, head.ws, cameras)):
        size = view.image.shape[-1]
        one, shown = cameras[i : i + 1], to_uint8(view.image)
        picture = drawn(mesh, one, size)
        alpha = torch.nn.functional.interpolate(view.alpha, size=size, mode="bilinear")[0, 0].numpy()
        both = (rasterise(mesh.vertices, mesh.faces, one, size).face >= 0) & (alpha > 0.98)
        name = "photo" if i == 0 else f"yaw {YAWS[i - 1]:+d}"
        line = f"{name:>8}: mesh {psnr(picture[both], shown[both] / 255):.1f} dB"
        if splats is not None:
            splatted = draw_splats(splats, one, size)
            line += f", splats {psnr(splatted, shown / 255):.1f} dB"
        print(line, flush=True)
        rows[0].append(shown)
        rows[1].append(np.rint(picture * 255).astype(np.uint8))
    if args.picture is not None:
        photo = np.asarray(head.image)
        step = max(1, photo.shape[0] // rows[0][0].shape[0])
        small = photo[::step, ::step][: rows[0][0].shape[0], : rows[0][0].shape[1]]
        side = rows[0][0].shape
        first = small if small.shape == side else rows[0][0]
        write_bytes(args.picture, jpeg_bytes(grid([first, *rows[0], rows[1][0], *rows[1]], columns=8), 88))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(((a - b) ** 2).mean()))


if __name__ == "__main__":
    main()
