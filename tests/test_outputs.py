"""Exports: what makes no sense is said before a head is loaded, and a head is written as it is shown."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import solid_generator

from headlift import outputs
from headlift.config import ExportConfig, MeshConfig, VideoConfig, preset
from headlift.eg3d.camera import orbit
from headlift.eg3d.composite import OuterSpec, compose
from headlift.errors import ConfigError
from headlift.head import Head
from headlift.outputs import export_head, results
from headlift.values import Similarity


class Loaded(Exception):
    """As far as a test goes."""


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ExportConfig(splats=Path("head.glb")), "--splats writes .ply, not 'head.glb'"),
        (ExportConfig(quality=Path("mesh.txt")), "--quality writes .json"),
        (ExportConfig(cameras_out=Path("path.xml")), "--cameras-out writes .json or .csv"),
        (ExportConfig(splats=Path("head.ply"), meshes=("./head.ply",)), "head.ply is to be two files"),
        (ExportConfig(quality=Path("a.json"), cameras_out=Path("a.json")), "a.json is to be two files"),
        (ExportConfig(splats=Path("mesh-texture.ply"), meshes=("mesh-texture.PLY", "mesh-texture.ply")), "two files"),
        (ExportConfig(splats=Path("s.ply"), mesh=MeshConfig(colors=False)), "--splats needs colours"),
        (ExportConfig(views=True, cameras=Path("path.json")), "--cameras is the path of videos"),
        (ExportConfig(meshes=("HEAD.GLB",), mesh=MeshConfig(up="z")), "a GLB is y up"),
    ],
)
def test_what_makes_no_sense_is_said_before_a_head_is_loaded(
    config: ExportConfig, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=words):
        export_head(tmp_path / "head.safetensors", None, config)


def test_meshes_may_share_a_texture_and_paths_be_turned_into_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*given: Any) -> None:
        raise Loaded

    monkeypatch.setattr(outputs, "load_head", load)
    monkeypatch.chdir(tmp_path)
    Path("path.csv").write_text("yaw,pitch\n0,0\n")
    for config in (
        ExportConfig(meshes=("obj", "ply", "obj"), videos=("gif", "gif")),
        ExportConfig(cameras=Path("path.csv"), cameras_out=Path("path.json")),
    ):
        with pytest.raises(Loaded):
            export_head(tmp_path / "head.safetensors", None, config)


@pytest.mark.parametrize(("additions", "worn"), [(True, True), (False, False)])
def test_a_head_without_its_additions_does_not_wear_the_photo_that_shows_them(
    additions: bool, worn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = compose(solid_generator(), OuterSpec(4, 8, 8), torch.Generator().manual_seed(0))
    crop, nowhere = np.zeros((8, 8, 3), np.uint8), Similarity(np.eye(2, 3))
    ws = torch.zeros(1, both.num_ws, 8)
    head = Head(both, ws, orbit(0.0, 0.0), crop, crop[..., 0], nowhere, preset("fast"), "embedded", "ab" * 32)
    seen: list[tuple[bool, int]] = []

    def head_mesh(head: Any, planes: torch.Tensor, config: MeshConfig) -> None:
        seen.append((config.photo, planes.shape[2]))
        raise Loaded

    monkeypatch.setattr(outputs, "load_head", lambda *given: head)
    monkeypatch.setattr(outputs, "head_mesh", head_mesh)
    with pytest.raises(Loaded):
        export_head(tmp_path / "head.safetensors", None, ExportConfig(meshes=("glb",), additions=additions))
    assert seen == [(worn, both.spec.plane_channels + 4 * additions)]


def test_what_exports_leave_in_a_run_folder_goes_with_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = SimpleNamespace(depth=None, alpha=None)
    generator = SimpleNamespace(planes=lambda ws: None, render=lambda *given: seen)
    head = SimpleNamespace(generator=generator, ws=None, camera=None)
    monkeypatch.setattr(outputs, "load_head", lambda *given: head)
    for name in ("write_turntable", "views_grid", "write_png", "depth_to_uint16", "depth_in_color", "normal_map"):
        monkeypatch.setattr(outputs, name, lambda *given: None)
    for video in (VideoConfig(), VideoConfig(path="sway")):
        config = ExportConfig(videos=("mp4", "gif", "webp"), views=True, maps=True, video=video)
        written = export_head(tmp_path / "head.safetensors", None, config)
        assert len(written) == 7
        assert {file.name for file in written} <= set(results())
