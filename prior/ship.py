"""Make the file that ships out of a run: `python -m headlift.prior.ship RUN FILE`."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from headlift.eg3d.checkpoint import load_checkpoint, read_metadata, save_checkpoint


def ship(run: Path, file: Path) -> str:
    """Write the running mean of a run's weights in half precision, with what it is; returns the file's sha256."""
    weights = run / "ema.safetensors"
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    held_out = next((entry["held_out_image"] for entry in reversed(log) if "held_out_image" in entry), None)
    metadata = {
        "name": "headlift embedded prior",
        "licence": "Apache-2.0",
        "data": "synthetic heads of this project (MakeHuman CC0 assets, procedural hair); 2800 to 2999 held out",
        "steps": read_metadata(weights)["step"],
        "held_out_psnr": f"{held_out:.2f}" if held_out is not None else "unknown",
    }
    save_checkpoint(file, load_checkpoint(weights, "cpu"), metadata, half=True)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run of headlift.prior.train")
    parser.add_argument("file", type=Path, help="where the .safetensors goes")
    options = parser.parse_args()
    print(ship(options.run, options.file))


if __name__ == "__main__":
    main()
