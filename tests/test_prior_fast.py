"""The training's fast ways against the plain ones: values and gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from headlift.eg3d.camera import orbit
from headlift.eg3d.generator import Generator
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
from headlift.eg3d.training import fast, lookup, precision, rays
from headlift.errors import ConfigError
from headlift.values import Camera

SPEC = GeneratorSpec(
    mapping=MappingSpec(z_dim=8, w_dim=16, zero_label=True),
    backbone=BackboneSpec(32, (16, 16, 12, 8)),
    decoder=DecoderSpec(16, 8),
    render=RenderSpec("auto", "auto", white_background=True, depth_samples=24, importance_samples=0),
    superres=SuperresSpec("4X", 32, (16, 8)),
    plane_channels=4,
    plane_layout="zy",
    image_resolution=64,
    neural_resolution=16,
)


def tiny_generator() -> Generator:
    torch.manual_seed(0)
    return Generator(SPEC)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_fast_planes_are_the_generators_in_values_and_gradients() -> None:
    generator = tiny_generator()
    weights = dict(generator.named_parameters())
    trained = [p for name, p in weights.items() if "synthesis" in name and "noise" not in name]
    ws = generator.mapping(normal(2, 8)).detach()
    plain = generator.planes(ws)
    quick = fast.planes_table(weights, SPEC, ws, torch.float32).permute(0, 3, 4, 1, 2)
    assert torch.allclose(plain, quick, atol=2e-5)
    back = normal(*plain.shape, seed=2)
    for a, b in zip(torch.autograd.grad(plain, trained, back), torch.autograd.grad(quick, trained, back), strict=True):
        assert (a - b).norm() <= 1e-4 * a.norm()


def test_fast_super_resolution_is_the_generators() -> None:
    generator = tiny_generator()
    ws = generator.mapping(normal(2, 8))
    features = normal(2, 8, 16, 16, seed=3)
    plain, _ = generator.superresolution(features, ws)
    quick = fast.superres(dict(generator.named_parameters()), SPEC, features, ws[:, -1], torch.float32)
    assert torch.allclose(plain, quick, atol=2e-5)


@pytest.mark.parametrize("kind", ["2X", "8X"])
def test_fast_super_resolution_refuses_other_modules(kind: SuperresKind) -> None:
    """The first block of some doubles its input, too."""
    side = 128 if kind == "8X" else 64
    spec = replace(SPEC, superres=SuperresSpec(kind, 32, (16, 8)), image_resolution=side)
    with pytest.raises(ConfigError, match=kind):
        fast.superres({}, spec, normal(1, 8, 16, 16), normal(1, 16), torch.float32)


@pytest.mark.parametrize(("size", "side"), [(1, 8), (3, 8), (3, 40)])
def test_convolution_in_bfloat16_has_the_gradients_of_the_plain_one(size: int, side: int) -> None:
    x = normal(3, 8, side, side).bfloat16().requires_grad_()
    kernel = normal(6, 8, size, size, seed=2).bfloat16().requires_grad_()
    y = fast.convolve(x, kernel)
    back = normal(*y.shape, seed=3).bfloat16()
    x2, kernel2 = x.detach().float().requires_grad_(), kernel.detach().float().requires_grad_()
    y2 = F.conv2d(x2, kernel2, padding=size // 2)
    found, expected = torch.autograd.grad(y, (x, kernel), back), torch.autograd.grad(y2, (x2, kernel2), back.float())
    assert (y - y2).norm() < 0.01 * y2.norm()
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() < 0.01 * b.norm()  # bfloat16 keeps 8 bits


@pytest.mark.parametrize("layout", ["official", "zy", "yz"])
@pytest.mark.parametrize("channels", [3, 16])
def test_look_up_in_c_is_that_of_grid_sample(layout: PlaneLayout, channels: int) -> None:
    if lookup._library() is None:
        pytest.skip("no C compiler here: the look-up falls back to grid_sample")
    table = normal(2, 8, 8, 3, channels).requires_grad_()
    points = torch.rand(2, 50, 3, generator=torch.Generator().manual_seed(5)) * 2.4 - 1.2  # some of them outside
    plain, quick = lookup.lookup_reference(table, points, layout), lookup.lookup(table, points, layout)
    assert torch.allclose(plain, quick, atol=1e-5)
    back = normal(*plain.shape, seed=2)
    (a,), (b,) = torch.autograd.grad(plain, table, back), torch.autograd.grad(quick, table, back)
    assert torch.allclose(a, b, atol=1e-5)


def test_loose_rays_see_what_the_generator_renders() -> None:
    """With many samples both quadratures converge to the same integral."""
    generator = tiny_generator()
    weights = dict(generator.named_parameters())
    with torch.no_grad():
        ws = generator.mapping(normal(1, 8))
        camera = orbit(0.4, 0.1)
        volume = generator.volume(generator.planes(ws), camera, 8, depth_samples=400)
        grid = (torch.stack(torch.meshgrid(torch.arange(8), torch.arange(8), indexing="xy"), -1) + 0.5) / 8
        origin, direction = rays.camera_rays(camera, grid.reshape(1, -1, 2))
        near, far = rays.hull_limits(origin, direction, torch.ones(4, 4, 4, dtype=torch.bool), 1.0)
        found = rays.render_rays(
            weights,
            SPEC,
            fast.planes_table(weights, SPEC, ws, torch.float32),
            rays.Rays(origin, direction, near, far),
            coarse=64,
            fine=400,
            channels=8,
            generator=None,
            dtype=torch.float32,
        )
    alpha = volume.alpha.reshape(1, -1)
    assert alpha.max() > 0.1
    assert torch.allclose(found.alpha, alpha, atol=5e-3)
    features = (found.colour + (1 - found.alpha)[..., None]) * 2 - 1
    assert torch.allclose(features.transpose(1, 2).reshape(volume.features.shape), volume.features, atol=1e-2)


def test_hull_limits_bracket_the_hull_and_miss_what_misses_it() -> None:
    hull = torch.zeros(10, 10, 10, dtype=torch.bool)
    hull[:, :, 4:6] = True  # the slab |z| < 0.1
    camera = orbit(0.0, 0.0, pivot=(0.0, 0.0, 0.0))
    origin, direction = rays.camera_rays(camera, torch.tensor([[[0.5, 0.5], [5.0, 0.5]]]))
    near, far = rays.hull_limits(origin, direction, hull, 1.0, steps=50)
    assert near[0, 0] == pytest.approx(2.6, abs=0.021)
    assert far[0, 0] == pytest.approx(2.8, abs=0.021)
    assert far[0, 1] <= near[0, 1]


def test_importance_samples_gather_where_the_weight_is_and_cover_the_ray() -> None:
    near, far = torch.tensor([[1.0]]), torch.tensor([[2.0]])
    t = rays.stratified(near, far, 11, None)
    weights = torch.zeros(1, 1, 10)
    weights[..., 5] = 0.9
    found = rays.importance(t, weights, near, far, 22, None)[0, 0]
    assert (found.diff() >= 0).all()
    assert found[0] == 1
    assert found[-1] == 2
    middle = (t[0, 0, 5] + t[0, 0, 6]) / 2
    assert ((found - middle).abs() < 0.15).sum() >= 16


def test_camera_rays_go_through_the_points_that_project_there() -> None:
    camera = orbit(torch.tensor([0.3]), torch.tensor([-0.2]))
    uv = torch.tensor([[[0.25, 0.7]]])
    origin, direction = rays.camera_rays(camera, uv)
    point = origin + 2.5 * direction
    seen = torch.linalg.inv(camera.cam2world[0]) @ torch.cat([point[0, 0], torch.ones(1)])
    projected = camera.intrinsics[0] @ seen[:3]
    assert torch.allclose(projected[:2] / projected[2], uv[0, 0], atol=1e-5)
    assert isinstance(camera, Camera)


def test_the_compiled_look_up_leaves_small_numbers_as_they_are() -> None:
    """Libraries linked with -ffast-math make all that lies below 1.2e-38 zero in the thread that opens them."""
    table, points = normal(1, 8, 8, 3, 4), normal(1, 5, 3, seed=2).tanh()
    assert torch.isfinite(lookup.lookup(table, points, "zy")).all()
    assert float(torch.tensor(1e-40) * 1.5) > 0


@pytest.mark.parametrize("chosen", [{}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "here", "HEADLIFT_CACHE": "."}])
def test_the_compiled_look_up_is_not_kept_wherever_headlift_is_started(
    chosen: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "HEADLIFT_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    assert lookup._cache_folder() == tmp_path / ".cache" / "headlift"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert lookup._cache_folder() == tmp_path / "caches" / "headlift"
    monkeypatch.setenv("HEADLIFT_CACHE", str(tmp_path / "mine"))
    assert lookup._cache_folder() == tmp_path / "mine"


def test_each_processor_and_compiler_has_a_compiled_look_up_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compilers = []
    for version in ("12", "13"):
        compilers.append(tmp_path / f"cc{version}")
        compilers[-1].write_text(f"#!/bin/sh\necho {version}\n")
        compilers[-1].chmod(0o755)
    names = [lookup._file_name(str(compiler)) for compiler in (*compilers, compilers[0])]
    monkeypatch.setattr(lookup, "_processor", lambda: ("x86_64", "avx2"))
    names.append(lookup._file_name(str(compilers[0])))
    assert len(set(names)) == 3
    assert names[0] == names[2]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx2": True, "avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"architecture": "aarch64", "bf16": True}, torch.bfloat16),
    ],
)
def test_bfloat16_is_for_what_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, bool | str], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert precision.working_type("cpu") == expected
    for wanted in (True, False):
        with precision.autocast("cpu", wanted):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (expected if wanted else torch.float32)


@pytest.mark.parametrize(("has", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_gpus_that_only_emulate_bfloat16_stay_in_float32(
    monkeypatch: pytest.MonkeyPatch, has: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or has)
    assert precision.working_type("cuda") == expected
