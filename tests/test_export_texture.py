"""Textures of an ellipsoid whose colours are known everywhere; cleaning; splats."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from ellipsoid import PLANES, WS, Ellipsoid
from sample_meshes import sample_mesh, textured_sample

from headlift.config import MeshConfig
from headlift.eg3d.camera import orbit
from headlift.eg3d.density import grid_axis
from headlift.errors import ConfigError
from headlift.export.clean import quality, simplify, smoothed
from headlift.export.color import linear_to_srgb
from headlift.export.head_mesh import extract_mesh
from headlift.export.mesh import Mesh, mesh_from_density
from headlift.export.paths import read_cameras, write_cameras
from headlift.export.raster import colors_at, covered, drawn
from headlift.export.splats import SH_ZERO, draw_splats, splats_on, write_splats
from headlift.export.texture import Photo
from headlift.export.views import orbit_cameras

CONFIG = MeshConfig(resolution=64, level=20.0, faces=3000, texture_size=256)


def ball(resolution: int, radius: float = 0.3, height: float = 0.0) -> np.ndarray:
    axis = grid_axis(resolution, 1.0)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    return (radius - (grid - torch.tensor([0.0, height, 0.0])).norm(dim=-1)).numpy()


@pytest.fixture(scope="module")
def textured() -> Mesh:
    return extract_mesh(Ellipsoid(size=64), PLANES, WS, CONFIG)


def on_the_surface(mesh: Mesh, count: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random points: triangles, weights, and where they lie."""
    rng = np.random.default_rng(0)
    face = rng.integers(len(mesh.faces), size=count)
    weights = rng.dirichlet([1, 1, 1], size=count)
    return face, weights, np.einsum("nk,nkc->nc", weights, mesh.vertices[mesh.faces[face]])


def test_a_texel_has_the_colour_of_its_place(textured: Mesh) -> None:
    face, weights, points = on_the_surface(textured)
    expected = np.clip(0.5 + 1.2 * points, 0, 1)  # sRGB, as the volume's features are
    error = np.abs(linear_to_srgb(colors_at(textured, face, weights)) - expected)
    assert np.median(error) < 0.015
    assert np.quantile(error, 0.99) < 0.08
    assert len(textured.faces) <= 3000
    assert textured.texture is not None
    assert textured.texture.image.shape == (256, 256, 3)
    assert (textured.texture.image.max(axis=-1) > 30).all()  # nothing is left black between the charts
    assert textured.colors is not None
    at_vertices = np.abs(linear_to_srgb(textured.colors) - np.clip(0.5 + 1.2 * textured.vertices, 0, 1))
    assert np.median(at_vertices) < 0.015


def test_charts_keep_triangles_apart(textured: Mesh) -> None:
    """No texel belongs to two triangles, and the places of a vertex are its own."""
    assert textured.texture is not None
    chart = textured.texture
    np.testing.assert_array_equal(chart.source[chart.faces], textured.faces)
    found = [pixel for pixel, _, _ in covered(chart.uv[chart.faces] * 1024 - 0.5, 1024)]
    pixels, times = np.unique(np.concatenate(found), return_counts=True)
    assert (times > 1).mean() < 0.01  # but for those whose centres lie on an edge
    assert len(pixels) > 0.3 * 1024**2


def test_the_photo_wins_where_it_sees_and_its_background_stays_off() -> None:
    """A red photo on a green ground, its mask the ellipsoid's outline drawn too large."""
    size, camera = 128, orbit(0.0, 0.0)
    head = Ellipsoid(size=size)
    alpha = head.render(PLANES, WS, camera).alpha
    image = torch.where(
        alpha > 0.5, torch.tensor([1.0, -1, -1]).view(1, 3, 1, 1), torch.tensor([-1.0, 1, -1]).view(1, 3, 1, 1)
    )
    mask = torch.nn.functional.max_pool2d(alpha, 9, stride=1, padding=4)
    mesh = extract_mesh(Ellipsoid(size=64), PLANES, WS, CONFIG, photo=Photo(image, mask, camera))
    face, weights, points = on_the_surface(mesh)
    color = linear_to_srgb(colors_at(mesh, face, weights))
    front = points[:, 2] > 0.19
    assert (np.abs(color[front] - [1, 0, 0]).max(axis=1) < 0.05).mean() > 0.9
    assert not ((color[:, 1] > 0.85) & (color[:, 0] < 0.15)).any()
    back = points[:, 2] < -0.15
    seen = np.abs(color[back] - np.clip(0.5 + 1.2 * points[back], 0, 1))
    assert np.median(seen) < 0.12  # the photo's shift has faded


