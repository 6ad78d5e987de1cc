"""Terms and schedules against numbers worked out by hand; figures against scikit-image."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from headlift.errors import InversionError, WeightsError
from headlift.evaluate.check import HeadCheck, SideView
from headlift.invert import losses, metrics
from headlift.invert.metrics import psnr
from headlift.invert.optimiser import AdamAndMuon, Group
from headlift.invert.perceptual import (
    Builtin,
    laplacian_pyramid,
    load_builtin,
    load_distance,
    load_lpips,
    spatial_mean,
    unit,
)
from headlift.invert.terms import descend


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_area_downsampling_averages_blocks_and_leaves_small_pictures_alone() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    # blocks: (0 + 1 + 4 + 5) / 4 = 2.5 and so on
    assert losses.area_downsample(image, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert losses.area_downsample(image, 256) is image


def test_squared_error_counts_each_pixel_by_its_weight() -> None:
    a = torch.zeros(1, 3, 1, 2)
    b = torch.tensor([1.0, 3.0]).reshape(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert float(losses.squared_error(a, b)) == pytest.approx((1 + 9) / 2)
    weight = torch.tensor([3.0, 1.0]).reshape(1, 1, 1, 2)
    assert float(losses.squared_error(a, b, weight)) == pytest.approx((3 * 1 + 1 * 9) / 4)
    assert float(losses.squared_error(a, b, torch.zeros_like(weight))) == 0


def test_errors_of_hue_count_more_than_those_of_brightness() -> None:
    grey = torch.zeros(1, 3, 1, 1)
    assert float(losses.colour_error(grey, grey + 0.3, None, 3.0)) == pytest.approx(0.09)
    # red 0.6, green and blue 0.15: a brightness of 0.3, and apart from it 0.3, -0.15, -0.15
    red = torch.tensor([0.6, 0.15, 0.15]).reshape(1, 3, 1, 1)
    hue = (0.09 + 0.0225 + 0.0225) / 3
    assert float(losses.colour_error(grey, red, None, 3.0)) == pytest.approx(0.09 + hue * (1 + 3))
    assert float(losses.colour_error(grey, red, torch.zeros(1, 1, 1, 1), 3.0)) == 0


def test_alpha_error_is_the_divergence_of_coins() -> None:
    mask, alpha = torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), 0.25)
    # 0.5 ln(0.5 / 0.25) + 0.5 ln(0.5 / 0.75)
    assert float(losses.alpha_error(alpha, mask)) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-5)
    assert float(losses.alpha_error(mask, mask)) == 0
    wrong = losses.alpha_error(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    assert math.isfinite(float(wrong))
    assert float(wrong) > 6


def test_depth_error_looks_only_where_there_is_a_surface() -> None:
    reference = torch.full((1, 1, 1, 2), 2.7)
    depth = torch.tensor([2.8, 9.0]).reshape(1, 1, 1, 2)
    solid = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2)
    assert float(losses.depth_error(depth, reference, solid)) == pytest.approx(0.01, rel=1e-4)


def test_noise_regularizer_of_a_constant_and_of_white_noise() -> None:
    # constant 1: every product is 1, both axes; the pyramid doubles it: 1, 2 -> products 1, 4, squared 1, 16
    assert float(losses.noise_regularizer([torch.ones(16, 16)])) == pytest.approx(2 * (1 + 16))
    assert float(losses.noise_regularizer([torch.ones(8, 8)])) == pytest.approx(2)
    assert float(losses.noise_regularizer([])) == 0
    white = torch.randn(64, 64, generator=seeded())
    assert float(losses.noise_regularizer([white])) < 0.1
    # the pyramid keeps the variance of white noise
    stripes = torch.ones(8, 8) * torch.tensor([1.0, -1.0]).repeat(4)
    # neighbours along x: product -1 everywhere; along y: 1
    assert float(losses.noise_regularizer([stripes])) == pytest.approx(2)


def test_normalized_noise_has_mean_zero_and_variance_one() -> None:
    noise = torch.rand(16, 16, generator=seeded()) * 7 + 3
    losses.normalize_noise([noise])
    assert float(noise.mean()) == pytest.approx(0, abs=1e-6)
    assert float(noise.square().mean()) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(
    ("t", "factor"),
    [
        (0.0, 0.0),
        (0.025, 0.5),  # half way up a ramp of 0.05
        (0.05, 1.0),
        (0.75, 1.0),  # the descent of 0.25 begins here
        (0.875, 0.5),  # half way down: 0.5 - 0.5 cos(pi / 2)
        (0.9375, 0.5 - 0.5 * math.cos(math.pi / 4)),
        (1.0, 0.0),
    ],
)
def test_learning_rate_ramp(t: float, factor: float) -> None:
    assert losses.learning_rate_ramp(t, 0.05, 0.25) == pytest.approx(factor, abs=1e-12)


def test_jitter_fades_quadratically() -> None:
    assert losses.jitter_scale(0.0, 0.05, 0.75) == 0.05
    assert losses.jitter_scale(0.375, 0.05, 0.75) == pytest.approx(0.05 / 4)
    assert losses.jitter_scale(0.75, 0.05, 0.75) == 0
    assert losses.jitter_scale(0.9, 0.05, 0.75) == 0


def test_psnr_is_over_the_mask() -> None:
    a = torch.zeros(1, 3, 8, 8)
    b = a + 0.2
    assert metrics.psnr(a, b) == pytest.approx(10 * math.log10(4 / 0.04), rel=1e-5)
    b[..., 4:] = 1.0
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    assert metrics.psnr(a, b, mask) == pytest.approx(20, rel=1e-5)
    assert metrics.psnr(a, a) == math.inf


def test_ssim_agrees_with_scikit_image() -> None:
    from skimage.metrics import structural_similarity

    a = torch.rand(1, 3, 48, 48, generator=seeded()) * 2 - 1
    b = (a + torch.randn(1, 3, 48, 48, generator=seeded(1)) * 0.3).clamp(-1, 1)
    _, full = structural_similarity(
        a[0].permute(1, 2, 0).double().numpy(),
        b[0].permute(1, 2, 0).double().numpy(),
        channel_axis=2,
        data_range=2.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    assert metrics.ssim(a, b) == pytest.approx(float(np.mean(full[5:-5, 5:-5])), abs=2e-4)


def test_laplacian_pyramid_adds_up_to_the_picture() -> None:
    image = torch.rand(1, 3, 32, 32, generator=seeded())
    levels = laplacian_pyramid(image, 3)
    assert [level.shape[-1] for level in levels] == [32, 16, 8]
    back = levels[-1]
    for level in reversed(levels[:-1]):
        back = level + torch.nn.functional.interpolate(back, size=level.shape[2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(back, image)


def test_unit_features_and_weighted_places() -> None:
    features = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)
    torch.testing.assert_close(unit(features).flatten(), torch.tensor([0.6, 0.8]))
    value = torch.tensor([1.0, 5.0]).reshape(1, 1, 1, 2)
    weight = torch.zeros(1, 1, 2, 4)
    weight[..., 2:] = 1
    assert spatial_mean(value, weight).tolist() == [5.0]
    assert spatial_mean(value, None).tolist() == [3.0]


def test_builtin_distance_is_a_distance_that_grows_with_the_fault() -> None:
    distance = load_builtin()
    ticks = torch.linspace(-1, 1, 64)
    picture = torch.stack([ticks.expand(64, 64), ticks[:, None].expand(64, 64), (8 * ticks).sin().expand(64, 64)])[None]
    target = distance.prepare(picture)
    noise = torch.randn(picture.shape, generator=seeded())
    assert float(distance(target, picture)) == 0
    ladder = [float(distance(target, picture + s * noise)) for s in (0.05, 0.2, 0.6)]
    assert 0 < ladder[0] < ladder[1] < ladder[2]
    other = distance(distance.prepare(picture + 0.2 * noise), picture)
    assert float(other) == pytest.approx(ladder[1], rel=1e-4)


def test_builtin_distance_has_the_gradient_of_its_values() -> None:
    distance = Builtin(copy.deepcopy(load_builtin().net).double())
    a = torch.rand(1, 3, 32, 32, generator=seeded()).double() - 0.5
    b = (torch.rand(1, 3, 32, 32, generator=seeded(1)).double() - 0.5).requires_grad_()
    target = distance.prepare(a)
    distance(target, b).sum().backward()
    direction = torch.randn(b.shape, generator=seeded(2)).double()
    step = 1e-5
    with torch.no_grad():
        slope = (distance(target, b + step * direction) - distance(target, b - step * direction)) / (2 * step)
    assert float((b.grad * direction).sum()) == pytest.approx(float(slope), rel=1e-3)


def test_lpips_never_downloads_and_says_what_to_do(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HEADLIFT_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for stage, name in (("latent", "vgg16"), ("tuning", "alexnet")):
        with pytest.raises(WeightsError, match=f"headlift weights fetch {name}"):
            load_distance("lpips", stage)


def test_lpips_with_given_backbone_equals_the_package(tmp_path) -> None:
    import lpips
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), tmp_path / "alexnet-owt-00000000.pth")
    distance = load_lpips("alex", [tmp_path])
    reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    stored = torch.load(tmp_path / "alexnet-owt-00000000.pth", weights_only=True)
    wanted = {k: stored["features." + k.split(".", 1)[1]] for k in reference.net.state_dict()}
    reference.net.load_state_dict(wanted)
    a = torch.rand(2, 3, 64, 64, generator=seeded()) * 2 - 1
    b = torch.rand(2, 3, 64, 64, generator=seeded(1)) * 2 - 1
    torch.testing.assert_close(distance(distance.prepare(a), b), reference(a, b).flatten(), rtol=1e-4, atol=1e-6)


def test_losses_that_are_no_numbers_end_the_optimisation() -> None:
    moved = torch.nn.Parameter(torch.ones(3))
    optimiser = AdamAndMuon([Group([moved])])
    with pytest.raises(InversionError, match="depth is no number any more"):
        descend(optimiser, {"mse": moved.sum(), "depth": moved.sum() / 0})
    assert torch.equal(moved.detach(), torch.ones(3))


def test_what_cannot_be_compared_misses_every_limit() -> None:
    picture = torch.zeros(1, 3, 16, 16)
    assert math.isnan(psnr(picture, picture, torch.zeros(1, 1, 16, 16)))
    check = HeadCheck(math.nan, (SideView(30.0, math.nan),), math.nan)
    assert not check.ok
    assert len(check.complaints) == 3


def test_foreign_files_of_a_backbone_are_refused(tmp_path) -> None:
    for content in (b"no weights", None):
        file = tmp_path / "alexnet-owt-1.pth"
        if content is None:
            torch.save({"other": torch.zeros(2)}, file)
        else:
            file.write_bytes(content)
        with pytest.raises(WeightsError, match="does not hold the weights of alexnet"):
            load_lpips("alex", [tmp_path])
