"""Adam, with the steps of Muon for the kernels of convolutions.

Adam: Kingma and Ba 2015. PyTorch's own gives the same steps, and imports PyTorch's compiler before the first of them:
two to five seconds of each run.

Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks") steps along the momentum with all
its singular values made alike: what a gradient hardly shows of a layer moves as far as what it is full of. A kernel is
a matrix here, a row for each channel that it gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Adam's decays, and what keeps its quotients finite."""
MOMENTUM = 0.95
"""Muon's."""
ROUNDS = 5
"""Rounds of the Newton-Schulz iteration: singular values end between about 0.7 and 1.2."""
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Its coefficients of x, x^3 and x^5, as Muon's authors chose them."""
PREFIX = "adam."
"""How the names of what an optimiser remembers begin."""


@dataclass
class Group:
    """Parameters that step alike."""

    parameters: Sequence[Tensor]
    rate: float = 0.0
    """Learning rate of the next step."""
    gain: float = 1.0
    """Factor that whoever sets the rate is to put on it."""
    muon: float = 0.0
    """0 for Adam's steps; above it Muon's, with entries of a root mean square of so many times the rate (Adam's are
    about the rate itself)."""


class AdamAndMuon:
    """Moves groups of parameters down their gradients; those without a gradient stay."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = tuple(groups)
        self._parameters = [parameter for group in self.groups for parameter in group.parameters]
        self._memory: list[dict[str, Tensor]] = [{} for _ in self._parameters]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One step, at each group's rate."""
        memories = iter(self._memory)
        for group in self.groups:
            for parameter in group.parameters:
                memory = next(memories)
                if parameter.grad is None:
                    continue
                if group.muon:
                    _muon(parameter, parameter.grad, memory, group.rate * group.muon)
                else:
                    _adam(parameter, parameter.grad, memory, group.rate)

    def tensors(self) -> dict[str, Tensor]:
        """Moments and step counts, named as PyTorch's optimisers do, to go on from exactly; rates are not kept."""
        return {
            f"{PREFIX}{index}.{key}": value.detach().clone()
            for index, memory in enumerate(self._memory)
            for key, value in memory.items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave (there may be others); the parameters must be the same, in the same order."""
        for name, value in tensors.items():
            if name.startswith(PREFIX):
                index, _, key = name.removeprefix(PREFIX).partition(".")
                memory = self._memory[int(index)]
                memory[key] = value.clone() if key == "step" else value.to(self._parameters[int(index)], copy=True)


def _adam(parameter: Tensor, gradient: Tensor, memory: dict[str, Tensor], rate: float) -> None:
    if not memory:
        memory |= {"step": torch.zeros(())} | {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
    memory["step"] += 1
    done = int(memory["step"])
    mean = memory["exp_avg"].lerp_(gradient, 1 - BETAS[0])
    square = memory["exp_avg_sq"].mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    spread = (square.sqrt() / (1 - BETAS[1] ** done) ** 0.5).add_(EPSILON)
    parameter.addcdiv_(mean, spread, value=-rate / (1 - BETAS[0] ** done))


def _muon(kernel: Tensor, gradient: Tensor, memory: dict[str, Tensor], rate: float) -> None:
    if not memory:
        memory["momentum_buffer"] = torch.zeros_like(kernel)
    momentum = memory["momentum_buffer"].mul_(MOMENTUM).add_(gradient)
    ahead = (gradient + MOMENTUM * momentum).flatten(1)
    kernel.sub_(orthogonal(ahead).reshape(kernel.shape), alpha=rate * max(ahead.shape) ** 0.5)


def orthogonal(matrix: Float[Tensor, "a b"]) -> Float[Tensor, "a b"]:
    """About U V^T of its singular value decomposition U S V^T, by Newton and Schulz's iteration: products alone.

    Each round multiplies x by a polynomial of x x^T. These commute, so that all rounds are done on x x^T, which is
    small, and x itself is multiplied once.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    x: Tensor = matrix if wide else matrix.T
    x = x / x.norm().clamp_min(1e-12)
    first, third, fifth = QUINTIC
    gram, identity = x @ x.T, torch.eye(len(x), dtype=x.dtype, device=x.device)
    total = identity
    for _ in range(ROUNDS):
        factor = first * identity + third * gram + fifth * gram @ gram
        total = factor @ total
        gram = factor @ gram @ factor
    x = total @ x
    return x if wide else x.T
