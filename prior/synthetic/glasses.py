"""Spectacles for recipe 2: two rims swept around superellipses, a bridge, temples to the ears, lenses.

They are placed by the pupils and pushed forward until they clear the brows and the nose. World units.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from headlift.prior.synthetic.geometry import Mesh, Topology
from headlift.prior.synthetic.sampling import Glasses

MM = 0.1 / 39.6
"""One millimetre, world units: a unit is 396 mm."""
RIM_POINTS, SIDES = 48, 8
WRAP = 1.1
"""How fast the frame bends back towards its sides: z falls by this times x^2 (1 / world units)."""
TILT = 0.13
"""How far the lower rim is behind the upper one, over the height."""
CLEARANCE = 2.0 * MM
REACH = 3.5 * MM
"""Skin this near to a rim's point, seen from the front, is what the rim must be in front of."""


def build(
    glasses: Glasses,
    skin: Mesh,
    eyes: Float[np.ndarray, "e 3"],
    left: Bool[np.ndarray, " e"],
) -> dict[str, Mesh]:
    """The frame (`glasses`) and the lenses (`lens`) on a head with such a skin and such eyes (`left`: x > 0)."""
    assert skin.rest is not None
    pupils = [eyes[left].mean(0), eyes[~left].mean(0)]
    outlines = [_outline(glasses, pupil, side) for pupil, side in zip(pupils, (1.0, -1.0), strict=True)]
    middle = (pupils[0] + pupils[1]) / 2
    outlines = _before_the_face([_bent(o, middle) for o in outlines], skin)
    half = glasses.thickness * MM / 2
    rods = [_rod(outline, half, 0.8 * half, closed=True) for outline in outlines]
    inner = [outline[_nearest_to_nose(outline, middle)] for outline in outlines]
    arch = np.linspace(0, 1, 9)[:, None]
    bridge = inner[0] * (1 - arch) + inner[1] * arch + np.array([0, 2.5 * MM, 1.0 * MM]) * (4 * arch * (1 - arch))
    rods.append(_rod(bridge, 0.8 * half, 0.7 * half, closed=False))
    for outline, side in zip(outlines, (1.0, -1.0), strict=True):
        rods.append(_rod(_temple(outline, skin, side), 0.45 * half, 0.9 * half, closed=False))
    lenses = [_fan(outline - np.array([0, 0, 0.3 * half])) for outline in outlines]
    return {"glasses": _mesh("solid", rods), "lens": _mesh("lens", lenses)}


def _outline(glasses: Glasses, pupil: Float[np.ndarray, " 3"], side: float) -> Float[np.ndarray, "k 3"]:
    """A flat rim around a point below the pupil, counter-clockwise from the outside for the left eye."""
    angle = np.linspace(0, 2 * np.pi, RIM_POINTS, endpoint=False)
    c, s = np.cos(angle), np.sin(angle)
    power = 2 / glasses.roundness
    x = np.sign(c) * np.abs(c) ** power * glasses.width / 2
    y = np.sign(s) * np.abs(s) ** power * glasses.height / 2
    x = x * (1 - glasses.taper * (0.5 - y / glasses.height))
    outward = max(0.0, glasses.width - 46) * 0.35 + 1.5
    centre = pupil + np.array([side * outward, -glasses.drop, 0]) * MM
    return centre + np.stack([side * x, y, np.zeros_like(x)], 1) * MM


def _bent(outline: Float[np.ndarray, "k 3"], middle: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "k 3"]:
    """An outline wrapped around the face and tilted."""
    x, y, _ = (outline - middle).T
    return np.stack([outline[:, 0], outline[:, 1], middle[2] + TILT * y - WRAP * x**2], 1)


def _before_the_face(outlines: list[np.ndarray], skin: Mesh) -> list[np.ndarray]:
    """Rims moved along +z until all but their part beside the nose clears the skin."""
    front = skin.positions[skin.normals[:, 2] > 0]
    ahead = []
    for outline in outlines:
        x_in = np.abs(outline[:, 0]).min()
        width = np.ptp(outline[:, 0])
        upper = outline[:, 1] > outline[:, 1].mean()
        for point in outline[upper | (np.abs(outline[:, 0]) > x_in + 0.3 * width)]:
            near = np.hypot(*(front[:, :2] - point[:2]).T) < REACH
            if near.any():
                ahead.append(front[near, 2].max() - point[2])
    shift = max(ahead, default=0.0) + CLEARANCE
    return [outline + np.array([0, 0, shift]) for outline in outlines]


