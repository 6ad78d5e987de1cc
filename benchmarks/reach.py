"""How far one photo reaches: `python benchmarks/reach.py EVAL [--heads 8] [--out PAGE.png]`.

What `best` shows to side views (`headlift.invert.sides`), held against the truth of heads that are known from all
sides (EVAL: the form that `evaluate prior` takes), before any tuning: the photo where it reaches, what the side network
tells elsewhere. Prints, by absolute yaw, the share of the true head that the photo reaches, PSNR there,
elsewhere, and of both (over the true head, at 256 pixels). The page shows for each head and view truth, target, and
what is reached.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from headlift.config import evaluation
from headlift.evaluate.multiview import read_folder, read_picture
from headlift.evaluate.subjects import known_crop
from headlift.invert.follow import follow
from headlift.invert.invert import ignore, never
from headlift.invert.latent import find_latent
from headlift.invert.losses import resize
from headlift.invert.metrics import psnr
from headlift.invert.perceptual import load_distance
from headlift.invert.preview import pixels
from headlift.invert.sides import Sides, SideView
from headlift.invert.task import Task, make_view
from headlift.weights import load_generator

SHOWN = (30, 60)
"""Absolute yaws on the page, degrees."""


def target_picture(view: SideView) -> tuple[Tensor, Tensor]:
    """What the view is to show over mid-grey, and where that is the photo (1 or 0)."""
    assert view.carried is not None
    assert view.seen is not None
    side = view.seen.shape[-1]
    head = ((resize(view.alpha, side) > 0.5) | (view.seen > 0)).to(view.seen.dtype)
    return torch.where(view.seen > 0, view.carried, resize(view.colour, side)) * head, view.seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--out", type=Path, help="a page of pictures")
    arguments = parser.parse_args()
    generator, _ = load_generator("embedded")
    config = evaluation("fast").inversion
    rows: dict[int, list[tuple[float, float, float, float]]] = {}
    page = []
    for head in read_folder(arguments.folder)[: arguments.heads]:
        photo, *truths = [read_picture(view) for view in head.views]
        task = Task(
            generator, (make_view(known_crop(photo, head.photo.camera), generator),), config, 0, never, None, ignore
        )
        pivot = follow(find_latent(task, load_distance("builtin", "latent", torch.device("cpu"))), lambda step: None)
        cameras = [view.camera for view in head.views[1:]]
        asked = task.views[0]
        strip = [pixels(asked.target.image)]
        sides = Sides(pivot.generator, pivot.ws, pivot.cameras[0], asked.target, asked.surface)
        shown = sides.views(cameras)
        for view, truth, side in zip(head.views[1:], truths, shown, strict=True):
            (target, seen), wanted = target_picture(side), truth.over(0.0)
            solid = (truth.alpha > 0.5).to(seen.dtype)
            parts = (solid * seen, solid * (1 - seen), solid)
            reached = float((solid * seen).sum() / solid.sum())
            yaw = abs(round(view.yaw))
            rows.setdefault(yaw, []).append((reached, *(psnr(target, wanted, part) for part in parts)))
            if yaw in SHOWN:
                strip += [pixels(wanted), pixels(target), pixels(target * seen - (1 - seen))]
        page.append(np.concatenate(strip, axis=1))
    print("yaw  reached   PSNR there  elsewhere  of both")
    for yaw in sorted(rows):
        # Over no pixels at all PSNR is infinite: such heads do not count.
        share, there, elsewhere, both = np.ma.masked_invalid(rows[yaw]).mean(axis=0).filled(np.nan)
        print(f"{yaw:3d}  {share:7.2f}  {there:11.1f}  {elsewhere:9.1f}  {both:7.1f}")
    if arguments.out:
        Image.fromarray(np.concatenate(page)).save(arguments.out)


if __name__ == "__main__":
    main()
