"""Hair and beards that grow: thin ribbons with a texture of strands, from roots on the skin, combed and falling.

Positions are in world units; where on the head a root sits is said in MakeHuman's rest frame (decimetres).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from headlift.prior.synthetic.geometry import Mesh
from headlift.prior.synthetic.sampling import Groom

CM = 0.026
"""One centimetre, world units."""
RIBBON = "ribbon"
"""Name of the texture that ribbons have."""


def smoothstep(a: float, b: float, x: np.ndarray) -> np.ndarray:
    """0 at a, 1 at b (which may be below a), a cubic between."""
    t = np.clip((x - a) / (b - a), 0, 1)
    return t * t * (3 - 2 * t)


def scalp_mask(rest: Float[np.ndarray, "v 3"], recede: float = 0.0) -> Float[np.ndarray, " v"]:
    """Where hair grows, 0 to 1, by the rest position (dm); `recede` takes the hairline back."""
    x, y, z = np.abs(rest[:, 0]), rest[:, 1], rest[:, 2]
    top = y - (7.85 + 0.26 * recede * np.exp(-(((x - 0.38) / 0.2) ** 2)) + 0.15 * recede - 0.05 * x)
    side = np.interp(y, [6.4, 6.9, 7.12, 7.5, 7.9, 8.2], [0.12, 0.2, 0.64, 0.74, 0.90, 1.15]) - z
    mask = np.maximum(smoothstep(-0.03, 0.06, top), smoothstep(-0.03, 0.06, side) * (y > 6.42))
    ear = ((x > 0.80) & (y < 7.52)) | ((x > 0.70) & (y > 6.8) & (y < 7.5) & (z > 0.12) & (z < 0.62))
    return mask * ~ear


def beard_mask(rest: Float[np.ndarray, "v 3"], style: tuple[float, float, float]) -> Float[np.ndarray, " v"]:
    """Where a beard grows, 0 to 1. style[0] is the cheek line's height, style[1] chooses goatee, moustache or all."""
    x, y, z = np.abs(rest[:, 0]), rest[:, 1], rest[:, 2]
    line = 6.66 + 0.10 * style[0] + 0.42 * smoothstep(0.42, 0.85, x)  # the cheek line rises towards the sideburn
    jaw = smoothstep(0.03, -0.10, y - line) * smoothstep(6.02, 6.2, y) * smoothstep(0.45, 0.62, z + 0.3 * (x > 0.7))
    jaw *= 1 - smoothstep(0.16, 0.08, np.hypot(x * 0.55, (y - 6.60) * 1.0))  # lips
    chin = jaw * smoothstep(0.40, 0.30, x) * smoothstep(1.2, 1.35, z)
    moustache = smoothstep(0.12, 0.07, np.abs(y - 6.755)) * smoothstep(0.34, 0.26, x) * (z > 1.35)
    if style[1] < 0.25:
        return np.maximum(chin, moustache)
    if style[1] < 0.4:
        return moustache
    return np.maximum(jaw, moustache)


def ribbon_texture(strands: int = 7, width: int = 64, height: int = 256, seed: int = 3) -> UInt8[np.ndarray, "h w 4"]:
    """RGBA of a lock: strands of several lengths and brightnesses, tips at the top row."""
    rng = np.random.default_rng(seed)
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    alpha, light = np.zeros((height, width)), np.zeros((height, width))
    for i in range(strands):
        centre = (i + 0.5 + rng.uniform(-0.25, 0.25)) / strands
        centre = centre + 0.05 * np.sin(y * rng.uniform(2, 6) + rng.uniform(0, 6))
        tip = rng.uniform(0.75, 1.0)
        half = rng.uniform(0.05, 0.085) * np.clip((tip - y) / 0.3, 0, 1) ** 0.6
        cover = np.clip(1 - np.abs(x[None] - centre[:, None]) / np.maximum(half[:, None], 1e-3), 0, 1) ** 0.6
        cover *= (y < tip)[:, None]
        light = np.where(cover > alpha, rng.uniform(0.55, 1.25), light)
        alpha = np.maximum(alpha, cover)
    alpha *= np.clip(y / 0.04, 0, 1)[:, None]
    grey = np.clip(np.where(light > 0, light, 1) * 0.6, 0, 1) ** (1 / 2.2) * 255
    return np.dstack([grey, grey, grey, np.clip(alpha, 0, 1) * 255]).astype("u1")[::-1].copy()


