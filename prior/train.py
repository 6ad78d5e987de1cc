"""Train the embedded prior on synthetic heads: `python -m headlift.prior.train DATA OUT --minutes 9`.

Needs torch, numpy, jaxtyping, safetensors and Pillow. May be called again and again: it goes on where it stopped, and
always leaves `state.pt` (everything), `ema.safetensors` (the generator to use) and `log.jsonl`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import fields
from pathlib import Path

import torch

from headlift.prior.dataset import load_data
from headlift.prior.supervised import TrainConfig, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with heads-*.zip")
    parser.add_argument("out", type=Path, help="folder of the run")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after so long, with a checkpoint")
    parser.add_argument("--start-from", type=Path, help="folder of a run with smaller planes, to grow it")
    parser.add_argument("--cache", type=Path, help="folder for decoded pictures (about 3 GB)")
    parser.add_argument("--threads", type=int, help="processor threads")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU when there is one")
    parser.add_argument("--workers", type=int, default=0, help="threads that prepare batches (with a GPU: 8 or more)")
    for field in fields(TrainConfig):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    options = vars(parser.parse_args())
    names = ("data", "out", "minutes", "cache", "threads", "start_from", "device", "workers")
    data, out, minutes, cache, threads, start_from, device, workers = (options.pop(k) for k in names)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if threads:
        torch.set_num_threads(threads)
    config = TrainConfig(**options)
    began = time.monotonic()
    loaded = load_data(data, cache, config.hull, config.box, config.seed)
    print(f"{len(loaded.numbers)} heads, {loaded.table.shape[1]} features, hull {loaded.hull.float().mean():.2f} of the"
          f" box, core {len(loaded.core)} cells, read in {time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
    run(loaded, config, out, minutes, start_from, device, workers)


if __name__ == "__main__":
    main()
