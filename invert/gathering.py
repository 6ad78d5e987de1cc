"""The backbone's share of tuning, done once in several steps.

Drawing planes, and going back through what drew them, is a third of a step's time on a processor. Planes that were
drawn once can be looked at in several steps; what these ask of them is gathered, and the backbone moves by the mean.
All else, a head's own planes too, moves in each step.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from headlift.eg3d.generator import Generator

GATHERED = "gathered"
"""What the sum of the gradients so far is called in states."""


class GatheringBackbone:
    """Draws the planes of one code; takes gradients of them to the backbone once in `every` steps.

    A backbone whose parameters do not want gradients draws once and for all.
    """

    def __init__(self, generator: Generator, ws: Float[Tensor, "1 l w"], every: int) -> None:
        self._generator, self._ws, self._every = generator, ws, every
        self._moves = any(parameter.requires_grad for parameter in generator.backbone.synthesis.parameters())
        self._drawn: Tensor | None = None
        self._shown: Tensor | None = None
        self._before: Tensor | None = None

    def planes(self) -> Float[Tensor, "1 j c p p"]:
        """The planes for the next step."""
        if self._shown is None:
            self._drawn = self._generator.backbone.synthesis(self._ws)
            self._shown = self._drawn.detach().requires_grad_(self._moves)
            self._shown.grad, self._before = self._before, None
        return self._generator.completed(self._shown)

    def go_back(self, done: int, last: bool) -> None:
        """Between a step's gradients and its moves, after `done` steps before it: give the backbone its gradients if
        it is its turn, or the step is the `last`."""
        gathered = done % self._every + 1
        if self._drawn is None or self._shown is None or not self._moves or not (gathered == self._every or last):
            return
        if self._shown.grad is not None:
            self._drawn.backward(self._shown.grad / gathered)
        self._drawn = self._shown = None

    def tensors(self) -> dict[str, Tensor]:
        """What is gathered, for the states."""
        gathered = self._before if self._shown is None else self._shown.grad
        return {} if gathered is None else {GATHERED: gathered.clone()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave (there may be others)."""
        if GATHERED in tensors:
            self._before = tensors[GATHERED].to(self._ws.device)
