"""The generator: determinism, independence, fast paths against plain ones, the published faults on and off."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from headlift.eg3d.camera import orbit
from headlift.eg3d.generator import Generator, _points_at_once
from headlift.eg3d.layers import SynthesisLayer, resample_filter, softplus, upsample
from headlift.eg3d.mapping import truncate
from headlift.eg3d.rays import Jitter, pixel_rays, stratified_samples
from headlift.eg3d.spec import (
    BackboneSpec,
    DecoderSpec,
    GeneratorSpec,
    MappingSpec,
    PlaneLayout,
    RenderSpec,
    SuperresKind,
    SuperresSpec,
)
from headlift.eg3d.triplane import PLANES, look_up, merge_planes, sample_planes
from headlift.errors import ConfigError

SPEC = GeneratorSpec(
    mapping=MappingSpec(z_dim=6, w_dim=8),
    backbone=BackboneSpec(16, (8, 6, 4)),
    decoder=DecoderSpec(hidden=16, features=6),
    render=RenderSpec(depth_samples=8, importance_samples=6),
    superres=SuperresSpec("2X", 16, (5, 4)),
    plane_channels=4,
    image_resolution=32,
    neural_resolution=12,
)


def network(spec: GeneratorSpec = SPEC) -> Generator:
    """Random weights with everything moved off its initial zeros, and densities that leave some rays empty."""
    random = torch.Generator().manual_seed(3)
    generator = Generator(spec).eval()
    with torch.no_grad():
        for name, tensor in generator.state_dict().items():
            if not name.endswith("resample_filter"):
                tensor.copy_(torch.randn(tensor.shape, generator=random))
        generator.decoder.net[2].weight[0] *= 8
        generator.decoder.net[2].bias[0] = -4
    return generator.requires_grad_(False)


def heads(generator: Generator, count: int = 2) -> tuple[Float[Tensor, "n k w"], Float[Tensor, "n 3 c p p"]]:
    z = torch.randn(count, generator.spec.mapping.z_dim, generator=torch.Generator().manual_seed(9))
    ws = generator.mapping(z)
    return ws, generator.planes(ws)


def cameras(count: int = 2) -> object:
    return orbit(torch.linspace(-0.5, 0.9, count), 0.2)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return float((a - b).abs().max()) <= tolerance * float(b.abs().max())


def test_renders_are_deterministic_and_jitter_is_explicit() -> None:
    generator = network()
    ws, planes = heads(generator)
    first, second = (generator.render(planes, ws, cameras()) for _ in range(2))
    assert torch.equal(first.image, second.image)
    drawn = [generator.render(planes, ws, cameras(), jitter=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(drawn[0].image, drawn[1].image)
    assert not torch.equal(drawn[0].image, drawn[2].image)
    numbers = Jitter.draw(torch.Generator().manual_seed(1), 2, 144, 8, 6)
    assert torch.equal(generator.render(planes, ws, cameras(), jitter=numbers).image, drawn[0].image)
    middle = Jitter(torch.full((2, 144, 8), 0.5), ((torch.arange(6) + 0.5) / 6).expand(2, 144, 6))
    assert torch.equal(generator.render(planes, ws, cameras(), jitter=middle).image, first.image)
    with pytest.raises(ConfigError, match="jitter"):
        generator.render(planes, ws, cameras(), jitter=middle, depth_samples=9)


def test_within_the_box_even_the_last_samples_stay_inside_the_cube() -> None:
    reached = {}
    for within in (False, True):
        render = replace(SPEC.render, ray_start="auto", ray_end="auto", box_warp=1.0, within_box=within)
        origins, directions = pixel_rays(orbit(0.7, 0.3), 8)
        start, end = network(replace(SPEC, render=render))._limits(origins, directions, 6)
        samples = stratified_samples(start, end, torch.full((*directions.shape[:2], 6), 0.999))
        reached[within] = float((origins + samples[..., -1:] * directions).abs().max())
    assert reached[True] <= 0.5 + 1e-5
    assert reached[False] > 0.6


@pytest.mark.parametrize("limits", ["auto", "fixed"])
def test_no_image_depends_on_another_of_its_batch(limits: str) -> None:
    render = replace(SPEC.render, ray_start="auto", ray_end="auto", box_warp=0.5) if limits == "auto" else SPEC.render
    generator = network(replace(SPEC, render=render))
    ws, planes = heads(generator, 3)
    together = generator.render(planes, ws, cameras(3))
    for i in range(3):
        alone = generator.render(planes[i : i + 1], ws[i : i + 1], cameras(3)[i : i + 1])
        for name in ("image", "raw", "features", "depth", "alpha"):
            assert close(getattr(together, name)[i : i + 1], getattr(alone, name)), name


def test_one_head_is_seen_by_many_cameras_at_once() -> None:
    generator = network()
    ws, planes = heads(generator, 1)
    together = generator.render(planes, ws, cameras(3))
    for i in range(3):
        assert close(together.image[i : i + 1], generator.render(planes, ws, cameras(3)[i : i + 1]).image)


def test_rays_beside_the_box_see_only_the_background() -> None:
    render = replace(SPEC.render, ray_start="auto", ray_end="auto", box_warp=0.2, white_background=True)
    generator = network(replace(SPEC, render=render))
    ws, planes = heads(generator)
    planes.requires_grad_()
    output = generator.render(planes, ws, cameras())
    assert float(output.alpha[..., 0, 0].detach().abs().max()) == 0
    assert torch.equal(output.features[..., 0, 0], torch.ones(2, 6))
    assert float(output.alpha[..., 6, 6].detach().min()) > 0
    assert 2.3 < float(output.depth[..., 0, 0].detach().min()) < 2.8
    (gradient,) = torch.autograd.grad(output.depth.sum() + output.image.sum(), planes)
    assert bool(torch.isfinite(gradient).all())


def empty(spec: GeneratorSpec) -> Generator:
    generator = network(spec)
    generator.decoder.net[2].weight[0] = 0
    generator.decoder.net[2].bias[0] = -300
    return generator


def test_an_empty_volume_has_the_last_sample_s_depth_and_finite_gradients() -> None:
    generator = empty(SPEC)
    ws, planes = heads(generator)
    planes.requires_grad_()
    output = generator.render(planes, ws, cameras())
    assert float(output.alpha.detach().max()) == 0
    last = 3.3 + 0.5 * (3.3 - 2.25) / 7
    assert torch.allclose(output.depth, torch.full_like(output.depth, last), atol=1e-4)
    (gradient,) = torch.autograd.grad(output.depth.sum() + output.image.sum(), planes)
    assert bool(torch.isfinite(gradient).all())


def test_the_published_depth_of_an_empty_ray_comes_from_the_whole_batch() -> None:
    jitter = Jitter(torch.stack([torch.full((144, 8), 0.1), torch.full((144, 8), 0.9)]), torch.full((2, 144, 6), 0.5))
    depths = {}
    for faults in (False, True):
        generator = empty(replace(SPEC, published_faults=faults))
        ws, planes = heads(generator)
        depths[faults] = generator.render(planes, ws, cameras(), jitter=jitter).depth.amax(dim=(1, 2, 3))
    step = (3.3 - 2.25) / 7
    assert depths[False].tolist() == pytest.approx([3.3 + 0.1 * step, 3.3 + 0.9 * step], abs=1e-4)
    assert depths[True].tolist() == pytest.approx([3.3 + 0.9 * step] * 2, abs=1e-4)


def test_the_published_raw_image_is_overwritten_at_the_input_size_only() -> None:
    outputs = {}
    for faults in (False, True):
        generator = network(replace(SPEC, published_faults=faults))
        ws, planes = heads(generator)
        outputs[faults] = [generator.render(planes, ws, cameras(), side) for side in (16, 12)]
    for right, faulty in zip(outputs[False], outputs[True], strict=True):
        assert close(right.features, faulty.features, 1e-4)
        assert close(right.image, faulty.image, 1e-4)
        assert torch.equal(right.raw, right.features[:, :3])
    assert not close(outputs[True][0].raw, outputs[True][0].features[:, :3], 1e-2)
    assert torch.equal(outputs[True][1].raw, outputs[True][1].features[:, :3])


@pytest.mark.parametrize("layout", ["official", "zy", "yz"])
def test_merged_planes_equal_three_look_ups_in_values_and_gradients(layout: PlaneLayout) -> None:
    random = torch.Generator().manual_seed(0)
    points = (torch.rand(2, 300, 3, generator=random) - 0.5) * 1.4
    weight = torch.randn(2, 4, 300, generator=random)
    found = []
    planes = torch.randn(2, 3, 4, 9, 9, generator=random).requires_grad_()
    asked = points.clone().requires_grad_()
    for plain in (True, False):
        if plain:
            value = sample_planes(planes, PLANES[layout], asked, 1.1).mT
        else:
            merged, axes = merge_planes(planes / 3, PLANES[layout])
            assert len(axes) == (2 if layout == "official" else 3)
            value = look_up(merged, axes, asked * (2 / 1.1))
        found.append((value, *torch.autograd.grad((value * weight).sum(), [planes, asked])))
    for fast, slow in zip(found[1], found[0], strict=True):
        assert close(fast, slow)


def test_layouts_look_up_the_axes_that_they_name() -> None:
    """A plane that rises along its width shows which world axis that is."""
    ramp = ((torch.arange(64) + 0.5) / 32 - 1).expand(64, 64)
    point = torch.tensor([[[0.1, 0.2, 0.3]]])
    for each in PLANES.values():
        for i, plane in enumerate(each):
            across, down = plane.axes
            for image, axis in ((ramp, across), (ramp.T, down)):
                planes = torch.zeros(1, 3, 1, 64, 64)
                planes[0, i, 0] = image
                found = float(sample_planes(planes, each, point, 1.0)) * 3
                assert found == pytest.approx(2 * float(point[0, 0, axis]), abs=1e-6)


def test_the_published_order_of_arithmetic_agrees_with_the_fast_one() -> None:
    outputs = []
    for faults in (False, True):
        generator = network(replace(SPEC, published_faults=faults))
        ws, planes = heads(generator)
        outputs.append((planes, generator.render(planes, ws, cameras()).image))
    assert close(outputs[0][0], outputs[1][0], 1e-5)
    assert close(outputs[0][1], outputs[1][1], 1e-4)


def test_chunks_of_rays_equal_all_rays_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = network()
    ws, planes = heads(generator)
    whole = generator.render(planes, ws, cameras())
    monkeypatch.setattr("headlift.eg3d.generator.POINTS_PER_CHUNK", 100)
    with torch.no_grad():
        parts = generator.render(planes, ws, cameras())
    assert close(parts.image, whole.image)
    assert close(parts.depth, whole.depth)
    assert _points_at_once(torch.device("cpu")) == 100 < 2**20 < _points_at_once(torch.device("cuda"))


def test_training_and_inference_convolutions_agree_in_values_and_gradients() -> None:
    random = torch.Generator().manual_seed(0)
    for up, published in ((1, False), (2, False), (1, True), (2, True)):
        layer = SynthesisLayer(3, 5, 4, 8, up, 256.0, published)
        layer.noise_strength.data.fill_(0.3)
        x = torch.randn(2, 3, 8 // up, 8 // up, generator=random).requires_grad_()
        w = torch.randn(2, 4, generator=random).requires_grad_()
        found = []
        for fused in (False, True):
            y = layer(x, w, fused=fused)
            found.append((y, *torch.autograd.grad(y.square().sum(), [x, w, layer.weight])))
        for a, b in zip(*found, strict=True):
            assert close(a, b)
        one = layer(x, w[:1], fused=True)
        assert close(one, layer(x, w[:1].expand(2, -1), fused=False))


def test_softplus_is_exact_at_all_sizes_with_both_derivatives() -> None:
    wide = torch.linspace(-120, 120, 24001, dtype=torch.float64)
    exact = F.softplus(wide, threshold=1000)
    assert float((softplus(wide.float()).double() - exact).abs().max()) < 6e-6  # half a unit of the last place at 120
    near = wide.abs() < 8
    assert float((softplus(wide.float()).double() - exact)[near].abs().max()) < 1e-6
    coarse = softplus(wide.bfloat16())
    assert coarse.dtype == torch.bfloat16
    assert torch.allclose(coarse.double(), F.softplus(wide.bfloat16().double()), rtol=4e-3, atol=1e-6)
    x = torch.tensor([-50.0, -2.0, 0.0, 3.0, 40.0, 200.0], requires_grad=True)
    (first,) = torch.autograd.grad(softplus(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    share = torch.sigmoid(x.detach())
    assert torch.allclose(first, share)
    assert torch.allclose(second, share * (1 - share))


def test_upsampling_by_hand() -> None:
    """The filter (1, 3, 3, 1) between zeros weighs neighbours 3 to 1; zeros lie outside."""
    image = torch.tensor([[[[4.0, 8.0]]]])
    for published in (False, True):
        row = upsample(image, resample_filter(), published)[0, 0, 0]
        assert (row / 0.75).tolist() == pytest.approx([3.0, 5.0, 7.0, 6.0])


def test_truncation_moves_the_first_codes_towards_the_mean() -> None:
    ws = torch.arange(12.0).reshape(1, 3, 4)
    average = torch.ones(4)
    assert torch.equal(truncate(ws, average, 1.0), ws)
    assert torch.allclose(truncate(ws, average, 0.5), (ws + 1) / 2)
    partly = truncate(ws, average, 0.25, 2)
    assert torch.allclose(partly[:, :2], 1 + 0.25 * (ws[:, :2] - 1))
    assert torch.equal(partly[:, 2:], ws[:, 2:])
    generator = network()
    assert torch.allclose(generator.mapping(torch.ones(1, 6), truncation_psi=0.0), generator.w_avg.expand(1, 6, 8))


def test_conditioning_is_scaled_or_zeroed_as_the_spec_says() -> None:
    z = torch.ones(1, 6)
    side, front = orbit(1.0, 0.2), orbit(0.0, 0.0)
    generator = network()
    assert torch.equal(generator.mapping(z), generator.mapping(z, front))
    assert not torch.equal(generator.mapping(z, side), generator.mapping(z, front))
    for mapping in (replace(SPEC.mapping, zero_label=True), replace(SPEC.mapping, label_scale=0.0)):
        generator = network(replace(SPEC, mapping=mapping))
        assert torch.equal(generator.mapping(z, side), generator.mapping(z, side.label * 0))


def test_the_mean_of_w_follows_the_batches() -> None:
    mapping = network().backbone.mapping
    before = mapping.w_avg.clone()
    mapping.update_average(torch.ones(5, 8))
    assert torch.allclose(mapping.w_avg, 0.998 * before + 0.002)


@pytest.mark.parametrize(("kind", "side"), [("2X", 32), ("4X", 32), ("8X", 64), ("8XDC", 64)])
def test_every_superresolution_runs_forwards_and_backwards(kind: SuperresKind, side: int) -> None:
    spec = replace(SPEC, superres=SuperresSpec(kind, 16, (5, 4)), image_resolution=side)
    generator = network(spec).requires_grad_(True)
    ws, planes = heads(generator)
    for neural in (16, 10):
        output = generator.render(planes, ws, cameras(), neural)
        assert output.image.shape == (2, 3, side, side)
        assert output.raw.shape == (2, 3, neural, neural)
    output.image.square().mean().backward()
    used = {n: p for n, p in generator.named_parameters() if not (n.startswith("super") and "noise" in n)}
    for name, parameter in used.items():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert float(parameter.grad.abs().sum()) > 0, name
    names = generator.superresolution.state_dict()
    assert ("resample_filter" in names) == (kind != "8XDC")


def test_fewer_samples_and_none_by_importance() -> None:
    generator = network(replace(SPEC, render=replace(SPEC.render, importance_samples=0, disparity_sampling=True)))
    ws, planes = heads(generator)
    output = generator.render(planes, ws, cameras(), depth_samples=5)
    assert bool(torch.isfinite(output.image).all())
    assert float(output.depth.min()) >= 2.25


def test_queries_do_not_depend_on_their_chunks_and_lie_where_rays_do() -> None:
    generator = network()
    _, planes = heads(generator)
    points = (torch.rand(2, 50, 3, generator=torch.Generator().manual_seed(0)) - 0.5) * 1.3
    sigma, features = generator.query(planes, points)
    assert sigma.shape == (2, 50, 1)
    assert features.shape == (2, 50, 6)
    parts = generator.query(planes, points, chunk=7)
    assert close(parts[0], sigma)
    assert close(parts[1], features)
    outside = generator.query(planes, torch.full((2, 1, 3), 5.0))
    assert torch.equal(outside[0][0], outside[0][1])


def test_noise_modes() -> None:
    generator = network()
    ws, planes = heads(generator)
    none = generator.planes(ws, "none")
    assert not close(none, planes, 1e-2)
    drawn = [generator.planes(ws, "random", torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("kind", ["2X", "8XDC"])
def test_a_margin_keeps_the_frame_of_zeros_out_of_the_picture_and_changes_nothing_else(kind: SuperresKind) -> None:
    factor = {"2X": 2, "8XDC": 4}[kind]
    superres = replace(SPEC.superres, kind=kind, margin=4)
    wide = network(replace(SPEC, superres=superres, image_resolution=16 * factor))
    plain = network(replace(SPEC, superres=replace(superres, margin=0), image_resolution=16 * factor))
    ws, _ = heads(wide, 1)
    flat = torch.randn(1, 6, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 16, 16)
    for found, framed in zip(wide.superresolution(flat, ws), plain.superresolution(flat, ws), strict=True):
        side = found.shape[-1]
        assert found.shape == framed.shape
        assert close(found, found[..., side // 2, side // 2][..., None, None].expand_as(found))
        assert not close(found, framed, 1e-2)
    features = torch.randn(1, 6, 16, 16, generator=torch.Generator().manual_seed(1))
    inner = slice(4 * factor, -4 * factor)
    assert close(
        *(g.superresolution(features, ws)[0][..., inner, inner] for g in (wide, plain)),
    )


def test_noise_has_no_place_in_a_margin() -> None:
    with pytest.raises(ConfigError, match="margin"):
        replace(SPEC.superres, margin=2, noise_mode="const")
    with pytest.raises(ConfigError, match="margin"):
        replace(SPEC.superres, margin=-1)
    generator = network(replace(SPEC, superres=replace(SPEC.superres, margin=2)))
    ws, planes = heads(generator)
    with pytest.raises(ConfigError, match="'random' has no place in the margin"):
        generator.render(planes, ws, cameras(), noise_mode="random")


def test_random_noise_is_the_given_generators_or_always_the_same() -> None:
    generator = network(replace(SPEC, superres=replace(SPEC.superres, noise_mode="random")))
    ws, planes = heads(generator)
    assert torch.equal(generator.planes(ws, "random"), generator.planes(ws, "random"))
    images = [generator.render(planes, ws, cameras()).image for _ in range(2)]
    assert torch.equal(*images)
    drawn = [
        generator.render(planes, ws, cameras(), generator=torch.Generator().manual_seed(s)).image for s in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not close(drawn[0], drawn[2], 1e-2)


def test_training_runs_under_bfloat16_with_the_volume_in_float32() -> None:
    generator = network().train().requires_grad_(True)
    ws, planes = heads(generator)
    exact = generator.render(planes, ws, cameras())
    with torch.autocast("cpu", torch.bfloat16):
        ws, planes16 = heads(generator)
        output = generator.render(planes16, ws, cameras())
        loss = output.image.square().mean() + output.alpha.mean() + output.depth.mean()
    assert planes16.dtype == output.image.dtype == output.depth.dtype == torch.float32
    assert not torch.equal(planes16, planes)
    assert close(planes16, planes, 0.05)
    assert close(output.image, exact.image, 0.2)
    loss.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in generator.parameters() if p.grad is not None)
    with torch.autocast("cpu", torch.bfloat16):  # the same planes give the same volume, whatever the mode
        assert torch.equal(generator.volume(planes, cameras()).features, generator.volume(planes, cameras()).features)
        inside = generator.volume(planes, cameras()).depth
    assert torch.equal(inside, generator.volume(planes, cameras()).depth)


def test_forward_is_mapping_planes_and_render() -> None:
    generator = network()
    z = torch.ones(2, 6)
    ws = generator.mapping(z, cameras())
    assert torch.equal(generator(z, cameras()).image, generator.render(generator.planes(ws), ws, cameras()).image)
