"""Mesh files in the programs that people use: Khronos' validator, Blender, Pixar's USD, plyfile, trimesh."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image
from sample_meshes import sample_mesh, textured_sample

from headlift.eg3d.camera import orbit
from headlift.errors import ConfigError
from headlift.export.color import linear_to_srgb
from headlift.export.formats import companions, texture_file, write_mesh
from headlift.export.mesh import Mesh
from headlift.export.placement import Placement

VALIDATOR = Path(__file__).resolve().parents[1] / ".ci" / "npm" / "node_modules" / "gltf-validator"
VALIDATE = """
const validator = require(process.argv[1]);
const bytes = new Uint8Array(require("fs").readFileSync(process.argv[2]));
validator.validateBytes(bytes).then(report => console.log(JSON.stringify(report.issues)));
"""
BLENDER = """
import bpy, json, sys
import numpy
numpy.bool = bool  # Blender 3.4's importer still asks for it
found = []
for path in sys.argv[sys.argv.index("--") + 1 :]:
    bpy.ops.wm.read_factory_settings(use_empty=True)
    if path.endswith(".glb"):
        bpy.ops.import_scene.gltf(filepath=path)
    elif path.endswith(".obj"):
        bpy.ops.wm.obj_import(filepath=path)
    elif bpy.app.version >= (4, 0, 0):
        bpy.ops.wm.ply_import(filepath=path)
    else:
        bpy.ops.import_mesh.ply(filepath=path)
    shape = next(o for o in bpy.context.scene.objects if o.type == "MESH")
    bpy.context.view_layer.update()
    cameras = [o for o in bpy.context.scene.objects if o.type == "CAMERA"]
    images = [i for i in bpy.data.images if i.type == "IMAGE"]
    found.append({
        "points": [list(shape.matrix_world @ v.co) for v in shape.data.vertices],
        "faces": len(shape.data.polygons),
        "uv": len(shape.data.uv_layers),
        "images": [list(i.size) for i in images],
        "spaces": [i.colorspace_settings.name for i in images],
        "cameras": [list(c.matrix_world.translation) for c in cameras],
        "metallic": [n.inputs["Metallic"].default_value for m in bpy.data.materials if m.node_tree
                     for n in m.node_tree.nodes if n.type == "BSDF_PRINCIPLED"],
    })
