"""GLB: binary glTF 2.0 of a head, in metres, y up, face towards +z."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from headlift.export.images import png_bytes
from headlift.export.mesh import Mesh
from headlift.export.placement import Placement
from headlift.values import Camera

_ARRAYS, _INDICES = 34962, 34963
_FLOAT, _UINT16, _UINT32 = 5126, 5123, 5125


def glb_bytes(
    mesh: Mesh,
    placement: Placement | None = None,
    cameras: Mapping[str, Camera] | Camera | None = None,
    name: str = "head",
    unlit: bool = False,
    about: Mapping[str, Any] | None = None,
) -> bytes:
    """A binary glTF 2.0 of the mesh. Bytes depend on the arguments alone.

    The material is matte and not metal, seen from both sides; `unlit` adds KHR_materials_unlit, so that colours show
    as they are. A texture is the base colour, a PNG in sRGB; vertices are then split where its charts part. Without a
    texture, vertex colours are COLOR_0: linear, 16-bit normalised RGBA, as the glTF specification asks. Each camera is
    a node whose matrix is cam2world times diag(1, -1, -1, 1), its translation in metres, with yfov = 2 atan(0.5 / f).
    The extras of the head's node hold `mesh_to_world`, 16 numbers row by row, and those of the asset what `about` says.

    Raises:
        ConfigError: the placement has z up.
    """
    placement = placement or Placement()
    source, faces = np.arange(len(mesh.vertices)), mesh.faces
    if mesh.texture is not None:
        source, faces = mesh.texture.source, mesh.texture.faces
    file = _Buffers()
    positions = placement.points(mesh.vertices, ".glb")[source]
    attributes = {
        "POSITION": file.array(
            positions, _FLOAT, "VEC3", _ARRAYS, min=positions.min(axis=0).tolist(), max=positions.max(axis=0).tolist()
        ),
        "NORMAL": file.array(placement.directions(mesh.normals, ".glb")[source], _FLOAT, "VEC3", _ARRAYS),
    }
    material: dict[str, Any] = {
        "name": "matte",
        "doubleSided": True,
        "pbrMetallicRoughness": {
            "baseColorFactor": [1.0, 1.0, 1.0, 1.0],
            "metallicFactor": 0.0,
            "roughnessFactor": 1.0,
        },
    }
    document: dict[str, Any] = {"asset": _asset(about), "scene": 0}
    if mesh.texture is not None:
        attributes["TEXCOORD_0"] = file.array(mesh.texture.uv.astype(np.float32), _FLOAT, "VEC2", _ARRAYS)
    elif mesh.colors is not None:
        rgba = np.full((len(mesh.vertices), 4), 65535, dtype=np.uint16)
        rgba[:, :3] = np.rint(np.clip(mesh.colors, 0, 1) * 65535)
        attributes["COLOR_0"] = file.array(rgba, _UINT16, "VEC4", _ARRAYS, normalized=True)
    small = len(source) < 65535
    indices = faces.reshape(-1).astype(np.uint16 if small else np.uint32)
    primitive = {
        "attributes": attributes,
        "indices": file.array(indices, _UINT16 if small else _UINT32, "SCALAR", _INDICES),
        "material": 0,
        "mode": 4,
    }
    if mesh.texture is not None:
        document["images"] = [
            {"name": "skin", "mimeType": "image/png", "bufferView": file.view(png_bytes(mesh.texture.image))}
        ]
        document["samplers"] = [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}]
        document["textures"] = [{"source": 0, "sampler": 0}]
        material["pbrMetallicRoughness"]["baseColorTexture"] = {"index": 0}
    if unlit:
        material["extensions"] = {"KHR_materials_unlit": {}}
        document["extensionsUsed"] = ["KHR_materials_unlit"]
    extras = {
        "mesh_to_world": placement.to_world(".glb").reshape(-1).tolist(),
        "metres_per_unit": placement.metres_per_unit,
        "level": mesh.level,
    }
    nodes: list[dict[str, Any]] = [{"name": name, "mesh": 0, "extras": {"headlift": extras}}]
    document |= {
        "materials": [material],
        "meshes": [{"name": name, "primitives": [primitive]}],
        "nodes": nodes,
        "scenes": [{"name": name, "nodes": [0]}],
        "accessors": file.accessors,
        "bufferViews": file.views,
    }
    for camera_name, camera in _named(cameras).items():
        document.setdefault("cameras", []).append(_gltf_camera(camera_name, camera, placement))
        matrix = camera_node_matrix(camera, placement)
        label = camera.label.reshape(25).double().tolist()
        nodes.append(
            {
                "name": camera_name,
                "camera": len(document["cameras"]) - 1,
                "matrix": matrix.T.reshape(-1).tolist(),
                "extras": {"headlift": {"label": label}},
            }
        )
        document["scenes"][0]["nodes"].append(len(nodes) - 1)
    return _container(document, b"".join(file.blobs))


def camera_node_matrix(camera: Camera, placement: Placement | None = None) -> Float[np.ndarray, "4 4"]:
    """A camera (batch of one) as a glTF node: looks along -z, y up, translation in metres."""
    matrix: Float[np.ndarray, "4 4"] = camera.cam2world.reshape(4, 4).double().cpu().numpy() @ np.diag(
        [1.0, -1.0, -1.0, 1.0]
    )
    move = (placement or Placement()).from_world(".glb")
    matrix[:3, 3] = move[:3, :3] @ matrix[:3, 3] + move[:3, 3]
    return matrix


class _Buffers:
    """The binary part of a file as it grows, with the accessors and views into it."""

    def __init__(self) -> None:
        self.blobs: list[bytes] = []
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def view(self, data: bytes, **more: Any) -> int:
        offset = sum(len(blob) for blob in self.blobs)
        self.views.append({"buffer": 0, "byteOffset": offset, "byteLength": len(data)} | more)
        self.blobs.append(data + b"\0" * (-len(data) % 4))
        return len(self.views) - 1

    def array(self, values: np.ndarray, component: int, kind: str, target: int, **more: Any) -> int:
        data = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
        view = self.view(data, target=target)
        self.accessors.append(
            {"bufferView": view, "componentType": component, "count": len(values), "type": kind} | more
        )
        return len(self.accessors) - 1


def _asset(about: Mapping[str, Any] | None) -> dict[str, Any]:
    asset: dict[str, Any] = {"version": "2.0", "generator": "headlift"}
    return asset | {"extras": {"headlift": dict(about)}} if about else asset


def _container(document: dict[str, Any], body: bytes) -> bytes:
    document["buffers"] = [{"byteLength": len(body)}]
    text = json.dumps(document, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + len(body)
    head = struct.pack("<4sII", b"glTF", 2, length) + struct.pack("<I4s", len(text), b"JSON")
    return head + text + struct.pack("<I4s", len(body), b"BIN\0") + body


def _gltf_camera(name: str, camera: Camera, placement: Placement) -> dict[str, Any]:
    k = camera.intrinsics.reshape(3, 3).double().cpu().numpy()
    distance = float(camera.origin.double().norm()) * placement.metres_per_unit
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
