"""How exact are camera and crop? Against labelled crops, image by image.

    python benchmarks/pose.py SOURCE [SOURCE ...] [--first-head 2800] [--max-yaw 60] [--redetect] [--draw FOLDER]

A source is a folder or a .zip in EG3D's dataset form: `dataset.json` with `labels: [[name, 25 numbers], ...]` beside
the pictures, which are taken for aligned crops (RGBA ones are put on grey). Printed for each picture, in degrees:

    label, found    yaw and pitch
    error           geodesic angle between the rotations of the picture's camera, label against found (the levelling
                    of the crop is taken back, so that both belong to the picture as it is); 180 where no face is found
    straight        the same between the label and the crop's own camera
    scale, shift    how far the crop is from the picture itself: its side less 1, and the distance of the middles, in
                    per cent of the side; corner: the farthest corner's distance, which adds the roll
    sigma           the standard deviation that the estimator itself gives (yaw and pitch together)

FFHQ's labels and the synthetic heads have different ideas of straight ahead (`pose_estimation/frames.py`): a source
with parameters of heads beside its pictures (`params/`) is measured in the embedded prior's frame, any other in
FFHQ's, unless --frame says otherwise.

Then medians over all pictures and those within --max-yaw. Wide-lens pictures (focal length under 4) are left out.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from PIL import Image

from headlift.config import PoseConfig
from headlift.errors import FaceError
from headlift.pose_estimation.estimate import estimate
from headlift.pose_estimation.redetect import redetect


@dataclass(frozen=True)
class Row:
    """Measurements of one picture; degrees and per cent."""

    yaw: float
    pitch: float
    found_yaw: float = math.nan
    found_pitch: float = math.nan
    error: float = 180.0
    straight: float = 180.0
    roll: float = math.nan
    scale: float = math.nan
    shift: float = math.nan
    corner: float = math.nan
    residual: float = math.nan
    sigma: float = math.nan
    seconds: float = math.nan


def pictures(source: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, RGB pixels and label of each picture of a source."""
    if source.is_dir():
        labels = json.loads((source / "dataset.json").read_text())["labels"]
        for name, label in labels:
            yield name, flatten(Image.open(source / name)), np.array(label)
        return
    with zipfile.ZipFile(source) as files:
        for name, label in json.loads(files.read("dataset.json"))["labels"]:
            yield name, flatten(Image.open(io.BytesIO(files.read(name)))), np.array(label)


def flatten(image: Image.Image) -> np.ndarray:
    if image.mode in ("RGBA", "LA", "P"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (150, 150, 150, 255)), image)
    return np.asarray(image.convert("RGB"))


def angle(a: np.ndarray, b: np.ndarray) -> float:
    return math.degrees(2 * math.asin(min(1.0, float(np.linalg.norm(a - b)) / math.sqrt(8))))


def angles(cam2world: np.ndarray) -> tuple[float, float]:
    x, y, z = cam2world[:3, 3]
    return math.degrees(math.atan2(x, z)), math.degrees(math.atan2(y, math.hypot(x, z)))


def frame_of(source: Path) -> str:
    if source.is_dir():
        return "embedded" if (source / "params").is_dir() else "ffhq"
    with zipfile.ZipFile(source) as files:
        return "embedded" if any("params/" in name for name in files.namelist()) else "ffhq"


def measure(picture: np.ndarray, label: np.ndarray, frame: str, draw: Path | None = None) -> Row:
    truth = label[:16].reshape(4, 4)
    start = time.perf_counter()
    try:
        crop = estimate(picture, PoseConfig(force=True, frame=frame))
    except FaceError:
        return Row(*angles(truth))
    seconds = time.perf_counter() - start
    found = crop.camera.cam2world[0].double().numpy()
    roll = crop.similarity.roll
    turn = np.array([[math.cos(roll), -math.sin(roll), 0], [math.sin(roll), math.cos(roll), 0], [0, 0, 1]])
    side = picture.shape[0]
    square = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.5, 0.5]])
    moved = crop.similarity.apply(square * side) - square
    if draw is not None:
        from headlift.export.images import pose_overlay, write_png

        write_png(draw, pose_overlay(picture, crop))
    return Row(
        *angles(truth),
        *angles(found),
        error=angle(truth[:3, :3], found[:3, :3] @ turn),
        straight=angle(truth[:3, :3], found[:3, :3]),
        roll=math.degrees(roll),
        scale=100 * (1 / (crop.similarity.scale * side) - 1),
        shift=100 * float(np.linalg.norm(moved[4])),
        corner=100 * float(np.linalg.norm(moved[:4], axis=1).max()),
        residual=100 * crop.residual,
        sigma=math.degrees(math.sqrt(float(np.trace(crop.covariance)))),
        seconds=seconds,
    )


