"""A tiny MakeHuman release: an egg with eyes for a head, a cone for a shirt, patches for all that hangs on it.

It has the files, names and formats that the real release has, so that the real builder makes a bundle of it.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from headlift.prior.synthetic import assets
from headlift.prior.synthetic.body import LOWER_LIP, UPPER_LIP
from headlift.prior.synthetic.bundle import ANCESTRIES, BROWS, IRISES, LASHES, MESH_HAIR, TEETH, TONGUE

ROWS, COLUMNS = 22, 32
CENTRE, RADII = np.array([0.0, 7.25, 0.5]), np.array([0.86, 1.35, 1.1])
MOUTH = np.array([0.0, 6.6, 1.47])
EYES = (np.array([0.32, 7.35, 1.40]), np.array([-0.32, 7.35, 1.40]))
AXES = (
    ("head/head-scale-horiz", "decr", "incr", (0.1, 0, 0)),
    ("nose/nose-hump", "decr", "incr", (0, 0, 0.1)),
    ("chin/chin-width", "decr", "incr", (0.1, 0, 0)),
    ("eyebrows/eyebrows-angle", "down", "up", (0, 0.02, 0)),
    ("ears/l-ear-scale", "decr", "incr", (0.05, 0.05, 0)),
    ("ears/r-ear-scale", "decr", "incr", (0.05, 0.05, 0)),
)
UNITS = ("mouth-open", "mouth-corner-puller", "mouth-upward-retraction", "mouth-parling", "eye-left-slit")


def egg(points: np.ndarray) -> np.ndarray:
    """Unit vectors to the skin of the head, narrower towards the chin."""
    p = CENTRE + points * RADII
    p[:, 0] *= 1 - 0.6 * np.clip(7.0 - p[:, 1], 0, 1)
    return p


def sphere(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, list[list[tuple[int, int]]]]:
    """Unit vectors (poles first and last), texture coordinates, faces of (vertex, coordinate)."""
    polar = np.linspace(0, np.pi, rows + 2)[1:-1]
    turn = np.linspace(-np.pi, np.pi, columns, endpoint=False)
    ring = [[np.sin(t) * np.sin(p), np.cos(p), np.cos(t) * np.sin(p)] for p in polar for t in turn]
    points = np.array([[0, 1, 0], *ring, [0, -1, 0]], float)
    u, v = np.meshgrid(np.linspace(0.02, 0.98, columns + 1), np.linspace(0.98, 0.02, rows + 2))
    coordinates = np.stack([u.ravel(), v.ravel()], 1)

    def corner(i: int, j: int) -> tuple[int, int]:
        vertex = 0 if i == 0 else len(points) - 1 if i == rows + 1 else 1 + (i - 1) * columns + j % columns
        return vertex, i * (columns + 1) + j

    faces = []
    for i in range(rows + 1):
        for j in range(columns):
            quad = [corner(i, j), corner(i + 1, j), corner(i + 1, j + 1), corner(i, j + 1)]
            faces.append([c for k, c in enumerate(quad) if c[0] != quad[k - 1][0]])
    return points, coordinates, faces


def base_mesh() -> tuple[np.ndarray, np.ndarray, list[list[tuple[int, int]]], list[list[tuple[int, int]]]]:
    """Vertices (body, then shirt, then one that nothing uses), texture coordinates, faces of body and of shirt."""
    points, coordinates, faces = sphere(ROWS, COLUMNS)
    body = egg(points)
    order = np.arange(len(body))
    for place, wanted in ((UPPER_LIP, MOUTH + [0, 0.04, 0]), (LOWER_LIP, MOUTH - [0, 0.04, 0])):
        free = [i for i in range(len(body)) if i not in (UPPER_LIP, LOWER_LIP) or i == place]
        nearest = free[int(np.argmin(np.linalg.norm(body[order[free]] - wanted, axis=1)))]
        order[[place, nearest]] = order[[nearest, place]]
    where = np.argsort(order)
    body_faces = [[(int(where[v]), t) for v, t in face] for face in faces]
    turn = np.linspace(-np.pi, np.pi, 24, endpoint=False)
    shirt = np.array(
        [[np.sin(t) * r, y, 0.2 + np.cos(t) * 0.8 * r] for y, r in ((6.2, 0.6), (5.8, 0.9), (5.0, 1.8)) for t in turn]
    )
    first, texels = len(body), len(coordinates)
    shirt_faces = [
        [(first + i * 24 + j, texels + i * 24 + j), (first + i * 24 + 24 + j, texels + i * 24 + 24 + j)]
        + [(first + i * 24 + 24 + k, texels + i * 24 + 24 + k), (first + i * 24 + k, texels + i * 24 + k)]
        for i in range(2)
        for j, k in zip(range(24), [*range(1, 24), 0], strict=True)
    ]
    shirt_coordinates = np.stack([shirt[:, 0] / 4 + 0.5, shirt[:, 1] / 8], 1)
    vertices = np.concatenate([body[order], shirt, [[0, 0, 0]]])
    return vertices, np.concatenate([coordinates, shirt_coordinates]), body_faces, shirt_faces


def patch(centre: Sequence[float], size: Sequence[float], steps: int = 4) -> tuple[np.ndarray, np.ndarray, list]:
    """A small square sheet facing +z."""
    line = np.linspace(-1, 1, steps)
    y, x = np.meshgrid(line[::-1], line, indexing="ij")
    points = np.stack([x.ravel() * size[0], y.ravel() * size[1], 0 * x.ravel()], 1) + np.array(centre, float)
    coordinates = np.stack([x.ravel() + 1, y.ravel() + 1], 1) / 2
    at = np.arange(steps * steps).reshape(steps, steps)
    faces = [
        [(int(v), int(v)) for v in (at[i, j], at[i + 1, j], at[i + 1, j + 1], at[i, j + 1])]
        for i in range(steps - 1)
        for j in range(steps - 1)
    ]
    return points, coordinates, faces


def proxy_meshes() -> dict[str, tuple[np.ndarray, np.ndarray, list]]:
    """Path in the release without its suffix -> mesh."""
    points, coordinates, faces = sphere(6, 10)
    cap = [face for face in faces if all(points[v, 1] > -0.2 for v, _ in face)]
    hair = (egg(points) - CENTRE) * 1.08 + CENTRE + [0, 0.25, -0.25]
    eyes = np.concatenate([points * 0.13 + eye for eye in EYES])
    both = faces + [[(v + len(points), t) for v, t in face] for face in faces]
    meshes = {f"hair/{n}/{n}": (hair, coordinates, cap) for n in MESH_HAIR}
    meshes |= {f"eyebrows/{n}/{n}": patch((0.3, 7.55, 1.6), (0.15, 0.03)) for n in BROWS}
    meshes |= {f"eyelashes/{n}/{n}": patch((0.3, 7.45, 1.6), (0.12, 0.02)) for n in LASHES}
    meshes |= {f"teeth/{n}/{n}": patch((0, 6.62, 1.35), (0.1, 0.03)) for n in TEETH}
    meshes[f"tongue/{TONGUE}/{TONGUE}"] = patch((0, 6.58, 1.3), (0.08, 0.02))
    named: dict[str, tuple[np.ndarray, np.ndarray, list]] = {f"{assets.PROXIES}/{k}": v for k, v in meshes.items()}
    return named | {f"{assets.BASE}/eyes/high-poly/high-poly": (eyes, coordinates, both)}


def morph_targets(vertices: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> vertices and offsets (dm): small bumps, and an open mouth that really opens."""
    head = np.arange(len(vertices) - 1)
    low = head[(np.abs(vertices[head] - MOUTH) < [0.3, 0.2, 0.4]).all(1) & (vertices[head, 1] < MOUTH[1])]
    side = (vertices[head] - CENTRE) / RADII
    targets: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for stem, minus, plus, by in AXES:
        part = head[side[:, 0] > 0] if "/l-" in stem else head[side[:, 0] < 0] if "/r-" in stem else head
        for name, sign in ((minus, -1), (plus, 1)):
            targets[f"{stem}-{name}"] = (part, sign * side[part] * np.array(by))
    for name in ("oval", "round"):
        targets[f"head/head-{name}"] = (head, side * [0.05, -0.02, 0])
    for i in range(9):
        targets[f"asym/asym-part-{i}"] = (head[i::9], np.full((len(head[i::9]), 3), 0.01))
    for gender in ("male", "female"):
        for age, grown in (("child", -0.1), ("young", 0.01), ("old", 0.03)):
            for k, ancestry in enumerate(ANCESTRIES):
                targets[f"macrodetails/{ancestry}-{gender}-{age}"] = (head, side * (0.02 * k + grown))
            for muscle in ("min", "average", "max"):
                for weight in ("min", "average", "max"):
                    by = {"min": -0.04, "average": 0.0, "max": 0.04}[weight]
                    name = f"macrodetails/universal-{gender}-{age}-{muscle}muscle-{weight}weight"
                    targets[name] = (head, side * [by, 0, 0])
    for ancestry in ANCESTRIES:
        for unit in UNITS:
            opening = -0.25 if unit in ("mouth-open", "mouth-upward-retraction") else 0.01
            targets[f"expression/units/{ancestry}/{unit}"] = (low, np.tile([0, opening, 0], (len(low), 1)))
    targets["nose/nose-baby-incr"] = (head, side * 0.1)  # to be left out
    targets["hands/finger-length-incr"] = (head, side * 0.1)  # to be left out
    targets["mouth/mouth-nothing-incr"] = (np.array([len(vertices) - 1]), np.ones((1, 3)))  # moves nothing of the head
    return targets


