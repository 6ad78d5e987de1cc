"""Adaptive augmentation: what it does to pairs of pictures, by hand and by law."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F

from headlift.eg3d.training.augment import Augmentation, AugmentConfig, adapt, draw_augmentation, warp

NONE = AugmentConfig(**{field.name: 0.0 for field in fields(AugmentConfig)})
EVERY = replace(AugmentConfig(), flip=1.0, noise=1.0, cutout=1.0)


def only(**families: float) -> AugmentConfig:
    return replace(NONE, **families)


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(count: int, side: int) -> torch.Tensor:
    """Pictures that look the same at any resolution: a few waves, sampled at the pixels' centres."""
    line = (torch.arange(side) + 0.5) / side * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    waves = torch.stack([torch.sin(2 * x + y), torch.cos(x - 2 * y), torch.sin(x) * torch.cos(y)])
    return 0.5 * waves.expand(count, -1, -1, -1)


def test_without_probability_nothing_changes() -> None:
    image = torch.rand(5, 3, 16, 16, generator=random())
    assert torch.equal(draw_augmentation(EVERY, 5, 16, 0.0, random()).apply(image), image)
    assert torch.equal(draw_augmentation(NONE, 5, 16, 1.0, random()).apply(image), image)


@pytest.mark.parametrize("family", [f.name for f in fields(AugmentConfig)])
def test_each_family_happens_with_its_probability(family: str) -> None:
    image = torch.rand(1, 3, 8, 8, generator=random()).expand(400, -1, -1, -1)
    changed = draw_augmentation(only(**{family: 0.5}), 400, 8, 0.8, random(1)).apply(image)
    share = (changed != image).flatten(1).any(1).float().mean().item()
    # Of the picked ones, half are not flipped after all, and a quarter not turned; here a side has 8 pixels, so that
    # shifts are -1, 0 or 1, none both ways for a quarter of them.
    idle = {"flip": 1 / 2, "luma_flip": 1 / 2, "quarter_turns": 1 / 4, "shift": 1 / 4}.get(family, 0.0)
    assert share == pytest.approx(0.4 * (1 - idle), abs=0.08)


def test_geometry_by_hand() -> None:
    """A ramp stays one: away from the border its four samples a pixel have the pixel's own value as their mean."""
    line = torch.arange(8.0)
    image = (line + 10 * line[:, None])[None, None]
    inner = (0, 0, slice(1, -1), slice(1, -1))
    flip = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))[None]
    assert torch.allclose(warp(image, flip)[inner], image.flip(3)[inner], atol=1e-4)
    # The new (x, y) looks at the old (-y, x): what was in the upper right corner comes to the upper left.
    turn = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    assert torch.allclose(warp(image, turn)[inner], torch.rot90(image, 1, (2, 3))[inner], atol=1e-4)
    shift = torch.eye(3)[None].clone()
    shift[0, 0, 2] = 2 * 2 / 8  # two of eight pixels: the picture moves two pixels to the left
    assert torch.allclose(warp(image, shift)[0, 0, 1:-1, 1:5], image[0, 0, 1:-1, 3:7], atol=1e-4)
    beyond = warp(image, shift)[0, 0, 4, -1].item()
    assert beyond == pytest.approx(40 + 6, abs=0.3)  # reflected at the border: pixel 6 again


def test_whole_pixel_shifts_move_whole_pixels() -> None:
    made = draw_augmentation(only(shift=1.0), 40, 16, 1.0, random(1))
    pixels = made.geometry[:, :2, 2] * 16 / 2
    assert torch.allclose(pixels, pixels.round(), atol=1e-5)
    assert 1 < pixels.abs().max() <= 2


def test_picture_and_raw_picture_change_alike() -> None:
    """The raw picture of the changed picture is the changed raw picture."""
    count = 12
    families = replace(EVERY, noise=0.0, cutout=0.0, flip=1.0)
    made = draw_augmentation(families, count, 64, 0.9, random(2))
    image, raw = made.apply(smooth(count, 64)), made.apply(smooth(count, 16))
    inside = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    apart = (F.avg_pool2d(image, 4) - raw)[inside].abs().flatten(1).mean(1)
    unlike = (F.avg_pool2d(image, 4) - raw.roll(1, 0))[inside].abs().flatten(1).mean(1)
    assert apart.median() < 0.02
    assert apart.median() < unlike.median() / 20


