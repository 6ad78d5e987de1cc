"""The evaluation set: ten views of each head in one light, with depth; `headlift evaluate prior` reads it.

`headNNN_yaw+DDD.webp` (RGBA, straight alpha), `headNNN_yaw+DDD_depth.png` (16 bits, distance along the ray / 1e-4
units, 0 outside), `dataset.json` with EG3D's labels, `params/headNNN.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from headlift.errors import OutputError
from headlift.export.files import write_text
from headlift.prior.synthetic.bundle import load_bundle
from headlift.prior.synthetic.cameras import EVALUATION_YAWS
from headlift.prior.synthetic.dataset import Studio, save_depth, save_picture
from headlift.prior.synthetic.plan import plan_evaluation

QUALITY = 95
"""Of its WebP."""


def write_evalset(
    bundle: Path,
    out: Path,
    heads: int = 48,
    seed: int = 1,
    recipe: int = 1,
    res: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Draw the set into the folder `out`; heads that are there already are kept.

    Raises DataError without a bundle, OutputError when the folder holds another set, DeviceError without OpenGL.
    """
    assets = load_bundle(bundle)
    made_with = {"seed": seed, "recipe": recipe, "res": res}
    settings = out / "settings.json"
    if settings.exists() and json.loads(settings.read_bytes()) != made_with:
        raise OutputError(f"{out} holds a set that was made with {settings.read_text()}. Take another folder.")
    if out.exists() and any(out.iterdir()) and not settings.exists():
        raise OutputError(f"{out} holds something else. Take another folder.")
    studio = Studio(assets, res, ss=2)
    write_text(settings, json.dumps(made_with))
    labels = []
    for index in range(heads):
        plan = plan_evaluation(studio.body, seed, index, recipe)
        names = [f"head{index:03d}_yaw{yaw:+04d}" for yaw in EVALUATION_YAWS]
        labels += [[f"{n}.webp", s.view.label.tolist()] for n, s in zip(names, plan.shots, strict=True)]
        params = out / "params" / f"head{index:03d}.json"
        if not params.exists():
            values, pictures = studio.draw(plan)
            for name, drawn in zip(names, pictures, strict=True):
                save_picture(out / f"{name}.webp", drawn, "webp", QUALITY)
                save_depth(out / f"{name}_depth.png", drawn.depth)
            write_text(params, json.dumps(values))
        if progress:
            progress(index + 1, heads)
    write_text(out / "dataset.json", json.dumps({"labels": labels}))
    studio.close()
