"""Files from heads: what a reconstruction writes, and what is exported from a head later."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from headlift import __version__
from headlift.config import ExportConfig, MeshConfig, ReconstructConfig, VideoConfig, to_table
from headlift.device import find_device
from headlift.eg3d.generator import Generator
from headlift.errors import ConfigError
from headlift.export.clean import Quality, quality
from headlift.export.files import refuse_existing, write_text
from headlift.export.formats import SUFFIXES as MESH_SUFFIXES
from headlift.export.formats import companions, write_mesh
from headlift.export.head_mesh import check_mesh, extract_mesh
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
from headlift.export.mesh import Mesh
from headlift.export.paths import PATHS, check_video, path_cameras, read_cameras, write_cameras
from headlift.export.placement import Placement
from headlift.export.report import Report, write_report
from headlift.export.splats import splats_of, write_splats
from headlift.export.texture import Photo
from headlift.export.video import SUFFIXES as VIDEO_SUFFIXES
from headlift.export.video import render_path, write_video
from headlift.head import HEAD, Head, head_file, load_head, save_head, without_outer
from headlift.pipeline import Reconstruction
from headlift.poses import OVERLAY_SIDE, camera_json
from headlift.values import Camera, Crop, Step
from headlift.weights import licence

MAPS = ("depth.png", "depth-color.png", "normals.png")

Frame = UInt8[np.ndarray, "h w 3"]


def write_crop(out: Path, photo: UInt8[np.ndarray, "h w 3"], crop: Crop) -> None:
    """`crop.png`, `pose.png` and `camera.json`, as estimated."""
    write_png(out / "crop.png", to_uint8(crop.image))
    write_png(out / "pose.png", shrink(pose_overlay(photo, crop), OVERLAY_SIDE))
    write_text(out / "camera.json", camera_json(crop))


def results() -> list[str]:
    """The files that `write_results` writes, and those that `export_head` adds to them when it names them itself."""
    meshes = [Path(f"mesh{suffix}") for suffix in MESH_SUFFIXES]
    beside = [file.name for mesh in meshes for file in companions(mesh, True)]
    names = [HEAD, "camera.json", *(mesh.name for mesh in meshes), *beside]
    videos = [f"{moving}{suffix}" for moving in PATHS for suffix in VIDEO_SUFFIXES]
    return list(dict.fromkeys([*names, "views.png", *videos, *MAPS, "report.html"]))


def write_results(
    out: Path, name: str, config: ReconstructConfig, result: Reconstruction, on_step: Callable[[Step], None]
) -> None:
    """Everything that a finished inversion gives, the head file first; `name` is what the report calls it."""
    inversion = result.inversion
    save_head(out / HEAD, inversion, result.base, result.base_sha256, result.crop, config)
    refined = replace(result.crop, camera=inversion.camera.to("cpu"))
    write_text(out / "camera.json", camera_json(refined))
    placement = Placement.of(config.mesh, result.mesh.vertices)
    for suffix in config.mesh_formats:
        write_mesh(
            result.mesh,
            out / f"mesh.{suffix}",
            placement,
            {"photo": refined.camera},
            config.mesh.unlit,
            provenance(config.weights, result.base_sha256),
        )
    generator, planes, ws = inversion.generator, result.planes, inversion.ws
    with torch.no_grad():
        seen = generator.render(planes, ws, inversion.camera)
        views = views_grid(generator, planes, ws)
        write_png(out / "views.png", views)
        write_turntable(out / "turntable.mp4", generator, planes, ws, path_cameras(config.video), config.video, on_step)
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
        placement=placement,
        history=inversion.history,
        reason=inversion.reason,
        metrics=dict(inversion.metrics),
        seconds=dict(result.seconds),
        settings=to_table(config),
        facts={
            "generator": f"{config.weights} ({result.base_sha256[:12]})",
            "licence of the result": licence(config.weights),
        },
    )
    write_report(out / "report.html", report)


def write_turntable(
    path: Path,
    generator: Generator,
    planes: Float[Tensor, "1 j c p p"],
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
    on_quality: Callable[[Quality], None] = lambda quality: None,
) -> list[Path]:
    """Write files from a head (a head file or a run folder), by default beside it; returns them.

    `on_quality` is told of what can be said about the mesh, when there is one.

    Raises:
        ConfigError: nothing, an unknown format or one file twice was asked for, or settings that mean nothing.
        HeadFileError: the head cannot be read or its base is missing.
        MeshError: the head has no surface.
        OutputError: files are in the way and `overwrite` was not asked for, or the place cannot be written.
    """
    check_formats(config.videos, VIDEO_SUFFIXES, "video")
    source = head_file(path)
    folder = out or source.parent
    moving = config.cameras.stem if config.cameras else config.video.path
    meshes = [mesh_file(asked, folder) for asked in config.meshes]
    beside = [file for mesh in meshes for file in companions(mesh, config.mesh.colors and config.mesh.texture)]
    videos = [folder / f"{moving}.{suffix}" for suffix in config.videos]
    views = [folder / "views.png"] if config.views else []
    maps = [folder / name for name in MAPS] if config.maps else []
    figures = [file for file in (config.splats, config.quality, config.cameras_out) if file is not None]
    written = [*dict.fromkeys(meshes + beside), *figures, *dict.fromkeys(videos), *views, *maps]
    if not written:
        raise ConfigError("nothing to write: ask for --mesh FILE.glb, --meshes glb, --videos mp4, --views or --maps")
    check_figures(config, written)
    refuse_existing(written, overwrite)
    kinds = {target.suffix.lower() for target in meshes}
    if meshes or config.splats or config.quality:
        check_mesh(config.mesh, kinds)
    check_video(config.video)
    cameras = read_cameras(config.cameras) if config.cameras else path_cameras(config.video)

    whole = load_head(source, config.weights, find_device(config.device))
    head = whole if config.additions else without_outer(whole)
    generator, ws = head.generator, head.ws
    with torch.no_grad():
        planes = generator.planes(ws)
        if meshes or config.splats or config.quality:
            on_step(Step("mesh", 0, 1))
            bare = kinds == {".stl"} and not config.splats  # STL has no colours
            # What was taken off is still in the photo.
            wanted = replace(
                config.mesh, colors=config.mesh.colors and not bare, photo=config.mesh.photo and head is whole
            )
            mesh = head_mesh(head, planes, wanted)
            placement = Placement.of(config.mesh, mesh.vertices)
            about = provenance(head.base_name, head.base_sha256, head.edits)
            for target in meshes:
                write_mesh(mesh, target, placement, {"photo": head.camera.to("cpu")}, config.mesh.unlit, about)
            if config.splats:
                write_splats(config.splats, splats_of(generator, planes, mesh), placement.metres_per_unit)
            found = quality(mesh, placement.metres_per_unit)
            if config.quality:
                write_text(config.quality, json.dumps(asdict(found), indent=1) + "\n")
            on_quality(found)
            on_step(Step("mesh", 1, 1))
        if config.cameras_out:
            write_cameras(config.cameras_out, cameras)
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


def check_figures(config: ExportConfig, written: list[Path]) -> None:
    """Raises ConfigError for figures of another format than their suffix says, a file that is `written` twice, splats
    without colours, or a camera path that nothing follows."""
    places = [path.resolve() for path in written]
    twice = [path for path, place in zip(written, places, strict=True) if places.count(place) > 1]
    if twice:
        raise ConfigError(f"{twice[0]} is to be two files at once; give each a name of its own")
    for flag, file, suffixes in (
        ("--splats", config.splats, (".ply",)),
        ("--quality", config.quality, (".json",)),
        ("--cameras-out", config.cameras_out, (".json", ".csv")),
    ):
        if file is not None and file.suffix.lower() not in suffixes:
            raise ConfigError(f"{flag} writes {' or '.join(suffixes)}, not {file.name!r}")
    if config.splats and not config.mesh.colors:
        raise ConfigError("--splats needs colours; leave --mesh.no-colors out")
    if config.cameras and not (config.videos or config.cameras_out):
        raise ConfigError("--cameras is the path of videos; say which with --videos mp4")


def head_mesh(head: Head, planes: Float[Tensor, "1 j c p p"], config: MeshConfig) -> Mesh:
    """The mesh of a head whose tri-planes are known; the photo is on its texture unless the head was edited since.

    Raises:
        MeshError: the head has no surface.
    """
    image = torch.from_numpy(np.array(head.image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    mask = torch.from_numpy(np.array(head.mask))[None, None].float() / 255
    photo = None if head.edits else Photo(image, mask, head.camera.to("cpu"))
    return extract_mesh(head.generator, planes, head.ws, config, head.camera, photo=photo)


def mesh_file(asked: str, folder: Path) -> Path:
    """The file that a format or a file's name stands for: `glb` is mesh.glb in the folder.

    Raises:
        ConfigError: headlift does not write this format.
    """
    path = Path(asked)
    if not path.suffix:
        check_formats((asked,), MESH_SUFFIXES, "mesh")
        return folder / f"mesh.{asked}"
    check_formats((path.suffix[1:].lower(),), MESH_SUFFIXES, "mesh")
    return path


def provenance(weights: str, sha256: str, edits: tuple[Mapping[str, object], ...] = ()) -> dict[str, object]:
    """Where a mesh comes from, for the file itself: no name of a photo or of a folder."""
    return {
        "version": __version__,
        "weights": Path(weights).name,
        "weights_sha256": sha256,
        "licence": licence(weights),
        "edits": len(edits),
    }


def check_formats(asked: tuple[str, ...], known: tuple[str, ...], kind: str) -> None:
    """Raises ConfigError when a format is not among the known suffixes."""
    for name in asked:
        if f".{name}" not in known:
            raise ConfigError(f"unknown {kind} format {name!r}; there are {', '.join(s[1:] for s in known)}")