def test_cutouts_and_noise_meet_the_same_places_in_both() -> None:
    made = draw_augmentation(only(cutout=1.0), 3, 64, 1.0, random())
    large, small = (made.apply(torch.ones(3, 3, side, side)) == 0 for side in (64, 16))
    assert torch.allclose(F.avg_pool2d(large.float(), 4), small.float(), atol=0.51)
    noisy = draw_augmentation(only(noise=1.0), 3, 64, 1.0, random())
    large, small = (noisy.apply(torch.zeros(3, 3, side, side)) for side in (64, 16))
    reduced = F.interpolate(large, size=(16, 16), mode="bilinear", antialias=True)
    assert torch.allclose(reduced, small, atol=1e-6)


def test_colours_by_hand_and_opacity_apart() -> None:
    grey = torch.full((1, 3, 4, 4), 0.5)
    pure = torch.tensor([0.6, 0.0, -0.6]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
    brightness = draw_augmentation(only(brightness=1.0), 1, 4, 1.0, random()).apply(grey) - grey
    assert brightness.std() < 1e-6
    assert brightness.abs().max() > 0.01
    turned = draw_augmentation(only(hue=1.0), 1, 4, 1.0, random()).apply(pure)
    assert torch.allclose(turned.mean(1), torch.zeros(1, 4, 4), atol=1e-6)  # no luma before, none after
    assert torch.allclose(turned.norm(dim=1), pure.norm(dim=1), atol=1e-6)
    for family in ("hue", "saturation"):
        assert torch.allclose(
            draw_augmentation(only(**{family: 1.0}), 1, 4, 1.0, random()).apply(grey), grey, atol=1e-6
        )
    flipped = draw_augmentation(only(luma_flip=1.0), 8, 4, 1.0, random()).apply(grey.expand(8, -1, -1, -1))
    assert set(flipped[:, 0, 0, 0].round(decimals=4).tolist()) == {0.5, -0.5}
    masked = torch.cat([grey, torch.full((1, 1, 4, 4), 0.3)], dim=1)
    colours = only(brightness=1.0, contrast=1.0, luma_flip=1.0, hue=1.0, saturation=1.0, noise=1.0)
    assert torch.equal(draw_augmentation(colours, 1, 4, 1.0, random()).apply(masked)[:, 3], masked[:, 3])


def test_gradients_flow_and_flow_again() -> None:
    made = draw_augmentation(EVERY, 2, 6, 1.0, random())
    made = Augmentation(made.geometry.double(), made.colour.double(), None, made.hole.double())
    image = torch.rand(2, 3, 6, 6, generator=random(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(made.apply, (image,))
    assert torch.autograd.gradgradcheck(lambda x: made.apply(x).square(), (image,))
    large = torch.rand(2, 3, 6, 6, generator=random(1), requires_grad=True)
    draw_augmentation(AugmentConfig(), 2, 6, 1.0, random()).apply(large).sum().backward()
    assert large.grad is not None
    assert large.grad.abs().sum() > 0


def test_a_part_of_a_batch_is_changed_as_in_the_whole() -> None:
    made = draw_augmentation(EVERY, 6, 8, 0.7, random())
    image = torch.rand(6, 3, 8, 8, generator=random())
    assert torch.equal(made.apply(image)[2:5], made[2:5].apply(image[2:5]))


def test_the_probability_follows_the_signs() -> None:
    assert adapt(0.2, 0.9, 0.6, 128, 512_000.0) == pytest.approx(0.2 + 128 / 512_000)
    assert adapt(0.2, 0.1, 0.6, 128, 512_000.0) == pytest.approx(0.2 - 128 / 512_000)
    assert adapt(0.2, 0.6, 0.6, 128, 512_000.0) == 0.2
    assert adapt(0.0, -1.0, 0.6, 128, 512_000.0) == 0.0
    assert adapt(1.0, 1.0, 0.6, 128, 512_000.0) == 1.0
    assert math.isclose(adapt(0.0, 1.0, 0.6, 500_000, 500_000.0), 1.0)
