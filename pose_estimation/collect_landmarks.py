"""Find the landmarks on synthetic heads with known cameras, once, for `learn_head_model.py`.

    python -m headlift.pose_estimation.collect_landmarks heads-00.zip heads-01.zip ... --out landmarks.npz

Each archive is in EG3D's dataset form: RGBA pictures and `dataset.json` with `labels: [[name, 25 numbers], ...]`,
picture n showing head n // views. Each picture is put on backgrounds of several kinds and, half of the time or from the
second pass on, blurred, darkened, tinted, compressed and turned, since the points that a photo gives scatter more than
those of a clean render. Written: `head`, `picture`, `label`, `points` and `keys` (fractions of the side, z likewise),
`chips` (the clean face with its opacity, as the regression's network sees it), one row for each pass that saw a face.
The template that normalises, and the mesh's mirror order, are those of the model file that is there: they carry over
from one to the next.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from headlift.pose_estimation import mediapipe_models
from headlift.pose_estimation.head_model import load_head_model
from headlift.pose_estimation.landmarks import refine
from headlift.pose_estimation.regression import CHIP, chip_matrix
from headlift.pose_estimation.warp import blur, resize, similarity, warp

WORK = 288


def pictures(archive: Path) -> Iterator[tuple[str, Float[np.ndarray, " 25"], UInt8[np.ndarray, "h w 4"]]]:
    """Name, label and RGBA pixels of each labelled picture of an archive."""
    from PIL import Image

    with zipfile.ZipFile(archive) as files:
        for name, label in json.loads(files.read("dataset.json"))["labels"]:
            with Image.open(io.BytesIO(files.read(name))) as opened:
                yield name, np.array(label, dtype=np.float64), np.asarray(opened.convert("RGBA"))


def on_background(rgba: UInt8[np.ndarray, "h w 4"], random: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """The picture over a plain, shaded or mottled background."""
    height, width = rgba.shape[:2]
    base = random.uniform(20, 255, 3) if random.random() < 0.7 else np.full(3, random.uniform(20, 255))
    shade = random.normal(0, 40, (4, 4, 3)).astype(np.float32) * random.choice([0.0, 0.5, 1.5])
    back = np.clip(base + resize(shade, (width, height)), 0, 255)
    alpha = rgba[..., 3:] / 255.0
    return (alpha * rgba[..., :3] + (1 - alpha) * back).round().astype(np.uint8)


def degrade(image: UInt8[np.ndarray, "h w 3"], random: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """What happens to photos: soft focus, low resolution, exposure, tint, noise, JPEG."""
    from PIL import Image

    height, width = image.shape[:2]
    if random.random() < 0.5:
        image = blur(image, float(random.uniform(0.4, 2.0)))
    if random.random() < 0.4:
        factor = random.uniform(0.3, 0.9)
        image = resize(resize(image, (int(width * factor), int(height * factor))), (width, height))
    values = 255 * (image / 255.0) ** random.uniform(0.6, 1.6) * random.uniform(0.75, 1.1, 3)
    values = values + random.normal(0, random.uniform(0, 10), image.shape)
    image = np.clip(values, 0, 255).astype(np.uint8)
    packed = io.BytesIO()
    Image.fromarray(image).save(packed, "JPEG", quality=int(random.integers(35, 96)))
    return np.asarray(Image.open(packed).convert("RGB"))


def collect(archives: list[Path], passes: int, views: int, wide_yaw: float) -> dict[str, np.ndarray]:
    """All rows, as described at the top. Wide-lens pictures are used up to `wide_yaw` radians of yaw."""
    rows: dict[str, list] = {"head": [], "picture": [], "label": [], "points": [], "keys": [], "chips": [], "pass": []}
    template = load_head_model().template
    for archive in archives:
        for name, label, rgba in pictures(archive):
            digits = "".join(c for c in Path(name).stem if c.isdigit())
            number = int(digits)
            yaw = math.atan2(label[3], label[11])
            wide = abs(label[16] - 4.2647) > 0.01
            if abs(yaw) > (wide_yaw if wide else 1.45):
                continue
            for index in range(passes):
                random = np.random.default_rng((number, index))
                worn = index > 0 or (passes == 1 and number % 2 == 1)
                image = resize(on_background(rgba, random), (WORK, WORK))
                turn = 0.0
                if worn:
                    image = degrade(image, random)
                    turn = float(random.normal(0, 0.15))
                center = np.array([WORK / 2, WORK / 2])
                matrix = similarity(turn, 1.0, center, center)
                seen = warp(image, matrix, (WORK, WORK), border="edge") if turn else image
                first = mediapipe_models.face_mesh(seen)
                if first is None:
                    continue
                points, keys = refine(seen, first)
                back = np.linalg.inv(matrix[:, :2])
                flat = (points[:, :2] - matrix[:, 2]) @ back.T
                if keys is None:
                    keys = np.full((8, 2), np.nan)
                rows["head"].append(number // views)
                rows["picture"].append(number)
                rows["label"].append(label)
                rows["pass"].append(index)
                rows["keys"].append((keys - matrix[:, 2]) @ back.T / WORK)
                rows["chips"].append(_chip(rgba, flat / WORK, template))
                rows["points"].append(np.concatenate([flat, points[:, 2:]], axis=1) / WORK)
    return {
        key: np.array(value, dtype=np.float32 if key in ("points", "keys") else None) for key, value in rows.items()
    }


def _chip(
    rgba: UInt8[np.ndarray, "h w 4"], points: Float[np.ndarray, "478 2"], template: Float[np.ndarray, "468 2"]
) -> UInt8[np.ndarray, "c c 2"]:
    """The clean face as `regression.chip` cuts it, grey times opacity and opacity; `points` are fractions."""
    opacity = rgba[..., 3:] / 255.0
    grey = (rgba[..., :3] * opacity) @ (0.299, 0.587, 0.114)
    both = np.stack([grey, rgba[..., 3]], axis=2).astype(np.float32)
    cut = warp(both, chip_matrix(points * rgba.shape[0], template), (CHIP, CHIP), border="constant")
    return np.clip(cut, 0, 255).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archives", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--passes", type=int, default=1, help="of a single one every other is degraded")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--wide-yaw", type=float, default=1.2)
    options = parser.parse_args()
    np.savez(options.out, **collect(options.archives, options.passes, options.views, options.wide_yaw))


if __name__ == "__main__":
    main()
