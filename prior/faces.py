"""Are random heads heads? `python -m headlift.prior.faces WEIGHTS --heads 32`.

Counts the faces that MediaPipe finds in them at 0 and +-30 degrees, the yaw it would take the camera for, and the
heads that are opaque from the back and both sides.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch

from headlift.eg3d.camera import WHOLE_HEAD_FOCAL, WHOLE_HEAD_PIVOT, orbit
from headlift.eg3d.checkpoint import load_checkpoint
from headlift.eg3d.generator import Generator
from headlift.pose_estimation.redetect import redetect
from headlift.prior.command import at_least, run_command

YAWS = (-30.0, 0.0, 30.0)


@torch.no_grad()
def faces(generator: Generator, heads: int, psi: float = 1.0) -> dict[str, float]:
    """Shares and errors over `heads` random heads: faces found, and the median and the largest tenth of
    |found yaw - camera's yaw| in degrees; share of heads that are opaque in the middle from the back and both sides."""
    found, errors, solid = 0, [], 0
    for seed in range(heads):
        z = torch.randn(1, generator.spec.mapping.z_dim, generator=torch.Generator().manual_seed(seed))
        ws = generator.mapping(z, truncation_psi=psi)
        planes = generator.planes(ws)
        for yaw in YAWS:
            image = generator.render(planes, ws, orbit(math.radians(yaw), 0.0)).image[0]
            picture = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            pose = redetect(np.ascontiguousarray(picture))
            found += pose is not None
            errors.append(180.0 if pose is None else abs(math.degrees(pose[0]) - yaw))
        sides = torch.tensor([0.5, 1.0, 1.5]) * math.pi
        behind = orbit(sides, torch.zeros(3), pivot=WHOLE_HEAD_PIVOT, focal=WHOLE_HEAD_FOCAL)
        alpha = generator.volume(planes, behind, 32).alpha
        solid += bool((alpha[:, 0, 12:20, 12:20] > 0.9).all())
    return {
        "faces_found": found / (heads * len(YAWS)),
        "yaw_error_median": float(np.median(errors)),
        "yaw_error_90": float(np.quantile(errors, 0.9)),
        "yaw_within_6": float(np.mean(np.array(errors) <= 6)),
        "solid_all_round": solid / heads,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--heads", type=at_least(1), default=32)
    parser.add_argument("--psi", type=float, default=1.0, help="truncation")
    options = parser.parse_args()
    generator = load_checkpoint(options.weights, "cpu").requires_grad_(False)
    print(json.dumps(faces(generator, options.heads, options.psi), indent=1))


if __name__ == "__main__":
    run_command(main)
