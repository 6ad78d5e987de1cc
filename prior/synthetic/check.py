"""Do cameras, depth, masks and meshes agree? Depth is unprojected with the label and compared with the surface."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

from headlift.prior.synthetic.body import HeadGeometry
from headlift.prior.synthetic.bundle import load_bundle
from headlift.prior.synthetic.cameras import View
from headlift.prior.synthetic.dataset import Drawn, Studio
from headlift.prior.synthetic.plan import HeadPlan, Shot, plan_head

VIEWS = (View(0.0, 0.0), View(0.8, 0.2), View(-1.2, -0.3), View(2.6, 0.1, wide=True))
MILLIMETRES = 396.0
"""In a world unit."""


@dataclass(frozen=True)
class Agreement:
    """One picture."""

    head: int
    view: View
    median: float
    """Distance of unprojected depth from the surface, world units ..."""
    most: float
    """... and that of its 99th percentile."""
    overlap: float
    """Share of pixels where the mask (alpha above one half) and the depth's agree."""


@dataclass(frozen=True)
class Report:
    """Of all pictures looked at."""

    rows: tuple[Agreement, ...]

    def table(self) -> str:
        """For a terminal; distances in millimetres."""
        lines = ["head   yaw pitch  median mm  99 % mm  mask = depth"]
        for r in self.rows:
            lines.append(
                f"{r.head:4d} {r.view.yaw:5.1f} {r.view.pitch:5.1f} {r.median * MILLIMETRES:10.2f} "
                f"{r.most * MILLIMETRES:8.2f} {100 * r.overlap:11.2f} %"
            )
        return "\n".join(lines)


def check_heads(bundle: Path, first: int, heads: int, seed: int, recipe: int, res: int = 256) -> Report:
    """Look at some heads from four sides each."""
    studio = Studio(load_bundle(bundle), res, ss=2)
    rows = []
    for index in range(first, first + heads):
        plan = plan_head(studio.body, seed, index, 1, 0, recipe)
        shots = tuple(Shot(view, plan.shots[0].light) for view in VIEWS)
        surface = cKDTree(surface_points(studio.body.build(plan.params)))
        _, pictures = studio.draw(HeadPlan(plan.params, plan.background, shots))
        for drawn in pictures:
            distance, _ = surface.query(unprojected(drawn)[:: max(1, res // 64)])
            overlap = float(((drawn.rgba[..., 3] > 0.5) == (drawn.depth > 0)).mean())
            median, most = np.quantile(distance, [0.5, 0.99])
            rows.append(Agreement(index, drawn.shot.view, float(median), float(most), overlap))
    studio.close()
    return Report(tuple(rows))


def surface_points(head: HeadGeometry, per_triangle: int = 4) -> Float[np.ndarray, "n 3"]:
    """Random points on all triangles of a head, world units."""
    rng = np.random.default_rng(0)
    points = []
    for mesh in head.parts.values():
        corners = mesh.surface
        share = rng.dirichlet([1, 1, 1], (len(corners), per_triangle))
        points.append((share[..., None] * corners[:, None]).sum(2).reshape(-1, 3))
    return np.concatenate(points)


def unprojected(drawn: Drawn) -> Float[np.ndarray, "n 3"]:
    """World points of the pixels that have depth, by the picture's label."""
    label = drawn.shot.view.label.astype("f8")
    cam2world, intrinsics = label[:16].reshape(4, 4), label[16:].reshape(3, 3)
    row, column = np.nonzero(drawn.depth > 0)
    side = len(drawn.depth)
    x = ((column + 0.5) / side - intrinsics[0, 2]) / intrinsics[0, 0]
    y = ((row + 0.5) / side - intrinsics[1, 2]) / intrinsics[1, 1]
    ray = np.stack([x, y, np.ones_like(x)], 1)
    ray = ray / np.linalg.norm(ray, axis=1, keepdims=True)
    return cam2world[:3, 3] + (ray * drawn.depth[row, column][:, None]) @ cam2world[:3, :3].T
