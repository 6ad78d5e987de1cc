"""Camera paths: ready-made ones, and files of cameras in and out.

Angles are radians in Python and degrees in files that people write by hand (`yaw`, `pitch` tables).
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from headlift.config import VideoConfig
from headlift.eg3d.camera import FFHQ_RADIUS, WHOLE_HEAD_FOCAL, WHOLE_HEAD_PIVOT, orbit, yaw_pitch
from headlift.errors import ConfigError
from headlift.export.files import write_text
from headlift.export.views import orbit_cameras
from headlift.values import Camera

SMALLEST = 16
"""Side of the smallest video, pixels."""


def turntable(frames: int, pitch: float = 0.0) -> Camera:
    """Once around the whole head at one height (radians), starting in front; the last frame leads into the first.

    Yaw rises from frame to frame: the camera goes to +x, and the head seems to turn its face to our left.
    """
    return orbit_cameras(torch.arange(frames) * (2 * math.pi / frames), pitch)


def sway(frames: int, yaw: float = 0.35, pitch: float = 0.2) -> Camera:
    """An ellipse in front of the face with EG3D's crop camera; `yaw` and `pitch` (radians) are its half axes."""
    t = torch.arange(frames) * (2 * math.pi / frames)
    return orbit(yaw * torch.sin(t), pitch * torch.cos(t))


PATHS: dict[str, Callable[[int], Camera]] = {"turntable": turntable, "sway": sway}
"""The ready-made ones, by the names that `VideoConfig.path` and videos have."""


def check_video(config: VideoConfig) -> None:
    """Raises ConfigError for settings that give no video."""
    if config.frames < 1 or config.fps < 1 or (config.size is not None and config.size < SMALLEST):
        raise ConfigError(
            "a video needs at least one frame (--video.frames), one frame a second (--video.fps) and "
            f"{SMALLEST} pixels a side (--video.size)"
        )


def path_cameras(config: VideoConfig) -> Camera:
    """The cameras of a video's settings. Raises ConfigError when these give no video."""
    check_video(config)
    return PATHS[config.path](config.frames)


def read_cameras(path: Path | str) -> Camera:
    """Cameras from a file.

    - `.json` with `labels` as in EG3D's `dataset.json` ([[name, 25 numbers], ...] or {name: 25 numbers}), or a list of
      25-number labels, or a list (or `cameras`) of tables such as {"yaw": 30, "pitch": 0};
    - `.csv` with a header that names `yaw` and `pitch` (degrees) and, if wanted, `radius` (world units), `focal`
      (picture sides), `x`, `y`, `z` (what the camera looks at); or 25 numbers a line without a header.

    What a table leaves out is the whole-head camera: radius 2.7, focal 3.1, looking at (0, -0.02, 0).
    Raises ConfigError when the file is missing or does not hold cameras; the message names the entry.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the camera path cannot be read ({error}). Give a .json or .csv file.") from error
    entries = _json_entries(path, text) if path.suffix.lower() == ".json" else _csv_entries(path, text)
    if not entries:
        raise ConfigError(f"{path}: there are no cameras in it. Give at least one line of yaw and pitch in degrees.")
    cameras = [_camera(path, number, entry) for number, entry in enumerate(entries, start=1)]
    return Camera(torch.cat([c.cam2world for c in cameras]), torch.cat([c.intrinsics for c in cameras]))


def cameras_json(cameras: Camera, names: Sequence[str] | None = None) -> str:
    """Cameras as JSON that `read_cameras` and EG3D's dataset tools read: `labels`, with yaw and pitch for people."""
    labels = cameras.label.detach().cpu().double().reshape(-1, 25).tolist()
    names = list(names) if names is not None else [f"{i:05d}" for i in range(len(labels))]
    yaw, pitch = yaw_pitch(cameras)
    angles = [
        {"name": name, "yaw": round(math.degrees(y), 4), "pitch": round(math.degrees(p), 4)}
        for name, y, p in zip(names, yaw.tolist(), pitch.tolist(), strict=True)
    ]
    rows = ",\n  ".join(json.dumps([name, label]) for name, label in zip(names, labels, strict=True))
    return f'{{"labels": [\n  {rows}\n ],\n "degrees": {json.dumps(angles)}}}\n'


