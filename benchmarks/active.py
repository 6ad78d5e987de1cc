"""What makes an optimiser's step fast, and what it costs: `python benchmarks/active.py [--weights NAME]`.

Renders one random head with gradients to all weights: plainly, with Winograd's convolutions (`headlift.eg3d.winograd`,
which processors take), and with a `cut` that leaves out idle samples as well (`headlift.eg3d.active`), in turns; prints
processor seconds (the smallest of the turns), and how far pictures and gradients are from the plain ones.
"""

from __future__ import annotations

import argparse
import time
from unittest import mock

import torch
from torch import Tensor

from headlift.eg3d import winograd
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


def plain_step(generator: Generator, ws: Tensor, wanted: Tensor) -> tuple[float, Tensor, Tensor]:
    """The same with PyTorch's own convolutions and all samples."""
    with mock.patch.object(winograd, "pays", return_value=False):
        return step(generator, ws, wanted, 0.0)


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
    plain: list[tuple[float, Tensor, Tensor]] = []
    runs: dict[float, list[tuple[float, Tensor, Tensor]]] = {cut: [] for cut in (0.0, *arguments.cuts)}
    for _ in range(arguments.turns):
        plain.append(plain_step(generator, ws, wanted))
        for cut, done in runs.items():
            done.append(step(generator, ws, wanted, cut))
    slowest = min(seconds for seconds, _, _ in plain)
    _, picture, gradient = plain[0]
    print(f"plain: {slowest:.2f} s")
    for cut, done in runs.items():
        seconds = min(seconds for seconds, _, _ in done)
        _, other, turned = done[0]
        print(
            f"Winograd, cut {cut:g}: {seconds:.2f} s, {slowest / seconds:.1f} times as fast; picture within "
            f"{float((other - picture).abs().max()):.1e} (of 2), gradients "
            f"{float((turned - gradient).norm() / gradient.norm()):.1e} (L2)"
        )


if __name__ == "__main__":
    main()