@pytest.mark.parametrize("size", [128, 8192])
def test_sizes_that_are_none(size: int) -> None:
    with pytest.raises(ConfigError, match="256 to 4096"):
        extract_mesh(Ellipsoid(), PLANES, WS, MeshConfig(resolution=24, level=20.0, texture_size=size))


def test_covered_pixels_by_hand() -> None:
    """The triangle (0, 0), (4, 0), (0, 4) holds the pixels with x + y <= 4, with weights 1 - (x + y) / 4, x / 4..."""
    seen = {}
    for pixel, face, weights in covered(np.array([[[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]]]), 8):
        assert (face == 0).all()
        seen |= dict(zip(pixel.tolist(), weights.tolist(), strict=True))
    assert set(seen) == {8 * y + x for y in range(5) for x in range(5 - y)}
    np.testing.assert_allclose(seen[8 * 1 + 2], [0.25, 0.5, 0.25])


def test_smoothing_takes_the_noise_and_leaves_the_size() -> None:
    rng = np.random.default_rng(0)
    mesh = mesh_from_density(ball(48), 1.0, 0.0)
    noisy = mesh.vertices + rng.normal(0, 0.003, mesh.vertices.shape).astype(np.float32)
    rough = Mesh(noisy, mesh.faces, mesh.normals, None, 0.0)
    smooth = smoothed(rough, 15)
    before, after = (np.linalg.norm(m.vertices, axis=1).std() for m in (rough, smooth))
    assert after < 0.5 * before
    assert np.linalg.norm(smooth.vertices, axis=1).mean() == pytest.approx(0.3, rel=5e-3)
    found, known = quality(smooth).volume_cm3, quality(mesh).volume_cm3
    assert found is not None
    assert found == pytest.approx(known, rel=0.01)


def test_smoothing_leaves_the_border() -> None:
    mesh = mesh_from_density(ball(40, 0.45, -0.2), 1.0, 0.0)
    low = mesh.vertices[:, 1] < mesh.vertices[:, 1].min() + 1e-6
    rim = np.isin(np.arange(len(mesh.vertices)), np.flatnonzero(low))
    assert quality(mesh).border_edges > 0
    moved = np.abs(smoothed(mesh, 5).vertices - mesh.vertices).max(axis=1)
    assert moved[rim].max() == 0
    assert moved.max() > 0


def test_closed_flat_where_the_cube_ends() -> None:
    """A ball that the cube's floor cuts: open, or closed with a flat cap that points downwards, also when decimated."""
    density = ball(64, 0.35, -0.3)
    open_, closed = mesh_from_density(density, 1.0, 0.0), mesh_from_density(density, 1.0, 0.0, close=True)
    assert not quality(open_).watertight
    small = simplify(closed, 2000)
    for mesh in (closed, small):
        found = quality(mesh, 0.01)  # a world unit is a centimetre
        assert found.watertight
        assert (found.pieces, found.border_edges, found.turned_edges) == (1, 0, 0)
        assert trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).is_watertight
        floor = float(mesh.vertices[:, 1].min())
        assert -0.5 < floor < -0.45
        height = -0.3 + 0.35 - floor  # of the spherical cap that is left
        expected = math.pi * height**2 * (3 * 0.35 - height) / 3
        assert found.volume_cm3 == pytest.approx(expected, rel=0.01)
        cap = np.flatnonzero((mesh.vertices[mesh.faces][..., 1] < floor + 1e-3).all(axis=1))
        assert len(cap) > 0
        assert found.normals_outwards > 0.99
    lowest = closed.vertices[:, 1] < closed.vertices[:, 1].min() + 1e-5
    inner = lowest & (np.linalg.norm(closed.vertices[:, [0, 2]], axis=1) < 0.2)
    np.testing.assert_allclose(closed.normals[inner], np.tile([0, -1, 0], (inner.sum(), 1)), atol=1e-3)


