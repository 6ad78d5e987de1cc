"""Meshes from volumes whose surface is known: an ellipsoid of coloured mist, alone, with crumbs, cut by the cube."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from ellipsoid import AXES, PLANES, WS, Ellipsoid
from torch import Tensor

from headlift.config import MeshConfig
from headlift.eg3d.camera import orbit
from headlift.eg3d.density import grid_axis
from headlift.errors import ConfigError, MeshError
from headlift.export.clean import simplify
from headlift.export.color import linear_to_srgb, srgb_to_linear
from headlift.export.head_mesh import check_mesh, extract_mesh, grid_density
from headlift.export.level import automatic_level, first_crossings
from headlift.export.mesh import Mesh, face_weighted_normals, mesh_from_density
from headlift.export.raster import rasterise
from headlift.export.views import orbit_cameras, render_views
from headlift.values import Camera, RenderOutput

PlainMesh = partial(MeshConfig, texture=False)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The tensors here are small: a second thread costs more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ball(resolution: int, radius: float = 0.3, center: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    axis = grid_axis(resolution, 1.0)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    return (radius - (grid - torch.tensor(center)).norm(dim=-1)).numpy()


def volume(mesh: Mesh) -> float:
    a, b, c = (mesh.vertices[mesh.faces[:, i]].astype(np.float64) for i in range(3))
    return float((np.cross(a, b) * c).sum() / 6)


def edge_uses(mesh: Mesh) -> np.ndarray:
    edges = np.sort(np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]), axis=1)
    return np.unique(edges, axis=0, return_counts=True)[1]


def test_exact_grid_axis() -> None:
    axis = grid_axis(5, 1.6)
    torch.testing.assert_close(axis, torch.tensor([-0.8, -0.4, 0.0, 0.4, 0.8]))


def test_sphere_has_its_volume_place_and_outward_faces() -> None:
    center = (0.05, -0.1, 0.12)
    mesh = mesh_from_density(ball(96, center=center), 1.0, 0.0)
    assert volume(mesh) == pytest.approx(4 / 3 * math.pi * 0.3**3, rel=2e-3)  # positive: faces point outwards
    distance = np.linalg.norm(mesh.vertices - np.array(center), axis=1)
    assert np.abs(distance - 0.3).max() < 2e-4
    assert (edge_uses(mesh) == 2).all()
    radial = (mesh.vertices - np.array(center)) / distance[:, None]
    assert ((mesh.normals * radial).sum(axis=1)).min() > 0.9995
    assert ((face_weighted_normals(mesh.vertices, mesh.faces) * radial).sum(axis=1)).min() > 0.99


def test_box_scales_the_world() -> None:
    small, large = mesh_from_density(ball(48), 1.0, 0.0), mesh_from_density(ball(48), 2.0, 0.0)
    np.testing.assert_allclose(large.vertices, 2 * small.vertices, atol=1e-6)


def test_only_the_largest_piece_stays() -> None:
    two = np.maximum(ball(64, 0.25, (-0.1, 0, 0)), ball(64, 0.1, (0.36, 0.3, 0.2)))
    mesh = mesh_from_density(two, 1.0, 0.0)
    assert volume(mesh) == pytest.approx(4 / 3 * math.pi * 0.25**3, rel=1e-2)
    assert mesh.faces.min() == 0
    assert mesh.faces.max() == len(mesh.vertices) - 1


@pytest.mark.parametrize("faded", [False, True])
def test_walls_are_cut_or_kept(faded: bool) -> None:
    """A column through the bottom of the cube, as neck and shoulders go; `faded`: density ends just before it."""
    axis = grid_axis(64, 1.0).numpy()
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    sigma = np.minimum(0.2 - np.hypot(x, z), 0.1 - y).astype(np.float32)
    if faded:
        sigma[:, 0] = -0.2
    cut = mesh_from_density(sigma, 1.0, 0.0)
    kept = mesh_from_density(sigma, 1.0, 0.0, walls=True)
    corners = cut.vertices[cut.faces]
    wall = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    down = wall[:, 1] < -0.7 * np.linalg.norm(wall, axis=1)
    assert not down.any()
    assert cut.vertices[:, 1].min() < -0.47  # the column itself goes on to the border
    assert (edge_uses(kept) == 2).all()  # watertight
    top, bottom = 0.1, (-0.5 if not faded else -0.5 + 0.5 / 63)
    assert volume(kept) == pytest.approx(math.pi * 0.04 * (top - bottom), rel=2e-2)
    assert kept.vertices.min() >= -0.5
    floor = (kept.vertices[:, 1] < bottom + 1e-3) & (np.hypot(kept.vertices[:, 0], kept.vertices[:, 2]) < 0.18)
    assert kept.normals[floor, 1].max() < -0.99


def test_bad_settings_are_refused_before_a_head_is_made() -> None:
    for config, words in ((MeshConfig(smooth=-3), "--mesh.smooth"), (MeshConfig(close=True, walls=True), "choose one")):
        with pytest.raises(ConfigError, match=words):
            check_mesh(config, ())


@pytest.mark.parametrize("level", [-5.0, 5.0])
def test_no_surface_is_a_clear_error(level: float) -> None:
    with pytest.raises(MeshError, match="automatic rule"):
        mesh_from_density(ball(16), 1.0, level)


def test_empty_volume_is_a_clear_error() -> None:
    class Nothing(Ellipsoid):
        def query(self, planes: Tensor, xyz: Tensor) -> tuple[Tensor, Tensor]:
            sigma, features = super().query(planes, xyz)
            return torch.full_like(sigma, -30.0), features

    with pytest.raises(MeshError, match="empty from every side"):
        extract_mesh(Nothing(), PLANES, WS, PlainMesh(resolution=24))


def test_mist_still_has_a_mesh() -> None:
    """Nowhere half opaque, as an untrained generator's volume: the surface is that of its densest part."""

    class Mist(Ellipsoid):
        def query(self, planes: Tensor, xyz: Tensor) -> tuple[Tensor, Tensor]:
            sigma, features = super().query(planes, xyz)
            return -3 + 2 * (sigma / 1000).clamp(-1, 1), features

    mesh = extract_mesh(Mist(), PLANES, WS, PlainMesh(resolution=32))
    assert -5 < mesh.level < -1
    assert len(mesh.faces) > 500


