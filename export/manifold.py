"""Surfaces that touch themselves are taken apart: every edge then has two triangles (one at a border) and every vertex
one fan of them, as slicers and remeshers need it.

Edge collapse leaves triangles that lie on their own backs, and edges and vertices where two sheets meet. The sheets
are separated as in Guéziec et al. 2001, "Cutting and stitching": corners that belong together around a vertex, from
triangle to triangle across edges, become a vertex of their own. Vertices that were separated move apart a little, since
formats without indices, such as STL, know vertices by their places.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Int

from headlift.export.mesh import Mesh, counted_edges, pieces

_APART = 0.05
"""How far a separated vertex moves towards the middle of its neighbours, as a fraction of the way."""
_ROUNDS = 8
"""Of taking apart: two edges between the same two vertices may come to light, and are cut for the next round."""


def manifold(mesh: Mesh) -> Mesh:
    """The mesh without places where it touches itself; what is manifold already stays as it is. No texture.

    Vertices at one place are welded, triangles without area by their corners and pairs of triangles back to back go,
    edges of more than two triangles and vertices of more than one fan are taken apart, and of pieces that hang
    together no longer only the largest stays. Deterministic.
    """
    assert mesh.texture is None
    source, faces = _welded(mesh.vertices, mesh.faces)
    points = mesh.vertices[source].astype(np.float64)
    for _ in range(_ROUNDS):
        faces = _without_flaps(faces)
        points, faces, source = _separated(points, faces, source)
        crowded = _crowded_edges(faces)
        if len(crowded) == 0:
            break
        points, faces, source = _split(points, faces, source, crowded)
    faces = _largest(faces, len(points))
    kept = np.zeros(len(points), dtype=bool)
    kept[faces] = True
    if kept.all() and len(faces) == len(mesh.faces) and len(points) == len(mesh.vertices):
        return mesh
    source = source[kept]
    return replace(
        mesh,
        vertices=points[kept].astype(np.float32),
        faces=(np.cumsum(kept) - 1)[faces].astype(np.int32),
        normals=mesh.normals[source],
        colors=None if mesh.colors is None else mesh.colors[source],
    )


def fans(faces: Int[np.ndarray, "f 3"], pairs: Int[np.ndarray, "p 2"]) -> Int[np.ndarray, "f 3"]:
    """Which fan each corner belongs to: corners at one vertex that are joined across the paired directed edges.

    Directed edge 3 f + i goes from corner i of triangle f to the next one; the two of a pair run opposite ways.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = 3 * len(faces)
    ahead = 3 * (pairs // 3) + (pairs + 1) % 3  # the corner at which a directed edge ends
    ends = np.concatenate([np.stack([pairs[:, 0], ahead[:, 1]], axis=1), np.stack([ahead[:, 0], pairs[:, 1]], axis=1)])
    graph = coo_matrix((np.ones(len(ends), dtype=bool), (ends[:, 0], ends[:, 1])), shape=(count, count))
    label: Int[np.ndarray, " c"] = connected_components(graph, directed=False)[1]
    return label.reshape(-1, 3)


def paired(points: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]) -> Int[np.ndarray, "p 2"]:
    """Pairs of opposite directed edges, numbered as in `fans`: triangles that are neighbours. Around an edge of more
    than two triangles, those that enclose a wedge of the inside are."""
    directed = _directed(faces)
    key = np.sort(directed, axis=1)
    order = np.lexsort((key[:, 1], key[:, 0]))
    begins = np.flatnonzero(np.r_[True, (np.diff(key[order], axis=0) != 0).any(axis=1)])
    counts = np.diff(np.r_[begins, len(order)])
    two = begins[counts == 2]
    plain = np.stack([order[two], order[two + 1]], axis=1)
    plain = plain[directed[plain[:, 0], 0] == directed[plain[:, 1], 1]]
    more = [
        pair
        for begin, count in zip(begins[counts > 2], counts[counts > 2], strict=True)
        for pair in _around(points, faces, directed, np.sort(order[begin : begin + count]))
    ]
    return np.concatenate([plain, np.array(more, dtype=plain.dtype).reshape(-1, 2)])


def _directed(faces: Int[np.ndarray, "f 3"]) -> Int[np.ndarray, "e 2"]:
    """The directed edges, numbered as in `fans`."""
    return np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1).reshape(-1, 2)


