"""Regions of a head, what is changed inside them, and the edited head back in its photo."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from small_networks import solid_generator

from headlift.editing import paste
from headlift.editing.carry import (
    change_inside_and_outside,
    goal_of_colour,
    goal_of_edit,
    goal_of_paint,
    reach,
    recoloured,
)
from headlift.editing.paste import WIDER, into_photo, shrunk, wider
from headlift.editing.regions import NAMES, named_region, painted_region, polygon_mask, soften
from headlift.eg3d.camera import orbit
from headlift.eg3d.generator import Generator, VolumeOutput
from headlift.errors import ConfigError, FaceError
from headlift.export.images import to_uint8
from headlift.invert.follow import follow
from headlift.invert.perceptual import load_builtin
from headlift.pose_estimation import warp
from headlift.pose_estimation.crop import paste_back
from headlift.values import Camera, Similarity


@dataclass(frozen=True)
class Simple:
    ws: torch.Tensor
    camera: Camera
    generator: Generator


def head(seed: int = 0) -> Simple:
    base = solid_generator(neural_resolution=16)
    ws = torch.randn(1, base.num_ws, 8, generator=torch.Generator().manual_seed(seed))
    return Simple(ws, orbit(0.0, 0.0), base)


def look(subject: Simple, camera: Camera | None = None) -> tuple[torch.Tensor, VolumeOutput]:
    camera = camera or subject.camera
    out = subject.generator.render(subject.generator.planes(subject.ws), subject.ws, camera)
    return out.image.clamp(-1, 1), VolumeOutput(out.features, out.depth, out.alpha)


def left_half() -> torch.Tensor:
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :16] = 1
    return mask


# Where


def test_a_polygon_covers_its_area_and_widening_squares() -> None:
    square = np.array([[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]])
    assert float(polygon_mask(square, 1.0, 64).mean()) == pytest.approx(0.25, abs=0.01)
    assert float(polygon_mask(square, 0.5, 64).mean()) == pytest.approx(0.0625, abs=0.01)


def test_softening_keeps_the_sum_and_constants() -> None:
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 28:36, 28:36] = 1
    assert float(soften(mask, 0.03).sum()) == pytest.approx(64, rel=1e-4)
    torch.testing.assert_close(soften(torch.ones(1, 1, 16, 16)), torch.ones(1, 1, 16, 16))


def test_a_region_is_what_was_painted_in_its_own_view_and_gone_from_behind() -> None:
    subject = head()
    region = painted_region(left_half(), subject)
    own = region(subject.camera, look(subject)[1])
    solid = look(subject)[1].alpha > 0.5
    columns = torch.arange(16).expand_as(own)
    assert float(own[solid & (columns < 6)].min()) > 0.9
    assert float(own[solid & (columns > 9)].max()) < 0.1
    behind = orbit(math.pi, 0.0)
    assert float(region(behind, look(subject, behind)[1]).mean()) < 0.5 * float(own.mean())
    with pytest.raises(ConfigError, match="empty"):
        painted_region(torch.zeros(1, 1, 8, 8), subject)


def test_named_parts_lie_where_the_landmarks_say() -> None:
    subject = head()
    points = np.random.default_rng(0).uniform(12, 20, (478, 3))
    for indices, (x, y) in (((61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291), (16, 24)), ((0,), (16, 22))):
        points[list(indices), :2] = np.array([x, y])
    region = named_region("nose", subject, lambda image: points)
    mask = region(subject.camera, look(subject)[1])
    rows, columns = torch.nonzero(mask[0, 0] > 0.5, as_tuple=True)
    assert len(rows) > 0
    assert 5 <= float(rows.float().mean()) <= 10
    assert 5 <= float(columns.float().mean()) <= 10
    with pytest.raises(FaceError, match="paint the region"):
        named_region("mouth", subject, lambda image: None)
    with pytest.raises(ConfigError, match="there is no region"):
        named_region("ear", subject, lambda image: points)
    assert "hair" in NAMES


# What


def test_recolouring_takes_the_mean_to_the_colour_and_zero_strength_nowhere() -> None:
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.8 - 0.2
    mean, colour = image.mean((0, 2, 3)), torch.tensor([0.3, -0.2, 0.1])
    torch.testing.assert_close(recoloured(image, mean, colour, 1.0).mean((0, 2, 3)), colour, atol=0.03, rtol=0)
    torch.testing.assert_close(recoloured(image, mean, colour, 0.0), image, atol=1e-6, rtol=0)
    brighter = recoloured(image, mean, colour, 1.0)[0, 0].flatten()
    assert torch.equal(brighter.argsort(), image[0, 0].flatten().argsort())  # light and shade stay in order


def test_a_region_edit_changes_inside_at_least_three_times_as_much_as_outside() -> None:
    before = head()
    after = replace(before, ws=before.ws + 1.5)
    region = painted_region(left_half(), before)
    goal = goal_of_edit(before, after, region)
    image = look(before)[0]
    torch.testing.assert_close(goal.image[..., 20:], image[..., 20:], atol=0.02, rtol=0)
    steps = []
    held = follow(reach(before, goal, load_builtin(), steps=60), steps.append)
    assert torch.equal(held.ws, before.ws)
    assert len(steps) == 60
    inside, outside = change_inside_and_outside(before, held, region, before.camera)
    plain_in, plain_out = change_inside_and_outside(before, after, region, before.camera)
    assert inside > 3 * outside
    assert inside > 0.5 * plain_in  # the region follows the edit
    assert outside < 0.6 * plain_out  # the rest does so less
    other = orbit(0.2, 0.05)  # a view that was not tuned to
    inside, outside = change_inside_and_outside(before, held, region, other)
    assert inside > 2 * outside


def test_planes_of_a_head_are_made_once_for_all_views(monkeypatch: pytest.MonkeyPatch) -> None:
    before = head()
    after = replace(before, ws=before.ws + 1.5)
    region = painted_region(left_half(), before)
    planes, made = before.generator.planes, []
    monkeypatch.setattr(before.generator, "planes", lambda ws: made.append(ws) or planes(ws))
    goal_of_edit(before, after, region, whole=True)
    assert [id(ws) for ws in made] == [id(before.ws), id(after.ws)]


def test_a_goal_without_change_leaves_the_head_as_it_is() -> None:
    before = head()
    goal = goal_of_edit(before, before, painted_region(left_half(), before))
    held = follow(reach(before, goal, load_builtin(), steps=3), lambda step: None)
    assert float((look(held)[0] - look(before)[0]).abs().mean()) < 0.02
    with pytest.raises(ConfigError, match="at least one"):
        follow(reach(before, goal, load_builtin(), steps=0), lambda step: None)


def test_colour_and_paint_reach_the_head_and_its_side_views() -> None:
    before = head()
    region = painted_region(left_half(), before)
    red = torch.tensor([0.9, -0.8, -0.8])
    goal = goal_of_colour(before, region, red, 1.0)
    inside = goal.inside > 0.9
    assert float(goal.image[:, :1][inside].mean() - goal.image[:, 1:2][inside].mean()) > 0.8
    image, volume = look(before)
    painted = image.clone()
    painted[..., 12:20, 12:20] = red[:, None, None]
    goal = goal_of_paint(before, image, painted)
    assert float((goal.image[0, :, 16, 16] - red).abs().max()) < 0.05
    torch.testing.assert_close(goal.image[..., :8], image[..., :8], atol=1e-6, rtol=0)
    front = goal.views[0]  # nearly the head's own view: the paint is there too
    assert float(front.colour[0, 0, 8, 8]) > 0.5
    with pytest.raises(ConfigError, match="nothing was painted"):
        goal_of_paint(before, image, image)


# Back into the photo


def photo_of(subject: Simple, similarity: Similarity) -> np.ndarray:
    """A noisy photo that shows the head where the similarity says."""
    ground = np.random.default_rng(0).integers(60, 200, (150, 160, 3)).astype(np.uint8)
    image, volume = look(subject)
    big = torch.nn.functional.interpolate(image, size=(64, 64), mode="bilinear")
    alpha = torch.nn.functional.interpolate(volume.alpha, size=(64, 64), mode="bilinear")[0, 0].double().numpy()
    return paste_back(ground, to_uint8(big), similarity, alpha.clip(0, 1))


SIMILARITY = Similarity(np.array([[1 / 64, 0.0, -0.5], [0.0, 1 / 64, -0.6]]))


def test_an_edit_of_nothing_gives_the_photo_back_bit_for_bit() -> None:
    subject = head()
    photo = photo_of(subject, SIMILARITY)
    pasted = into_photo(photo, SIMILARITY, subject, subject)
    assert float(pasted.mask.max()) == 0
    np.testing.assert_array_equal(pasted.photo, photo)


def test_with_a_region_nothing_outside_it_is_laid_over() -> None:
    before = head()
    after = replace(before, ws=before.ws + 1.5)
    photo = photo_of(before, SIMILARITY)
    whole = into_photo(photo, SIMILARITY, before, after)
    left = into_photo(photo, SIMILARITY, before, after, painted_region(left_half(), before))
    side = whole.mask.shape[0]
    right = slice(round(0.65 * side), None)
    assert whole.mask[:, right].max() > 0.5
    assert left.mask[:, right].max() == 0
    assert left.mask[:, : side // 2].max() > 0.5


def test_where_little_changes_the_photo_keeps_detail_finer_than_the_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paste, "LARGEST", 64)
    before, after = head(), head()
    after.generator.superresolution.block1.torgb.bias.add_(0.08)  # half way from unchanged to replaced, all over
    similarity = Similarity(np.array([[1 / 256, 0.0, -0.1], [0.0, 1 / 256, -0.1]]))
    photo = np.random.default_rng(0).integers(80, 160, (300, 300, 3)).astype(np.uint8)
    laid = into_photo(photo, similarity, before, after).photo.astype(np.float32)
    inside = soften(torch.from_numpy(laid - photo).mean(2)[None, None], 0.02)[0, 0].numpy() > 3
    assert inside.mean() > 0.2
    was, now = ((x - warp.blur(x, 2.0))[inside].ravel() for x in (photo.astype(np.float32), laid))
    assert np.polyfit(was, now, 1)[0] > 0.7


def test_pixels_outside_the_mask_stay_bit_for_bit_and_the_edit_is_seen_inside() -> None:
    before = head()
    after = replace(before, ws=before.ws + 1.5)
    photo = photo_of(before, SIMILARITY)
    pasted = into_photo(photo, SIMILARITY, before, after)
    changed = (pasted.photo != photo).any(2)
    assert changed.any()
    rows, columns = np.nonzero(changed)
    side = pasted.mask.shape[0]
    crop = shrunk(SIMILARITY, WIDER).apply(np.stack([columns + 0.5, rows + 0.5], axis=1)) * side
    x, y = (np.clip(crop[:, k].astype(int), 0, side - 1) for k in (0, 1))
    reach_of = torch.nn.functional.max_pool2d(torch.from_numpy(pasted.mask)[None, None], 3, 1, 1)[0, 0].numpy()
    assert (reach_of[y, x] > 0).all()  # at most a pixel of interpolation beyond the mask
    assert pasted.mask[0].max() == 0
    assert pasted.mask[:, -1].max() == 0  # the crop's border is never touched
    camera = wider(before.camera, WIDER)
    image = look(after, camera)[0]
    wanted = to_uint8(torch.nn.functional.interpolate(image, size=(side, side), mode="bicubic"))
    sure = pasted.mask > 0.95
    if sure.any():
        gap_after = np.abs(pasted.crop[sure].astype(float) - wanted[sure]).mean()
        was = to_uint8(torch.nn.functional.interpolate(look(before, camera)[0], size=(side, side), mode="bicubic"))
        assert gap_after < np.abs(was[sure].astype(float) - wanted[sure]).mean()