def test_grid_density_in_slabs_is_the_query_at_the_exact_points() -> None:
    head = Ellipsoid()
    sigma = grid_density(head, PLANES)(20, None)
    at = torch.tensor([[[-0.5 + 3 / 19, -0.5 + 11 / 19, -0.5 + 9 / 19]]])
    assert sigma[3, 11, 9] == pytest.approx(float(head.query(PLANES, at)[0]), rel=1e-5)


def test_first_crossings_by_hand() -> None:
    along = torch.tensor([[0.0, 2.0, 1.0, 5.0], [3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.5]])
    distances = torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(3, 4)
    found = first_crossings(along, distances, torch.tensor([1.0, 3.0]))
    # Row 1: 1 lies half way from 0 to 2; 3 half way from 1 to 5. Row 2 starts above both. Row 3 reaches neither.
    torch.testing.assert_close(found, torch.tensor([[1.5, 3.5], [1.0, 1.0], [math.inf, math.inf]]))


def test_automatic_level_agrees_with_the_renders() -> None:
    """The ramp is steep, so alpha 0.5 lies close to the ellipsoid, where the density is about 20."""
    head = Ellipsoid()
    cameras = orbit_cameras(torch.tensor([0.0, 0.9, 2.2, 4.0]))
    views = list(render_views(head, PLANES, WS, cameras))
    level = automatic_level(grid_density(head, PLANES)(96, None), 1.0, [view.alpha for view in views], cameras)
    mesh = mesh_from_density(grid_density(head, PLANES)(96, level), 1.0, level)
    for i, out in enumerate(views):
        seen = rasterise(mesh.vertices, mesh.faces, cameras[i : i + 1], 40)
        hit, shown = seen.face >= 0, (out.alpha[0, 0] > 0.5).numpy()
        assert (hit & shown).sum() / (hit | shown).sum() > 0.97
        both = hit & (out.alpha[0, 0] > 0.99).numpy()
        assert np.abs(seen.depth - out.depth[0, 0].numpy())[both].mean() < 0.015
    again = automatic_level(grid_density(head, PLANES)(96, None), 1.0, [view.alpha for view in views], cameras)
    assert again == level


def test_a_given_level_is_kept() -> None:
    mesh = extract_mesh(Ellipsoid(), PLANES, WS, PlainMesh(resolution=40, level=33.0, colors=False))
    assert mesh.level == 33.0
    assert mesh.colors is None
    radius = np.linalg.norm((mesh.vertices - np.array([0.0, 0.02, 0.01])) / AXES.numpy(), axis=1)
    assert np.abs(radius - (1 - 13 / 2000)).max() < 0.02


def test_colors_are_linear_and_those_of_the_volume() -> None:
    mesh = extract_mesh(Ellipsoid(), PLANES, WS, PlainMesh(resolution=64), camera=orbit(0.3, 0.1))
    assert mesh.colors is not None
    expected = srgb_to_linear((0.5 + 1.2 * mesh.vertices).clip(0, 1))
    assert np.abs(mesh.colors - expected).max() < 0.06
    assert np.abs(mesh.colors - expected).mean() < 0.015


