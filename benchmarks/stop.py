"""Where may tuning stop? How near the photo is matched when the head's other views begin to suffer.

    python benchmarks/stop.py FOLDER [--heads 4] [--steps 240] [--every 20] [--json FILE]

FOLDER holds heads of known truth (`eval.zip` unpacked). Each is inverted by the method `pti` (preset `fast`, no stop);
every so many steps of its tuning the builtin distance in view is held beside the PSNR of the true views at +-30 and
+-60 degrees. PTI stops at an LPIPS of 0.06, before the generator is bent to the photo beyond what it knows of heads.
The builtin distance that stands for it is the one in view where the new views are at their best: the median over the
heads, each at the step at which the mean PSNR of its new views is highest. `invert.perceptual.CALIBRATED_STOP` has it.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from headlift.config import EvaluateInversionConfig, PoseConfig
from headlift.eg3d.generator import Generator
from headlift.evaluate.inversion import settings_of
from headlift.evaluate.metrics import ALPHA_SIDE, pair, score
from headlift.evaluate.subjects import Subject, find_sources
from headlift.invert.follow import follow
from headlift.invert.invert import invert
from headlift.invert.perceptual import load_builtin
from headlift.invert.result import InversionState
from headlift.weights import load_generator

NEW = (30, 60)
"""Absolute yaws of the new views that are looked at, degrees."""


@dataclass(frozen=True)
class Moment:
    """One head after so many steps of tuning."""

    head: str
    step: int
    distance: float
    """Builtin, in view, as tuning sees it: on white."""
    psnr: float
    """In view, dB."""
    sides: float
    """Mean PSNR of the new views, dB."""


@torch.no_grad()
def look(base: Generator, state: InversionState, subject: Subject, name: str) -> Moment:
    """What a state of the tuning shows."""
    generator = copy.deepcopy(base)
    kinds = ("weight.", "noise.")
    weights = {k.partition(".")[2]: v for k, v in state.tensors.items() if k.startswith(kinds)}
    generator.load_state_dict(weights, strict=False)
    ws, distance = state.tensors["ws"], load_builtin()
    planes = generator.planes(ws)
    found = []
    views = [subject.photo, *(truth for truth in subject.others if abs(truth.yaw) in NEW)]
    for truth in views:
        image = generator.render(planes, ws, truth.camera).image
        alpha = generator.volume(planes, truth.camera, ALPHA_SIDE).alpha
        found.append(score(pair(truth.picture, image, alpha), distance).psnr)
        if truth is subject.photo:
            near = float(distance(distance.prepare(truth.picture.over(1.0)), image)[0])
    return Moment(name, state.step, near, found[0], statistics.mean(found[1:]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    generator, _ = load_generator("embedded", "cpu")
    config = settings_of(f"pti@tuning.stop=0.0@tuning.steps={options.steps}", EvaluateInversionConfig(), known=True)
    config = replace(config, keep_every=options.every)
    moments: list[Moment] = []
    best: list[Moment] = []
    print("head       step  distance  PSNR in view  PSNR at +-30, +-60")
    for source in find_sources(options.folder, 0, options.heads, 0.0, 0.7):
        subject = source.load(generator, PoseConfig(frame="embedded"))
        own: dict[int, Moment] = {}

        def keep(
            state: InversionState, own: dict[int, Moment] = own, subject: Subject = subject, name: str = source.name
        ) -> None:
            if state.stage == "tuning" and state.step not in own:
                m = own[state.step] = look(generator, state, subject, name)
                print(f"{m.head:10s} {m.step:4d}  {m.distance:8.3f}  {m.psnr:12.2f}  {m.sides:12.2f}", flush=True)

        follow(invert(generator, subject.crop, config, on_state=keep), lambda step: None)
        moments += own.values()
        best.append(max(own.values(), key=lambda m: m.sides))
        if options.json:
            options.json.write_text(json.dumps([asdict(m) for m in moments], indent=1))
    for m in best:
        print(f"{m.head}: new views are best at step {m.step}, distance {m.distance:.3f}, {m.sides:.2f} dB")
    print(f"median distance there: {statistics.median(m.distance for m in best):.3f} ({len(best)} heads)")


if __name__ == "__main__":
    main()
