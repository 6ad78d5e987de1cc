"""What keeps a head a head while its input view is tuned: other views, fixed before tuning begins.

Where the photo reaches, a side view shows the photo itself: its pixels are laid out in space by the depth that is known
of them (`surface.py`; else the pivot's) and seen from there, colours and depth (SPI's neighbour views, Yin et al. 2023;
HFGI3D's pseudo views, Xie et al. 2023). Elsewhere a network tells colours and opacity (`side_net.py`), and depth stays
as the pivot has it. As hair and skin vary more than what the network learned from, its colours are mixed with tones:
those of the photo at points that it does see and that are alike in place and in the pivot's colour (`tones.py`). What
the photo still adds where it meets them is carried on to all that is told (`seams.py`). Priors whose pictures the
network does not know have tones alone, and the pivot's own opacity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from headlift.eg3d.active import CUT
from headlift.eg3d.camera import WHOLE_HEAD_FOCAL, WHOLE_HEAD_PIVOT, orbit
from headlift.eg3d.generator import Generator, VolumeOutput
from headlift.eg3d.rays import box_limits, pixel_rays
from headlift.eg3d.training.losses import empty_loss
from headlift.invert.losses import colour_error, depth_error, resize, resize_weighted, squared_error
from headlift.invert.result import Target
from headlift.invert.seams import Seam, carried_on, joined, seam_of
from headlift.invert.sheet import Sheet, carry, erode, lay_out
from headlift.invert.side_net import guess_view
from headlift.invert.surface import CONTOUR, POINTS, Surface
from headlift.invert.tones import Tones, tone_samples, transfer_tones
from headlift.invert.warp import steps, surface_points
from headlift.values import Camera, RenderOutput

YAW = 0.7
"""Half the range of the side views' yaw, radians (SPI)."""
PITCH = 0.4
"""Half the range of their pitch, radians (SPI)."""
BACK_VIEWS = ((180, 0), (130, 12), (-130, -12), (155, -12), (-155, 12), (105, 0), (-105, 0), (180, 24))
"""Yaw and pitch of the views that go round the back, degrees."""
SEARCH_YAWS = (45.0, 120.0)
"""Yaws to either side at which the search for the code looks, degrees."""
SEAM_YAWS = (45.0, 80.0, 115.0)
"""Yaws to either side from which the photo is seen to end, degrees."""
HEAD_RADIUS = 0.25
"""Surface this near to the world's origin is the head's own, world units."""
TONED_SHARE = 0.5
"""How much of the colours that the network tells comes from transferred tones."""
GUESSED_WEIGHT, TONED_WEIGHT = 0.8, 0.3
"""How much what the network tells, and transferred tones, count beside the photo's own pixels."""
BEHIND = 0.05
"""So far behind the pivot's surface the photo is hidden, world units."""
CLEAR = 0.05
"""Pixels of a side view with less opacity, and so their neighbours, show nothing of the head."""

GUARD = {"side_depth": 100.0, "side_alpha": 1.0}
"""Weights of the guard's terms: a depth error of 0.1 units costs as much as a picture error of 1."""
HUE = 3.0
"""How many times more errors of hue count in what is told of a photo's sides."""


@dataclass(frozen=True)
class SideView:
    """One view with what it must keep."""

    camera: Camera
    depth: Float[Tensor, "1 1 r r"]
    alpha: Float[Tensor, "1 1 r r"]
    colour: Float[Tensor, "1 3 r r"]
    """Colours to aim for."""
    trust: Float[Tensor, "1 1 r r"]
    """How much each counts."""
    carried: Float[Tensor, "1 3 s s"] | None = None
    """The photo as it is seen from here, at its own resolution."""
    seen: Float[Tensor, "1 1 s s"] | None = None
    """Where it reaches, 1 or 0."""
    solid: Float[Tensor, "1 1 r r"] | None = None
    """How much the depth counts, where that is not the opacity."""

    def at(self, side: int) -> SideView:
        """The same at `side` pixels, but for the photo itself; the same altogether where it has that size."""
        if self.alpha.shape[-1] == side:
            return self
        depth, solid = resize_weighted(self.depth, self.alpha if self.solid is None else self.solid, side)
        colour, trust = resize_weighted(self.colour, self.trust, side)
        return replace(self, depth=depth, alpha=resize(self.alpha, side), colour=colour, trust=trust, solid=solid)


