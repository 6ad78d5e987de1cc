"""Mesh files: GLB, PLY, OBJ with MTL, STL. Bytes depend on the mesh and the arguments alone.

| suffix | unit | axes | colours |
|---|---|---|---|
| .glb | metres | y up, face towards +z (glTF's own) | COLOR_0, linear, 16 bit |
| .ply | metres | y up, face towards +z | uchar, sRGB |
| .obj | metres | y up, face towards +z | after each vertex, sRGB in [0, 1] |
| .stl | millimetres | z up, face towards -y | none |

Each file carries the 4x4 matrix from its coordinates back to EG3D's world (row-major, column vectors).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from headlift.errors import OutputError
from headlift.export.color import linear_to_srgb
from headlift.export.files import atomic_path, write_bytes
from headlift.export.mesh import Mesh
from headlift.values import Camera

METRES_PER_UNIT = 0.396
"""Scale of a head: 63 mm between the pupils, which lie 0.159 units apart."""
SUFFIXES = (".glb", ".ply", ".obj", ".stl")


def write_mesh(
    mesh: Mesh,
    path: Path | str,
    metres_per_unit: float = METRES_PER_UNIT,
    cameras: Mapping[str, Camera] | Camera | None = None,
) -> None:
    """Write a mesh in the format of the path's suffix: .glb, .ply, .obj (with a .mtl beside it) or .stl.

    `cameras` (GLB only) become glTF cameras: a mapping from names to cameras of batch one, or a batch.
    Raises OutputError for another suffix, or a place that cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".glb":
        write_bytes(path, glb_bytes(mesh, metres_per_unit, cameras))
    elif suffix == ".ply":
        write_bytes(path, ply_bytes(mesh, metres_per_unit))
    elif suffix == ".stl":
        write_bytes(path, stl_bytes(mesh, metres_per_unit))
    elif suffix == ".obj":
        material = path.with_suffix(".mtl")
        with atomic_path(material) as temporary:
            temporary.write_text(_MATERIAL, encoding="ascii")
        write_bytes(path, obj_bytes(mesh, metres_per_unit, material.name))
    else:
        raise OutputError(f"{path}: no such mesh format. headlift writes {', '.join(SUFFIXES)}.")


def mesh_to_world(suffix: str, metres_per_unit: float = METRES_PER_UNIT) -> Float[np.ndarray, "4 4"]:
    """The 4x4 from the coordinates in a file of this suffix to EG3D's world units (column vectors)."""
    matrix = np.eye(4)
    if suffix == ".stl":  # file (x, y, z) = world (x, -z, y) in millimetres
        matrix[:3, :3] = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]) / (1000 * metres_per_unit)
    else:
        matrix[:3, :3] /= metres_per_unit
    return matrix


# GLB


