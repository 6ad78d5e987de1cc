"""Method `in-n-out`: what the prior cannot make goes into a second volume (Xu et al., CVPR 2024).

A code for each layer shows what is the prior's own; then a second tri-plane with its own decoder (`eg3d/composite.py`)
takes what that leaves: hands, paint, masks, glasses. Last, super-resolution alone is tuned to both. The generator's own
volume stays as it is, so that the head can be shown and edited with and without the addition.

The second volume pays for what it covers (area) and for points that are neither the one nor the other (entropy of b^2).
Where it is not seen, depth stays as the first stage has it: the base generator's own depth, not MiDaS's. Eyes and
mouth, found by landmarks, not by a parsing network, cost more to cover: they should stay the prior's, which can move
them.

What differs: one photo, no code for each frame; colours are mixed by what each volume absorbs; the losses are the
picture's besides those of the small one, with the chosen perceptual distance.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from headlift.eg3d.composite import CompositeGenerator, OuterSpec, compose, outer_parameters
from headlift.eg3d.generator import Generator as Eg3d
from headlift.invert.conclude import conclude
from headlift.invert.latent import Pivot, find_latent
from headlift.invert.losses import depth_error
from headlift.invert.perceptual import load_distance
from headlift.invert.regions import part_boxes
from headlift.invert.result import Inversion
from headlift.invert.task import Moment, Task, Terms, View
from headlift.invert.tuning import tune, tuning_rng
from headlift.invert.warp import pixel_centres
from headlift.values import Step

STAGE = "superres"
"""The last tuning's name."""
OUTER = "outer."
"""Before the names of the second volume's tensors in states."""
SIDE = 32
"""Side at which area, entropy and depth are looked at, pixels."""
PARTS_COST = 4.0
"""How many times as much it costs to cover eyes and mouth."""


def in_n_out(task: Task) -> Generator[Step, None, Inversion]:
    """A code, a second volume beside it, then super-resolution; yields every step, returns the head."""
    device = next(task.generator.parameters()).device
    options = task.config.in_n_out
    pivot = yield from find_latent(task, load_distance(task.config.perceptual, "latent", device))
    distance = load_distance(task.config.perceptual, "tuning", device)
    rng = tuning_rng(task)
    spec = OuterSpec(options.channels, options.resolution, options.hidden)
    both = compose(pivot.generator, spec, rng)
    again = task.resumed(STAGE)
    if again:
        with torch.no_grad():
            for name, parameter in outer_parameters(both).items():
                parameter.copy_(again.tensors[OUTER + name])
        history = again.history
    else:
        terms = kept_small(task, pivot)
        added = yield from tune(task, replace(pivot, generator=both), distance, rng, terms, chosen=outer_parameters)
        if added.stopped:
            return conclude(task, pivot, added)
        assert isinstance(added.generator, CompositeGenerator)
        both, history = added.generator, added.history
    carried = {OUTER + name: p.detach().clone() for name, p in outer_parameters(both).items()}
    last = replace(task.config.tuning, steps=options.steps, lr=options.lr)
    rng = torch.Generator().manual_seed(task.seed + 2)
    tuned = yield from tune(
        task,
        replace(pivot, generator=both),
        distance,
        rng,
        options=last,
        stage=STAGE,
        history=history,
        carried=carried,
        chosen=superresolution_parameters,
    )
    return conclude(task, pivot, tuned)


def superresolution_parameters(generator: Eg3d) -> dict[str, torch.nn.Parameter]:
    """Those of super-resolution, by name."""
    return {name: p for name, p in generator.named_parameters() if name.startswith("superresolution.")}


def kept_small(task: Task, pivot: Pivot) -> Terms:
    """The second volume's costs: area, entropy, and depth where it is not seen."""
    options, camera = task.config.in_n_out, pivot.cameras[0]
    with torch.no_grad():
        before = pivot.generator.volume(pivot.generator.planes(pivot.ws), camera, SIDE)
    cost = cover_cost(task.views[0], SIDE).to(before.depth)

    def terms(moment: Moment) -> dict[str, Tensor]:
        assert isinstance(moment.generator, CompositeGenerator)
        parts = moment.generator.parts(moment.planes, moment.cameras[0], SIDE)
        unseen = before.alpha * (1 - parts.share.detach()).clamp(0, 1)
        return {
            "area": options.area * (cost * parts.share).mean(),
            "entropy": options.entropy * parts.entropy.mean(),
            "depth": options.depth * depth_error(parts.volume.depth, before.depth, unseen),
        }

    return terms


def cover_cost(view: View, side: int) -> Float[Tensor, "1 1 s s"]:
    """What a pixel costs to cover: 1, and more in the squares round eyes and mouth where a face was detected."""
    cost = torch.ones(1, 1, side, side)
    if view.landmarks is None:
        return cost
    uv = pixel_centres(side)
    for x, y, width in part_boxes(view.landmarks):
        inside = ((uv - torch.tensor([x, y])).abs() <= width / 2).all(-1).reshape(1, 1, side, side)
        cost = torch.where(inside, torch.full_like(cost, PARTS_COST), cost)
    return cost
