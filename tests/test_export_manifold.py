"""Meshes that touch themselves are taken apart, whatever they look like; clean ones stay as they are."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import trimesh
from ellipsoid import PLANES, WS, Ellipsoid
from embedded_head import embedded_head
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_meshes import sample_mesh

from headlift.config import MeshConfig
from headlift.export.clean import quality, simplify
from headlift.export.formats import write_mesh
from headlift.export.head_mesh import decimated, extract_mesh
from headlift.export.manifold import manifold
from headlift.export.mesh import Mesh

RING = ((0, 0, 0), (0, 0, 1), (1, 0, 1), (1, 1, 1), (1, 1, 0))
"""Cubes in a row whose first and last have an edge in common, and no side."""
TWO_WAYS = (*RING, (0, 0, -1), (1, 0, -1), (1, 1, -1))
"""As before, and joined below as well: that edge's ends belong to both sides."""


def cubes(places: tuple[tuple[int, int, int], ...]) -> Mesh:
    """The surface of unit cubes, two triangles a side, outwards, their corners indexed by place."""
    full = set(places)
    index: dict[tuple[int, ...], int] = {}
    faces = []
    for place, axis, side in itertools.product(places, range(3), (0, 1)):
        beside = tuple(c + (2 * side - 1) * (i == axis) for i, c in enumerate(place))
        if beside in full:
            continue
        u, v = (axis + 1) % 3, (axis + 2) % 3
        around = [(0, 0), (1, 0), (1, 1), (0, 1)] if side else [(0, 0), (0, 1), (1, 1), (1, 0)]
        ring = []
        for du, dv in around:
            corner = list(place)
            corner[axis] += side
            corner[u] += du
            corner[v] += dv
            ring.append(index.setdefault(tuple(corner), len(index)))
        faces += [(ring[0], ring[1], ring[2]), (ring[0], ring[2], ring[3])]
    points = np.array(list(index), dtype=np.float32)
    return Mesh(points, np.array(faces, dtype=np.int32), np.tile(np.float32([0, 0, 1]), (len(points), 1)), None, 0.0)


def assert_clean(mesh: Mesh) -> None:
    found = quality(mesh, 0.01)
    assert found.watertight
    assert (found.nonmanifold_edges, found.nonmanifold_vertices, found.turned_edges, found.pieces) == (0, 0, 0, 1)
    assert len(np.unique(mesh.vertices, axis=0)) == len(mesh.vertices)  # as STL needs it, which has no indices


def test_a_clean_mesh_stays_as_it_is() -> None:
    mesh = sample_mesh()
    assert manifold(mesh) is mesh


def test_triangles_back_to_back_go() -> None:
    mesh = sample_mesh()
    a, b, _ = mesh.faces[0]
    outside = len(mesh.vertices)
    flap = np.array([[a, b, outside], [b, a, outside]], dtype=np.int32)
    points = np.concatenate([mesh.vertices, [[9.0, 9.0, 9.0]]]).astype(np.float32)
    normals = np.concatenate([mesh.normals, [[0.0, 0.0, 1.0]]]).astype(np.float32)
    with_flap = Mesh(points, np.concatenate([mesh.faces, flap]), normals, None, 0.0)
    assert quality(with_flap).nonmanifold_edges == 1
    mended = manifold(with_flap)
    np.testing.assert_array_equal(mended.vertices, mesh.vertices)
    np.testing.assert_array_equal(mended.faces, mesh.faces)


@pytest.mark.parametrize("places", [RING, TWO_WAYS])
def test_cubes_that_touch_along_an_edge_are_taken_apart(places: tuple[tuple[int, int, int], ...]) -> None:
    mesh = cubes(places)
    assert quality(mesh).nonmanifold_edges == 1
    mended = manifold(mesh)
    assert_clean(mended)
    volume = quality(mended, 0.01).volume_cm3
    assert volume == pytest.approx(len(places), rel=0.05)  # hardly anything has moved
    # Along the edge there is air now: what was cut there has drawn back from it.
    assert np.linalg.norm(mended.vertices - [1.0, 1.0, 0.5], axis=1).min() > 0.01


def test_cubes_that_touch_at_a_corner_are_taken_apart() -> None:
    mesh = cubes(((0, 0, 0), (1, 1, 1), (2, 1, 1)))
    found = quality(mesh)
    assert (found.watertight, found.nonmanifold_edges, found.nonmanifold_vertices) == (True, 0, 1)
    mended = manifold(mesh)
    assert_clean(mended)
    assert quality(mended, 0.01).volume_cm3 == pytest.approx(2, rel=0.05)  # the larger piece


@given(st.sets(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_heap_of_cubes_becomes_manifold(places: set[tuple[int, int, int]]) -> None:
    """A heap of cubes touches itself along edges and at corners in every way there is; it may fall into pieces."""
    mesh = cubes(tuple(sorted(places)))
    before = quality(mesh)
    assert before.watertight or before.nonmanifold_edges > 0
    assert_clean(manifold(mesh))


def test_decimation_keeps_to_the_number_and_leaves_no_faults() -> None:
    whole = extract_mesh(Ellipsoid(), PLANES, WS, MeshConfig(resolution=48, level=20.0, texture=False, close=True))
    for count in (2000, 500, 100):
        small = decimated(whole, count)
        assert_clean(small)
        assert count - 20 <= len(small.faces) <= count


@pytest.fixture(scope="module")
def head() -> Mesh:
    """A random head of the embedded prior, closed below."""
    return extract_mesh(*embedded_head(3), MeshConfig(resolution=128, colors=False, close=True))


def test_a_head_is_watertight_in_full_and_decimated(head: Mesh, tmp_path: Path) -> None:
    plain = [quality(simplify(head, count)) for count in (20_000, 10_000, 5_000)]
    assert sum(found.nonmanifold_edges for found in plain) > 0  # what edge collapse leaves by itself
    for count in (None, 20_000, 10_000, 5_000):
        mesh = head if count is None else decimated(head, count)
        assert_clean(mesh)
        write_mesh(mesh, tmp_path / "head.stl")
        assert trimesh.load(tmp_path / "head.stl").is_volume
        write_mesh(mesh, tmp_path / "head.ply")
        assert trimesh.load(tmp_path / "head.ply").is_volume
