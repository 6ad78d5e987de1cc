"""Adam with Muon's steps for kernels: how far and in which direction a step goes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from headlift.invert.optimiser import AdamAndMuon, Group, orthogonal


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (12, 12)])
def test_singular_values_become_alike_and_singular_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = normal(*shape) @ torch.diag(torch.logspace(0, -1, shape[1]))
    found = orthogonal(matrix)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    between = left.T @ found @ right.T  # diagonal where the vectors are kept
    assert float((between - between.diag().diag()).abs().max()) < 1e-4
    assert float(between.diag().min()) > 0.6
    assert float(between.diag().max()) < 1.3
    assert torch.isfinite(orthogonal(torch.zeros(shape))).all()


def test_kernels_take_steps_of_their_size_and_the_rest_adams() -> None:
    kernel, bias = (torch.nn.Parameter(normal(*shape, seed=1)) for shape in ((6, 5, 3, 3), (6,)))
    twin = torch.nn.Parameter(bias.detach().clone())
    before = kernel.detach().clone()
    optimiser = AdamAndMuon([Group([bias], rate=0.01), Group([kernel], rate=0.01, muon=0.5)])
    plain = torch.optim.Adam([twin], lr=0.01, betas=(0.9, 0.999))
    for seed in (2, 3):
        kernel.grad, bias.grad = normal(6, 5, 3, 3, seed=seed), normal(6, seed=seed)
        twin.grad = bias.grad.clone()
        last = kernel.detach().clone()
        optimiser.step()
        plain.step()
        moved = kernel.detach() - last
        assert float(moved.square().mean().sqrt()) == pytest.approx(0.5 * 0.01, rel=0.3)
    assert torch.equal(bias, twin)
    downhill = normal(6, 5, 3, 3, seed=2) + normal(6, 5, 3, 3, seed=3)
    assert float(((kernel.detach() - before) * downhill).sum()) < 0


def test_it_goes_on_from_what_it_and_what_pytorchs_adam_remember() -> None:
    twin = torch.nn.Parameter(normal(6, seed=1))
    plain = torch.optim.Adam([twin], lr=0.01)
    for seed in (2, 3):
        twin.grad = normal(6, seed=seed)
        plain.step()
    kept = {f"adam.0.{key}": value for key, value in plain.state_dict()["state"][0].items()}
    for rounds in range(2):
        bias = torch.nn.Parameter(twin.detach().clone())
        optimiser = AdamAndMuon([Group([bias], rate=0.01)])
        optimiser.restore(kept | {"code": torch.zeros(1)})
        bias.grad = twin.grad = normal(6, seed=4 + rounds)
        optimiser.step()
        plain.step()
        assert torch.equal(bias, twin)
        kept = optimiser.tensors()


def test_a_parameter_without_a_gradient_stays() -> None:
    kernel = torch.nn.Parameter(normal(4, 3, 3, 3))
    before = kernel.detach().clone()
    AdamAndMuon([Group([kernel], rate=0.1, muon=1.0)]).step()
    assert torch.equal(kernel, before)


def test_a_step_does_not_import_the_compiler() -> None:
    """`torch.optim` does, which takes seconds of each run."""
    code = """
import sys, torch
from headlift.invert.optimiser import AdamAndMuon, Group
x = torch.ones(3, requires_grad=True)
x.sum().backward()
AdamAndMuon([Group([x], rate=0.1)]).step()
print("torch._dynamo" in sys.modules, bool((x < 1).all()))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.split() == ["False", "True"], found.stderr
