"""A plane of its own for the back of the head.

Of three planes the one that spans x and y is the same for face and back: what is drawn on it for the face shows through
at the back, unless the other two undo it there. PanoHead (An et al., CVPR 2023) gives all planes depth against that and
trains with it. Here a trained generator gets a fourth plane, the same for all codes, that is added to the others at
the back (`eg3d.triplane`): zero until it is tuned.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from headlift.eg3d.generator import Generator

BACK = "back_plane"
"""Name of the plane among the parameters."""


def with_back(generator: Generator) -> Generator:
    """A copy that draws the same heads and has a plane for the back, zero if there was none."""
    wider = Generator(replace(generator.spec, back_plane=True))
    wider.load_state_dict({**wider.state_dict(), **generator.state_dict()})
    return wider.to(generator.w_avg.device).train(generator.training).requires_grad_(False)


def back_parameters(generator: Generator) -> dict[str, nn.Parameter]:
    """The plane for the back, by its name; nothing where there is none."""
    return {name: p for name, p in generator.named_parameters() if name == BACK}
