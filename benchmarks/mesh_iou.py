"""Do mesh and cameras agree? Silhouettes of meshes of random heads against rendered alpha > 0.5, in nine views.

    python benchmarks/mesh_iou.py [--weights embedded] [--heads 4] [--resolution 256] [--pictures FOLDER]

Prints a line a head and exits non-zero when the mean intersection over union of a head is below 0.95. With
`--pictures`, renders and drawn meshes are written side by side.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch

from headlift.config import MeshConfig
from headlift.export.color import linear_to_srgb
from headlift.export.head_mesh import extract_mesh
from headlift.export.images import grid, to_uint8, write_png
from headlift.export.raster import rasterise, silhouette_iou
from headlift.export.views import orbit_cameras, render_views
from headlift.weights import load_generator

LIMIT = 0.95


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="embedded")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--psi", type=float, default=0.8, help="truncation of the random heads")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--level", type=float, default=None)
    parser.add_argument("--pictures", type=Path, default=None)
    args = parser.parse_args()

    generator, _ = load_generator(args.weights, torch.device("cpu"))
    cameras = orbit_cameras(
        torch.arange(9) * (2 * math.pi / 9), torch.tensor([0.0, 0.2, -0.2, 0.0, 0.2, 0.0, -0.2, 0.0, 0.2])
    )
    worst = 1.0
    print(f"{'head':>4} {'IoU mean':>9} {'least':>7} {'depth':>8} {'level':>7} {'triangles':>10} {'seconds':>8}")
    for seed in range(args.heads):
        z = torch.randn(1, generator.spec.mapping.z_dim, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            ws = generator.mapping(z, truncation_psi=args.psi)
            planes = generator.planes(ws)
        begin = time.perf_counter()
        mesh = extract_mesh(generator, planes, ws, MeshConfig(resolution=args.resolution, level=args.level))
        seconds = time.perf_counter() - begin
        views = list(render_views(generator, planes, ws, cameras))
        scores = silhouette_iou(mesh.vertices, mesh.faces, views, cameras)
        worst = min(worst, float(scores.mean()))
        drawn, apart = [], []
        for i, view in enumerate(views):
            seen = rasterise(mesh.vertices, mesh.faces, cameras[i : i + 1], view.depth.shape[-1])
            solid = (seen.face >= 0) & (view.alpha[0, 0] > 0.98).numpy()
            apart.append(np.median(np.abs(seen.depth - view.depth[0, 0].numpy())[solid]))
            if args.pictures is not None and mesh.colors is not None:
                size = view.image.shape[-1]
                seen = rasterise(mesh.vertices, mesh.faces, cameras[i : i + 1], size)
                color = linear_to_srgb(seen.interpolate(mesh.faces, mesh.colors, background=1.0))
                normal = seen.interpolate(mesh.faces, mesh.normals)
                shade = np.where(seen.face >= 0, 0.25 + 0.7 * np.clip(normal @ _light(cameras, i), 0, 1), 1.0)
                plain = np.repeat(shade[..., None], 3, axis=-1)
                drawn.append(to_uint8(view.image))
                drawn += [np.rint(c * 255).astype(np.uint8) for c in (color, plain)]
        print(
            f"{seed:>4} {scores.mean():>9.4f} {scores.min():>7.4f} {np.nanmean(apart):>8.4f} {mesh.level:>7.2f} "
            f"{len(mesh.faces):>10} {seconds:>8.2f}",
            flush=True,
        )
        if drawn:
            write_png(args.pictures / f"mesh{seed:02d}.png", grid(drawn, None, columns=9))
    print("IoU: silhouette against alpha > 0.5; depth: median distance apart along the ray, world units")
    return 0 if worst >= LIMIT else 1


def _light(cameras: object, index: int) -> np.ndarray:
    """A light a little above and to the left of the camera, in the world."""
    local = np.array([-0.35, -0.5, -0.8])
    rotation = cameras[index : index + 1].rotation[0].numpy()  # type: ignore[index]
    return rotation @ (local / np.linalg.norm(local))


if __name__ == "__main__":
    sys.exit(main())
