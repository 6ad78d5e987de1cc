"""What will be drawn, before it is drawn: the whole chance in a head, from its seed and number alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from headlift.prior.synthetic.body import Body
from headlift.prior.synthetic.cameras import View, draw_view, evaluation_views
from headlift.prior.synthetic.lighting import Light, draw_light
from headlift.prior.synthetic.sampling import HeadParams


@dataclass(frozen=True)
class Shot:
    """One picture of a head."""

    view: View
    light: Light


@dataclass(frozen=True)
class HeadPlan:
    """A head, its background (for pictures without alpha) and its pictures."""

    params: HeadParams
    background: Float[np.ndarray, "k k 3"]
    """sRGB in [0, 1]; to be enlarged smoothly."""
    shots: tuple[Shot, ...]


def plan_head(body: Body, seed: int, index: int, views: int, orbit: int, recipe: int) -> HeadPlan:
    """A head of the data set; its last `orbit` views are from all round. The light changes half of the time."""
    params, rng = body.draw(seed, index, recipe)
    light = draw_light(rng)
    background = draw_background(rng)
    shots = []
    for number in range(views):
        if number == 0 or rng.random() < 0.5:
            light = draw_light(rng)
        shots.append(Shot(draw_view(rng, number >= views - orbit, recipe), light))
    return HeadPlan(params, background, tuple(shots))


def plan_evaluation(body: Body, seed: int, index: int, recipe: int) -> HeadPlan:
    """A head of the evaluation set: ten views in one light."""
    params, rng = body.draw(seed, index, recipe)
    light = draw_light(rng)
    return HeadPlan(params, np.full((1, 1, 3), 0.5), tuple(Shot(view, light) for view in evaluation_views()))


def draw_background(rng: np.random.Generator) -> Float[np.ndarray, "k k 3"]:
    """One colour, or sixteen to blend between."""
    patches = np.clip(rng.normal(0.45, 0.22, (4, 4, 1)) + rng.normal(0, 0.035, (4, 4, 3)), 0, 1)
    if rng.random() < 0.5:
        return np.clip(rng.uniform(0.1, 0.95) + rng.normal(0, 0.06, 3), 0, 1).reshape(1, 1, 3)
    return patches
