"""Contact sheets: many heads at a glance, one a row with all its views, or one picture each."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from headlift.prior.synthetic.bundle import load_bundle
from headlift.prior.synthetic.cameras import View
from headlift.prior.synthetic.dataset import Studio, over
from headlift.prior.synthetic.plan import HeadPlan, Shot, plan_head


def contact_sheet(
    bundle: Path,
    first: int = 0,
    heads: int = 24,
    seed: int = 0,
    recipe: int = 2,
    res: int = 256,
    look: str = "front",
) -> UInt8[np.ndarray, "h w 3"]:
    """Heads on light grey. `look`: `front` (one picture each), `random` (one picture each), `turn` (a row of eight
    from all round for each head)."""
    studio = Studio(load_bundle(bundle), res, ss=2)
    tiles = []
    for index in range(first, first + heads):
        plan = plan_head(studio.body, seed, index, 1, 0, recipe)
        light = plan.shots[0].light
        if look == "front":
            views = [View(0.0, 0.0)]
        elif look == "random":
            views = [plan.shots[0].view]
        else:
            views = [View(math.radians(yaw), 0.0, wide=True) for yaw in range(0, 360, 45)]
        shots = tuple(Shot(view, light) for view in views)
        _, pictures = studio.draw(HeadPlan(plan.params, plan.background, shots))
        tiles += [(over(drawn.rgba, 0.93) * 255 + 0.5).astype("u1") for drawn in pictures]
    studio.close()
    columns = 8 if look == "turn" else math.ceil(math.sqrt(len(tiles) * 1.5))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    return np.concatenate(rows, axis=0)
