"""The dual discriminator."""

from __future__ import annotations

import pytest
import torch

from headlift.eg3d.camera import orbit
from headlift.eg3d.discriminator import Discriminator, append_spread, resize
from headlift.eg3d.spec import DiscriminatorSpec, MappingSpec

SPEC = DiscriminatorSpec(32, (8, 8, 6, 4), mapping=MappingSpec(z_dim=0, w_dim=8, layers=8))


def network(spec: DiscriminatorSpec = SPEC) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(spec).eval()


def pictures(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 32, 32, generator=random), torch.randn(count, 3, 8, 8, generator=random)


def test_the_spread_over_a_group_by_hand() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 6.0]).reshape(4, 1, 1, 1).expand(4, 2, 4, 4)
    # groups of two are images (0, 2) and (1, 3): deviations 1 and 2
    spread = append_spread(x, 2, 1)[:, 2, 0, 0]
    assert spread.tolist() == pytest.approx([1.0, 2.0, 1.0, 2.0], abs=1e-6)
    assert append_spread(x[:3], 4, 1).shape == (3, 3, 4, 4)  # three images make a group of three


def test_logits_depend_on_picture_raw_picture_and_camera() -> None:
    judge = network()
    image, raw = pictures(2)
    camera = orbit(torch.tensor([0.1, 0.4]), 0.0)
    logits = judge(image, raw, camera)
    assert logits.shape == (2, 1)
    assert torch.equal(logits, judge(image, raw, camera.label))
    other = orbit(torch.tensor([1.0, -1.0]), 0.1)
    for changed in (judge(image + 1, raw, camera), judge(image, raw + 1, camera), judge(image, raw, other)):
        assert not torch.allclose(changed, logits)


def test_r1_can_be_trained_on() -> None:
    judge = network()
    image, raw = (x.requires_grad_() for x in pictures(2))
    logits = judge(image, raw, orbit(torch.zeros(2), 0.0))
    gradients = torch.autograd.grad(logits.sum(), [image, raw], create_graph=True)
    sum(g.square().sum() for g in gradients).backward()
    for name, parameter in judge.named_parameters():
        if name not in ("b4.out.bias",) and not name.endswith("bias"):
            assert parameter.grad is not None, name
            assert bool(torch.isfinite(parameter.grad).all()), name


def test_label_noise_needs_a_generator() -> None:
    judge = network(DiscriminatorSpec(32, (8, 8, 6, 4), mapping=SPEC.mapping, label_noise=1.0))
    image, raw = pictures(2)
    label = orbit(torch.tensor([0.1, 0.4]), 0.0).label
    plain = judge(image, raw, label)
    assert torch.equal(plain, judge(image, raw, label))
    assert not torch.equal(plain, judge(image, raw, label, torch.Generator().manual_seed(0)))


def test_resizing_keeps_constants() -> None:
    assert torch.allclose(resize(torch.full((1, 3, 8, 8), 0.3), 32), torch.full((1, 3, 32, 32), 0.3))


def test_the_last_layers_stay_in_float32_under_autocast() -> None:
    last = network().b4.requires_grad_(False)
    x, projection = torch.randn(4, 8, 4, 4, generator=torch.Generator().manual_seed(0)), torch.randn(4, 8)
    wanted = last(x, projection)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(last(x, projection), wanted)
