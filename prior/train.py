"""Train the embedded prior on synthetic heads: `python -m headlift.prior.train DATA OUT --minutes 9`.

Two stages, each with settings of its own (`--stage supervised --help`, `--stage adversarial --help`): the supervised
one learns from known codes, cameras and masks; the adversarial one goes on from it as EG3D is trained. Needs torch,
numpy, jaxtyping, safetensors and Pillow. May be called again and again: it goes on where it stopped, and always leaves
`state.pt` (everything), `ema.safetensors` (the generator to use), `log.jsonl`, and in `parts/` the weights in half
precision, to carry away. The adversarial stage also runs under `torchrun --nproc-per-node N -m headlift.prior.train`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from headlift.device import find_device
from headlift.eg3d.training.ranks import join, leave
from headlift.errors import ConfigError, HeadliftError
from headlift.prior import adversarial, supervised
from headlift.prior.dataset import load_data
from headlift.prior.measure import MeasureConfig
from headlift.prior.ship import carry_away

STAGES: dict[str, tuple[Any, ...]] = {
    "supervised": (supervised.TrainConfig(), MeasureConfig()),
    "adversarial": (adversarial.PRIOR, adversarial.StageConfig(), MeasureConfig()),
}
"""The settings of each stage, with their defaults: each field is a flag."""
PARTED = ("families", "betas")
"""Fields that are no flags."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    stage, options = parse(arguments)
    device = str(find_device(options["device"]))
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    if device.startswith("cuda"):
        torch.backends.cudnn.benchmark = True
    settings = [type(s)(**{f.name: options.get(f.name, getattr(s, f.name)) for f in fields(s)}) for s in STAGES[stage]]
    if stage == "supervised":
        _supervised(options, device, *settings)
    else:
        _adversarial(options, device, *settings)


def parse(arguments: Sequence[str] | None) -> tuple[str, dict[str, Any]]:
    """The stage and its flags."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--stage", choices=list(STAGES), default="supervised")
    stage = first.parse_known_args(arguments)[0].stage
    parser = argparse.ArgumentParser(
        parents=[first], description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with heads-*.zip")
    parser.add_argument("out", type=Path, help="folder of the run")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after so long, with a checkpoint")
    start_from = {
        "supervised": "a file of weights to begin with instead of random ones; the shape is to be the settings'",
        "adversarial": "a finished run: of the supervised stage, or the parts of one of this stage to carry away",
    }
    parser.add_argument("--start-from", type=Path, help=start_from[stage])
    parser.add_argument("--cache", type=Path, help="folder for decoded pictures (about 3 GB)")
    parser.add_argument("--depths", type=Path, help="file with the pictures' depth: in the supervised stage geometry"
                        " comes sooner and sharper, in both the error of depth is measured")  # fmt: skip
    parser.add_argument("--threads", type=int, help="processor threads")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU when there is one")
    parser.add_argument("--workers", type=int, default=0, help="threads that prepare batches (with a GPU: 8 or more)")
    for settings in STAGES[stage]:
        add_flags(parser, settings)
    return stage, vars(parser.parse_args(arguments))


def add_flags(parser: argparse.ArgumentParser, settings: Any) -> None:
    """A flag for each field of a dataclass, with its value as the default; `none` for None where that is allowed."""
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        if field.name in PARTED:
            continue
        flag, default, hint = f"--{field.name.replace('_', '-')}", getattr(settings, field.name), hints[field.name]
        if hint is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
        elif get_origin(hint) is Literal:
            parser.add_argument(flag, choices=get_args(hint), default=default)
        elif NoneType in get_args(hint):
            (kind,) = set(get_args(hint)) - {NoneType}
            parser.add_argument(flag, type=partial(_optional, kind), default=default)
        else:
            parser.add_argument(flag, type=hint, default=default)


def _optional(kind: Callable[[str], Any], text: str) -> Any:
    return None if text == "none" else kind(text)


def _supervised(options: dict[str, Any], device: str, config: supervised.TrainConfig, figures: MeasureConfig) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("the supervised stage runs in one process: start it without torchrun")
    began = time.monotonic()
    data = load_data(options["data"], options["cache"], config.hull, config.box, config.seed, options["depths"])
    print(f"{len(data.numbers)} heads, {data.table.shape[1]} features, hull {data.hull.float().mean():.2f} of the"
          f" box, core {len(data.core)} cells, read in {time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
    out = options["out"]
    minutes = left(options["minutes"], began)
    supervised.run(data, config, out, minutes, options["start_from"], device, options["workers"], figures=figures)
    print(carry_away(out), flush=True)


def left(minutes: float, began: float) -> float:
    """What is left of so many minutes: reading the data takes of them, too."""
    return minutes - (time.monotonic() - began) / 60


def _adversarial(
    options: dict[str, Any],
    device: str,
    config: adversarial.AdversarialConfig,
    stage: adversarial.StageConfig,
    figures: MeasureConfig,
) -> None:
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    began = time.monotonic()
    ranks = join(cuda=device.startswith("cuda"))
    try:
        for turn in (True, False):  # the first rank fills the cache, the others read it
            if ranks.first == turn:
                pool = adversarial.read_pool(options["data"], options["cache"], config.seed, options["depths"])
            ranks.wait()
        out = options["out"]
        adversarial.run(
            pool,
            out,
            config,
            stage,
            left(options["minutes"], began),
            options["start_from"],
            device,
            options["workers"],
            ranks,
            figures=figures,
        )
        if ranks.first:
            print(carry_away(out), flush=True)
    finally:
        leave()


if __name__ == "__main__":
    try:
        main()
    except HeadliftError as error:
        sys.exit(str(error))
