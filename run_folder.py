"""A run on the disk: what a photo and its settings gave, resumable, never half-written.

A folder holds `head.safetensors`, `mesh.*`, `turntable.mp4`, `views.png`, `crop.png`, `pose.png`, `camera.json`,
`report.html`, `config.toml` and `log.jsonl`. While a run is under way it also holds `resume.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from headlift import __version__
from headlift.config import ExportConfig, ReconstructConfig, VideoConfig, to_table
from headlift.eg3d.generator import Generator
from headlift.errors import ConfigError, OutputError
from headlift.export.files import output_error, refuse_existing, write_text
from headlift.export.formats import SUFFIXES as MESH_SUFFIXES
from headlift.export.formats import write_mesh
from headlift.export.images import (
    depth_in_color,
    depth_to_uint16,
    normal_map,
    pose_overlay,
    shrink,
    to_uint8,
    views_grid,
    write_png,
)
from headlift.export.mesh import extract_mesh
from headlift.export.paths import path_cameras, read_cameras
from headlift.export.report import Report, write_report
from headlift.export.video import SUFFIXES as VIDEO_SUFFIXES
from headlift.export.video import render_path, write_video
from headlift.head import load_head, load_state, save_head, save_state
from headlift.photo import read_photo
from headlift.pipeline import Reconstruction, find_device, reconstruct
from headlift.poses import OVERLAY_SIDE, camera_json
from headlift.types import Camera, Crop, Step
from headlift.weights import load_generator

CONFIG = "config.toml"
HEAD = "head.safetensors"
STATE = "resume.safetensors"
LOG = "log.jsonl"

Frame = UInt8[np.ndarray, "h w 3"]


class Status(Enum):
    """What a folder holds for a photo and its settings."""

    NEW = "nothing yet"
    INTERRUPTED = "an interrupted run of this photo with these settings"
    DONE = "the finished run of this photo with these settings"
    OTHER = "something else"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, and what identifies that run: the photo's bytes and the settings."""

    path: Path
    photo: Path
    photo_sha256: str
    config: ReconstructConfig

    @classmethod
    def of(cls, path: Path, photo: Path, config: ReconstructConfig) -> RunFolder:
        """The folder for a photo that has already been found readable."""
        return cls(path, photo, hashlib.sha256(photo.read_bytes()).hexdigest(), config)

    def status(self) -> Status:
        """What is there now.

        Raises:
            OutputError: the path is a file or cannot be looked into.
        """
        if not self.path.exists():
            return Status.NEW
        if not self.path.is_dir():
            raise OutputError(f"{self.path} is a file; results need a folder. Give another --out.")
        try:
            if not any(self.path.iterdir()):
                return Status.NEW
            known = tomllib.loads((self.path / CONFIG).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return Status.OTHER
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
            return Status.OTHER
        run = known.pop("run", {})
        if run.get("photo_sha256") != self.photo_sha256 or known != to_table(self.config):
            return Status.OTHER
        return Status.DONE if run.get("finished") else Status.INTERRUPTED

    def check(self, overwrite: bool) -> Status:
        """How the run would start: NEW, INTERRUPTED (resume) or DONE (nothing to do). Writes nothing.

        Raises:
            OutputError: the folder holds something else and `overwrite` was not asked for.
        """
        status = self.status()
        if status is Status.OTHER and not overwrite:
            raise OutputError(
                f"{self.path} already holds results of another photo or other settings. "
                "Give another --out, or --overwrite to replace them."
            )
        return Status.NEW if overwrite else status

    def begin(self, status: Status) -> None:
        """Make the folder ready for a run that starts as `check` said.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if status is Status.NEW:
                (self.path / STATE).unlink(missing_ok=True)
                (self.path / LOG).unlink(missing_ok=True)
        except OSError as error:
            raise output_error(self.path, error) from error
        self.write_config(finished=False)

    def write_config(self, finished: bool) -> None:
        """Write the settings with what identifies the run."""
        import tomli_w

        table = to_table(self.config)
        table["run"] = {
            "photo": self.photo.name,
            "photo_sha256": self.photo_sha256,
            "headlift": __version__,
            "finished": finished,
        }
        write_text(self.path / CONFIG, tomli_w.dumps(table))

    def finish(self) -> None:
        """Mark the run as done and drop what only a resumption needs."""
        (self.path / STATE).unlink(missing_ok=True)
        self.write_config(finished=True)

    def log(self) -> Callable[[dict[str, object]], None]:
        """A function that appends one record to `log.jsonl`."""
        target = self.path / LOG

        def append(record: dict[str, object]) -> None:
            try:
                with target.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(record) + "\n")
            except OSError as error:
                raise output_error(target, error) from error

        return append


def reconstruct_into(
    photo: Path,
    config: ReconstructConfig,
    out: Path,
    overwrite: bool = False,
    on_step: Callable[[Step], None] = lambda step: None,
    should_stop: Callable[[], bool] = lambda: False,
    notice: Callable[[str], None] = lambda text: None,
) -> Reconstruction | None:
    """Reconstruct a photo into a folder: resume an interrupted run, or None when it is done already.

    Nothing is written before the photo has been found usable. When `should_stop` ends the optimisation, what there is is
    written, and the same call later goes on from there.

    Raises:
        HeadliftError: whatever is wrong with the photo, the settings or the folder.
    """
    check_formats(config.mesh_formats, MESH_SUFFIXES, "mesh")
    pixels = read_photo(photo)
    run = RunFolder.of(out, photo, config)
    status = run.check(overwrite)
    if status is Status.DONE:
        return None
    resume = None
    if status is Status.INTERRUPTED and (out / STATE).exists():
        resume = load_state(out / STATE)
        notice(f"going on from step {resume.step} of stage {resume.stage!r}")
    log = run.log()

    def begin(crop: Crop) -> None:
        run.begin(status)
        for finding in crop.verdict.findings:
            if not finding.ok:
                notice(f"warning: {finding.message}")
        write_crop(out, pixels, crop)

    def step(event: Step) -> None:
        log({"stage": event.stage, "step": event.index, "of": event.total, **event.losses})
        on_step(event)

    result = reconstruct(pixels, config, step, should_stop, begin, resume, lambda state: save_state(out / STATE, state))
    write_results(run, result, on_step)
    if not should_stop():
        run.finish()
    return result


def write_crop(out: Path, photo: UInt8[np.ndarray, "h w 3"], crop: Crop) -> None:
    """`crop.png`, `pose.png` and `camera.json`, as estimated."""
    write_png(out / "crop.png", to_uint8(crop.image))
    write_png(out / "pose.png", shrink(pose_overlay(photo, crop), OVERLAY_SIDE))
    write_text(out / "camera.json", camera_json(crop))


def write_results(run: RunFolder, result: Reconstruction, on_step: Callable[[Step], None]) -> None:
    """Everything a finished inversion gives: the head file first, the report last."""
    out, config, inversion = run.path, run.config, result.inversion
    base, _ = load_generator(config.weights, "cpu")
    save_head(out / HEAD, inversion, base, result.base_sha256, result.crop, config)
    refined = replace(result.crop, camera=inversion.camera.to("cpu"))
    write_text(out / "camera.json", camera_json(refined))
    for suffix in config.mesh_formats:
        write_mesh(result.mesh, out / f"mesh.{suffix}", config.mesh.metres_per_unit, {"photo": refined.camera})
    generator, planes, ws = inversion.generator, result.planes, inversion.ws
    with torch.no_grad():
        seen = generator.render(planes, ws, inversion.camera)
        views = views_grid(generator, planes, ws)
        write_png(out / "views.png", views)
        write_turntable(out / "turntable.mp4", generator, planes, ws, path_cameras(config.video), config.video, on_step)
    licence = "Apache-2.0" if config.weights == "embedded" else "that of its weights"
    report = Report(
        name=run.photo.name,
        photo=result.photo,
        crop=refined,
        target=to_uint8(inversion.target.image),
        inversion=to_uint8(seen.image),
        views=views,
        depth=depth_in_color(seen.depth, seen.alpha),
        normals=normal_map(seen.depth, seen.alpha, inversion.camera),
        mesh=result.mesh,
        metres_per_unit=config.mesh.metres_per_unit,
        history=inversion.history,
        reason=inversion.reason,
        metrics=dict(inversion.metrics),
        seconds=dict(result.seconds),
        settings=to_table(config),
        facts={"generator": f"{config.weights} ({result.base_sha256[:12]})", "licence of the result": licence},
    )
    write_report(out / "report.html", report)


def write_turntable(
    path: Path,
    generator: Generator,
    planes: Float[Tensor, "1 3 c p p"],
    ws: Float[Tensor, "1 n w"],
    cameras: Camera,
    video: VideoConfig,
    on_step: Callable[[Step], None],
) -> None:
    """A video along a camera path, its frames reported as steps."""
    total = len(cameras)

    def frames() -> Iterator[Frame]:
        for i, frame in enumerate(render_path(generator, planes, ws, cameras, video.size)):
            on_step(Step("video", i + 1, total))
            yield frame

    write_video(frames(), path, video.fps)


def export_head(
    path: Path,
    out: Path | None,
    config: ExportConfig,
    overwrite: bool = False,
    on_step: Callable[[Step], None] = lambda step: None,
) -> list[Path]:
    """Write files from a head (a head file or a run folder), by default beside it; returns them.

    Raises:
        ConfigError: nothing or an unknown format was asked for.
        HeadFileError: the head cannot be read or its base is missing.
        OutputError: files are in the way and `overwrite` was not asked for, or the place cannot be written.
    """
    check_formats(config.meshes, MESH_SUFFIXES, "mesh")
    check_formats(config.videos, VIDEO_SUFFIXES, "video")
    source = path / HEAD if path.is_dir() and (path / HEAD).exists() else path
    folder = out or source.parent
    moving = config.cameras.stem if config.cameras else config.video.path
    meshes = [folder / f"mesh.{suffix}" for suffix in config.meshes]
    videos = [folder / f"{moving}.{suffix}" for suffix in config.videos]
    views = [folder / "views.png"] if config.views else []
    maps = [folder / name for name in ("depth.png", "depth-color.png", "normals.png")] if config.maps else []
    written = meshes + videos + views + maps
    if not written:
        raise ConfigError("nothing to write: ask for --meshes glb, --videos mp4, --views or --maps")
    refuse_existing(written, overwrite)
    cameras = read_cameras(config.cameras) if config.cameras else path_cameras(config.video)

    head = load_head(source, config.weights, find_device(config.device))
    generator, ws = head.generator, head.ws
    with torch.no_grad():
        planes = generator.planes(ws)
        if meshes:
            mesh = extract_mesh(generator, planes, ws, config.mesh, head.camera)
            for target in meshes:
                write_mesh(mesh, target, config.mesh.metres_per_unit, {"photo": head.camera.to("cpu")})
        for target in videos:
            write_turntable(target, generator, planes, ws, cameras, config.video, on_step)
        if views:
            write_png(views[0], views_grid(generator, planes, ws))
        if maps:
            seen = generator.render(planes, ws, head.camera)
            write_png(maps[0], depth_to_uint16(seen.depth, seen.alpha))
            write_png(maps[1], depth_in_color(seen.depth, seen.alpha))
            write_png(maps[2], normal_map(seen.depth, seen.alpha, head.camera))
    return written


def check_formats(asked: tuple[str, ...], known: tuple[str, ...], kind: str) -> None:
    """Raises ConfigError when a format is not among the known suffixes."""
    for name in asked:
        if f".{name}" not in known:
            raise ConfigError(f"unknown {kind} format {name!r}; there are {', '.join(s[1:] for s in known)}")
