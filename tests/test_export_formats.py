"""Every mesh format is read back by a reader of other hands: positions, units, axes, normals, colours, cameras."""

import json
import math
import struct
from pathlib import Path

import numpy as np
import pygltflib
import pytest
import torch
import trimesh
from sample_meshes import sample_mesh

from headlift.eg3d.camera import orbit, project
from headlift.errors import OutputError
from headlift.export.color import linear_to_srgb
from headlift.export.formats import write_mesh
from headlift.export.gltf import camera_node_matrix
from headlift.export.mesh import Mesh
from headlift.export.placement import METRES_PER_UNIT, Placement


def corners(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Triangles as a sorted list of corner coordinates, so that the order of vertices does not matter."""
    triangles = np.asarray(vertices)[np.asarray(faces)]
    rolled = [np.roll(t, -np.lexsort(t.T)[0], axis=0).ravel() for t in triangles]
    return np.array(sorted(rolled, key=lambda row: tuple(np.round(row, 5))))


def accessor(document: pygltflib.GLTF2, index: int) -> np.ndarray:
    """Read an accessor by the glTF 2.0 specification."""
    a = document.accessors[index]
    view = document.bufferViews[a.bufferView]
    width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[a.type]
    kind = {5126: "<f4", 5123: "<u2", 5125: "<u4"}[a.componentType]
    start = (view.byteOffset or 0) + (a.byteOffset or 0)
    assert start % np.dtype(kind).itemsize == 0
    data = np.frombuffer(document.binary_blob(), kind, a.count * width, start)
    return data.reshape(a.count, width)


def test_glb_by_pygltflib(tmp_path: Path) -> None:
    mesh = sample_mesh()
    write_mesh(mesh, tmp_path / "m.glb")
    document = pygltflib.GLTF2().load(str(tmp_path / "m.glb"))
    primitive = document.meshes[0].primitives[0]
    positions = accessor(document, primitive.attributes.POSITION)
    np.testing.assert_allclose(positions, mesh.vertices * 0.396, rtol=1e-6)
    bounds = document.accessors[primitive.attributes.POSITION]
    np.testing.assert_array_equal(np.float32(bounds.min), positions.min(axis=0))
    np.testing.assert_array_equal(np.float32(bounds.max), positions.max(axis=0))
    np.testing.assert_allclose(accessor(document, primitive.attributes.NORMAL), mesh.normals)
    np.testing.assert_array_equal(accessor(document, primitive.indices).ravel(), mesh.faces.ravel())

    colors = document.accessors[primitive.attributes.COLOR_0]
    assert (colors.componentType, colors.normalized) == (pygltflib.UNSIGNED_SHORT, True)
    stored = accessor(document, primitive.attributes.COLOR_0) / 65535
    np.testing.assert_allclose(stored[:, :3], mesh.colors, atol=0.5 / 65535)  # linear, as they are
    assert (stored[:, 3] == 1).all()

    material = document.materials[primitive.material].pbrMetallicRoughness
    assert (material.metallicFactor, material.roughnessFactor) == (0.0, 1.0)

    node = document.nodes[0]
    to_world = np.array(node.extras["headlift"]["mesh_to_world"]).reshape(4, 4)
    np.testing.assert_allclose(positions @ to_world[:3, :3].T + to_world[:3, 3], mesh.vertices, atol=1e-6)
    assert node.extras["headlift"]["level"] == 7.5


def test_glb_frame_is_well_formed(tmp_path: Path) -> None:
    write_mesh(sample_mesh(), tmp_path / "m.glb", cameras={"photo": orbit(0.1, 0.2)})
    data = (tmp_path / "m.glb").read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    text, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON"
    assert text % 4 == 0
    document = json.loads(data[20 : 20 + text])
    body, kind = struct.unpack_from("<I4s", data, 20 + text)
    assert kind == b"BIN\0"
    assert body % 4 == 0
    assert document["buffers"][0]["byteLength"] == body == len(data) - 28 - text


def test_glb_by_trimesh_with_many_vertices(tmp_path: Path) -> None:
    """More than 65535 vertices: 32-bit indices. trimesh knows the axes and the order of the corners."""
    ball = trimesh.creation.icosphere(subdivisions=7, radius=0.3)
    assert len(ball.vertices) > 65535
    vertices, faces = ball.vertices.astype(np.float32), ball.faces.astype(np.int32)
    colors = (0.5 + vertices).astype(np.float32)
    write_mesh(Mesh(vertices, faces, (vertices / 0.3).astype(np.float32), colors, 0.0), tmp_path / "m.glb")
    loaded = trimesh.load(tmp_path / "m.glb", force="mesh", process=False)
    np.testing.assert_allclose(loaded.vertices, vertices * 0.396, atol=1e-6)
    np.testing.assert_array_equal(loaded.faces, faces)
    assert loaded.volume == pytest.approx(4 / 3 * math.pi * (0.3 * 0.396) ** 3, rel=1e-3)


def test_cameras_in_glb_see_what_ours_see(tmp_path: Path) -> None:
    """A point projected by our camera and by the node's inverse with yfov, as the glTF specification says."""
    cameras = {"photo": orbit(0.4, -0.2), "side": orbit(1.5, 0.1, focal=3.1)}
    write_mesh(sample_mesh(), tmp_path / "m.glb", cameras=cameras)
    document = pygltflib.GLTF2().load(str(tmp_path / "m.glb"))
    points = np.array([[0.05, 0.1, 0.12], [-0.1, -0.08, 0.05], [0.0, 0.0, 0.2]])
    assert [node.name for node in document.nodes] == ["head", "photo", "side"]
    assert document.scenes[0].nodes == [0, 1, 2]
    for node in document.nodes[1:]:
        lens = document.cameras[node.camera].perspective
        local = np.linalg.inv(np.array(node.matrix).reshape(4, 4).T) @ np.c_[points * 0.396, np.ones(3)].T
        assert (local[2] < 0).all()  # glTF cameras look along -z
        scale = 1 / math.tan(lens.yfov / 2)
        ndc = local[:2] / -local[2] * scale * np.array([[1 / lens.aspectRatio], [1]])
        expected, depth = project(cameras[node.name], torch.tensor(points, dtype=torch.float32)[None])
        np.testing.assert_allclose(0.5 + ndc[0] / 2, expected[0, :, 0], atol=1e-5)
        np.testing.assert_allclose(0.5 - ndc[1] / 2, expected[0, :, 1], atol=1e-5)
        np.testing.assert_allclose(-local[2], depth[0] * 0.396, rtol=1e-5)
        assert lens.znear < -local[2].max() < lens.zfar
    assert math.degrees(document.cameras[0].perspective.yfov) == pytest.approx(13.37, abs=0.005)
    label = document.nodes[1].extras["headlift"]["label"]
    np.testing.assert_allclose(label, cameras["photo"].label[0])


def test_frontal_camera_node_by_hand() -> None:
    """At (0, 0, 2.7) with the pivot straight ahead, a glTF camera needs no turn; 2.7 units are 1.0692 m."""
    matrix = camera_node_matrix(orbit(0.0, 0.0))
    np.testing.assert_allclose(matrix, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1.0692], [0, 0, 0, 1]], atol=1e-6)


