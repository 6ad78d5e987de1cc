"""Pictures: bytes, depth and normals of known surfaces, grids and overlays where they should be."""

import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from headlift.eg3d.camera import orbit, ray_directions, yaw_pitch
from headlift.export.images import (
    crop_overlay,
    depth_in_color,
    depth_to_uint16,
    grid,
    normal_map,
    normals_from_depth,
    png_bytes,
    pose_overlay,
    shrink,
    to_uint8,
    views_all_round,
    write_png,
)
from headlift.values import Camera, Crop, Face, Similarity, Verdict


def sphere_depth(camera: Camera, size: int, radius: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Distance along the ray to a sphere about the world's origin, its mask, and its true normals."""
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    v, u = torch.meshgrid(centres, centres, indexing="ij")
    rays = ray_directions(camera, torch.stack([u, v], dim=-1).reshape(1, -1, 2))[0]
    origin = camera.origin[0]
    b = rays @ origin
    inside = b**2 - origin @ origin + radius**2
    depth = -b - inside.clamp(min=0).sqrt()
    normals = (origin + depth[:, None] * rays) / radius
    shape = (1, 1, size, size)
    return depth.reshape(shape), (inside > 0).double().reshape(shape), normals.T.reshape(1, 3, size, size)


def camera64(yaw: float, pitch: float) -> Camera:
    return orbit(yaw, pitch, pivot=(0.0, 0.0, 0.0)).to(dtype=torch.float64)


def test_to_uint8_by_hand() -> None:
    image = torch.tensor([-1.0, 0.0, 1.0, -3.0, 2.0, 0.5]).reshape(1, 1, 2, 3).expand(1, 3, 2, 3)
    np.testing.assert_array_equal(to_uint8(image)[..., 1], [[0, 128, 255], [0, 255, 191]])


def test_depth_png_is_16_bit_and_counts_tenths_of_a_thousandth(tmp_path: Path) -> None:
    depth, alpha, _ = sphere_depth(camera64(0.3, 0.2), 48, 0.25)
    write_png(tmp_path / "depth.png", depth_to_uint16(depth, alpha), {"unit": "1e-4 world units"})
    with Image.open(tmp_path / "depth.png") as picture:
        counts = np.asarray(picture)
        assert picture.mode == "I;16"
        assert picture.info["unit"] == "1e-4 world units"
    hit = alpha[0, 0].bool().numpy()
    assert (counts[~hit] == 0).all()
    np.testing.assert_allclose(counts[hit] * 1e-4, depth[0, 0].numpy()[hit], atol=0.51e-4)
    assert counts[24, 24] == np.round((2.7 - 0.25) / 1e-4) or abs(int(counts[24, 24]) - 24500) < 10


def test_depth_in_color_runs_from_near_to_far() -> None:
    depth, alpha, _ = sphere_depth(camera64(0.0, 0.0), 32, 0.25)
    pixels = depth_in_color(depth, alpha)
    assert (pixels[0, 0] == 255).all()
    assert pixels[16, 16].tolist() == [253, 231, 37]
    assert (depth_in_color(depth, torch.zeros_like(alpha)) == 255).all()


def test_normals_of_a_sphere() -> None:
    camera = camera64(0.7, -0.3)
    depth, alpha, truth = sphere_depth(camera, 96, 0.25)
    normals = normals_from_depth(depth, camera)
    facing = -(truth * torch.nn.functional.normalize(truth * 0.25 - camera.origin[0][:, None, None], dim=1)).sum(dim=1)
    inner = (facing > 0.4) & alpha[0].bool()
    assert float((normals * truth).sum(dim=1)[inner].min()) > 0.999


def test_normal_map_colours() -> None:
    """The middle faces the viewer, the right side turns red up, the upper side green."""
    camera = camera64(1.1, 0.2)
    depth, alpha, _ = sphere_depth(camera, 64, 0.25)
    pixels = normal_map(depth, alpha, camera).astype(int)
    assert np.abs(pixels[32, 32] - [128, 128, 255]).max() <= 12
    assert pixels[0, 0].tolist() == [128, 128, 255]
    right, top = pixels[32, 48], pixels[16, 32]
    assert right[0] > 190
    assert abs(right[1] - 128) < 15
    assert top[1] > 190
    assert abs(top[0] - 128) < 15


def test_png_is_lossless() -> None:
    rng = np.random.default_rng(0)
    for pixels in (
        rng.integers(0, 256, (5, 7, 3), dtype=np.uint8),
        rng.integers(0, 256, (5, 7), dtype=np.uint8),
        rng.integers(0, 65536, (5, 7), dtype=np.uint16),
    ):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(pixels)))), pixels)


