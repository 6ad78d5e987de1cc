"""The network that finishes side views: what it is given, and that it learns, on painted balls."""

from __future__ import annotations

import copy
import io
import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from headlift.eg3d.camera import WHOLE_HEAD_FOCAL, WHOLE_HEAD_PIVOT, orbit
from headlift.errors import ConfigError
from headlift.invert.depth_net import load_depth_net
from headlift.invert.result import Target
from headlift.invert.side_net import CAMERAS, CHANNELS, SIDE, SideNet, asked, guess_view, load_side_net, mirrored
from headlift.invert.surface import Surface
from headlift.invert.warp import surface_points
from headlift.prior import fit as fit_module
from headlift.prior import sides as sides_module
from headlift.prior.heads import Heads, read_heads
from headlift.prior.sides import (
    Samples,
    batch_of,
    error,
    measure,
    part_of,
    partners,
    prepare,
    read_samples,
    retouched,
    same_light,
    tone_curves,
    train,
)
from headlift.values import Camera

RADIUS = 0.3


def ball(camera: Camera, tint: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distance to the first and to the last surface of a ball round the origin, its mask, and its paint in [-1, 1]."""
    rays = surface_points(torch.ones(1, 1, SIDE, SIDE), camera) - camera.origin[:, None]
    middle = -(rays * camera.origin[:, None]).sum(-1)
    root = middle.square() - (camera.origin.square().sum(-1, keepdim=True) - RADIUS**2)
    inside = (root > 0).float().reshape(1, 1, SIDE, SIDE)
    half = root.clamp_min(0).sqrt()
    first, last = ((middle + sign * half).reshape(1, 1, SIDE, SIDE) for sign in (-1, 1))
    paint = (surface_points(first, camera)[0] * 6).sin().T.reshape(1, 3, SIDE, SIDE) * 0.8 + tint
    return first, last, inside, paint.clamp(-1, 1)


def photo_of(camera: Camera) -> tuple[Target, Surface]:
    first, last, inside, paint = ball(camera)
    return Target(paint * inside + 1 - inside, inside, True), Surface(first, inside, 1 - inside, last, inside)


def picture_of(inside: Tensor, paint: Tensor) -> Tensor:
    """RGB on white, and alpha, in [0, 1]."""
    return torch.cat([(paint * inside + 1 - inside + 1) / 2, inside], 1)


def sample_of(known: Tensor, inside: Tensor, paint: Tensor) -> Samples:
    truth = (picture_of(inside, paint) * 255).round().byte()
    return Samples(known[:, :-CAMERAS].half(), known[:, -CAMERAS:, 0, 0], truth, torch.tensor([0]))


def heads(tints: tuple[float, ...]) -> Heads:
    """Two balls, each seen by a crop's lens from the front and from a side, and by a wide one from behind."""
    cameras = [orbit(0.0, 0.0), orbit(0.4, 0.1), orbit(2.8, 0.0, pivot=WHOLE_HEAD_PIVOT, focal=WHOLE_HEAD_FOCAL)]
    images, labels = [], []
    for _ in range(2):
        for camera, tint in zip(cameras, tints, strict=True):
            _, _, inside, paint = ball(camera, tint)
            rgba = torch.cat([(paint + 1) / 2, inside], 1)[0].permute(1, 2, 0)
            images.append((rgba * 255).round().byte().numpy())
            labels.append(camera.label[0].numpy())
    return Heads(np.stack(images), np.stack(labels), np.repeat([0, 2900], 3), {0: {}, 2900: {}})


def test_it_is_given_the_photo_where_it_reaches_and_the_heads_inside() -> None:
    here, there = orbit(0.0, 0.0), orbit(0.6, 0.0)
    known = asked(*photo_of(here), here, there)
    assert known.shape == (1, CHANNELS, SIDE, SIDE)
    first, _, inside, paint = ball(there)
    seen = known[:, 3:4] > 0
    assert 0.5 < float((seen * inside).sum() / inside.sum()) < 0.95
    assert float((known[:, :3] - paint).abs()[seen.expand_as(paint)].median()) < 0.02
    distance = known[:, 4:5] * 0.25 + 2.7
    assert float((distance - first).abs()[seen].median()) < 2e-3
    filled = (known[:, 8:9] > 0.5).float()
    assert float((filled * inside).sum()) > 0.9 * float(inside.sum())  # all of the silhouette, seen or not
    assert float((filled * (1 - inside)).sum()) < 0.02 * float(inside.sum())
    directions = known[0, -CAMERAS:, 0, 0]
    assert torch.allclose(directions, torch.tensor([math.sin(0.6), 0, math.cos(0.6), 0, 0, 1, 1]), atol=1e-6)


def test_a_mirrored_sample_is_that_of_the_mirrored_photo() -> None:
    here, there = orbit(0.2, 0.1), orbit(-0.4, -0.1)
    target, surface = photo_of(here)
    known = asked(target, surface, here, there)
    flipped = Surface(*(getattr(surface, name).flip(3) for name in ("depth", "trust", "clear", "last", "last_trust")))
    other = asked(Target(target.image.flip(3), target.mask.flip(3), True), flipped, orbit(-0.2, 0.1), orbit(0.4, -0.1))
    assert float(((other - mirrored(known)).abs() > 0.05).float().mean()) < 0.01


def test_pairs_in_other_light_are_left_out() -> None:
    alike, unlike = heads((0.0, 0.0, 0.0)), heads((0.0, 0.4, 0.0))
    assert partners(alike) == [(0, [1, 2]), (1, [0, 2]), (3, [4, 5]), (4, [3, 5])]
    here, there = orbit(0.0, 0.0), orbit(0.4, 0.1)
    known = asked(*photo_of(here), here, there)
    for tint, same in ((0.0, True), (0.4, False)):
        _, _, inside, paint = ball(there, tint)
        assert same_light(known, picture_of(inside, paint)) is same
    found = prepare(part_of(unlike, [0, 1, 2]), 0)
    assert found is not None
    # from behind nothing of the photo is seen, and nobody can tell
    assert len(found.head) == 1
    assert float(found.cameras[0, 2]) < 0


def test_it_learns_what_the_photo_does_not_show() -> None:
    here, there = orbit(0.0, 0.0), orbit(0.8, 0.0)
    known, (_, _, inside, paint) = asked(*photo_of(here), here, there), ball(there)
    one = sample_of(known, inside, paint)
    torch.manual_seed(0)
    untrained = measure(SideNet(), one)
    trained = measure(train(one, torch.tensor([0]), steps=250, batch=2, lr=5e-3), one)
    assert trained["hidden"] > untrained["hidden"] + 3
    assert trained["overlap"] > max(0.9, untrained["overlap"])


def write_archive(folder: Path, found: Heads) -> None:
    labels = []
    with zipfile.ZipFile(folder / "heads-00.zip", "w") as archive:
        views = len(found.head) // len(found.params)
        for row, (head, pixels, label) in enumerate(zip(found.head, found.images, found.labels, strict=True)):
            labels.append([f"00000/img{head * views + row % views:08d}.png", label.tolist()])
            with io.BytesIO() as stream:
                Image.fromarray(pixels).save(stream, "PNG")
                archive.writestr(labels[-1][0], stream.getvalue())
        for head in found.params:
            archive.writestr(f"params/head{head:06d}.json", "{}")
        archive.writestr("dataset.json", json.dumps({"labels": labels}))


def test_pairs_are_kept_for_the_heads_and_the_depth_network_that_they_are_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "pairs.pt"
    write_archive(tmp_path, heads((0.0, 0.0, 0.0)))
    samples = read_samples(tmp_path, cache, 1)
    stored = read_heads(tmp_path)
    prepared = [prepare(part_of(stored, [photo, *others]), photo) for photo, others in partners(stored)]
    assert set(samples.head.tolist()) == {0, 2900}
    assert torch.equal(samples.truth, torch.cat([found.truth for found in prepared if found]))

    def prepared_again() -> bool:
        with monkeypatch.context() as patch:
            calls: list[object] = []
            patch.setattr(sides_module, "read_heads", lambda folder: calls.append(folder) or read_heads(folder))
            read_samples(tmp_path, cache, 1)
        return bool(calls)

    assert not prepared_again()
    write_archive(tmp_path, heads((0.1, 0.1, 0.1)))
    assert prepared_again()
    assert not prepared_again()
    other = copy.deepcopy(load_depth_net())
    next(other.parameters()).data.mul_(1.001)
    monkeypatch.setattr(sides_module, "load_depth_net", lambda: other)
    assert prepared_again()
    torch.save({"known": samples.known}, cache)  # of before, when nothing told whose pairs they are
    assert prepared_again()
    cache.write_bytes(cache.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"pairs.pt is damaged"):
        read_samples(tmp_path, cache, 1)


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = orbit(0.0, 0.0), orbit(0.8, 0.0)
    known, (_, _, inside, paint) = asked(*photo_of(here), here, there), ball(there)
    one = sample_of(known, inside, paint)
    rows, keep = torch.tensor([0]), tmp_path / "state.pt"
    whole = train(one, rows, steps=6, batch=2, seed=3)
    monkeypatch.setattr(fit_module, "KEEP_EVERY", 2)
    saved = fit_module.save_state

    def save_and_stop(file: Path, state: dict[str, object]) -> None:
        saved(file, state)
        if state["done"] == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(fit_module, "save_state", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train(one, rows, steps=6, batch=2, seed=3, keep=keep)
    resumed = train(one, rows, steps=6, batch=2, seed=3, keep=keep)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    darker = Samples(one.known, one.cameras, one.truth // 2, one.head)
    started = copy.deepcopy(whole)
    for other, samples, told in (
        ({"steps": 8}, one, "steps 6 instead of 8"),
        ({"batch": 3}, one, "batch 2 instead of 3"),
        ({"start": started}, one, "with start "),
        ({}, darker, "with data "),
    ):
        with pytest.raises(ConfigError, match=told):
            train(samples, rows, **{"steps": 6, "batch": 2, "seed": 3, "keep": keep, **other})
    saved(keep, {"step": 3, "generator": {}})  # of another program
    with pytest.raises(ConfigError, match="steps None instead of 6"):
        train(one, rows, steps=6, batch=2, seed=3, keep=keep)
    keep.write_bytes(b"no state")
    with pytest.raises(ConfigError, match="name another file"):
        train(one, rows, steps=6, batch=2, seed=3, keep=keep)


def test_curves_are_followed_between_their_knots() -> None:
    curves = torch.tensor([-1.0, -0.2, 0.4, 0.4, 1.0]).expand(1, 3, 5)
    values = torch.tensor([-1.0, -0.75, -0.5, 0.25, 0.75, 1.0, 1.3])
    found = retouched(values.expand(1, 3, 1, 7), curves)
    assert torch.allclose(found[0, 0, 0], torch.tensor([-1.0, -0.6, -0.2, 0.4, 0.7, 1.0, 1.0]), atol=1e-6)
    drawn = tone_curves(400, torch.Generator().manual_seed(0))
    assert float(drawn.abs().max()) <= 1
    falling = (drawn.diff(dim=-1) < -0.02).any(-1).any(-1)
    assert 0.5 < float(falling.float().mean()) < 0.75  # seven tenths, and nearly all of these turn something round
    dark, bright = drawn[..., 1].mean(), drawn[..., 3].mean()
    assert -0.3 < float(dark) < 0.0 < float(bright) < 0.5  # -0.5 is lifted, 0.5 is not


def test_colours_change_together_and_stay_on_white() -> None:
    here, there = orbit(0.0, 0.0), orbit(0.4, 0.0)
    known, (_, _, inside, paint) = asked(*photo_of(here), here, there), ball(there)
    one = sample_of(known, inside, paint)
    for seed in range(4):
        inputs, wanted = batch_of(one, torch.Generator().manual_seed(seed))
        seen = (inputs[:, 3:4] > 0).expand_as(wanted[:, :3])
        assert float((inputs[:, :3] - wanted[:, :3]).abs()[seen].median()) < 0.03
        assert float((wanted[:, :3] - 1).abs()[(wanted[:, 3:] == 0).expand_as(wanted[:, :3])].max()) < 1e-5


def test_the_loss_of_a_constant_error() -> None:
    """Off by 0.1 everywhere: 0.1 + 2 x 0.01, and opacity known to odds of even: 0.3 log 2; half of it is seen."""
    truth = torch.zeros(1, 4, 8, 8)
    seen = torch.zeros(1, 1, 8, 8)
    seen[..., :4] = 1
    value = error(truth[:, :3] + 0.1, torch.zeros(1, 1, 8, 8), truth, seen)
    assert float(value) == pytest.approx((1 + 0.1) / 2 * (0.12 + 0.3 * math.log(2)), rel=1e-5)


def test_the_network_that_is_shipped_tells_a_whole_view() -> None:
    here, there = orbit(0.0, 0.0), orbit(0.5, 0.0)
    picture, opacity = guess_view(*photo_of(here), here, there)
    assert picture.shape == (1, 3, SIDE, SIDE)
    assert opacity.shape == (1, 1, SIDE, SIDE)
    assert float(picture.abs().max()) <= 1
    corner = opacity[..., :8, :8]
    assert float(corner.max()) < 0.1
    assert sum(p.numel() for p in load_side_net().parameters()) < 3_000_000