def cameras_csv(cameras: Camera) -> str:
    """Cameras as CSV that `read_cameras` reads: 25 numbers a line, cam2world row by row and then the intrinsics."""
    labels = cameras.label.detach().cpu().double().reshape(-1, 25).tolist()
    return "".join(",".join(f"{value:.9g}" for value in label) + "\n" for label in labels)


def write_cameras(path: Path | str, cameras: Camera, names: Sequence[str] | None = None) -> None:
    """Write cameras as CSV or, with any other suffix, as JSON. Raises OutputError when the place cannot be written."""
    csv_wanted = Path(path).suffix.lower() == ".csv"
    write_text(path, cameras_csv(cameras) if csv_wanted else cameras_json(cameras, names))


def _json_entries(path: Path, text: str) -> list[Any]:
    try:
        content: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not valid JSON ({error}).") from error
    if isinstance(content, dict):
        content = content.get("labels", content.get("cameras"))
        if isinstance(content, dict):
            content = list(content.items())
    if not isinstance(content, list):
        raise ConfigError(f"{path}: no `labels` and no `cameras` in it, and it is not a list of cameras.")
    entries: list[Any] = []
    for item in content:
        named = isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[0], str)
        entries.append(item[1] if named else item)
    return entries


def _csv_entries(path: Path, text: str) -> list[Any]:
    rows = [row for row in csv.reader(io.StringIO(text)) if any(cell.strip() for cell in row)]
    if not rows:
        return []
    names = [cell.strip().lower() for cell in rows[0]]
    if "yaw" in names:
        return [_numbers(path, n, dict(zip(names, row, strict=False))) for n, row in enumerate(rows[1:], start=1)]
    return [list(_numbers(path, n, dict(enumerate(row))).values()) for n, row in enumerate(rows, start=1)]


def _numbers(path: Path, number: int, cells: dict[Any, str]) -> dict[Any, float]:
    try:
        return {name: float(cell) for name, cell in cells.items() if cell.strip()}
    except ValueError as error:
        raise ConfigError(
            f"{path}: line {number} of the cameras is not all numbers ({error}). Name the columns in the first line: "
            "yaw,pitch (degrees)."
        ) from error


_FIELDS = ("yaw", "pitch", "radius", "focal", "x", "y", "z")


def _camera(path: Path, number: int, entry: Any) -> Camera:
    if isinstance(entry, dict):
        unknown = [str(name) for name in entry if name not in _FIELDS and name not in ("name", "frame")]
        numeric = all(isinstance(entry[n], int | float) and math.isfinite(entry[n]) for n in _FIELDS if n in entry)
        if "yaw" not in entry or unknown or not numeric:
            what = f"unknown {', '.join(unknown)}" if unknown else "yaw is missing, or a value is not a number"
            raise ConfigError(f"{path}: camera {number}: {what}. A camera may have {', '.join(_FIELDS)}.")
        radius = float(entry.get("radius", FFHQ_RADIUS))
        pivot = tuple(float(entry.get(axis, usual)) for axis, usual in zip("xyz", WHOLE_HEAD_PIVOT, strict=True))
        focal = float(entry.get("focal", WHOLE_HEAD_FOCAL))
        yaw, pitch = (math.radians(entry.get(name, 0.0)) for name in ("yaw", "pitch"))
        camera = orbit(yaw, pitch, radius, pivot, focal)
        if radius <= 0 or not _is_camera(camera):
            raise ConfigError(
                f"{path}: camera {number}: radius and focal must be above 0, and it cannot look at its own place."
            )
        return camera
    if isinstance(entry, list) and len(entry) == 25 and all(isinstance(v, int | float) for v in entry):
        camera = Camera.from_label(torch.tensor(entry, dtype=torch.float32)[None])
        if not _is_camera(camera):
            raise ConfigError(f"{path}: camera {number}: these 25 numbers are no camera (rotation or focal is off).")
        return camera
    raise ConfigError(
        f"{path}: camera {number} is neither 25 numbers (cam2world row by row, then intrinsics) nor a table with yaw "
        "and pitch in degrees."
    )


def _is_camera(camera: Camera) -> bool:
    """Whether one camera has finite numbers, a proper rotation and a focal length."""
    rotation = camera.rotation[0]
    proper = torch.allclose(rotation @ rotation.T, torch.eye(3), atol=1e-2) and float(torch.det(rotation)) > 0
    return bool(torch.isfinite(camera.label).all()) and proper and float(camera.intrinsics[0, 0, 0]) > 0