@dataclass(frozen=True)
class Skull:
    """The head as a map of radii about a centre: a cheap thing for hair to collide with. World units."""

    centre: Float[np.ndarray, " 3"]
    radii: Float[np.ndarray, "h w"]
    """Rows by elevation from straight down to straight up, columns by azimuth from +z."""

    @classmethod
    def of(cls, skin: Mesh, ears: bool, width: int = 48, height: int = 24) -> Skull:
        """The map of a head's skin, with or without its ears."""
        assert skin.rest is not None
        x, y = np.abs(skin.rest[:, 0]), skin.rest[:, 1]
        p = skin.positions
        centre = np.array([0, p[:, 1][y > 7.3].mean() - 0.03, np.median(p[:, 2][y > 7.6]) - 0.02])
        keep = (y > 6.2) if ears else (y > 6.2) & ~((x > 0.80) & (y < 7.6))
        offset = p[keep] - centre
        radius = np.linalg.norm(offset, axis=1)
        column, row = _cells(offset / radius[:, None], height, width)
        radii = np.zeros((height, width))
        rows = np.minimum(row.round().astype(int), height - 1)
        np.maximum.at(radii, (rows, column.round().astype(int) % width), radius)
        for _ in range(12):  # empty cells take the mean of their neighbours
            near = _neighbours(radii)
            count = (near > 0).sum(0)
            radii = np.where(radii > 0, radii, np.where(count > 0, near.sum(0) / np.maximum(count, 1), 0))
        radii[:3] = np.minimum(radii[:3], 0.3)
        left, right, below, above = _neighbours(radii)
        return cls(centre, 0.5 * radii + 0.125 * (left + right + below + above))

    def push(self, points: Float[np.ndarray, "n 3"], distance: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 3"]:
        """Points that are nearer to the head than `distance` are moved out to it, but for those right below."""
        height, width = self.radii.shape
        offset = points - self.centre
        radius = np.linalg.norm(offset, axis=1)
        direction = offset / np.maximum(radius, 1e-6)[:, None]
        column, row = _cells(direction, height, width)
        i, j = np.floor(column).astype(int), np.clip(np.floor(row).astype(int), 0, height - 2)
        a, b = column - i, row - j

        def at(y: np.ndarray, x: np.ndarray) -> np.ndarray:
            return self.radii[y, x % width]

        lower = at(j, i) * (1 - a) + at(j, i + 1) * a
        upper = at(j + 1, i) * (1 - a) + at(j + 1, i + 1) * a
        need = lower * (1 - b) + upper * b + distance
        inside = (radius < need) & (direction[:, 1] > -0.85)
        return np.where(inside[:, None], self.centre + direction * need[:, None], points)


@dataclass(frozen=True)
class Roots:
    """Where strands begin: n of them."""

    position: Float[np.ndarray, "n 3"]
    """World units."""
    normal: Float[np.ndarray, "n 3"]
    rest: Float[np.ndarray, "n 3"]
    """Rest position (dm)."""


def grow(skin: Mesh, groom: Groom, mask: Float[np.ndarray, " v"], rng: np.random.Generator) -> Mesh | None:
    """The ribbons of one kind of hair, with roots where `mask` is high on the skin; None where it is zero everywhere.

    The order of the draws is part of the recipes.
    """
    roots = _roots(skin, groom, mask, rng)
    if roots is None:
        return None
    n, segments = groom.n, groom.seg
    length, comb, skull = _combing(skin, groom, roots, rng)
    lines, tangents, distance = _fall(groom, roots, length, comb, skull, rng)
    if groom.curl > 0:
        lines, tangents = _curl(groom, roots, lines, tangents, rng)
    outward = np.repeat(roots.normal[:, None], segments + 1, 1) if skull is None else _unit(lines - skull.centre, 0.0)
    normal = _unit(outward - tangents * (outward * tangents).sum(2, keepdims=True) * 0.85, 1e-6)
    across = _unit(np.cross(tangents, normal), 1e-6)
    taper = np.linspace(1, 0.55, segments + 1)[None, :, None]
    width = groom.width * CM * 2 * rng.uniform(0.7, 1.3, (n, 1, 1)) * taper
    along = 1 - np.linspace(0, 1, segments + 1)[None, :, None] * np.ones((n, 1, 1))
    first = (np.arange(n)[:, None] * (segments + 1) + np.arange(segments)[None]).ravel() * 2
    strand_light = np.clip(rng.normal(1, 0.16, n), 0.5, 1.5)
    depth_light = 0.8 + 0.2 * np.clip(distance / max(distance.max(), 1e-6), 0, 1)
    positions = np.stack([lines - across * width / 2, lines + across * width / 2], 2).reshape(-1, 3)
    uv = np.stack(np.broadcast_arrays(np.array([0.0, 1.0])[None, None, :], along), -1).reshape(-1, 2)
    return Mesh(
        kind="hair",
        positions=positions.astype("f4"),
        normals=np.repeat(normal.reshape(-1, 3), 2, 0).astype("f4"),
        corner=np.arange(len(positions)),
        uv=uv.astype("f4"),
        triangles=np.stack([first, first + 1, first + 2, first + 1, first + 3, first + 2], 1).reshape(-1, 3),
        texture=RIBBON,
        brightness=np.repeat(strand_light * depth_light, (segments + 1) * 2).astype("f4"),
    )


def _roots(skin: Mesh, groom: Groom, mask: Float[np.ndarray, " v"], rng: np.random.Generator) -> Roots | None:
    """Roots spread evenly over the masked skin, denser just behind the hairline."""
    assert skin.rest is not None
    triangles = skin.corner[skin.triangles]
    corner = skin.positions[triangles]
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    area = area * mask[triangles].min(1)
    if groom.kind != "beard":
        middle = skin.rest[triangles].mean(1)
        front = smoothstep(8.2, 7.95, middle[:, 1]) * smoothstep(0.95, 1.2, middle[:, 2])
        area = area * (1 + 2.5 * front)
    if area.sum() <= 0:
        return None
    face = rng.choice(len(triangles), groom.n, p=area / area.sum())
    share = rng.dirichlet([1, 1, 1], groom.n)[..., None]

    def mix(values: np.ndarray) -> np.ndarray:
        return (values[triangles[face]] * share).sum(1)

    return Roots(mix(skin.positions), _unit(mix(skin.normals), 0.0), mix(skin.rest))


def _combing(
    skin: Mesh, groom: Groom, roots: Roots, rng: np.random.Generator
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n 3"], Skull | None]:
    """Each strand's length (cm), the direction in which it is combed, and what it must not enter."""
    n = groom.n
    x, y, z = roots.rest.T
    one = np.ones(n)
    if groom.kind == "beard":
        length = groom.top * (0.5 + 0.5 * smoothstep(0.9, 1.5, z)) * rng.uniform(0.6, 1.1, n)
        length = np.where(y > 6.66, np.minimum(length, rng.uniform(0.35, 0.65, n)), length)
        sideways = np.sign(x) * 0.25 * np.where(y > 6.68, 4.0, 0.3)
        return length, np.stack([sideways, -one, 0.1 * one], 1), None
    assert groom.side is not None
    assert groom.back is not None
    high, behind = smoothstep(7.55, 8.05, y), smoothstep(0.45, 0.0, z)
    low_length = groom.side * (1 - behind) + groom.back * behind
    length = (groom.top * high + low_length * (1 - high)) * rng.uniform(0.75, 1.1, n)
    front = smoothstep(1.0, 1.3, z) * high
    if groom.comb in ("fwd", "whorl") or groom.kind == "curly":  # no curtain over the eyes
        curtain = rng.uniform(2.0, 4.5, n) * (0.6 + 0.8 * groom.fringe)
        length = np.minimum(length, 40 - front * (40 - curtain))
    if groom.comb == "part":
        top = np.stack([np.sign(x - groom.part), -0.15 * one, (0.25 - 0.6 * groom.fringe) * one - 0.2], 1)
    elif groom.comb == "back":
        top = np.stack([0.25 * np.sign(x), 0.1 * one, -one], 1)
    elif groom.comb == "fwd":
        top = np.stack([0.35 * np.sin(x * 3 + groom.part * 9), -0.1 * one, one], 1)
    else:
        top = np.stack([x, y - 8.6, z - 0.45], 1) / 0.6
    low = np.stack([0.05 * np.sign(x), -one, (-0.25 if groom.comb != "fwd" else 0.1) * one], 1)
    comb = top * high[:, None] + low * (1 - high)[:, None]
    if groom.comb == "part" and groom.top > 8:  # long locks stay off the face
        comb[:, 2] -= 0.9 * front * (1 - 0.35 * groom.fringe)
    return length, comb, Skull.of(skin, ears=groom.side > 4)


def _fall(
    groom: Groom,
    roots: Roots,
    length: Float[np.ndarray, " n"],
    comb: Float[np.ndarray, "n 3"],
    skull: Skull | None,
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "n k 3"], Float[np.ndarray, "n k 3"], Float[np.ndarray, " n"]]:
    """Lines of k = segments + 1 points, their tangents, and how far from the head each one lies (world units)."""
    n, segments = groom.n, groom.seg
    x, y, z = roots.rest.T
    normal, p = roots.normal, roots.position
    step = (length * CM / segments)[:, None]
    along = _unit(comb - normal * (comb * normal).sum(1, keepdims=True), 1e-6)
    lift: float | np.ndarray = groom.lift
    if groom.kind not in ("beard", "afro", "buzz"):
        lift = (groom.lift * (0.25 + 0.75 * smoothstep(7.2, 7.7, y)))[:, None]
    direction = _unit(normal * lift + along, 0.0)
    distance = rng.uniform(0, 1, n) ** 0.7 * groom.layer * CM + 0.0015
    stray = rng.normal(0, groom.mess, (n, 3))
    clump = np.stack([np.sin(x * 9 + y * 7), np.sin(z * 8 + y * 5), np.cos(x * 7 - z * 9)], 1) * groom.mess * 0.6
    points = [p.copy()]
    for k in range(segments):
        t = (k + 1) / segments
        weight = np.array([0, -1, 0]) * groom.grav * (0.25 + 0.75 * t) * np.minimum(1, length / 8)[:, None]
        noise = (stray + clump) * 0.35 + rng.normal(0, 1, (n, 3)) * groom.kink
        q = p + _unit(direction + 0.35 * along * (1 - t) + weight + noise, 0.0) * step
        if skull is not None:
            q = skull.push(q, distance * min(1, (k + 1) / 3))
        move = q - p
        moved = np.linalg.norm(move, axis=1, keepdims=True)
        direction = np.where(moved > 1e-6, move / np.maximum(moved, 1e-6), direction)
        p = p + direction * np.minimum(moved, step * 1.25)
        points.append(p.copy())
    lines = np.stack(points, 1)
    return lines, _unit(np.gradient(lines, axis=1), 1e-9), distance


def _curl(
    groom: Groom,
    roots: Roots,
    lines: Float[np.ndarray, "n k 3"],
    tangents: Float[np.ndarray, "n k 3"],
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "n k 3"], Float[np.ndarray, "n k 3"]]:
    """Lines wound into helices that widen from root to tip, and their tangents."""
    n, points, _ = lines.shape
    x, _, z = roots.rest.T
    t = np.linspace(0, 1, points)[None, :]
    phase = (np.sin(x * 8 + z * 5) * 2 + rng.normal(0, 0.5, n))[:, None]
    phase = phase + t * groom.turns * 6.283 * rng.uniform(0.85, 1.15, n)[:, None]
    e1 = _unit(np.cross(tangents, [0, 0, 1.0001]), 1e-6)
    e2 = np.cross(tangents, e1)
    circle = (np.cos(phase) - np.cos(phase[:, :1]))[..., None] * e1
    circle = circle + (np.sin(phase) - np.sin(phase[:, :1]))[..., None] * e2
    wound = lines + (groom.curl * CM * np.sqrt(t))[..., None] * circle
    return wound, _unit(np.gradient(wound, axis=1), 1e-9)


def _unit(vectors: np.ndarray, least: float) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), least)


def _cells(direction: Float[np.ndarray, "n 3"], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Column and row (fractional) of directions in the map of radii."""
    column = (np.arctan2(direction[:, 0], direction[:, 2]) / (2 * np.pi) % 1) * width
    return column, (np.arcsin(np.clip(direction[:, 1], -1, 1)) / np.pi + 0.5) * (height - 1)


def _neighbours(radii: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "4 h w"]:
    below, above = np.concatenate([radii[:1], radii[:-1]]), np.concatenate([radii[1:], radii[-1:]])
    return np.stack([np.roll(radii, 1, 1), np.roll(radii, -1, 1), below, above])
