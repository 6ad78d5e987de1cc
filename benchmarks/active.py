"""What leaving out idle samples brings an optimiser, and what it costs: `python benchmarks/active.py [--weights NAME]`.

Renders one random head with gradients to all weights, plainly and with a `cut` (`headlift.eg3d.active`), in turns;
prints processor seconds (the smallest of the turns), and how far pictures and gradients are apart.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from headlift.eg3d.active import CUT
from headlift.eg3d.camera import orbit
from headlift.eg3d.generator import Generator
from headlift.weights import load_generator


def step(generator: Generator, ws: Tensor, wanted: Tensor, cut: float) -> tuple[float, Tensor, Tensor]:
    """Seconds, the picture, and all gradients of its squared error and opacity as one vector."""
    generator.zero_grad()
    began = time.process_time()
    output = generator.render(generator.planes(ws), ws, orbit(0.2, 0.05), cut=cut)
    ((output.image - wanted).square().mean() + (output.alpha - 0.5).square().mean()).backward()
    seconds = time.process_time() - began
    gradients = [p.grad.flatten() for p in generator.parameters() if p.grad is not None]
    return seconds, output.image.detach(), torch.cat(gradients)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--weights", default="embedded")
    parser.add_argument("--cuts", type=float, nargs="+", default=[1e-5, CUT, 1e-3])
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator, _ = load_generator(arguments.weights)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        ws = generator.mapping(torch.randn(1, generator.spec.mapping.z_dim, generator=random))
    side = generator.spec.image_resolution
    wanted = torch.rand(1, 3, side, side, generator=random) * 2 - 1
    generator.requires_grad_()
    runs: dict[float, list[tuple[float, Tensor, Tensor]]] = {cut: [] for cut in (0.0, *arguments.cuts)}
    for _ in range(arguments.turns):
        for cut, done in runs.items():
            done.append(step(generator, ws, wanted, cut))
    fastest = {cut: min(seconds for seconds, _, _ in done) for cut, done in runs.items()}
    _, plain, gradient = runs[0.0][0]
    print(f"plain: {fastest[0.0]:.2f} s")
    for cut in arguments.cuts:
        _, picture, other = runs[cut][0]
        apart = float((other - gradient).norm() / gradient.norm())
        print(
            f"cut {cut:g}: {fastest[cut]:.2f} s, {fastest[0.0] / fastest[cut]:.1f} times as fast; picture within "
            f"{float((picture - plain).abs().max()):.1e} (of 2), gradients {apart:.1e} (L2)"
        )


if __name__ == "__main__":
    main()
