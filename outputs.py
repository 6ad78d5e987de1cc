"""Files from heads: what a reconstruction writes, and what is exported from a head later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from headlift.config import ExportConfig, ReconstructConfig, VideoConfig, to_table
from headlift.device import find_device
from headlift.eg3d.generator import Generator
from headlift.errors import ConfigError
from headlift.export.files import refuse_existing, write_text
from headlift.export.formats import SUFFIXES as MESH_SUFFIXES
from headlift.export.formats import write_mesh
from headlift.export.head_mesh import extract_mesh
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
from headlift.export.paths import path_cameras, read_cameras
from headlift.export.report import Report, write_report
from headlift.export.video import SUFFIXES as VIDEO_SUFFIXES
from headlift.export.video import render_path, write_video
from headlift.head import load_head, save_head
from headlift.pipeline import Reconstruction
from headlift.poses import OVERLAY_SIDE, camera_json
from headlift.values import Camera, Crop, Step

HEAD = "head.safetensors"

Frame = UInt8[np.ndarray, "h w 3"]


def write_crop(out: Path, photo: UInt8[np.ndarray, "h w 3"], crop: Crop) -> None:
    """`crop.png`, `pose.png` and `camera.json`, as estimated."""
    write_png(out / "crop.png", to_uint8(crop.image))
    write_png(out / "pose.png", shrink(pose_overlay(photo, crop), OVERLAY_SIDE))
    write_text(out / "camera.json", camera_json(crop))


def write_results(
    out: Path, name: str, config: ReconstructConfig, result: Reconstruction, on_step: Callable[[Step], None]
) -> None:
    """Everything that a finished inversion gives, the head file first; `name` is what the report calls it."""
    inversion = result.inversion
    save_head(out / HEAD, inversion, result.base, result.base_sha256, result.crop, config)
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
        name=name,
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