def test_grid_places_pictures_and_labels() -> None:
    pictures = [np.full((40, 50, 3), 20 * i, dtype=np.uint8) for i in range(5)]
    sheet = grid(pictures, ["a", "b", "c", "d", "e"], columns=3, gap=4)
    assert sheet.shape == (84, 158, 3)
    for i in range(5):
        y, x = i // 3 * 44, i % 3 * 54
        assert (sheet[y : y + 10, x : x + 50] == 20 * i).all()
        assert (sheet[y + 20 : y + 40, x : x + 25] == 255).any()  # the label's ground
    assert (sheet[44:, 108:] == 255).all()  # an empty place


def test_views_all_round() -> None:
    cameras, labels = views_all_round(8)
    yaw = [round(math.degrees(y)) for y in yaw_pitch(cameras)[0].tolist()]
    told = [int(label.split()[1].rstrip("°")) for label in labels]
    assert [y % 360 for y in yaw] == [t % 360 for t in told]
    assert labels[:3] == ["yaw 0°", "yaw +45°", "yaw +90°"]
    assert labels[7] == "yaw -45°"


def test_shrink() -> None:
    assert shrink(np.zeros((300, 600, 3), dtype=np.uint8), 200).shape == (100, 200, 3)
    assert shrink(np.zeros((30, 60, 3), dtype=np.uint8), 200).shape == (30, 60, 3)


def crop_of(photo_size: int) -> Crop:
    """A crop that is the middle half of the photo, seen frontally, with 478 landmarks around the middle."""
    matrix = np.array([[2 / photo_size, 0, -0.5], [0, 2 / photo_size, -0.5]])
    rng = np.random.default_rng(0)
    landmarks = np.concatenate([photo_size * (0.5 + 0.05 * rng.standard_normal((478, 2))), np.zeros((478, 1))], axis=1)
    image = torch.zeros(1, 3, 128, 128)
    face = Face((0.0, 0.0, 1.0, 1.0), 1.0, landmarks)
    return Crop(
        image, torch.ones(1, 1, 128, 128), orbit(0.0, 0.0), Similarity(matrix), face, 0.0, np.eye(2), Verdict(())
    )


def test_pose_overlay_draws_frame_landmarks_and_axes() -> None:
    photo = np.full((256, 256, 3), 128, dtype=np.uint8)
    drawn = pose_overlay(photo, crop_of(256)).astype(int)
    changed = np.abs(drawn - 128).sum(axis=-1) > 40
    rows, columns = np.nonzero(changed)
    assert 55 < rows.min() < 66  # the frame: 64 to 192
    assert 190 < rows.max() < 200
    assert 55 < columns.min() < 66
    assert not changed[100:150, 5:50].any()
    red = (drawn[..., 0] - drawn[..., 1:].max(axis=-1)) > 80
    blue_or_green = (drawn[..., 1:].max(axis=-1) - drawn[..., 0]) > 60
    assert red.sum() > 20
    assert np.nonzero(red)[1].mean() > 128  # +x is to the right of a frontal picture
    assert blue_or_green.sum() > 20
    assert photo.max() == 128  # the photo itself stays as it was


def test_crop_overlay_has_the_crop_s_size() -> None:
    drawn = crop_overlay(crop_of(512))
    assert drawn.shape == (128, 128, 3)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 10