def test_views_paint_only_what_they_see() -> None:
    """Renders tinted red from the photo's side alone: the front turns red, the back keeps the volume's colour."""

    class Tinted(Ellipsoid):
        def render(self, planes: Tensor, ws: Tensor, camera: Camera) -> RenderOutput:
            out = super().render(planes, ws, camera)
            image = out.image.clone()
            image[camera.origin[:, 2] > 1.5] = torch.tensor([1.0, -1.0, -1.0])[:, None, None]
            return replace(out, image=image)

    head = Tinted(center=(0.0, 0.0, 0.0))
    mesh = extract_mesh(head, PLANES, WS, PlainMesh(resolution=48))
    assert mesh.colors is not None
    front = mesh.normals[:, 2] > 0.9
    back = mesh.normals[:, 2] < -0.7
    assert mesh.colors[front, 0].min() > 0.9
    assert mesh.colors[front, 1].max() < 0.05
    expected = srgb_to_linear((0.5 + 1.2 * mesh.vertices).clip(0, 1))
    assert np.abs(mesh.colors - expected)[back].max() < 0.06


def test_simplified_mesh_keeps_its_shape_and_colours() -> None:
    mesh = mesh_from_density(ball(64), 1.0, 0.0)
    mesh = replace(mesh, colors=(0.5 + mesh.vertices).astype(np.float32))
    small = simplify(mesh, 3000)
    assert len(small.faces) <= 3100 < len(mesh.faces)
    assert volume(small) == pytest.approx(volume(mesh), rel=1e-2)
    assert small.colors is not None
    assert np.abs(small.colors - (0.5 + small.vertices)).max() < 0.02
    assert ((small.normals * small.vertices).sum(axis=1) / 0.3).min() > 0.98
    assert simplify(small, 10**6) is small


def test_extraction_is_deterministic() -> None:
    a, b = (extract_mesh(Ellipsoid(), PLANES, WS, PlainMesh(resolution=32)) for _ in range(2))
    assert a.level == b.level
    assert a.colors is not None
    assert b.colors is not None
    for left, right in [(a.vertices, b.vertices), (a.faces, b.faces), (a.normals, b.normals), (a.colors, b.colors)]:
        np.testing.assert_array_equal(left, right)


def test_srgb_curve() -> None:
    """By hand: 0.5 -> ((0.5 + 0.055) / 1.055)^2.4 = 0.21404; 0.02 / 12.92 = 0.001548."""
    np.testing.assert_allclose(
        srgb_to_linear(np.array([0.0, 0.02, 0.5, 1.0, 1.5])), [0, 0.00154799, 0.21404114, 1, 1], atol=1e-7
    )
    values = np.linspace(0, 1, 257)
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(values)), values, atol=1e-12)


def test_raster_of_one_triangle() -> None:
    """A triangle in the plane z = 0 seen from (0, 0, 2.7), focal 2.7: one unit is one picture side."""
    camera = orbit(0.0, 0.0, pivot=(0.0, 0.0, 0.0), focal=2.7)
    vertices = np.array([[-0.25, -0.25, 0.0], [0.25, -0.25, 0.0], [-0.25, 0.25, 0.0]])
    faces = np.array([[0, 1, 2]])
    seen = rasterise(vertices, faces, camera, 64)
    assert (seen.face >= 0).sum() == pytest.approx(64 * 64 / 8, rel=0.05)
    assert seen.face[47, 16] == 0  # lower left corner of the picture's middle half
    assert seen.face[16, 47] == -1
    points = seen.interpolate(faces, vertices)
    hit = seen.face >= 0
    v, u = np.nonzero(hit)
    np.testing.assert_allclose(points[hit][:, 0], (u + 0.5) / 64 - 0.5, atol=1e-6)
    np.testing.assert_allclose(points[hit][:, 1], 0.5 - (v + 0.5) / 64, atol=1e-6)
    np.testing.assert_allclose(seen.depth[hit], np.linalg.norm(points[hit] - [0, 0, 2.7], axis=1), atol=1e-6)


def test_raster_keeps_the_nearest() -> None:
    camera = orbit(0.0, 0.0, pivot=(0.0, 0.0, 0.0), focal=2.7)
    square = np.array([[-0.3, -0.3, 0.0], [0.3, -0.3, 0.0], [0.3, 0.3, 0.0], [-0.3, 0.3, 0.0]])
    vertices = np.concatenate([square, square * 0.5 + [0, 0, 0.5], square * 0.5 - [0, 0, 0.5]])
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7], [8, 9, 10], [8, 10, 11]])
    seen = rasterise(vertices, faces, camera, 33)
    assert set(np.unique(seen.face)) == {-1, 0, 1, 2, 3}
    assert seen.face[16, 16] in (2, 3)
    assert seen.depth[16, 16] == pytest.approx(2.2)