def write_obj(path: Path, vertices: np.ndarray, coordinates: np.ndarray, groups: dict[str, list]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["# a comment", *(f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in vertices)]
    lines += [f"vt {u:.6f} {v:.6f}" for u, v in coordinates]
    for name, faces in groups.items():
        lines.append(f"g {name}")
        lines += ["f " + " ".join(f"{v + 1}/{t + 1}" for v, t in face) for face in faces]
    path.write_text("\n".join(lines) + "\n")


def write_clothes(path: Path, points: np.ndarray, base: np.ndarray) -> None:
    """Each point bound to the three nearest vertices of the body; its size follows the head's."""
    body = base[: ROWS * COLUMNS + 2]
    left, right = int(np.argmax(body[:, 0])), int(np.argmin(body[:, 0]))
    lines = ["name thing", f"x_scale {left} {right} {abs(body[left, 0] - body[right, 0]):.6f}", "verts 0"]
    for p in points:
        near = np.argsort(np.linalg.norm(body - p, axis=1))[:3]
        weights = np.array([0.5, 0.3, 0.2])
        offset = p - weights @ body[near]
        lines.append(" ".join([*(str(i) for i in near), *(f"{x:.6f}" for x in (*weights, *offset))]))
    path.write_text("\n".join([*lines, "delete_verts", "1 2 3", ""]))


def picture(name: str) -> bytes:
    """A texture of 16 pixels a side: skins have their ancestry's tone and red lips, the rest is noise with alpha."""
    rng = np.random.default_rng(sum(name.encode()))
    rgba = rng.integers(60, 220, (32, 32, 4)).astype("u1")
    if "skins/" in name:
        rgba = np.full((32, 32, 4), 255, "u1")
        rgba[..., :3] = (96, 72, 60) if "african" in name else (214, 168, 140)
        rgba[20:22, 14:18, :3] = (180, 80, 80)
    stream = io.BytesIO()
    Image.fromarray(rgba).save(stream, "PNG")
    return stream.getvalue()


def texture_paths() -> list[str]:
    """Where the textures' archive has its pictures."""
    root = assets.TEXTURES
    paths = list(assets._texture_files().values())
    paths += [f"{root}/proxies/eyes/HighPolyEyes/textures/{iris}_eye.png" for iris in IRISES]
    for age in ("young", "middleage", "old"):
        for ancestry in ANCESTRIES:
            for gender in ("female", "male"):
                skin = f"{age}_{ancestry}_{gender}"
                paths.append(f"{root}/skins/{skin}/textures/{skin}_diffuse.png")
    paths.append(f"{root}/skins/young_caucasian_male/textures/young_lightskinned_male_diffuse2.png")
    return [*paths, f"{root}/skins/young_caucasian_male/textures/normal.png", f"{root}/icons/icon.png"]


def write_release(folder: Path) -> Path:
    """The whole release."""
    vertices, coordinates, body, shirt = base_mesh()
    unused = [[(len(vertices) - 1, 0), (0, 0), (1, 0)]]
    groups = {"joint-head": unused, "body": body, "helper-tights": shirt}
    write_obj(folder / assets.BASE / "3dobjs/base.obj", vertices, coordinates, groups)
    for path, (points, texels, faces) in proxy_meshes().items():
        write_obj(folder / f"{path}.obj", points, texels, {"all": faces})
        write_clothes(folder / f"{path}.mhclo", points, vertices)
    arrays = {}
    for name, (index, offset) in morph_targets(vertices).items():
        arrays[f"targets/{name}.index"] = index.astype("u4")
        arrays[f"targets/{name}.vector"] = np.round(offset * 1000).astype("i2")
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    with zipfile.ZipFile(folder / assets.WHEEL, "w") as wheel:
        wheel.writestr(assets.TARGETS, stream.getvalue())
    with tarfile.open(folder / assets.TARBALL, "w:gz") as archive:
        for path in texture_paths():
            content = picture(path)
            info = tarfile.TarInfo(path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return folder
