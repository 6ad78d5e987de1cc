"""Random heads of a generator: codes from seeds, their pictures, mixtures and walks between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from headlift.config import GenerateConfig
from headlift.device import find_device
from headlift.editing.mix import style_mix, walk
from headlift.editing.ranges import parse_ranges
from headlift.eg3d.camera import orbit
from headlift.eg3d.generator import Generator
from headlift.errors import ConfigError
from headlift.export.files import refuse_existing
from headlift.export.formats import SUFFIXES as MESH_SUFFIXES
from headlift.export.formats import companions, write_mesh
from headlift.export.head_mesh import check_mesh, extract_mesh
from headlift.export.images import grid, to_uint8, write_png
from headlift.export.placement import Placement
from headlift.export.video import write_video
from headlift.export.views import orbit_cameras
from headlift.outputs import check_formats, provenance
from headlift.values import Camera, Step
from headlift.weights import load_generator


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from a list of numbers and ranges such as `0-3,7`.

    Raises:
        ConfigError: it is no such list, or names too many.
    """
    return parse_ranges(text, "seeds", 2**32)


@torch.no_grad()
def codes_of_seeds(
    generator: Generator, seeds: Sequence[int], truncation: float, cutoff: int | None = None
) -> Float[Tensor, "n layers w"]:
    """Codes of the heads that EG3D's own tools give for these seeds (normal numbers of NumPy's RandomState)."""
    z = np.stack([np.random.RandomState(seed).randn(generator.spec.mapping.z_dim) for seed in seeds])
    device = generator.w_avg.device
    return generator.mapping(torch.from_numpy(z).float().to(device), None, truncation, cutoff)


@torch.no_grad()
def pictures(
    generator: Generator, codes: Float[Tensor, "n layers w"], cameras: Camera
) -> Iterator[list[UInt8[np.ndarray, "h w 3"]]]:
    """For each code, its picture from each camera; planes are computed once a head."""
    for code in codes:
        ws = code[None]
        planes = generator.planes(ws)
        yield [to_uint8(generator.render(planes, ws, cameras[i : i + 1]).image) for i in range(len(cameras))]


@torch.no_grad()
def mixtures(
    generator: Generator,
    shapes: Float[Tensor, "n layers w"],
    looks: Float[Tensor, "m layers w"],
    layer: int,
    camera: Camera,
) -> list[list[UInt8[np.ndarray, "h w 3"]]]:
    """Table of style mixtures: row i has the shape of `shapes[i]`, column j the colours of `looks[j]`."""
    rows = []
    for shape in shapes:
        mixed = torch.cat([style_mix(shape[None], look[None], layer) for look in looks])
        rows.append([views[0] for views in pictures(generator, mixed, camera)])
    return rows


@torch.no_grad()
def interpolation(
    generator: Generator, keyframes: Float[Tensor, "k layers w"], frames: int
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """A looping walk from head to head while the camera sways: yaw 20 degrees to either side, twice a keyframe."""
    turns = max(1, len(keyframes))
    for i, code in enumerate(walk(keyframes, frames)):
        phase = 2 * math.pi * i / frames
        camera = orbit(math.radians(20) * math.sin(turns * phase), math.radians(4) * math.cos(turns * phase))
        ws = code[None]
        yield to_uint8(generator.render(generator.planes(ws), ws, camera.to(ws.device)).image)


def generate_into(
    folder: Path,
    config: GenerateConfig,
    overwrite: bool = False,
    on_step: Callable[[Step], None] = lambda step: None,
) -> list[Path]:
    """Write random heads: `seedNNNN.png` for each, `grid.png`, and what else was asked for; returns the files.

    Raises:
        ConfigError: seeds, layers or formats that do not exist, or numbers that make no grid, camera or video; nothing
            is rendered before.
        OutputError: files are in the way and `overwrite` was not asked for, or the place cannot be written.
    """
    seeds = parse_seeds(config.seeds)
    mixed = parse_seeds(config.mix) if config.mix else ()
    _check(config)
    check_formats(config.meshes, MESH_SUFFIXES, "mesh")
    cameras = _cameras(config)
    names = [f"seed{seed:04d}.png" for seed in seeds] + ["grid.png"]
    meshes = [folder / f"seed{seed:04d}.{suffix}" for seed in seeds for suffix in config.meshes]
    textures = config.mesh.colors and config.mesh.texture
    names += [file.name for mesh in meshes for file in (mesh, *companions(mesh, textures))]
    names += ["walk.mp4"] if config.video else []
    names += ["mix.png"] if mixed else []
    written = [folder / name for name in dict.fromkeys(names)]
    refuse_existing(written, overwrite)
    if config.meshes:
        check_mesh(config.mesh, [f".{suffix}" for suffix in config.meshes])

    generator, sha256 = load_generator(config.weights, find_device(config.device))
    layer = generator.num_ws // 2 if config.mix_layer is None else config.mix_layer
    if mixed and layer > generator.num_ws:
        layers = generator.num_ws
        raise ConfigError(f"--mix-layer is {layer}, but this generator has {layers} layers; take 0 to {layers}")
    codes = codes_of_seeds(generator, seeds, config.truncation, config.truncation_cutoff)
    cameras = cameras.to(codes.device)
    sheet = []
    for i, views in enumerate(pictures(generator, codes, cameras)):
        write_png(folder / names[i], grid(views, columns=len(views)))
        sheet.extend(views)
        on_step(Step("heads", i + 1, len(seeds)))
    about = provenance(config.weights, sha256)
    columns = config.columns or math.ceil(math.sqrt(len(seeds)))
    write_png(folder / "grid.png", grid(sheet, columns=columns * len(cameras)))
    for i, seed in enumerate(seeds if config.meshes else ()):
        ws = codes[i : i + 1]
        with torch.no_grad():
            mesh = extract_mesh(generator, generator.planes(ws), ws, config.mesh)
        for suffix in config.meshes:
            placement = Placement.of(config.mesh, mesh.vertices)
            file = folder / f"seed{seed:04d}.{suffix}"
            write_mesh(mesh, file, placement, unlit=config.mesh.unlit, about=about)
        on_step(Step("meshes", i + 1, len(seeds)))
    if mixed:
        looks = codes_of_seeds(generator, mixed, config.truncation, config.truncation_cutoff)
        rows = mixtures(generator, codes, looks, layer, cameras[:1])
        write_png(folder / "mix.png", grid([picture for row in rows for picture in row], columns=len(mixed)))
    if config.video:
        frames = _counted(interpolation(generator, codes, config.frames), config.frames, on_step)
        write_video(frames, folder / "walk.mp4", config.fps)
    return written


def _check(config: GenerateConfig) -> None:
    """Refuse numbers that would fail after everything was loaded and rendered."""
    least = {"columns": 1, "truncation_cutoff": 0, "mix_layer": 0} | ({"frames": 1, "fps": 1} if config.video else {})
    for name, lowest in least.items():
        value = getattr(config, name)
        if value is not None and value < lowest:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be {lowest} or more")


def _cameras(config: GenerateConfig) -> Camera:
    yaw = torch.tensor([math.radians(angle) for angle in config.yaw])
    if not len(yaw):
        raise ConfigError("--yaw needs at least one angle")
    pitch = torch.full_like(yaw, math.radians(config.pitch))
    return orbit_cameras(yaw, pitch) if config.whole_head else orbit(yaw, pitch)


def _counted(
    frames: Iterator[UInt8[np.ndarray, "h w 3"]], total: int, on_step: Callable[[Step], None]
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    for i, frame in enumerate(frames):
        on_step(Step("frames", i + 1, total))
        yield frame
