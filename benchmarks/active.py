"""What makes an optimiser's step fast, and what it costs: `python benchmarks/active.py [--weights NAME]`.

Renders one random head, as `best` tunes it, with gradients to all weights, in turns: plainly; then, one more each time,
with what processors take (Winograd's convolutions, `headlift.eg3d.winograd`; quick gradients of kernels,
`eg3d.convolution`; look-ups as sums of rows, `eg3d.rows`) and with a `cut` that leaves out idle samples
(`eg3d.active`). Prints processor seconds (the smallest of the turns), and how far pictures and gradients are from the
plain ones.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from unittest import mock

import torch
from torch import Tensor

from headlift.eg3d import convolution, rows, winograd
from headlift.eg3d.active import CUT
from headlift.eg3d.camera import orbit
from headlift.eg3d.generator import Generator
from headlift.invert.finish import as_rendered, coarser
from headlift.weights import load_generator

MEANS = {"Winograd": winograd, "kernels' gradients": convolution, "rows": rows}
"""Modules whose `pays` says when they are taken."""


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
    generator = as_rendered(generator, coarser(generator.spec))
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        ws = generator.mapping(torch.randn(1, generator.spec.mapping.z_dim, generator=random))
    side = generator.spec.image_resolution
    wanted = torch.rand(1, 3, side, side, generator=random) * 2 - 1
    generator.requires_grad_()
    # Which of the means are switched off, and the cut.
    kinds = [(" + ".join(["plain", *MEANS][: k + 1]), list(MEANS.values())[k:], 0.0) for k in range(len(MEANS) + 1)]
    kinds += [(f"all of it, cut {cut:g}", [], cut) for cut in arguments.cuts]
    runs: list[list[tuple[float, Tensor, Tensor]]] = [[] for _ in kinds]
    for _ in range(arguments.turns):
        for (_, without, cut), done in zip(kinds, runs, strict=True):
            with ExitStack() as stack:
                for module in without:
                    stack.enter_context(mock.patch.object(module, "pays", return_value=False))
                done.append(step(generator, ws, wanted, cut))
    slowest = min(seconds for seconds, _, _ in runs[0])
    _, picture, gradient = runs[0][0]
    for (name, _, _), done in zip(kinds, runs, strict=True):
        seconds = min(seconds for seconds, _, _ in done)
        _, other, turned = done[0]
        print(
            f"{name}: {seconds:.2f} s, {slowest / seconds:.1f} times as fast; picture within "
            f"{float((other - picture).abs().max()):.1e} (of 2), gradients "
            f"{float((turned - gradient).norm() / gradient.norm()):.1e} (L2)"
        )


if __name__ == "__main__":
    main()