print("FOUND" + json.dumps(found))
"""
MESHES = {"coloured": sample_mesh(), "textured": textured_sample()}


def validate(path: Path) -> dict[str, Any]:
    """The issues that Khronos' glTF validator counts."""
    if shutil.which("node") is None or not VALIDATOR.exists():
        pytest.skip("no glTF validator; .ci/run installs it (npm install --prefix .ci/npm gltf-validator)")
    done = subprocess.run(
        ["node", "-e", VALIDATE, str(VALIDATOR), str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    issues: dict[str, Any] = json.loads(done.stdout)
    return issues


@pytest.mark.parametrize("unlit", [False, True])
@pytest.mark.parametrize("kind", [*MESHES, "bare"])
def test_the_validator_finds_nothing(kind: str, unlit: bool, tmp_path: Path) -> None:
    mesh = MESHES.get(kind) or Mesh(*(getattr(sample_mesh(), n) for n in ("vertices", "faces", "normals")), None, 0.0)
    cameras = {"photo": orbit(0.3, 0.1)}
    write_mesh(mesh, tmp_path / "m.glb", Placement(), cameras, unlit, {"weights": "embedded", "edits": 0})
    issues = validate(tmp_path / "m.glb")
    assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), issues["messages"]


def test_the_validator_does_find_faults(tmp_path: Path) -> None:
    """A normal of the wrong length in an otherwise good file."""
    mesh = sample_mesh()
    write_mesh(Mesh(mesh.vertices, mesh.faces, 2 * mesh.normals, None, 0.0), tmp_path / "m.glb")
    assert validate(tmp_path / "m.glb")["numErrors"] > 0


def test_blender_imports_upright_and_life_size(tmp_path: Path) -> None:
    """Blender is z up, its front view looks along +y: a head must have its top on +z and its face on -y, in metres."""
    if shutil.which("blender") is None:
        pytest.skip("no Blender; .ci/run installs it (apt-get install blender)")
    mesh = textured_sample()
    files = [tmp_path / "head.glb", tmp_path / "head.obj", tmp_path / "head.ply"]
    write_mesh(mesh, files[0], cameras={"photo": orbit(0.0, 0.0)})
    write_mesh(mesh, files[1])
    write_mesh(mesh, files[2], Placement(up="z"))
    command = ["blender", "-b", "--factory-startup", "--python-exit-code", "9", "--python-expr", BLENDER, "--"]
    done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND"))
    found = json.loads(line.removeprefix("FOUND"))
    x, y, z = (mesh.vertices * 0.396).T
    wanted = {tuple(np.round(p, 4) + 0.0) for p in np.stack([x, -z, y], axis=1).tolist()}
    for file, seen in zip(files, found, strict=True):
        assert {tuple(np.round(p, 4) + 0.0) for p in seen["points"]} == wanted, file
        assert seen["faces"] == 8
        assert seen["uv"] == 1, file
    for seen in found[:2]:
        assert seen["images"] == [[64, 64]]
        assert seen["spaces"] == ["sRGB"]
    assert found[0]["metallic"] == [0.0]
    np.testing.assert_allclose(found[0]["cameras"], [[0.0, -2.7 * 0.396, 0.0]], atol=1e-5)


@pytest.mark.parametrize("up", [None, "z"])
@pytest.mark.parametrize("kind", MESHES)
def test_usdz_in_pixars_library(kind: str, up: Any, tmp_path: Path) -> None:
    pytest.importorskip("pxr", reason="usd-core is not installed")
    from pxr import Ar, Usd, UsdGeom, UsdShade

    mesh = MESHES[kind]
    write_mesh(mesh, tmp_path / "m.usdz", Placement(up=up))
    stage = Usd.Stage.Open(str(tmp_path / "m.usdz"))
    assert UsdGeom.GetStageMetersPerUnit(stage) == 1.0
    assert UsdGeom.GetStageUpAxis(stage) == ("Z" if up else "Y")
    shape = UsdGeom.Mesh(stage.GetPrimAtPath("/head/surface"))
    points = np.array(shape.GetPointsAttr().Get())
    x, y, z = (mesh.vertices * 0.396).T
    np.testing.assert_allclose(points, np.stack([x, -z, y] if up else [x, y, z], axis=1), atol=1e-6)
    np.testing.assert_array_equal(np.array(shape.GetFaceVertexIndicesAttr().Get()).reshape(-1, 3), mesh.faces)
    back = np.array(stage.GetPrimAtPath("/head").GetCustomDataByKey("headlift:mesh_to_world")).reshape(4, 4)
    np.testing.assert_allclose(points @ back[:3, :3].T + back[:3, 3], mesh.vertices, atol=1e-6)
    material, _ = UsdShade.MaterialBindingAPI(shape.GetPrim()).ComputeBoundMaterial()
    assert material.GetPrim().GetPath() == "/head/matte"
    if mesh.texture is None:
        np.testing.assert_allclose(shape.GetDisplayColorAttr().Get(), mesh.colors, atol=1e-6)
        return
    st = UsdGeom.PrimvarsAPI(shape).GetPrimvar("st")
    uv = np.array(st.ComputeFlattened()).reshape(-1, 3, 2)
    np.testing.assert_allclose(uv[..., 0], mesh.texture.uv[mesh.texture.faces][..., 0], atol=1e-6)
    np.testing.assert_allclose(1 - uv[..., 1], mesh.texture.uv[mesh.texture.faces][..., 1], atol=1e-6)
    picture = UsdShade.Shader(stage.GetPrimAtPath("/head/matte/skin")).GetInput("file").Get()
    stored = Ar.GetResolver().OpenAsset(Ar.ResolvedPath(picture.resolvedPath)).GetBuffer()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(bytes(stored)))), mesh.texture.image)


