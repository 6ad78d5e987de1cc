"""Is it a head, not a relief? Invert photos and look at them from the sides.

    python benchmarks/inversion_check.py PHOTO_OR_FOLDER ... --out FOLDER [--preset fast] [--weights embedded]

Prints one row a photo: PSNR over the crop's mask at 256 pixels, whether MediaPipe finds the face at yaw -30 and +30 and
how far the yaw that it sees is from the camera's, the median depth that tuning moved, seconds. A row passes with a PSNR
of at least 24 dB, both faces found, both errors at most 6 degrees and at most 0.02 units moved; the exit code is 1 when
one does not. FOLDER gets a sheet of views for each photo: crop, inversion, then yaw -60 to 60 and the back.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from headlift.config import Frame, PoseConfig, preset
from headlift.eg3d.camera import orbit, yaw_pitch
from headlift.eg3d.generator import Generator
from headlift.errors import HeadliftError
from headlift.evaluate.check import check_head
from headlift.invert.follow import follow
from headlift.invert.invert import invert
from headlift.invert.preview import pixels
from headlift.invert.result import Inversion
from headlift.photo import read_photo
from headlift.pose_estimation.estimate import estimate
from headlift.poses import photos_in
from headlift.values import Camera, Crop
from headlift.weights import load_generator, looks_ahead


@torch.no_grad()
def view(generator: Generator, planes: torch.Tensor, ws: torch.Tensor, camera: Camera) -> UInt8[np.ndarray, "h w 3"]:
    return pixels(generator.render(planes, ws, camera).image)


def sheet(result: Inversion, planes: torch.Tensor) -> Image.Image:
    """Crop, inversion, and views from -60 to 60 degrees of yaw and from behind."""
    _, pitch = yaw_pitch(result.camera)
    cameras = [result.camera, *(orbit(math.radians(yaw), 0.0) for yaw in (-60, -30, 0, 30, 60, 180))]
    tiles = [pixels(result.target.image), *(view(result.generator, planes, result.ws, camera) for camera in cameras)]
    side = min(256, tiles[0].shape[0])
    return Image.fromarray(np.concatenate([np.asarray(Image.fromarray(t).resize((side, side))) for t in tiles], axis=1))


def check(name: str, crop: Crop, generator: Generator, frame: Frame, arguments: argparse.Namespace) -> bool:
    begin = time.perf_counter()
    config = replace(preset(arguments.preset).inversion, preview_every=0)
    result = follow(invert(generator, crop, config, arguments.seed), lambda step: None)
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        planes = result.generator.planes(result.ws)
    checked = check_head(result, planes, frame)
    arguments.out.mkdir(parents=True, exist_ok=True)
    sheet(result, planes).save(arguments.out / f"{name}.png")
    m = result.metrics
    shown = "  ".join("not found" if v.found is None else f"{v.error:9.1f}" for v in checked.views)
    figures = f"{m['psnr']:6.2f} {m['ssim']:6.3f} {m['perceptual']:10.3f}  {shown} {m['depth_moved']:8.4f}"
    print(f"{name:16s}{figures} {seconds:7.0f}  {'pass' if checked.ok else 'FAIL'}", flush=True)
    return checked.ok


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/inversion_check"))
    parser.add_argument("--preset", default="fast", choices=["fast", "standard", "thorough"])
    parser.add_argument("--weights", default="embedded")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator, _ = load_generator(arguments.weights, "cpu")
    frame = looks_ahead(arguments.weights)
    print("photo             psnr   ssim perceptual     at -30     at +30    moved seconds")
    passed = True
    chosen = [photo for path in arguments.photos for photo in (photos_in(path) if path.is_dir() else [path])]
    for path in chosen:
        try:
            crop = estimate(read_photo(path), PoseConfig(force=True, frame=frame))
        except HeadliftError as error:
            print(f"{path.stem:16s}{error}")
            passed = False
            continue
        passed &= check(path.stem, crop, generator, frame, arguments)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