def glb_bytes(
    mesh: Mesh,
    metres_per_unit: float = METRES_PER_UNIT,
    cameras: Mapping[str, Camera] | Camera | None = None,
) -> bytes:
    """A binary glTF 2.0 of the mesh, in metres, y up, face towards +z.

    COLOR_0 is linear, 16-bit normalised RGBA (the glTF specification asks for linear colours), the material matte and
    not metal, seen from both sides. Each camera is a node whose matrix is cam2world times diag(1, -1, -1, 1), with the
    translation in metres, and yfov = 2 atan(0.5 / f). Node extras hold `mesh_to_world`, 16 numbers row by row.
    """
    positions = (mesh.vertices * np.float32(metres_per_unit)).astype("<f4")
    index_type = (np.dtype("<u2"), 5123) if len(mesh.vertices) < 65535 else (np.dtype("<u4"), 5125)
    blobs: list[bytes] = []
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []

    def add(array: np.ndarray, component: int, kind: str, target: int, **extra: Any) -> int:
        data = np.ascontiguousarray(array).tobytes()
        offset = sum(len(b) for b in blobs)
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": len(data), "target": target})
        blobs.append(data + b"\0" * (-len(data) % 4))
        count = array.shape[0]
        accessors.append(
            {"bufferView": len(views) - 1, "componentType": component, "count": count, "type": kind} | extra
        )
        return len(accessors) - 1

    attributes = {
        "POSITION": add(
            positions, 5126, "VEC3", 34962, min=positions.min(axis=0).tolist(), max=positions.max(axis=0).tolist()
        ),
        "NORMAL": add(mesh.normals.astype("<f4"), 5126, "VEC3", 34962),
    }
    if mesh.colors is not None:
        rgba = np.full((len(mesh.vertices), 4), 65535, dtype="<u2")
        rgba[:, :3] = np.rint(np.clip(mesh.colors, 0, 1) * 65535)
        attributes["COLOR_0"] = add(rgba, 5123, "VEC4", 34962, normalized=True)
    indices = add(mesh.faces.reshape(-1).astype(index_type[0]), index_type[1], "SCALAR", 34963)

    extras = {
        "headlift": {
            "mesh_to_world": mesh_to_world(".glb", metres_per_unit).reshape(-1).tolist(),
            "metres_per_unit": metres_per_unit,
            "level": mesh.level,
        }
    }
    nodes: list[dict[str, Any]] = [{"name": "head", "mesh": 0, "extras": extras}]
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "headlift"},
        "scene": 0,
        "scenes": [{"name": "head", "nodes": [0]}],
        "nodes": nodes,
        "meshes": [
            {
                "name": "head",
                "primitives": [{"attributes": attributes, "indices": indices, "material": 0, "mode": 4}],
            }
        ],
        "materials": [
            {
                "name": "matte",
                "doubleSided": True,
                "pbrMetallicRoughness": {
                    "baseColorFactor": [1.0, 1.0, 1.0, 1.0],
                    "metallicFactor": 0.0,
                    "roughnessFactor": 1.0,
                },
            }
        ],
        "accessors": accessors,
        "bufferViews": views,
    }
    for name, camera in _named(cameras).items():
        document.setdefault("cameras", []).append(_gltf_camera(name, camera, metres_per_unit))
        matrix = camera_node_matrix(camera, metres_per_unit)
        node = {"name": name, "camera": len(document["cameras"]) - 1, "matrix": matrix.T.reshape(-1).tolist()}
        node["extras"] = {"headlift": {"label": camera.label.reshape(25).double().tolist()}}
        nodes.append(node)
        document["scenes"][0]["nodes"].append(len(nodes) - 1)

    body = b"".join(blobs)
    document["buffers"] = [{"byteLength": len(body)}]
    text = json.dumps(document, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + len(body)
    head = struct.pack("<4sII", b"glTF", 2, length) + struct.pack("<I4s", len(text), b"JSON")
    return head + text + struct.pack("<I4s", len(body), b"BIN\0") + body


def camera_node_matrix(camera: Camera, metres_per_unit: float = METRES_PER_UNIT) -> Float[np.ndarray, "4 4"]:
    """A camera (batch of one) as a glTF node: looks along -z, y up, translation in metres."""
    matrix: Float[np.ndarray, "4 4"] = camera.cam2world.reshape(4, 4).double().cpu().numpy() @ np.diag(
        [1.0, -1.0, -1.0, 1.0]
    )
    matrix[:3, 3] *= metres_per_unit
    return matrix


def _gltf_camera(name: str, camera: Camera, metres_per_unit: float) -> dict[str, Any]:
    k = camera.intrinsics.reshape(3, 3).double().cpu().numpy()
    distance = float(camera.origin.double().norm()) * metres_per_unit
    return {
        "name": name,
        "type": "perspective",
        "perspective": {
            "aspectRatio": float(k[1, 1] / k[0, 0]),
            "yfov": 2 * math.atan(0.5 / k[1, 1]),
            "znear": 0.01 * distance,
            "zfar": 10 * distance,
        },
    }


def _named(cameras: Mapping[str, Camera] | Camera | None) -> dict[str, Camera]:
    if cameras is None:
        return {}
    if isinstance(cameras, Camera):
        if cameras.cam2world.ndim == 2:
            return {"camera": cameras}
        return {f"camera_{i:03d}" if len(cameras) > 1 else "camera": cameras[i] for i in range(len(cameras))}
    return dict(cameras)


# PLY, OBJ, STL


def ply_bytes(mesh: Mesh, metres_per_unit: float = METRES_PER_UNIT) -> bytes:
    """A binary little-endian PLY in metres: positions, normals, sRGB bytes; the 4x4 in comment lines."""
    fields = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    if mesh.colors is not None:
        fields += [(name, "u1") for name in ("red", "green", "blue")]
    table = np.zeros(len(mesh.vertices), dtype=fields)
    for i, axis in enumerate("xyz"):
        table[axis] = mesh.vertices[:, i] * np.float32(metres_per_unit)
        table["n" + axis] = mesh.normals[:, i]
    if mesh.colors is not None:
        for name, channel in zip(("red", "green", "blue"), srgb_bytes(mesh.colors).T, strict=True):
            table[name] = channel
    triangles = np.zeros(len(mesh.faces), dtype=[("n", "u1"), ("v", "<i4", (3,))])
    triangles["n"], triangles["v"] = 3, mesh.faces
    kinds = {"<f4": "float", "u1": "uchar"}
    header = ["ply", "format binary_little_endian 1.0", "comment headlift: metres, y up, face towards +z; colours sRGB"]
    header += [f"comment {line}" for line in _matrix_lines(".ply", metres_per_unit)]
    header += [f"element vertex {len(table)}", *(f"property {kinds[kind]} {name}" for name, kind in fields)]
    header += [f"element face {len(triangles)}", "property list uchar int vertex_indices", "end_header", ""]
    return "\n".join(header).encode("ascii") + table.tobytes() + triangles.tobytes()


_MATERIAL = """# headlift: matte skin; colours are on the vertices of the .obj
newmtl matte
Ka 0 0 0
Kd 1 1 1
Ks 0 0 0
d 1
illum 1
"""


def obj_bytes(mesh: Mesh, metres_per_unit: float, material: str) -> bytes:
    """A Wavefront OBJ in metres that names the material file; sRGB colours in [0, 1] follow each vertex."""
    lines = ["# headlift: metres, y up, face towards +z; vertex colours sRGB"]
    lines += [f"# {line}" for line in _matrix_lines(".obj", metres_per_unit)]
    lines += [f"mtllib {material}", "o head", "usemtl matte"]
    rows = (mesh.vertices * np.float32(metres_per_unit)).tolist()
    if mesh.colors is None:
        lines += [f"v {x:.7f} {y:.7f} {z:.7f}" for x, y, z in rows]
    else:
        colors = linear_to_srgb(mesh.colors).tolist()
        lines += [
            f"v {x:.7f} {y:.7f} {z:.7f} {r:.5f} {g:.5f} {b:.5f}"
            for (x, y, z), (r, g, b) in zip(rows, colors, strict=True)
        ]
    lines += [f"vn {x:.5f} {y:.5f} {z:.5f}" for x, y, z in mesh.normals.tolist()]
    lines += [f"f {a}//{a} {b}//{b} {c}//{c}" for a, b, c in (mesh.faces + 1).tolist()]
    return ("\n".join(lines) + "\n").encode("ascii")


def stl_bytes(mesh: Mesh, metres_per_unit: float = METRES_PER_UNIT) -> bytes:
    """A binary STL in millimetres, z up, face towards -y; the 80 bytes at its head tell the way back."""
    inverse = np.linalg.inv(mesh_to_world(".stl", metres_per_unit))[:3, :3]
    corners = (mesh.vertices.astype(np.float64) @ inverse.T).astype("<f4")[mesh.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).astype(np.float64)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-30)
    table = np.zeros(len(corners), dtype=[("n", "<f4", (3,)), ("v", "<f4", (3, 3)), ("a", "<u2")])
    table["n"], table["v"] = normals, corners
    scale = 1 / (1000 * metres_per_unit)
    header = f"headlift mm, z up; to EG3D world: {scale:.9g} * [1 0 0; 0 0 1; 0 -1 0]".encode("ascii")
    assert len(header) <= 80
    return header.ljust(80) + struct.pack("<I", len(table)) + table.tobytes()


def srgb_bytes(linear: Float[np.ndarray, "v 3"]) -> UInt8[np.ndarray, "v 3"]:
    """Linear colours in [0, 1] to sRGB bytes."""
    pixels: UInt8[np.ndarray, "v 3"] = np.rint(linear_to_srgb(linear) * 255).astype(np.uint8)
    return pixels


def _matrix_lines(suffix: str, metres_per_unit: float) -> list[str]:
    rows = mesh_to_world(suffix, metres_per_unit).tolist()
    return [f"mesh_to_world {i} " + " ".join(f"{value:.9g}" for value in row) for i, row in enumerate(rows)]