def test_obj_and_ply_with_texture(tmp_path: Path) -> None:
    """Each corner's place on the picture, read by trimesh and plyfile: the colour there is that of its square."""
    from plyfile import PlyData

    mesh = textured_sample()
    assert mesh.texture is not None
    for suffix in (".obj", ".ply"):
        file = tmp_path / f"head{suffix}"
        write_mesh(mesh, file)
        assert all(beside.exists() for beside in companions(file, True))
        np.testing.assert_array_equal(np.asarray(Image.open(texture_file(file))), mesh.texture.image)
    loaded = trimesh.load(tmp_path / "head.obj", process=False, force="mesh")
    colors = np.asarray(loaded.visual.to_color().vertex_colors)[:, :3]
    assert loaded.visual.material.image.size == (64, 64)
    middle = loaded.vertices[loaded.faces].mean(axis=1)
    expected = mesh.vertices[mesh.faces].mean(axis=1) * 0.396
    order = [int(np.argmin(np.linalg.norm(expected - m, axis=1))) for m in middle]
    for face, square in zip(loaded.faces, order, strict=True):
        np.testing.assert_array_equal(colors[face], [[15 * square, 255 - 15 * square, 128]] * 3)
    ply = PlyData.read(str(tmp_path / "head.ply"))
    assert "TextureFile head-texture.png" in ply.comments
    vertices, faces = ply["vertex"], np.stack(list(ply["face"]["vertex_indices"]))
    place = np.stack([vertices["s"], 1 - vertices["t"]], axis=1)[faces]
    np.testing.assert_allclose(place, mesh.texture.uv[mesh.texture.faces], atol=1e-6)
    assert mesh.colors is not None
    channels = np.stack([vertices[name] for name in ("red", "green", "blue")], axis=1)
    np.testing.assert_array_equal(
        channels, np.rint(linear_to_srgb(mesh.colors) * 255).astype(np.uint8)[mesh.texture.source]
    )


def test_textured_glb_by_trimesh(tmp_path: Path) -> None:
    mesh = textured_sample()
    assert mesh.texture is not None
    write_mesh(mesh, tmp_path / "m.glb", about={"weights": "embedded"})
    loaded = trimesh.load(tmp_path / "m.glb", process=False, force="mesh")
    np.testing.assert_array_equal(np.asarray(loaded.visual.material.baseColorTexture), mesh.texture.image)
    assert loaded.visual.material.metallicFactor == 0.0
    np.testing.assert_allclose(
        loaded.visual.uv[loaded.faces], mesh.texture.uv[mesh.texture.faces] * [1, -1] + [0, 1], atol=1e-6
    )
    assert "color" not in loaded.visual.vertex_attributes  # it would darken the texture
    document = json.loads((tmp_path / "m.glb").read_bytes()[20:].split(b"\0")[0].rsplit(b"}", 1)[0] + b"}")
    assert document["asset"]["extras"]["headlift"] == {"weights": "embedded"}


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".stl"])
def test_axes_scale_and_origin_by_choice(suffix: str, tmp_path: Path) -> None:
    """Upwards is where asked for, and the matrix in the file leads back to the world."""
    mesh = sample_mesh()
    for up, axis in (("y", 1), ("z", 2)):
        placement = Placement(2.0, up, (0.0, -0.2, 0.0))  # type: ignore[arg-type]
        write_mesh(mesh, tmp_path / f"m{suffix}", placement)
        points = trimesh.load(tmp_path / f"m{suffix}", process=False, force="mesh").vertices
        unit = 1000 if suffix == ".stl" else 1
        assert points[:, axis].min() == pytest.approx(0, abs=1e-4)
        assert points[:, axis].max() == pytest.approx(0.6 * 2 * unit, rel=1e-5)
        back = placement.to_world(suffix)
        world = np.unique(np.round(points @ back[:3, :3].T + back[:3, 3], 4) + 0.0, axis=0)
        np.testing.assert_allclose(world, np.unique(np.round(mesh.vertices.astype(float), 4), axis=0), atol=2e-4)


def test_a_glb_is_never_z_up(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="y up"):
        write_mesh(sample_mesh(), tmp_path / "m.glb", Placement(up="z"))
