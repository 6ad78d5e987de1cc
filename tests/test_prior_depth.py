"""The depth network's training, on balls whose depth is known."""

from __future__ import annotations

import io
import json
import math
import zipfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headlift.eg3d.camera import orbit
from headlift.eg3d.training.losses import empty_loss, solid_loss
from headlift.eg3d.training.rays import Rays
from headlift.errors import DataError
from headlift.invert.depth_net import LAST_MIDDLE, MIDDLE, SIDE, DepthGuess, DepthNet
from headlift.prior.dataset import DEPTH_UNIT, beside, read_depths
from headlift.prior.depth import GRADIENT, LAST, batch_of, loss, measure, read_pictures, roughen, train
from headlift.prior.heads import Heads, read_heads
from headlift.prior.supervised import MARGIN, SKIN, beside_surface, block_depth


def balls(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Balls of random size and colour: RGBA pictures and the depth of front and back (paraboloids), 0 outside."""
    rng = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(*[(torch.arange(SIDE) + 0.5) / SIDE - 0.5] * 2, indexing="ij")
    radius = torch.rand(count, 1, 1, generator=rng) * 0.2 + 0.2
    inside = torch.hypot(x, y)[None] < radius
    rise = (radius.square() - x.square() - y.square()).clamp_min(0).sqrt()
    both = torch.stack([MIDDLE + 0.1 - 0.5 * rise, MIDDLE + 0.1 + 0.5 * rise], 1)
    depth = torch.where(inside[:, None], both, torch.zeros(()))
    colour = torch.rand(count, 3, 1, 1, generator=rng) * 0.5 + 0.5
    shade = colour * (0.3 + 0.7 * rise / radius)[:, None]
    rgba = torch.cat([shade * 255, inside[:, None] * 255.0], 1)
    return rgba.to(torch.uint8), depth


def test_it_learns_the_depth_of_balls() -> None:
    pictures, depth = balls(24)
    untrained = measure(DepthNet(), pictures, depth)
    trained = measure(train(pictures, depth, steps=40, batch=6), pictures, depth)
    assert trained["error"] < 0.5 * untrained["error"]
    assert trained["last"] < 0.5 * untrained["last"]


def test_the_loss_of_a_constant_error_is_its_likelihood() -> None:
    """Off by 0.02 with a spread of 0.04: 0.5 + log 0.04; the last surface by 0.1 with one of 0.05: 2 + log 0.05;
    neighbours agree."""
    truth = torch.full((1, 1, SIDE, SIDE), 2.5)
    truth[..., :5] = 0
    spread = torch.full_like(truth, 0.04)
    guess = DepthGuess(truth + 0.02, spread, LAST_MIDDLE - 0.1 + 0 * truth, spread + 0.01)
    last = torch.where(truth > 0, LAST_MIDDLE, 0.0)
    wanted = 0.5 + math.log(0.04) + LAST * (2 + math.log(0.05))
    assert loss(guess, torch.cat([truth, last], 1)).item() == pytest.approx(wanted, abs=1e-4)


def test_the_loss_asks_for_the_slope_too() -> None:
    """A ramp of 0.001 a pixel along x, guessed flat: spacing k is off by 0.001 k, weighed 100 / k, over 8 terms."""
    ramp = (2.5 + 0.001 * torch.arange(SIDE)).expand(1, 1, SIDE, SIDE)
    flat = DepthGuess(ramp.mean().expand_as(ramp), torch.ones_like(ramp), ramp, torch.ones_like(ramp))
    apart = (ramp - ramp.mean()).abs().mean()
    assert loss(flat, ramp.expand(-1, 2, -1, -1)).item() == pytest.approx(
        float(apart) + GRADIENT * 4 * 0.1 / 8, rel=1e-3
    )


def test_a_batch_is_on_white_and_mirrors_picture_and_depth_alike() -> None:
    pictures, depth = balls(8)
    pictures[..., : SIDE // 2] = 0  # right halves alone
    depth[..., : SIDE // 2] = 0
    photo, mask, truth = batch_of(pictures, depth, torch.Generator().manual_seed(1))
    for picture, alpha, distance in zip(photo, mask, truth, strict=True):
        shown = (alpha[0] > 0.5).float().sum(0)
        there = (distance[0] > 0).float().sum(0)
        left = bool(shown[: SIDE // 2].sum() > shown[SIDE // 2 :].sum())
        assert left == bool(there[: SIDE // 2].sum() > there[SIDE // 2 :].sum())
        assert (picture[:, alpha[0] == 0] == 1).all()


def test_rough_masks_stay_near_the_silhouette() -> None:
    alpha = balls(6)[0][:, 3:].float() / 255
    rough = roughen(alpha, torch.Generator().manual_seed(0))
    assert ((rough - alpha).abs() > 0.5).float().mean() < 0.1
    assert not torch.equal(rough, alpha)


def test_depths_of_other_pictures_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.npy"
    heads = Heads(np.zeros((3, 4, 4, 4), np.uint8), np.zeros((3, 25), np.float32), np.arange(3), {}, "these")
    np.save(path, np.zeros((3, 4, 4), np.uint16))
    assert read_depths(path, heads).shape == (3, 4, 4)  # nothing beside it: of before
    for told, last, said in (
        ({"pictures": "these", "last": False}, False, ""),
        ({"pictures": "others", "last": False}, False, "drawn from other archives"),
        ({"pictures": "these", "last": True}, False, "holds the last surface and the first"),
        ({"pictures": "these", "last": False}, True, "holds the first surface and the last"),
    ):
        beside(path).write_text(json.dumps(told))
        with pytest.raises(DataError, match=said) if said else nullcontext():
            read_depths(path, heads, last)
    np.save(path, np.zeros((4, 4, 4), np.uint16))
    with pytest.raises(DataError, match="3 pictures"):
        read_depths(path, heads)
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(DataError, match="no array of depths"):
        read_depths(tmp_path / "text.npy", heads)


def test_pictures_come_with_both_of_their_depths(tmp_path: Path) -> None:
    """Two heads, each seen by a crop's lens and by a wide one, which is left out."""
    labels = []
    with zipfile.ZipFile(tmp_path / "heads-00.zip", "w") as archive:
        for number in range(4):
            camera = orbit(0.0, 0.0) if number % 2 == 0 else orbit(0.0, 0.0, focal=3.1)
            labels.append([f"00000/img{number:08d}.png", camera.label[0].tolist()])
            pixels = np.zeros((2 * SIDE, 2 * SIDE, 4), np.uint8)
            pixels[::2] = (200, 100, 60 * number, 255)  # every other row is empty
            with io.BytesIO() as stream:
                Image.fromarray(pixels).save(stream, "PNG")
                archive.writestr(labels[-1][0], stream.getvalue())
        for head in range(2):
            archive.writestr(f"params/head{head:06d}.json", "{}")
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    rows = np.arange(4, dtype=np.uint16)[:, None, None] * 1000 + 20000
    for name, counts in (("first", rows), ("last", rows + 5000)):
        np.save(tmp_path / f"{name}.npy", np.broadcast_to(counts, (4, SIDE, SIDE)))
    pictures, depth, owner = read_pictures(tmp_path, tmp_path / "first.npy", tmp_path / "last.npy", None)
    assert owner.tolist() == [0, 1]
    assert pictures.shape == (2, 4, SIDE, SIDE)
    assert pictures[1, :, 5, 5].tolist() == [200, 100, 120, 128]  # of the row that is there alone
    assert torch.allclose(depth[:, :, 0, 0], torch.tensor([[2.0, 2.5], [2.2, 2.7]]))
    beside(tmp_path / "last.npy").write_text(json.dumps({"pictures": read_heads(tmp_path).digest, "last": False}))
    with pytest.raises(DataError, match="first surface"):
        read_pictures(tmp_path, tmp_path / "first.npy", tmp_path / "last.npy", None)


def test_a_block_has_a_depth_when_it_lies_on_one_surface() -> None:
    step = round(0.01 / DEPTH_UNIT)
    depth = np.full((4, 4), 25000, np.uint16)
    depth[0, 1] += step  # a slope
    depth[0, 3] = 0  # nothing there
    depth[2, 0] += 9 * step  # a contour
    found = block_depth(depth, 2)
    assert found.tolist() == [[25000 + step / 4, 0.0], [0.0, 25000.0]]


def test_points_beside_the_surface() -> None:
    n, r = 2, 5
    direction = torch.tensor([0.0, 0.0, 1.0]).expand(n, r, 3)
    rays = Rays(torch.zeros(n, r, 3), direction, torch.full((n, r), 2.0), torch.full((n, r), 3.0))
    depth = torch.tensor([2.5, 0.0, 2.4, 2.005, 2.6]).expand(n, r)
    before, behind, told = beside_surface(rays, depth, 200, torch.Generator().manual_seed(0))
    known = told > 0
    assert 0.5 < known.float().mean() < 0.7  # three rays of five: one shows nothing, one has no room before it
    assert (before[known][:, 2] >= 2.0).all()
    assert (behind[known][:, 2] - before[known][:, 2] > MARGIN - 1e-6).all()
    surfaces = torch.tensor([2.4, 2.5, 2.6])
    off = behind[known][:, 2][:, None] - surfaces
    assert ((off > -1e-6) & (off < SKIN + 1e-6)).any(1).all()


def test_weights_choose_the_points_that_count() -> None:
    sigma, weight = torch.tensor([50.0, -4.0, -4.0]), torch.tensor([0.0, 1.0, 1.0])
    assert empty_loss(sigma, weight=weight) == pytest.approx(math.log(2))
    assert solid_loss(torch.tensor([10.0, 99.0]), weight=torch.tensor([1.0, 0.0])) == pytest.approx(0.5)
    assert empty_loss(sigma, weight=torch.zeros(3)) == 0
