"""Poses on the disk: crop, overlay and camera of one photo, or a whole folder as an EG3D dataset."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

from headlift.config import PoseConfig
from headlift.eg3d.camera import yaw_pitch
from headlift.errors import HeadliftError, OutputError, PhotoError
from headlift.export.files import output_error, refuse_existing, write_text
from headlift.export.images import pose_overlay, shrink, to_uint8, write_png
from headlift.photo import read_photo
from headlift.pose_estimation.estimate import estimate
from headlift.values import Crop

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".heic", ".heif", ".avif"}
OVERLAY_SIDE = 1600
"""Longest side of an overlay, pixels."""


def pose_photo(photo: Path, out: Path, config: PoseConfig, overwrite: bool = False) -> Crop:
    """Write `crop.png`, `pose.png` (overlay) and `camera.json` of a photo; returns the crop.

    Raises:
        PhotoError, FaceError: the photo or its face is not usable.
        OutputError: files are in the way, or the place cannot be written.
    """
    refuse_existing([out / name for name in ("crop.png", "pose.png", "camera.json")], overwrite)
    pixels = read_photo(photo)
    crop = estimate(pixels, config)
    write_png(out / "crop.png", to_uint8(crop.image))
    write_png(out / "pose.png", shrink(pose_overlay(pixels, crop), OVERLAY_SIDE))
    write_text(out / "camera.json", camera_json(crop))
    return crop


def pose_folder(
    folder: Path,
    out: Path,
    config: PoseConfig,
    overwrite: bool,
    notice: Callable[[str], None],
    complain: Callable[[str], None],
) -> tuple[int, int]:
    """Crop every photo of a folder and write `dataset.json` with their labels, as EG3D's dataset tools expect.

    Overlays go to a folder beside `out`, as these tools take every picture in it for data. `dataset.json` is written
    anew after each photo: it holds the labels of all crops that are there, wherever this ends. A photo that fails is
    left out with a complaint. What an earlier run left goes first. Returns how many were done and how many failed.

    Raises:
        PhotoError: there are no photos in the folder.
        OutputError: files are in the way, or the place cannot be written.
    """
    photos = photos_in(folder)
    if out.resolve() == folder.resolve():
        raise OutputError(f"{out} holds the photos themselves, which their crops would replace. Give another --out.")
    stems = [photo.stem for photo in photos]
    names = [f"{photo.stem if stems.index(photo.stem) == i else photo.name}.png" for i, photo in enumerate(photos)]
    overlays = overlay_folder(out)
    written = [out / "dataset.json", *(folder / name for folder in (out, overlays) for name in names)]
    refuse_existing(written, overwrite)
    forget(out, overlays)
    labels: list[tuple[str, list[float]]] = []
    for photo, name in zip(photos, names, strict=True):
        try:
            pixels = read_photo(photo)
            crop = estimate(pixels, config)
        except OutputError:
            raise
        except HeadliftError as error:
            complain(f"left out: {error}" if str(photo) in str(error) else f"left out {photo.name}: {error}")
            continue
        write_png(out / name, to_uint8(crop.image))
        write_png(overlays / name, shrink(pose_overlay(pixels, crop), OVERLAY_SIDE))
        labels.append((name, label_of(crop)))
        write_text(out / "dataset.json", json.dumps({"labels": labels}))
        notice(f"{photo.name}: {pose_line(crop)}")
    return len(labels), len(photos) - len(labels)


def forget(out: Path, overlays: Path) -> None:
    """Remove a `dataset.json` with the crops that it names, and their overlays. Raises OutputError if that fails."""
    index = out / "dataset.json"
    try:
        names = [str(name) for name, _ in json.loads(index.read_text(encoding="utf-8"))["labels"]]
    except (OSError, ValueError, KeyError, TypeError):
        return
    try:
        for name in names:
            for file in (out / name, overlays / name):
                if Path(name).name == name and file.is_file():
                    file.unlink()
        index.unlink()
    except OSError as error:
        raise output_error(index, error) from error


def overlay_folder(out: Path) -> Path:
    """Where the overlays of a folder of crops lie."""
    whole = out.resolve()
    return whole.parent / f"{whole.name}-overlay"


def photos_in(folder: Path) -> list[Path]:
    """The photos of a folder, by name.

    Raises:
        PhotoError: it has none, or is no folder.
    """
    if not folder.is_dir():
        raise PhotoError(f"{folder} is not a folder of photos.")
    photos = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not photos:
        raise PhotoError(f"{folder} holds no photos ({', '.join(sorted(SUFFIXES))}).")
    return photos


def label_of(crop: Crop) -> list[float]:
    """EG3D's 25-number camera label of a crop."""
    return [float(value) for value in crop.camera.label[0]]


def camera_json(crop: Crop) -> str:
    """The camera that belongs to `crop.png`, the way back into the photo, and how sure all this is."""
    yaw, pitch = (math.degrees(float(angle)) for angle in yaw_pitch(crop.camera))
    record = {
        "label": label_of(crop),
        "frame": crop.frame,
        "yaw_degrees": yaw,
        "pitch_degrees": pitch,
        "roll_degrees": math.degrees(crop.similarity.roll),
        "photo_to_crop": crop.similarity.matrix.tolist(),
        "residual": crop.residual,
        "covariance_yaw_pitch": crop.covariance.tolist(),
        "verdict": {
            "ok": crop.verdict.ok,
            "findings": [
                {"name": f.name, "value": f.value, "limit": f.limit, "ok": f.ok, "message": f.message}
                for f in crop.verdict.findings
            ],
        },
    }
    return json.dumps(record, indent=1)


def pose_line(crop: Crop) -> str:
    """Angles with their standard deviations and the residual, in words."""
    yaw, pitch = (math.degrees(float(angle)) for angle in yaw_pitch(crop.camera))
    spread = [math.degrees(math.sqrt(float(variance))) for variance in crop.covariance.diagonal()]
    return (
        f"yaw {yaw:+.1f} (+-{spread[0]:.1f}), pitch {pitch:+.1f} (+-{spread[1]:.1f}) degrees, "
        f"residual {100 * crop.residual:.2f} % of the crop"
    )