def test_ply_by_trimesh(tmp_path: Path) -> None:
    mesh = sample_mesh()
    write_mesh(mesh, tmp_path / "m.ply")
    loaded = trimesh.load(tmp_path / "m.ply", process=False)
    np.testing.assert_allclose(loaded.vertices, mesh.vertices * 0.396, rtol=1e-6)
    np.testing.assert_array_equal(loaded.faces, mesh.faces)
    np.testing.assert_allclose(loaded.vertex_normals, mesh.normals, atol=1e-6)
    assert mesh.colors is not None
    np.testing.assert_array_equal(
        loaded.visual.vertex_colors[:, :3], np.rint(linear_to_srgb(mesh.colors) * 255).astype(np.uint8)
    )
    assert loaded.visual.vertex_colors[5, 0] == 127 or loaded.visual.vertex_colors[5, 0] == 128  # 0.214 linear
    header = (tmp_path / "m.ply").read_bytes().split(b"end_header")[0].decode()
    rows = [line.split()[3:] for line in header.splitlines() if line.startswith("comment mesh_to_world")]
    np.testing.assert_allclose(np.array(rows, dtype=float), Placement().to_world(".ply"), rtol=1e-8)


def test_obj_by_trimesh_and_by_its_lines(tmp_path: Path) -> None:
    mesh = sample_mesh()
    write_mesh(mesh, tmp_path / "head.obj")
    loaded = trimesh.load(tmp_path / "head.obj", process=False, maintain_order=True)
    np.testing.assert_allclose(
        corners(loaded.vertices, loaded.faces), corners(mesh.vertices * 0.396, mesh.faces), atol=1e-6
    )
    lines = (tmp_path / "head.obj").read_text().splitlines()
    rows = np.array([line.split()[1:] for line in lines if line.startswith("v ")], dtype=float)
    assert mesh.colors is not None
    np.testing.assert_allclose(rows[:, 3:], linear_to_srgb(mesh.colors), atol=1e-5)
    normals = np.array([line.split()[1:] for line in lines if line.startswith("vn ")], dtype=float)
    np.testing.assert_allclose(normals, mesh.normals, atol=1e-5)
    assert "f 1//1 3//3 5//5" in lines
    assert "mtllib head.mtl" in lines
    material = (tmp_path / "head.mtl").read_text()
    assert "newmtl matte" in material
    assert "usemtl matte" in lines