def _nearest_to_nose(outline: Float[np.ndarray, "k 3"], middle: Float[np.ndarray, " 3"]) -> int:
    """The point of a rim where the bridge begins: at its inner side, above the middle."""
    height = np.ptp(outline[:, 1])
    wanted = outline[:, 1].mean() + 0.18 * height
    return int(np.argmin(np.abs(outline[:, 0] - middle[0]) + 2 * np.abs(outline[:, 1] - wanted)))


def _temple(outline: Float[np.ndarray, "k 3"], skin: Mesh, side: float) -> Float[np.ndarray, "m 3"]:
    """A line from a rim's outer upper part back over the ear and down behind it, outside of the head."""
    assert skin.rest is not None
    height = np.ptp(outline[:, 1])
    wanted = outline[:, 1].mean() + 0.25 * height
    hinge = outline[int(np.argmin(-side * outline[:, 0] + 2 * np.abs(outline[:, 1] - wanted)))]
    x, y, z = skin.rest.T
    ear = (side * x > 0.8) & (y > 6.9) & (y < 7.55) & (z < 0.7) & (z > -0.2)
    root = (side * x > 0.68) & (side * x < 0.82) & (y > 7.2) & (y < 7.5) & (z > 0.1) & (z < 0.6)
    top = np.quantile(skin.positions[ear, 1], 0.97)
    over = np.array([np.median(skin.positions[root, 0]), top, np.median(skin.positions[ear, 2])])
    t = np.linspace(0, 1, 13)[:, None]
    line = hinge * (1 - t) + over * t
    line[:, 1] = hinge[1] + (over[1] - hinge[1]) * t[:, 0] ** 2
    head = skin.positions[side * skin.positions[:, 0] > 0]
    for k, point in enumerate(line):
        close = np.hypot(*(head[:, 1:] - point[1:]).T) < 1.5 * REACH
        reach = side * head[close, 0].max() if side > 0 and close.any() else None
        reach = side * head[close, 0].min() if side < 0 and close.any() else reach
        if reach is not None and 0 < k < 10:
            line[k, 0] = side * max(side * point[0], reach + CLEARANCE)
    bend = np.linspace(0, 1, 6)[1:, None]
    behind = over + np.array([-side * 4, -26, -20]) * MM * np.hstack([bend, bend**1.5, bend])
    return np.concatenate([line, behind])


Part = tuple[np.ndarray, np.ndarray]
"""Vertices and triangles."""


def _rod(line: Float[np.ndarray, "k 3"], high: float, deep: float, closed: bool) -> Part:
    """A tube around a line; its cross-section is an ellipse of half axes `high` (sideways) and `deep` (along z)."""
    k = len(line)
    tangent = np.roll(line, -1, 0) - np.roll(line, 1, 0) if closed else np.gradient(line, axis=0)
    tangent = tangent / np.linalg.norm(tangent, axis=1, keepdims=True)
    away = np.where(np.abs(tangent[:, 2:]) > 0.7, [[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]])
    depth = away - tangent * (away * tangent).sum(1, keepdims=True)
    depth = depth / np.linalg.norm(depth, axis=1, keepdims=True)
    across = np.cross(depth, tangent)
    angle = np.linspace(0, 2 * np.pi, SIDES, endpoint=False)
    ring = np.cos(angle)[:, None] * across[:, None] * high + np.sin(angle)[:, None] * depth[:, None] * deep
    vertices = (line[:, None] + ring).reshape(-1, 3)
    i, j = np.meshgrid(np.arange(k if closed else k - 1), np.arange(SIDES), indexing="ij")
    a, b = i * SIDES + j, i * SIDES + (j + 1) % SIDES
    c, d = (i + 1) % k * SIDES + j, (i + 1) % k * SIDES + (j + 1) % SIDES
    triangles = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([b, d, c], -1).reshape(-1, 3)])
    return vertices, triangles


def _fan(outline: Float[np.ndarray, "k 3"]) -> Part:
    """A lens: triangles from the middle of an outline to its edge."""
    k = len(outline)
    edge = np.arange(k)
    triangles = np.stack([np.full(k, k), edge, (edge + 1) % k], 1)
    return np.concatenate([outline, outline.mean(0, keepdims=True)]), triangles


def _mesh(kind: str, parts: list[Part]) -> Mesh:
    starts = np.cumsum([0] + [len(vertices) for vertices, _ in parts])
    positions = np.concatenate([vertices for vertices, _ in parts]).astype("f4")
    triangles = np.concatenate([t + s for (_, t), s in zip(parts, starts[:-1], strict=True)])
    topology = Topology.of(len(positions), triangles)
    return Mesh(
        kind=kind,
        positions=positions,
        normals=topology.normals(positions).astype("f4"),
        corner=np.arange(len(positions)),
        uv=np.zeros((len(positions), 2), "f4"),
        triangles=triangles,
        topology=topology,
    )
