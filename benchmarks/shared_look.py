"""What a shared look along coarse rays saves: `python benchmarks/shared_look.py [--weights NAME]`.

Renders random heads from one camera each, in turns: as the prior is rendered, with coarse samples of its own along each
ray of as large a picture, and as the smaller picture that shares them. Prints seconds a picture (the smallest of the
turns) and how far pictures are from those of each ray's own samples: those of a shared look, and the smaller one's.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from headlift.eg3d.camera import orbit
from headlift.eg3d.generator import Generator
from headlift.invert.finish import as_rendered, coarser
from headlift.invert.metrics import psnr
from headlift.weights import load_generator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--weights", default="embedded")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shared, _ = load_generator(arguments.weights)
    side, coarse = shared.spec.neural_resolution, shared.spec.render.coarse_resolution
    if coarse is None:
        parser.error("these weights share no look: their spec has no coarse_resolution")
    own = as_rendered(shared, shared.spec.rendered_at(side))
    kinds = {
        f"{side} pixels, samples of their own": own,
        f"{side} pixels, the look of {coarse} shared": shared,
        f"{coarse} pixels": as_rendered(shared, coarser(shared.spec)),
    }
    random = torch.Generator().manual_seed(5)
    yaws = torch.linspace(-3, 3, arguments.heads).tolist()
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    apart: dict[str, list[float]] = {name: [] for name in kinds}
    for yaw in yaws:
        with torch.no_grad():
            ws = shared.mapping(torch.randn(1, shared.spec.mapping.z_dim, generator=random))
            planes = shared.planes(ws)
            taken: dict[str, list[float]] = {name: [] for name in kinds}
            for _ in range(arguments.turns):
                pictures = {name: timed(kind, planes, ws, yaw, taken[name]) for name, kind in kinds.items()}
        wanted = next(iter(pictures.values()))
        for name, picture in pictures.items():
            seconds[name].append(min(taken[name]))
            apart[name].append(psnr(picture, wanted))
    for name in kinds:
        mean = [sum(values) / len(yaws) for values in (seconds[name], apart[name])]
        print(f"{name}: {mean[0]:.2f} s a picture, {mean[1]:.1f} dB from the first")


def timed(generator: Generator, planes: Tensor, ws: Tensor, yaw: float, taken: list[float]) -> Tensor:
    """A picture; how long it took goes to `taken`."""
    began = time.perf_counter()
    image = generator.render(planes, ws, orbit(yaw, 0.0)).image
    taken.append(time.perf_counter() - began)
    return image


if __name__ == "__main__":
    main()