def _around(
    points: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    directed: Int[np.ndarray, "e 2"],
    edges: Int[np.ndarray, " n"],
) -> list[tuple[int, int]]:
    """Pairs of directed edges between the same two vertices. Seen along the edge, the inside lies clockwise of a
    triangle that runs along it, and counter-clockwise of one that runs against it: the two are matched as brackets."""
    start, end = (points[i] for i in directed[edges[0]])
    axis = (end - start) / np.linalg.norm(end - start)
    across = points[faces[edges // 3, (edges + 2) % 3]] - start
    across = across - np.outer(across @ axis, axis)
    right = across[np.linalg.norm(across, axis=1).argmax()]
    angle = np.arctan2(across @ np.cross(axis, right), across @ right)
    along = dict(zip(edges.tolist(), directed[edges, 0] == directed[edges[0], 0], strict=True))
    clockwise = edges[np.argsort(-angle, kind="stable")].tolist()
    begun: list[int] = []
    found: dict[int, int] = {}
    for edge in clockwise + clockwise:  # twice around, since a wedge may lie across the beginning
        if along[edge] and edge not in begun and edge not in found.values():
            begun.append(edge)
        elif not along[edge] and edge not in found and begun:
            found[edge] = begun.pop()
    return [(forward, back) for back, forward in found.items()]


def _welded(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> tuple[Int[np.ndarray, " w"], Int[np.ndarray, "g 3"]]:
    """The first vertex at each place, in their old order, and the triangles over these that have three corners."""
    _, first, place = np.unique(vertices, axis=0, return_index=True, return_inverse=True)
    source = np.sort(first)
    faces = np.searchsorted(source, first[place.ravel()])[faces]
    return source, faces[(faces != np.roll(faces, 1, axis=1)).all(axis=1)]


def _without_flaps(faces: Int[np.ndarray, "f 3"]) -> Int[np.ndarray, "g 3"]:
    """Without pairs of triangles that have the same corners the other way around."""
    first = faces.argmin(axis=1)
    begun = faces[np.arange(len(faces))[:, None], (first[:, None] + np.arange(3)) % 3]
    back = begun[:, 1] > begun[:, 2]
    key = np.where(back[:, None], begun[:, [0, 2, 1]], begun)
    _, place, count = np.unique(key, axis=0, return_inverse=True, return_counts=True)
    keep = np.ones(len(faces), dtype=bool)
    some = np.flatnonzero(count[place.ravel()] > 1)
    for one in np.unique(place.ravel()[some]):
        group = some[place.ravel()[some] == one]
        for pair in zip(group[back[group]], group[~back[group]], strict=False):
            keep[list(pair)] = False
    return faces[keep]


def _separated(
    points: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], source: Int[np.ndarray, " v"]
) -> tuple[Float[np.ndarray, "w 3"], Int[np.ndarray, "f 3"], Int[np.ndarray, " w"]]:
    """A vertex for each fan; those that were one move apart."""
    fan = fans(faces, paired(points, faces))
    _, first = np.unique(fan, return_index=True)
    vertex = faces.ravel()[first]  # of each fan
    several = np.bincount(vertex, minlength=len(points)) > 1
    if not several.any():
        return points, faces, source
    # The first fan of each vertex keeps its number, the others are new.
    order = np.argsort(vertex, kind="stable")
    new = np.r_[False, vertex[order][1:] == vertex[order][:-1]]
    number = np.empty(len(vertex), dtype=np.int64)
    number[order[~new]] = vertex[order[~new]]
    number[order[new]] = len(points) + np.arange(new.sum())
    grown = np.concatenate([points, points[vertex[order[new]]]])
    origin = np.concatenate([source, source[vertex[order[new]]]])
    faces = number[fan]
    moved = grown.copy()
    for one in number[several[vertex]]:
        around = faces[(faces == one).any(axis=1)]
        middle = grown[around[around != one]].mean(axis=0)
        moved[one] += _APART * (middle - grown[one])
    return moved, faces, origin


def _crowded_edges(faces: Int[np.ndarray, "f 3"]) -> Int[np.ndarray, "e 2"]:
    """Edges of more than two triangles."""
    ends, count = counted_edges(faces)
    return ends[count > 2]


def _split(
    points: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    source: Int[np.ndarray, " v"],
    crowded: Int[np.ndarray, "e 2"],
) -> tuple[Float[np.ndarray, "w 3"], Int[np.ndarray, "g 3"], Int[np.ndarray, " w"]]:
    """Each pair of triangles at such an edge gets a point of its own in the edge's middle, a little to its side, and is
    cut there into four. Only edges whose triangles are not cut already; the others are left for the next round."""
    pairs = paired(points, faces)
    directed = _directed(faces)
    key = np.sort(directed[pairs[:, 0]], axis=1)
    grown, origin, made = [points], [source], []
    cut: Bool[np.ndarray, " f"] = np.zeros(len(faces), dtype=bool)
    number = len(points)
    for edge in crowded:
        at = pairs[(key == edge).all(axis=1)]
        if cut[at // 3].any():
            continue
        cut[at // 3] = True
        for pair in at:
            aside = points[[faces[h // 3, (h + 2) % 3] for h in pair]].mean(axis=0)
            middle = points[edge].mean(axis=0)
            grown.append((middle + _APART * (aside - middle))[None])
            origin.append(source[edge[:1]])
            for h in pair:
                a, b, c = (faces[h // 3, (h + i) % 3] for i in range(3))
                made += [(a, number, c), (number, b, c)]
            number += 1
    faces = np.concatenate([faces[~cut], np.array(made, dtype=faces.dtype).reshape(-1, 3)])
    return np.concatenate(grown), faces, np.concatenate(origin)


def _largest(faces: Int[np.ndarray, "f 3"], count: int) -> Int[np.ndarray, "g 3"]:
    """The piece with the most triangles."""
    label = pieces(faces, count)[1][faces[:, 0]]
    return faces[label == np.bincount(label).argmax()]
