"""Cutting a crop and putting it back; the similarity's laws; what lies beyond the photo's edge."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headlift.pose_estimation.crop import cut, inside_photo, paste_back, to_tensor, to_uint8
from headlift.pose_estimation.masks import head_mask
from headlift.pose_estimation.verdict import cut_off
from headlift.pose_estimation.warp import guided_filter, sharpness, similarity, warp
from headlift.values import Similarity

turns = st.floats(-math.pi, math.pi)
sides = st.floats(20, 3000)
places = st.tuples(st.floats(-500, 4000), st.floats(-500, 4000))


def crop_of(turn: float, side: float, middle: tuple[float, float]) -> Similarity:
    return Similarity(similarity(turn, 1 / side, np.array(middle, dtype=float), np.array([0.5, 0.5])))


def waves(height: int, width: int) -> np.ndarray:
    """A smooth test picture that is exactly known everywhere."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return wave_at(x, y)


def wave_at(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    bands = [np.sin(x / 17) * np.cos(y / 23), np.cos((x + y) / 29), np.sin((x - 2 * y) / 41)]
    return np.rint(127.5 + 100 * np.stack(bands, axis=-1)).astype(np.uint8)


@given(turns, sides, places)
def test_similarity_and_its_inverse_cancel(turn: float, side: float, middle: tuple[float, float]) -> None:
    to_crop = crop_of(turn, side, middle)
    points = np.array([[0.0, 0.0], [123.4, 55.5], [2000.0, -30.0]])
    assert np.abs(to_crop.inverse().apply(to_crop.apply(points)) - points).max() < 1e-6
    assert to_crop.scale == pytest.approx(1 / side)
    assert math.remainder(to_crop.roll - turn, 2 * math.pi) == pytest.approx(0, abs=1e-9)
    assert to_crop.apply(np.array([middle]))[0] == pytest.approx([0.5, 0.5])
    lengths = np.linalg.norm(np.diff(to_crop.apply(points), axis=0), axis=1) * side
    assert lengths == pytest.approx(np.linalg.norm(np.diff(points, axis=0), axis=1))


@pytest.mark.parametrize("turn", [0.0, 0.5, -2.0])
@pytest.mark.parametrize("side", [100.0, 160.0, 240.0])
def test_crop_shows_what_the_similarity_says(turn: float, side: float) -> None:
    to_crop = crop_of(turn, side, (256.0, 200.0))
    size = 96
    crop = cut(waves(400, 512), to_crop, size)
    ticks = (np.arange(size) + 0.5) / size
    u, v = np.meshgrid(ticks, ticks)
    x, y = to_crop.inverse().apply(np.stack([u.ravel(), v.ravel()], axis=1)).T
    expected = wave_at(x, y).reshape(size, size, 3).astype(int)
    assert np.abs(crop.astype(int) - expected).max() <= (3 if side < 192 else 6)  # shrinking by 2.5 averages blocks


def test_identity_changes_nothing() -> None:
    photo = waves(128, 128)
    assert (cut(photo, crop_of(0.0, 128.0, (64.0, 64.0)), 128) == photo).all()


def test_shrinking_averages_instead_of_skipping() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    assert cut(photo, crop_of(0.0, 512.0, (256.0, 256.0)), 64).std() < 0.25 * photo.std()


def test_beyond_the_edge_is_reflected_then_blurred() -> None:
    photo = waves(200, 200)
    crop = cut(photo, crop_of(0.0, 200.0, (0.0, 100.0)), 200)  # the left half is beyond the edge
    inside = inside_photo((200, 200), crop_of(0.0, 200.0, (0.0, 100.0)), 200)
    assert inside[:, 100:].all()
    assert not inside[:, :100].any()
    assert (crop[:, 100:] == photo[:, :100]).all()
    near = crop[:, 97:100].astype(int) - crop[:, 101:104][:, ::-1].astype(int)
    assert np.abs(near).mean() < 12
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    padded = cut(noise, crop_of(0.0, 200.0, (0.0, 100.0)), 200)
    assert padded[:, :60].std() < 0.5 * padded[:, 100:].std()


@given(turns, st.floats(60, 120), st.tuples(st.floats(90, 110), st.floats(90, 110)))
def test_what_is_cut_and_put_back_is_the_photo(turn: float, side: float, middle: tuple[float, float]) -> None:
    photo, to_crop = waves(200, 200), crop_of(turn, side, middle)
    again = paste_back(photo, cut(photo, to_crop, 256), to_crop)
    assert np.abs(again.astype(int) - photo).max() <= 4
    white = paste_back(photo, np.full((256, 256, 3), 255, dtype=np.uint8), to_crop)
    assert (white[round(middle[1]), round(middle[0])] == 255).all()
    assert (white[:5, :5] == photo[:5, :5]).all()


def test_put_back_under_a_mask() -> None:
    photo = waves(200, 200)
    mask = np.zeros((64, 64))
    mask[:, :32] = 1.0
    white = np.full((64, 64, 3), 255, dtype=np.uint8)
    pasted = paste_back(photo, white, crop_of(0.0, 100.0, (100.0, 100.0)), mask)
    assert (pasted[60:140, 52:98] == 255).all()
    assert (pasted[60:140, 104:] == photo[60:140, 104:]).all()


def test_tensor_and_bytes() -> None:
    photo = waves(32, 32)
    tensor = to_tensor(photo)
    assert tensor.shape == (1, 3, 32, 32)
    assert float(tensor.min()) >= -1
    assert float(tensor.max()) <= 1
    assert (to_uint8(tensor) == photo).all()


def test_share_cut_off() -> None:
    assert cut_off((400, 400), crop_of(0.3, 250.0, (200.0, 200.0))) == 0
    assert cut_off((400, 400), crop_of(0.0, 200.0, (0.0, 200.0))) == pytest.approx(0.5, abs=0.01)
    assert cut_off((400, 400), crop_of(0.0, 200.0, (-300.0, 200.0))) == 1


def test_sharpness_falls_with_blur_and_not_with_contrast() -> None:
    noise = np.random.default_rng(0).normal(0, 40, (128, 128, 1))
    sharp = np.clip(128 + noise.repeat(3, axis=2), 0, 255).astype(np.uint8)
    from headlift.pose_estimation.warp import blur

    values = [sharpness(sharp)] + [sharpness(blur(sharp, s)) for s in (1.0, 2.0, 4.0)]
    assert values == sorted(values, reverse=True)
    assert values[3] < 0.4 * values[0]
    flat = (128 + (sharp.astype(float) - 128) / 3).round().astype(np.uint8)
    assert sharpness(flat) == pytest.approx(values[0], rel=0.05)


def test_guided_filter_moves_a_coarse_edge_onto_the_guides() -> None:
    guide = np.zeros((80, 80, 3), dtype=np.float32)
    guide[:, 40:] = 1.0
    ramp = np.clip((np.arange(80) - 30) / 20, 0, 1).astype(np.float32)[None].repeat(80, axis=0)
    before, after = np.abs(np.diff(ramp[40]))[39], np.abs(np.diff(guided_filter(guide, ramp, 12, 1e-4)[40]))[39]
    assert after > 5 * before


def test_mask_of_an_empty_picture_is_empty() -> None:
    assert head_mask(np.full((128, 128, 3), 90, dtype=np.uint8)).mean() < 0.05


def test_warp_keeps_floats_in_their_range() -> None:
    step = np.zeros((64, 64), dtype=np.float32)
    step[:, 32:] = 1
    turned = warp(step, similarity(0.4, 1.3, np.array([32.0, 32.0]), np.array([32.0, 32.0])), (64, 64))
    assert 0 <= turned.min() <= turned.max() <= 1


def test_a_picture_too_wide_for_opencv_is_warped_around_what_is_seen() -> None:
    wide = np.zeros((40, 66_000, 3), dtype=np.uint8)
    wide[10:30, 50_000:50_040] = 200
    matrix = similarity(0.0, 1.0, np.array([50_020.0, 20.0]), np.array([32.0, 32.0]))
    seen = warp(wide, matrix, (64, 64), border="constant")
    np.testing.assert_array_equal(seen[22:42, 12:52], 200)
    assert int((seen > 0).sum()) == 20 * 40 * 3