def test_stl_is_in_millimetres_with_z_up(tmp_path: Path) -> None:
    mesh = sample_mesh()
    write_mesh(mesh, tmp_path / "m.stl")
    loaded = trimesh.load(tmp_path / "m.stl", process=False)
    x, y, z = (mesh.vertices * 396).T
    np.testing.assert_allclose(
        corners(loaded.vertices, loaded.faces), corners(np.stack([x, -z, y], axis=1), mesh.faces), atol=1e-3
    )
    assert loaded.volume > 0  # still outwards
    header = (tmp_path / "m.stl").read_bytes()[:80].decode()
    assert "mm, z up" in header
    back = Placement().to_world(".stl")
    assert f"{back[0, 0]:.9g} * [1 0 0; 0 0 1; 0 -1 0]" in header
    top = np.array([0.0, 0.0, 0.4 * 396, 1.0])  # the vertex on +y
    np.testing.assert_allclose(back @ top, [0, 0.4, 0, 1], atol=1e-9)


@pytest.mark.parametrize("suffix", [".glb", ".ply", ".obj", ".stl"])
def test_bytes_are_deterministic_and_scale_is_a_choice(tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_mesh(sample_mesh(), tmp_path / name / f"m{suffix}")
    assert (tmp_path / "a" / f"m{suffix}").read_bytes() == (tmp_path / "b" / f"m{suffix}").read_bytes()
    write_mesh(sample_mesh(), tmp_path / f"one{suffix}", placement=Placement(1.0))
    large, small = (trimesh.load(p, force="mesh") for p in (tmp_path / f"one{suffix}", tmp_path / "a" / f"m{suffix}"))
    assert large.extents.max() / small.extents.max() == pytest.approx(1 / METRES_PER_UNIT, rel=1e-4)


@pytest.mark.parametrize("suffix", [".glb", ".ply", ".obj", ".stl"])
def test_without_colors(tmp_path: Path, suffix: str) -> None:
    mesh = sample_mesh()
    write_mesh(Mesh(mesh.vertices, mesh.faces, mesh.normals, None, 0.0), tmp_path / f"m{suffix}")
    assert len(trimesh.load(tmp_path / f"m{suffix}", force="mesh").faces) == 8


def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"\.glb, \.ply, \.obj, \.stl, \.usdz"):
        write_mesh(sample_mesh(), tmp_path / "m.fbx")
    assert list(tmp_path.iterdir()) == []
