"""Adam, with the steps of Muon for the kernels of convolutions.

Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks") steps along the momentum with all
its singular values made alike: what a gradient hardly shows of a layer moves as far as what it is full of. A kernel is
a matrix here, a row for each channel that it gives.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

MOMENTUM = 0.95
ROUNDS = 5
"""Rounds of the Newton-Schulz iteration: singular values end between about 0.7 and 1.2."""
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Its coefficients of x, x^3 and x^5, as Muon's authors chose them."""
KERNELS = "kernels"
"""Name of the setting by which a group of parameters says that Muon moves it."""


class AdamAndMuon(torch.optim.Adam):
    """Adam for groups of parameters without `kernels`; where that is above 0, Muon's steps: entries of root mean square
    `kernels` times the learning rate, against Adam's, which are about the rate itself."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        super().__init__([{KERNELS: 0.0} | group for group in groups], lr=lr, betas=betas)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step down the gradients that there are (no closure makes them); those of kernels are spent by it."""
        assert closure is None
        for group in (group for group in self.param_groups if group[KERNELS]):
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state |= {"step": torch.zeros(()), "momentum_buffer": torch.zeros_like(parameter)}
                state["step"] += 1  # every state of Adam's has it
                momentum = state["momentum_buffer"].mul_(MOMENTUM).add_(parameter.grad)
                ahead = (parameter.grad + MOMENTUM * momentum).flatten(1)
                even = orthogonal(ahead) * max(ahead.shape) ** 0.5
                parameter.sub_(even.reshape(parameter.shape), alpha=group["lr"] * group[KERNELS])
                parameter.grad = None  # Adam passes over it
        return super().step()


def orthogonal(matrix: Float[Tensor, "a b"]) -> Float[Tensor, "a b"]:
    """About U V^T of its singular value decomposition U S V^T, by Newton and Schulz's iteration: products alone."""
    wide = matrix.shape[0] <= matrix.shape[1]
    x: Tensor = matrix if wide else matrix.T
    x = x / x.norm().clamp_min(1e-12)
    first, third, fifth = QUINTIC
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = first * x + (third * gram + fifth * gram @ gram) @ x
    return x if wide else x.T