class Sides:
    """What other cameras are to see of the head in a photo: that where it reaches, and what is behind that."""

    @torch.no_grad()
    def __init__(
        self,
        generator: Generator,
        ws: Float[Tensor, "1 l w"],
        camera: Camera,
        target: Target,
        surface: Surface | None = None,
    ) -> None:
        """The photo was taken from `camera`. With a `surface` it lies there, and a network finishes the views; without,
        it lies on the untuned head's."""
        self._generator, self._planes, self._side = generator, generator.planes(ws), target.image.shape[-1]
        front = self._untuned(camera)
        tones = tone_samples(front.features[:, :3], front.depth, front.alpha, camera, target)
        self._seam: Seam | None = None
        self._tell: Callable[[VolumeOutput, Camera], Told]
        if surface is None:
            sure = erode(resize(target.mask, front.depth.shape[-1]), 1) * (front.alpha > 0.9)
            sure = sure * (1 - steps(torch.where(sure > 0, front.depth, front.depth.amax()), CONTOUR))
            self._sheet = lay_out(target, camera, front.depth, sure)
            self._tell = partial(toned, tones=tones, white=target.white)
        else:
            # All of the head: where geometry cannot be held to the guess, colours laid out by it still beat other
            # places'.
            inside = (resize(target.mask, surface.depth.shape[-1]) > 0.5).to(surface.depth.dtype)
            self._sheet = lay_out(target, camera, surface.depth, inside)
            self._tell = partial(guessed, tones=tones, target=target, surface=surface, camera=camera)
            self._seam = joined([self._look(view).seam() for view in flanking_cameras(camera, SEAM_YAWS)])

    @torch.no_grad()
    def views(self, cameras: Sequence[Camera]) -> tuple[SideView, ...]:
        """What each of them is to see."""
        looks = (self._look(view) for view in cameras)
        return tuple((look if self._seam is None else look.continued(self._seam)).joined() for look in looks)

    def _untuned(self, camera: Camera) -> VolumeOutput:
        return self._generator.volume(self._planes, camera)

    def _look(self, camera: Camera) -> Look:
        return look(self._untuned(camera), camera, self._tell, self._sheet, self._side)


@dataclass(frozen=True)
class Look:
    """The parts of a side view: what is told of it, and what the photo shows."""

    camera: Camera
    volume: VolumeOutput
    """The untuned head from there."""
    colour: Float[Tensor, "1 3 r r"]
    """Told, as is the opacity."""
    alpha: Float[Tensor, "1 1 r r"]
    weight: Float[Tensor, "1 1 r r"]
    """How much the told colours count."""
    carried: Float[Tensor, "1 3 s s"]
    """The photo as it is seen from here, at its own resolution."""
    seen: Float[Tensor, "1 1 s s"]
    """Where it reaches, 1 or 0."""
    shown: Float[Tensor, "1 4 r r"]
    """Its distance and colours, as small as what is told."""
    share: Float[Tensor, "1 1 r r"]
    """How much of each of these pixels it reaches."""

    @property
    def known(self) -> Float[Tensor, "1 1 r r"]:
        """1 where the photo reaches, else 0."""
        return (self.share > 0.5).to(self.share.dtype)

    @property
    def points(self) -> Float[Tensor, "1 m 3"]:
        """Where the untuned head's surface is, world units."""
        return surface_points(self.volume.depth, self.camera)

    def seam(self) -> Seam:
        """Where the photo ends, and what it adds there."""
        solid = (self.alpha > 0.5).to(self.alpha.dtype)
        return seam_of(self.colour, self.shown[:, 1:], self.known, solid, self.points)

    def continued(self, seam: Seam) -> Look:
        """The same with told colours that go on as the photo ends."""
        return replace(self, colour=self.colour.lerp(carried_on(self.colour, self.points, seam), self.alpha))

    def joined(self) -> SideView:
        """The photo where it reaches, what is told elsewhere."""
        depth = torch.where(self.known > 0, self.shown[:, :1], self.volume.depth)
        solid = torch.maximum(self.known, torch.minimum(self.alpha, self.volume.alpha))
        colour = self.share * self.shown[:, 1:] + (1 - self.share) * self.colour
        trust = self.share + (1 - self.share) * self.weight
        alpha = torch.maximum(self.alpha, self.known)
        return SideView(self.camera, depth, alpha, colour, trust, self.carried, self.seen, solid)


