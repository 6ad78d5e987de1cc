"""Gradients of planes that reach the backbone once in several steps."""

from __future__ import annotations

import torch
from small_networks import solid_generator
from torch import Tensor

from headlift.eg3d.generator import Generator
from headlift.invert.gathering import GATHERED, GatheringBackbone


def learning() -> tuple[Generator, Tensor]:
    """A generator that wants gradients, and a code."""
    generator = solid_generator()
    ws = generator.mapping(torch.randn(1, 8, generator=torch.Generator().manual_seed(3))).detach()
    return generator.requires_grad_(), ws


def wishes(generator: Generator, ws: Tensor, count: int) -> list[Tensor]:
    """What so many steps want of the planes."""
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(generator.planes(ws).shape, generator=rng) for _ in range(count)]


def gradients(generator: Generator) -> list[Tensor | None]:
    return [parameter.grad for parameter in generator.backbone.synthesis.parameters()]


def test_after_so_many_steps_the_backbone_gets_the_mean_of_what_they_want() -> None:
    generator, ws = learning()
    backbone, wanted = GatheringBackbone(generator, ws, 3), wishes(generator, ws, 3)
    for done, want in enumerate(wanted):
        assert all(gradient is None for gradient in gradients(generator))
        (backbone.planes() * want).sum().backward()
        backbone.go_back(done, last=False)
    plain, _ = learning()
    (plain.planes(ws) * torch.stack(wanted).mean(0)).sum().backward()
    pairs = list(zip(gradients(generator), gradients(plain), strict=True))
    assert any(theirs is not None and theirs.abs().max() > 1e-3 for _, theirs in pairs)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)


def test_the_last_step_does_not_wait_and_the_next_planes_are_drawn_anew() -> None:
    generator, ws = learning()
    backbone, (want, other) = GatheringBackbone(generator, ws, 3), wishes(generator, ws, 2)
    for done, wish in enumerate((want, other)):
        (backbone.planes() * wish).sum().backward()
        backbone.go_back(done, last=done == 1)
    with torch.no_grad():
        for parameter in generator.backbone.synthesis.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    assert torch.equal(backbone.planes(), generator.planes(ws))


def test_what_is_gathered_can_be_put_away_and_gone_on_from() -> None:
    whole, ws = learning()
    first, wanted = GatheringBackbone(whole, ws, 2), wishes(whole, ws, 2)
    (first.planes() * wanted[0]).sum().backward()
    first.go_back(0, last=False)
    kept = first.tensors()
    resumed, _ = learning()
    second = GatheringBackbone(resumed, ws, 2)
    second.restore(kept)
    assert torch.equal(second.tensors()[GATHERED], kept[GATHERED])  # if it is put away again at once, too
    for backbone in (first, second):
        (backbone.planes() * wanted[1]).sum().backward()
        backbone.go_back(1, last=False)
        assert not backbone.tensors()
    for ours, theirs in zip(gradients(whole), gradients(resumed), strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)  # type: ignore[arg-type]


def test_a_backbone_that_does_not_move_draws_once() -> None:
    generator, ws = learning()
    generator.requires_grad_(False)
    backbone = GatheringBackbone(generator, ws, 1)
    first = backbone.planes()
    backbone.go_back(0, last=False)
    with torch.no_grad():
        for parameter in generator.backbone.synthesis.parameters():
            parameter.zero_()
    assert torch.equal(backbone.planes(), first)
    assert not backbone.tensors()
