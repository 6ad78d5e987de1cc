"""Mesh files: GLB, PLY, OBJ with MTL, STL, USDZ. Bytes depend on the mesh and the arguments alone (USDZ aside).

| suffix | unit | axes, when nothing else is asked for | colours on a texture | colours on the vertices |
|---|---|---|---|---|
| .glb | metres | y up, face towards +z (glTF's own) | inside, PNG, sRGB | COLOR_0, linear, 16 bit |
| .ply | metres | y up, face towards +z | s, t; a .png beside it; and on the vertices too | uchar, sRGB |
| .obj | metres | y up, face towards +z | vt; .mtl and .png beside it | after each vertex, sRGB in [0, 1] |
| .stl | millimetres | z up, face towards -y | none | none |
| .usdz | metres | y up, face towards +z | inside, PNG, sRGB | displayColor, linear |

Each file carries the 4x4 matrix from its coordinates back to EG3D's world (row-major, column vectors).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from headlift.errors import OutputError
from headlift.export.color import linear_to_srgb
from headlift.export.files import write_bytes, write_text
from headlift.export.gltf import glb_bytes
from headlift.export.images import write_png
from headlift.export.mesh import Mesh
from headlift.export.placement import Placement
from headlift.export.usd import write_usdz
from headlift.values import Camera

SUFFIXES = (".glb", ".ply", ".obj", ".stl", ".usdz")


def write_mesh(
    mesh: Mesh,
    path: Path | str,
    placement: Placement | None = None,
    cameras: Mapping[str, Camera] | Camera | None = None,
    unlit: bool = False,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a mesh in the format of the path's suffix; `companions` tells which files go beside it.

    GLB only: `cameras` become glTF cameras (a mapping from names to cameras of batch one, or a batch), `unlit` asks to
    be shown without lights, and `about` (texts and numbers by name) goes into the file's extras.

    Raises:
        OutputError: another suffix, or a place that cannot be written.
        ConfigError: z up in a GLB, or USDZ without the package for it.
    """
    path, placement = Path(path), placement or Placement()
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise OutputError(f"{path}: no such mesh format. headlift writes {', '.join(SUFFIXES)}.")
    texture = texture_file(path)
    if mesh.texture is not None and suffix in (".ply", ".obj"):
        write_png(texture, mesh.texture.image)
    if suffix == ".glb":
        write_bytes(path, glb_bytes(mesh, placement, cameras, unlit=unlit, about=about))
    elif suffix == ".ply":
        write_bytes(path, ply_bytes(mesh, placement, texture.name))
    elif suffix == ".stl":
        write_bytes(path, stl_bytes(mesh, placement))
    elif suffix == ".usdz":
        write_usdz(mesh, path, placement)
    else:
        material = path.with_suffix(".mtl")
        write_text(material, mtl_text(texture.name if mesh.texture is not None else None))
        write_bytes(path, obj_bytes(mesh, placement, material.name))


def companions(path: Path, textured: bool) -> list[Path]:
    """The files that `write_mesh` puts beside a mesh of this name."""
    suffix = path.suffix.lower()
    beside = [path.with_suffix(".mtl")] if suffix == ".obj" else []
    return beside + ([texture_file(path)] if textured and suffix in (".obj", ".ply") else [])


def texture_file(path: Path) -> Path:
    """The picture that belongs to an OBJ or PLY: head.obj has head-texture.png beside it."""
    return path.with_name(f"{path.stem}-texture.png")


def ply_bytes(mesh: Mesh, placement: Placement | None = None, texture: str = "head-texture.png") -> bytes:
    """A binary little-endian PLY: positions, normals, sRGB bytes; the 4x4 in comment lines.

    With a texture, vertices are split where its charts part and have `s` and `t` (t upwards); a comment names its file.
    """
    placement = placement or Placement()
    fields = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    source, faces = np.arange(len(mesh.vertices)), mesh.faces
    if mesh.texture is not None:
        source, faces = mesh.texture.source, mesh.texture.faces
        fields += [("s", "<f4"), ("t", "<f4")]
    if mesh.colors is not None:
        fields += [(name, "u1") for name in ("red", "green", "blue")]
    table = np.zeros(len(source), dtype=fields)
    points, normals = placement.points(mesh.vertices, ".ply"), placement.directions(mesh.normals, ".ply")
    for i, axis in enumerate("xyz"):
        table[axis], table["n" + axis] = points[source, i], normals[source, i]
    if mesh.texture is not None:
        table["s"], table["t"] = mesh.texture.uv[:, 0], 1 - mesh.texture.uv[:, 1]
    if mesh.colors is not None:
        for name, channel in zip(("red", "green", "blue"), srgb_bytes(mesh.colors)[source].T, strict=True):
            table[name] = channel
    triangles = np.zeros(len(faces), dtype=[("n", "u1"), ("v", "<i4", (3,))])
    triangles["n"], triangles["v"] = 3, faces
    kinds = {"<f4": "float", "u1": "uchar"}
    header = ["ply", "format binary_little_endian 1.0"]
    header += [f"comment headlift: {placement.describe('.ply')}; colours sRGB"]
    header += [f"comment {line}" for line in placement.matrix_lines(".ply")]
    header += [f"comment TextureFile {texture}"] if mesh.texture is not None else []
    header += [f"element vertex {len(table)}", *(f"property {kinds[kind]} {name}" for name, kind in fields)]
    header += [f"element face {len(triangles)}", "property list uchar int vertex_indices", "end_header", ""]
    return "\n".join(header).encode("utf-8") + table.tobytes() + triangles.tobytes()