def look(
    volume: VolumeOutput, view: Camera, tell: Callable[[VolumeOutput, Camera], Told], sheet: Sheet, side: int
) -> Look:
    """What `tell` and the photo's `sheet` have of a view; slivers thinner than three pixels are dropped."""
    colour, alpha, weight = tell(volume, view)
    carried, far, seen = carry(sheet, view, side)
    seen = seen * (far < resize(volume.depth, side) + BEHIND)
    seen = seen * F.max_pool2d(erode(seen, 1), 5, stride=1, padding=2)
    shown, share = resize_weighted(torch.cat([far, carried], 1), seen, alpha.shape[-1])
    return Look(view, volume, colour, alpha, weight, carried, seen, shown, share)


@dataclass(frozen=True)
class ClearRays:
    """Rays of side views that miss the head: wherever they go, space is empty (a visual hull, Laurentini 1994)."""

    origins: Float[Tensor, "k 3"]
    directions: Float[Tensor, "k 3"]
    start: Float[Tensor, " k"]
    """Where each enters the generator's box, world units."""
    end: Float[Tensor, " k"]

    @staticmethod
    @torch.no_grad()
    def of(views: Sequence[SideView], box_warp: float) -> ClearRays | None:
        """Those of all pixels without a trace of the head in or beside them; None where there are no such pixels."""
        found = []
        for view in views:
            origins, directions = pixel_rays(view.camera, view.alpha.shape[-1])
            start, end = box_limits(origins, directions, box_warp)
            clear = F.max_pool2d(view.alpha, 5, stride=1, padding=2).flatten() < CLEAR
            clear &= (end > start).flatten()
            found.append([part[0][clear] for part in (origins, directions, start, end)])
        rays = ClearRays(*(torch.cat(parts) for parts in zip(*found, strict=True)))
        return rays if len(rays.start) else None

    def points(self, count: int, rng: torch.Generator) -> Float[Tensor, "1 m 3"]:
        """So many places on them, at random."""
        chosen = torch.randint(len(self.start), (count,), generator=rng).to(self.start.device)
        share = torch.rand(count, generator=rng).to(self.start)
        far = self.start[chosen] + share * (self.end - self.start)[chosen]
        return (self.origins[chosen] + far[:, None] * self.directions[chosen])[None]

    def empty_error(
        self, generator: Generator, planes: Float[Tensor, "1 j c p p"], rng: torch.Generator
    ) -> Float[Tensor, ""]:
        """How dense space is at `POINTS` places on them."""
        return empty_loss(generator.query(planes, self.points(POINTS, rng))[0])


Told = tuple[Float[Tensor, "1 3 r r"], Float[Tensor, "1 1 r r"], Float[Tensor, "1 1 r r"]]
"""A view without the photo: colours, opacity, and how much the colours count."""


def guessed(volume: VolumeOutput, view: Camera, tones: Tones, target: Target, surface: Surface, camera: Camera) -> Told:
    """What the side network makes of it, its colours brought nearer to the photo's tones on the untuned head."""
    colour, alpha = (resize(x, volume.alpha.shape[-1]) for x in guess_view(target, surface, camera, view))
    solid, points = (volume.alpha > 0.5).to(alpha.dtype), surface_points(volume.depth, view)
    toned_colour = transfer_tones(volume.features[:, :3], points, tones) * alpha + 1 - alpha
    colour = colour.lerp(toned_colour, TONED_SHARE * solid * alpha)
    return colour, alpha, torch.full_like(alpha, GUESSED_WEIGHT)


def toned(volume: VolumeOutput, view: Camera, tones: Tones, white: bool) -> Told:
    """The untuned head in the photo's tones, without what floats beside it."""
    raw, alpha, points = volume.features[:, :3], volume.alpha, surface_points(volume.depth, view)
    solid = alpha > 0.5
    colour = torch.where(solid, transfer_tones(raw, points, tones), raw)
    if not white:
        return colour, alpha, TONED_WEIGHT * solid.to(alpha.dtype)
    head = main_piece(alpha, points)
    return colour * head + (1 - head), alpha * head, torch.full_like(alpha, TONED_WEIGHT)


