"""Time the density grid: python benchmarks/density.py [--resolution 256] [--weights NAME_OR_FILE] [--big]

Without --weights the generator has the exact size of the 512-pixel network and random weights, and the grid is made by
the plain path (three look-ups, full decoder, chunks of 2^20 points) and by the fast one. With --weights the fast path
also skips blocks at the level that `headlift export` would choose, and the vertices are compared. --big adds a grid of
512 points a side on the fast path alone. Only the grid is timed, not the planes; peak memory is the process's own.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from headlift.config import MeshConfig
from headlift.eg3d.density import density_grid, density_grid_reference
from headlift.eg3d.generator import Generator
from headlift.eg3d.spec import GeneratorSpec
from headlift.export.head_mesh import find_level, grid_density


def timed(run: Callable[[], Tensor], repeats: int) -> tuple[Tensor, float]:
    """The result, and the shortest of the times, seconds."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def vertices(sigma: Tensor, level: float) -> np.ndarray:
    import mcubes

    return np.asarray(mcubes.marching_cubes(sigma.numpy(), level)[0])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Time the density grid.")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--weights", help="a name from `headlift weights list`, or a .safetensors file")
    parser.add_argument(
        "--level", type=float, help="density at the surface; without it export's, or 10 without weights"
    )
    parser.add_argument("--big", action="store_true", help="also 512 points a side on the fast path")
    options = parser.parse_args()
    n = options.resolution
    if options.weights:
        from headlift.weights import load_generator

        generator, _ = load_generator(options.weights, "cpu")
    else:
        torch.manual_seed(0)
        generator = Generator(GeneratorSpec()).eval()
    z = torch.randn(1, generator.spec.mapping.z_dim, generator=torch.Generator().manual_seed(0))
    ws = generator.mapping(z, truncation_psi=0.7)
    planes = generator.planes(ws)
    level = options.level
    if level is None and options.weights:
        level = find_level(generator, planes, ws, MeshConfig(resolution=n), grid_density(generator, planes))
    elif level is None:
        level = 10.0
    print(f"{generator.spec.plane_layout} planes {tuple(planes.shape)}, {n}^3, {torch.get_num_threads()} threads")

    fast, fast_time = timed(lambda: density_grid(generator, planes, n), 3)
    print(f"fast            {fast_time:8.2f} s   peak so far {peak_gib():.2f} GiB")
    skipping, skip_time = timed(lambda: density_grid(generator, planes, n, level), 3)
    print(
        f"fast, skipping  {skip_time:8.2f} s   level {level:g}, {float((skipping != fast).float().mean()):.0%} skipped"
    )
    if options.big:
        _, seconds = timed(lambda: density_grid(generator, planes, 512), 1)
        print(f"fast, 512^3     {seconds:8.2f} s   peak so far {peak_gib():.2f} GiB")
    plain, plain_time = timed(lambda: density_grid_reference(generator, planes, n), 1)
    error = float((plain - fast).abs().max() / plain.abs().max())
    print(f"plain           {plain_time:8.2f} s   peak so far {peak_gib():.2f} GiB")
    print(f"times as fast: {plain_time / fast_time:.1f}, with skipping {plain_time / skip_time:.1f}; error {error:.1e}")
    if float(plain.min()) < level < float(plain.max()):
        same = np.array_equal(vertices(fast, level), vertices(skipping, level))
        print(f"vertices of the skipping grid are {'the same' if same else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