def mtl_text(texture: str | None) -> str:
    """The material of an OBJ: matte, with the texture's file if there is one."""
    where = "in the texture" if texture else "on the vertices of the .obj"
    lines = [f"# headlift: matte skin; colours are {where}", "newmtl matte", "Ka 0 0 0", "Kd 1 1 1", "Ks 0 0 0"]
    return "\n".join([*lines, "d 1", "illum 1", *([f"map_Kd {texture}"] if texture else []), ""])


def obj_bytes(mesh: Mesh, placement: Placement | None = None, material: str = "head.mtl") -> bytes:
    """A Wavefront OBJ that names the material file.

    With a texture its coordinates are `vt` lines of their own, so that the surface stays whole; without one, sRGB
    colours in [0, 1] follow each vertex.
    """
    placement = placement or Placement()
    lines = [f"# headlift: {placement.describe('.obj')}; colours sRGB"]
    lines += [f"# {line}" for line in placement.matrix_lines(".obj")]
    lines += [f"mtllib {material}", "o head"]
    rows = placement.points(mesh.vertices, ".obj").tolist()
    if mesh.colors is None or mesh.texture is not None:
        lines += [f"v {x:.7f} {y:.7f} {z:.7f}" for x, y, z in rows]
    else:
        colors = linear_to_srgb(mesh.colors).tolist()
        lines += [
            f"v {x:.7f} {y:.7f} {z:.7f} {r:.5f} {g:.5f} {b:.5f}"
            for (x, y, z), (r, g, b) in zip(rows, colors, strict=True)
        ]
    lines += [f"vn {x:.5f} {y:.5f} {z:.5f}" for x, y, z in placement.directions(mesh.normals, ".obj").tolist()]
    corners = (mesh.faces + 1).tolist()
    if mesh.texture is None:
        lines += ["usemtl matte", *(f"f {a}//{a} {b}//{b} {c}//{c}" for a, b, c in corners)]
    else:
        lines += [f"vt {u:.6f} {1 - v:.6f}" for u, v in mesh.texture.uv.tolist()]
        uv = (mesh.texture.faces + 1).tolist()
        lines += ["usemtl matte"]
        lines += [f"f {a}/{i}/{a} {b}/{j}/{b} {c}/{k}/{c}" for (a, b, c), (i, j, k) in zip(corners, uv, strict=True)]
    return ("\n".join(lines) + "\n").encode("utf-8")


def stl_bytes(mesh: Mesh, placement: Placement | None = None) -> bytes:
    """A binary STL in millimetres; the 80 bytes at its head tell the way back to EG3D's world."""
    placement = placement or Placement()
    corners = placement.points(mesh.vertices, ".stl").astype("<f4")[mesh.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).astype(np.float64)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-30)
    table = np.zeros(len(corners), dtype=[("n", "<f4", (3,)), ("v", "<f4", (3, 3)), ("a", "<u2")])
    table["n"], table["v"] = normals, corners
    back, up = placement.to_world(".stl"), placement.up_axis(".stl")
    turn = "[1 0 0; 0 0 1; 0 -1 0]" if up == "z" else "[1 0 0; 0 1 0; 0 0 1]"
    shift = f" y{back[1, 3]:+.4f}" if back[1, 3] else ""
    header = f"headlift mm, {up} up; world: {back[0, 0]:.9g} * {turn}{shift}".encode("ascii")
    assert len(header) <= 80
    return header.ljust(80) + struct.pack("<I", len(table)) + table.tobytes()


def srgb_bytes(linear: Float[np.ndarray, "v 3"]) -> UInt8[np.ndarray, "v 3"]:
    """Linear colours in [0, 1] to sRGB bytes."""
    pixels: UInt8[np.ndarray, "v 3"] = np.rint(linear_to_srgb(linear) * 255).astype(np.uint8)
    return pixels