def test_a_sheet_behind_the_head_is_not_the_head() -> None:
    """A wall at the back has more triangles than the ball in the middle; the ball stays."""
    density = ball(64, 0.15)
    density[:, :, 3:6] = 0.1
    mesh = mesh_from_density(density, 1.0, 0.0)
    assert np.linalg.norm(mesh.vertices, axis=1).max() < 0.16


def test_quality_by_hand() -> None:
    """The octahedron's volume is (0.4 * 0.6 * 0.4) / 6; one face less opens three edges."""
    mesh = sample_mesh()
    found = quality(mesh, 0.01)
    assert found.watertight
    assert found.volume_cm3 == pytest.approx(0.4 * 0.6 * 0.4 / 6)
    assert (found.triangles, found.vertices, found.pieces, found.degenerate_triangles) == (8, 6, 1, 0)
    assert found.size_mm == pytest.approx((4.0, 6.0, 4.0))
    assert found.normals_outwards == 1.0
    holed = quality(Mesh(mesh.vertices, mesh.faces[1:], mesh.normals, None, 0.0))
    assert (holed.watertight, holed.border_edges, holed.volume_cm3) == (False, 3, None)
    turned = np.concatenate([mesh.faces[:1, ::-1], mesh.faces[1:]])
    assert quality(Mesh(mesh.vertices, turned, mesh.normals, None, 0.0)).turned_edges == 3
    wing = np.concatenate([mesh.faces, [[0, 2, 1]]]).astype(np.int32)
    assert quality(Mesh(mesh.vertices, wing, mesh.normals, None, 0.0)).nonmanifold_edges == 2
    assert quality(textured_sample()).texture_use == pytest.approx(8 * 0.5 * (0.18 * 0.2 - 0.01 * 0.03))
    assert any("watertight" in line for line in found.lines())


def test_splats_look_like_the_head_and_read_back(textured: Mesh, tmp_path: Path) -> None:
    from plyfile import PlyData

    splats = splats_on(textured, 20_000)
    for camera in (orbit_cameras(torch.tensor([0.0])), orbit_cameras(torch.tensor([2.0]), 0.4)):
        shown = draw_splats(splats, camera, 128)
        assert -10 * np.log10(((shown - drawn(textured, camera, 128)) ** 2).mean()) > 25
        render = Ellipsoid(size=128).render(PLANES, WS, camera).raw
        seen = ((render[0].permute(1, 2, 0) + 1) / 2).clamp(0, 1).numpy()
        assert -10 * np.log10(((shown - seen) ** 2).mean()) > 25
    write_splats(tmp_path / "s.ply", splats_on(textured))
    table = PlyData.read(str(tmp_path / "s.ply"))["vertex"]
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"]
    assert [p.name for p in table.properties] == names + ["scale_0", "scale_1", "scale_2"] + [
        f"rot_{i}" for i in range(4)
    ]
    points = np.stack([table[axis] for axis in "xyz"], axis=1) * [1, -1, -1] / 0.396  # y is down, z points away
    colors = 0.5 + SH_ZERO * np.stack([table[f"f_dc_{i}"] for i in range(3)], axis=1)
    assert np.median(np.abs(colors - np.clip(0.5 + 1.2 * points, 0, 1))) < 0.02
    w, x, y, z = (np.asarray(table[f"rot_{i}"], dtype=float) for i in range(4))
    turned = np.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], axis=1)
    normals = np.stack([table["n" + axis] for axis in "xyz"], axis=1)
    assert ((turned * normals).sum(axis=1) > 0.999).all()  # the short axis is the normal's, in the file's axes


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_camera_paths_out_and_in_again(suffix: str, tmp_path: Path) -> None:
    cameras = orbit_cameras(torch.tensor([0.0, 0.7, -2.0]), torch.tensor([0.1, -0.3, 0.2]))
    write_cameras(tmp_path / f"path{suffix}", cameras)
    again = read_cameras(tmp_path / f"path{suffix}")
    torch.testing.assert_close(again.cam2world, cameras.cam2world)
    torch.testing.assert_close(again.intrinsics, cameras.intrinsics)