def head_number(name: str, views: int) -> int:
    digits = re.sub(r"\D", "", Path(name).stem)
    return int(digits) // views if digits else -1


def summary(title: str, rows: list[Row]) -> None:
    if not rows:
        return
    seen = [r for r in rows if r.error < 180]
    middle = {f.name: np.median([abs(getattr(r, f.name)) for r in seen]) if seen else math.nan for f in fields(Row)}
    error = np.array([r.error for r in rows])
    print(
        f"{title}: {len(rows)} pictures, {len(rows) - len(seen)} undetected; error median {np.median(error):.2f}, "
        f"mean of the detected {np.mean([r.error for r in seen]):.2f}, 90 % {np.percentile(error, 90):.2f}; "
        f"straight {middle['straight']:.2f}; "
        f"|yaw| off {np.median([abs(r.found_yaw - r.yaw) for r in seen]):.2f}, "
        f"pitch off {np.median([r.found_pitch - r.pitch for r in seen]):+.2f} (signed median), "
        f"scale {middle['scale']:.2f} % ({np.median([r.scale for r in seen]):+.2f} signed), "
        f"shift {middle['shift']:.2f} %, "
        f"corner {middle['corner']:.2f} %, sigma {middle['sigma']:.2f}, {middle['seconds']:.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path)
    parser.add_argument("--first-head", type=int, default=0, help="leave out pictures of heads before this one")
    parser.add_argument("--views", type=int, default=4, help="pictures a head, in numbered archives")
    parser.add_argument("--max-yaw", type=float, default=60.0)
    parser.add_argument("--limit", type=int, default=0, help="stop after so many pictures of a source")
    parser.add_argument("--quiet", action="store_true", help="only the medians")
    parser.add_argument("--redetect", action="store_true", help="measure the light second look instead of the whole")
    parser.add_argument("--frame", choices=("auto", "ffhq", "embedded"), default="auto")
    parser.add_argument("--draw", type=Path, help="folder for overlays")
    options = parser.parse_args()
    for source in options.sources:
        frame = frame_of(source) if options.frame == "auto" else options.frame
        print(f"{source.name}: in the frame of {frame}")
        rows: list[Row] = []
        second: list[tuple[float, float]] = []
        for name, picture, label in pictures(source):
            if label[16] < 4 or (options.first_head and head_number(name, options.views) < options.first_head):
                continue
            if options.limit and max(len(rows), len(second)) >= options.limit:
                break
            if options.redetect:
                yaw, _ = angles(label[:16].reshape(4, 4))
                if abs(yaw) <= options.max_yaw:
                    again = redetect(picture, frame)
                    second.append((yaw, math.nan if again is None else math.degrees(again[0])))
                continue
            draw = options.draw / f"{Path(name).stem}.png" if options.draw else None
            row = measure(picture, label, frame, draw)
            rows.append(row)
            if not options.quiet:
                print(
                    f"{name:32s} label {row.yaw:+6.1f} {row.pitch:+6.1f}  "
                    f"found {row.found_yaw:+6.1f} {row.found_pitch:+6.1f} roll {row.roll:+5.1f}  "
                    f"error {row.error:6.2f} straight {row.straight:6.2f}  scale {row.scale:+5.1f} % "
                    f"shift {row.shift:4.1f} % corner {row.corner:4.1f} %  residual {row.residual:4.2f} % "
                    f"sigma {row.sigma:4.1f} {row.seconds:4.2f} s"
                )
        summary(f"{source.name}", rows)
        summary(f"{source.name}, yaw within {options.max_yaw:g}", [r for r in rows if abs(r.yaw) <= options.max_yaw])
        if second:
            off = np.array([found - yaw for yaw, found in second])
            lost = int(np.isnan(off).sum())
            off = off[~np.isnan(off)]
            print(
                f"{source.name}: second look at {len(second)} pictures, {lost} without a face; yaw off by median "
                f"{np.median(np.abs(off)):.2f}, 90 % {np.percentile(np.abs(off), 90):.2f}, within 6 degrees "
                f"{100 * np.mean(np.abs(off) <= 6):.0f} %"
            )


if __name__ == "__main__":
    main()
