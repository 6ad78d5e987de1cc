"""Planes of a head's own beside those that the backbone draws from its code: the same for all codes, zero until tuned.

*The plane for the photo* spans x and y once more. The backbone draws its planes through a few convolutions that all
places share; what a photo shows finer than that has a number for each texel here. It counts as far back as the photo
sees in each texel's column (`Generator.photo_reach`): farther on it would draw streaks along z, on cheeks and hair seen
from beside, and the face once more at the back of the head.

*The planes for the sides* are added to the other two. They are for what other views are to show: a frontal photo that
had them for itself would draw lines across the cheeks.

*The plane for the back* spans x and y, too, and counts behind what the photo sees. Of three planes that one is the same
for face and back: what is drawn on it for the face shows through at the back, unless the other two undo it there.
PanoHead (An et al., CVPR 2023) gives all planes depth against that and trains with it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from headlift.eg3d.generator import Generator

PHOTO = "photo_plane"
SIDES = "side_planes"
BACK = "back_plane"
OWN = (PHOTO, SIDES, BACK)
"""Names of the parameters, and of the spec's fields that say whether there are such."""
REACH = "photo_reach"
"""Name of the tensor that goes with the first and the last of them."""


def with_own_planes(generator: Generator, *names: str) -> Generator:
    """A copy that draws the same heads and has planes of these names too: zero if there were none, else as they are."""
    added: dict[str, Any] = dict.fromkeys(names, True)
    wider = Generator(replace(generator.spec, **added))
    wider.load_state_dict({**wider.state_dict(), **generator.state_dict()})
    return wider.to(generator.w_avg.device).train(generator.training).requires_grad_(False)


def own_planes(generator: Generator) -> dict[str, nn.Parameter]:
    """The head's own planes, by name."""
    return {name: p for name, p in generator.named_parameters() if name in OWN}


def with_same_planes(first: Generator, second: Generator) -> tuple[Generator, Generator]:
    """Copies of two generators that have each other's planes too; where one knew no reach, it has the other's."""
    names = {*own_planes(first), *own_planes(second)}
    pair = with_own_planes(first, *names), with_own_planes(second, *names)
    knew = [generator.spec.has_reach for generator in (first, second)]
    if knew[0] != knew[1]:
        pair[knew.index(False)].photo_reach.copy_(pair[knew.index(True)].photo_reach)
    return pair
