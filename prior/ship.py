"""Make the file that ships out of a run: `python -m headlift.prior.ship RUN FILE`; or small parts to carry away."""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import replace
from pathlib import Path

from headlift.config import PRIOR_NAME
from headlift.eg3d.checkpoint import load_checkpoint, load_discriminator, read_metadata, save_checkpoint
from headlift.eg3d.spec import GeneratorSpec
from headlift.errors import DataError
from headlift.prior.budget import ABOUT
from headlift.prior.command import run_command

PART = 15 * 2**20
"""Bytes of a part at most."""
MARGIN = 4
"""Pixels round the feature map from which no zeros past them reach the picture (`SuperresSpec.margin`)."""


def ship(run: Path, file: Path) -> str:
    """Write the running mean of a run's weights in half precision, with what it is; returns the file's sha256.

    Raises:
        DataError: the folder has no log of a run, or a damaged one.
        CheckpointError: its weights are missing or damaged.
        OutputError: the file cannot be written.
    """
    weights = run / "ema.safetensors"
    try:
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{run} is no folder of a run of headlift.prior.train ({error}).") from error
    held_out = next((entry["held_out_image"] for entry in reversed(log) if "held_out_image" in entry), None)
    metadata = ABOUT | {
        "name": PRIOR_NAME,
        "data": "synthetic heads of this project (MakeHuman CC0 assets, procedural hair); 2800 to 2999 held out",
        "steps": read_metadata(weights).get("step", "unknown"),
        "held_out_psnr": f"{held_out:.2f}" if held_out is not None else "unknown",
    }
    generator = load_checkpoint(weights, "cpu")
    generator.spec = as_it_ships(generator.spec)
    save_checkpoint(file, generator, metadata, half=True)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def as_it_ships(spec: GeneratorSpec) -> GeneratorSpec:
    """Rendered as finely as super-resolution takes it, with the coarse samples of training's resolution, and without
    the frame that super-resolution draws at the edges of a picture.

    Training renders what it can afford. As its patches are pictures enlarged, the volume knows more than that.
    """
    coarse = spec.neural_resolution if spec.render.importance_samples else None
    finest = spec.superres.input_resolution
    finer = spec if finest <= spec.neural_resolution else spec.rendered_at(finest, coarse)
    return replace(finer, superres=replace(finer.superres, margin=MARGIN))


def carry_away(run: Path, limit: int = PART) -> str:
    """Write a run's generator, and its discriminator if it has one, to `RUN/parts`: in half precision, without the
    optimiser's state, in files of at most `limit` bytes. Returns the command that joins them, which is also in
    `parts/join.sh`; it checks the sums."""
    folder = run / "parts"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.safetensors.part??"):
        old.unlink()
    lines = ["set -e", 'cd "$(dirname "$0")"']
    for name, read in (("ema", load_checkpoint), ("discriminator", load_discriminator)):
        source = run / f"{name}.safetensors"
        if not source.exists():
            continue
        whole = folder / source.name
        metadata = {k: v for k, v in read_metadata(source).items() if k not in ("kind", "spec")}
        save_checkpoint(whole, read(source), metadata, half=True)
        data = whole.read_bytes()
        whole.unlink()
        for i, start in enumerate(range(0, len(data), limit)):
            (folder / f"{source.name}.part{i:02d}").write_bytes(data[start : start + limit])
        lines.append(f"cat {source.name}.part?? > {source.name}")
        lines.append(f'echo "{hashlib.sha256(data).hexdigest()}  {source.name}" | sha256sum -c')
    (folder / "join.sh").write_text("\n".join(lines) + "\n")
    return f"sh {folder / 'join.sh'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run of headlift.prior.train")
    parser.add_argument("file", type=Path, help="where the .safetensors goes")
    options = parser.parse_args()
    print(ship(options.run, options.file))


if __name__ == "__main__":
    run_command(main)