def guard_cameras(count: int, camera: Camera, whole: bool, rng: torch.Generator) -> tuple[Camera, ...]:
    """Cameras with the lens of `camera`, alternating left and right of the front; of a `whole` head every other pair of
    them goes round the rest of it, evenly spread, and sees all of it."""
    focal, bands = camera.intrinsics[:1, 0, 0].cpu(), math.ceil(count / 4)
    out = []
    for index in range(count):
        u, v = (torch.rand(2, generator=rng) * 2 - 1).tolist()
        side = 1 if index % 2 else -1
        if whole and index % 4 >= 2:
            yaw = YAW + (math.pi - YAW) * (index // 4 + 0.5 + 0.5 * u) / bands
            out.append(whole_head_camera(side * yaw, PITCH * v))
        else:
            out.append(orbit(side * YAW * (0.25 + 0.75 * abs(u)), PITCH * v, focal=focal))
    return tuple(view.to(camera.cam2world.device) for view in out)


def flanking_cameras(camera: Camera, yaws: Sequence[float]) -> tuple[Camera, ...]:
    """Cameras at these yaws (degrees) to either side: the first pair with the lens of `camera`, the others see all of
    the head."""
    focal = camera.intrinsics[:1, 0, 0].cpu()
    near, *far = ((math.radians(-yaw), math.radians(yaw)) for yaw in yaws)
    views = [orbit(yaw, 0.0, focal=focal) for yaw in near]
    views += [whole_head_camera(yaw, 0.0) for pair in far for yaw in pair]
    return tuple(view.to(camera.cam2world.device) for view in views)


def back_cameras(device: torch.device) -> tuple[Camera, ...]:
    """Cameras round the back of the head."""
    angles = ((math.radians(yaw), math.radians(pitch)) for yaw, pitch in BACK_VIEWS)
    return tuple(whole_head_camera(yaw, pitch).to(device) for yaw, pitch in angles)


def whole_head_camera(yaw: float, pitch: float) -> Camera:
    """A camera that sees all of the head; angles in radians."""
    return orbit(yaw, pitch, pivot=WHOLE_HEAD_PIVOT, focal=WHOLE_HEAD_FOCAL)


def main_piece(alpha: Float[Tensor, "1 1 r r"], points: Float[Tensor, "1 m 3"]) -> Float[Tensor, "1 1 r r"]:
    """1 on what hangs together with the head, 0 on pieces that float beside it: a small prior's usual blemish.

    Grows from solid pixels within `HEAD_RADIUS` of the world's origin through everything that is not nearly clear.
    """
    near = (torch.linalg.vector_norm(points, dim=-1) < HEAD_RADIUS).reshape(alpha.shape)
    visible = (alpha > 0.1).to(alpha.dtype)
    piece = (near & (alpha > 0.5)).to(alpha.dtype)
    if not bool(piece.any()):
        return torch.ones_like(alpha)
    for _ in range(4 * alpha.shape[-1]):
        grown = F.max_pool2d(piece, 3, stride=1, padding=1) * visible
        if torch.equal(grown, piece):
            break
        piece = grown
    return F.max_pool2d(piece, 3, stride=1, padding=1)


def guard_losses(
    generator: Generator,
    planes: Float[Tensor, "1 j c p p"],
    ws: Float[Tensor, "1 l w"],
    view: SideView,
    colour: bool,
    hue: float = 0.0,
) -> dict[str, Float[Tensor, ""]]:
    """How far a side view has gone from what it must keep: depth where it was solid, opacity everywhere, colours.

    Errors of hue count `hue` times more than those of brightness (`colour_error`).
    """
    side = view.colour.shape[-1]
    solid = view.alpha if view.solid is None else view.solid
    output: VolumeOutput | RenderOutput
    losses = {}
    if colour:
        output = generator.render(planes, ws, view.camera, side, cut=CUT)
        colours = colour_error(output.raw, view.colour, view.trust, hue)
        if view.carried is not None:
            colours = colours + squared_error(output.image, view.carried, view.seen)
        losses["side_colour"] = colours + colour_error(resize(output.image, side), view.colour, view.trust, hue)
    else:
        output = generator.volume(planes, view.camera, side, cut=CUT)
    return losses | {
        "side_depth": depth_error(output.depth, view.depth, solid),
        "side_alpha": squared_error(output.alpha, view.alpha),
    }
