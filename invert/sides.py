"""What keeps a head a head while its input view is tuned: other views, fixed before tuning begins.

Where the photo reaches, a side view shows the photo itself: its pixels are laid out in space by the depth that is known
of them (`surface.py`; else the pivot's) and seen from there, colours and depth (SPI's neighbour views, Yin et al. 2023;
HFGI3D's pseudo views, Xie et al. 2023). Elsewhere depth and opacity stay as the pivot has them, and colours are those
of the photo at points that it does see and that are alike in place and in the pivot's colour: hair goes on round the
head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from headlift.eg3d.active import CUT
from headlift.eg3d.camera import orbit
from headlift.eg3d.generator import Generator, VolumeOutput
from headlift.invert.losses import depth_error, resize, resize_weighted, squared_error
from headlift.invert.result import Target
from headlift.invert.surface import CONTOUR, Surface
from headlift.invert.warp import forward_splat, steps, surface_points
from headlift.values import Camera, RenderOutput

YAW = 0.7
"""Half the range of the side views' yaw, radians (SPI)."""
PITCH = 0.4
"""Half the range of their pitch, radians (SPI)."""
BACK_VIEWS = ((180, 0), (130, 12), (-130, -12), (155, -12), (-155, 12), (105, 0), (-105, 0), (180, 24))
"""Yaw and pitch of the views that go round the back, degrees."""
COLOUR_SCALE = 0.25
"""Colours this far apart, in units of [-1, 1], are unlike."""
PLACE_SCALE = 0.2
"""Points this far apart are unlike, world units; the head is taken as its own mirror image."""
HEAD_RADIUS = 0.25
"""Surface this near to the world's origin is the head's own, world units."""
UNSEEN_WEIGHT = 0.3
"""How much transferred tones count beside carried pixels."""
FACING = 0.1
"""Cosine of the steepest angle at which its surface is still seen."""
BEHIND, BEHIND_ITSELF = 0.05, 0.03
"""So far behind the pivot's surface, or its own nearest, it is hidden; world units."""

GUARD = {"side_depth": 100.0, "side_alpha": 1.0}
"""Weights of the guard's terms: a depth error of 0.1 units costs as much as a picture error of 1."""


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


@torch.no_grad()
def side_views(
    generator: Generator,
    ws: Float[Tensor, "1 l w"],
    camera: Camera,
    target: Target,
    cameras: Sequence[Camera],
    surface: Surface | None = None,
) -> tuple[SideView, ...]:
    """What `cameras` are to see: the untuned head, and the photo that was taken from `camera` where it reaches.

    Without a `surface` the photo lies on the untuned head's.
    """
    planes = generator.planes(ws)
    front = generator.volume(planes, camera)
    tones = tone_samples(front.features[:, :3], front.depth, front.alpha, camera, target)
    if surface is None:
        sure = erode(resize(target.mask, front.depth.shape[-1]), 1) * (front.alpha > 0.9)
        sure = sure * (1 - steps(torch.where(sure > 0, front.depth, front.depth.amax()), CONTOUR))
        sheet = lay_out(target, camera, front.depth, sure)
    else:
        # All of the head: where geometry cannot be held to the guess, colours laid out by it still beat other places'.
        inside = (resize(target.mask, surface.depth.shape[-1]) > 0.5).to(surface.depth.dtype)
        sheet = lay_out(target, camera, surface.depth, inside)
    side = target.image.shape[-1]
    out = []
    for view in cameras:
        volume = generator.volume(planes, view)
        raw, alpha = volume.features[:, :3], volume.alpha
        points, solid = surface_points(volume.depth, view), alpha > 0.5
        colour = torch.where(solid, transfer_tones(raw, points, tones), raw)
        if target.white:
            head = main_piece(alpha, points)
            colour, alpha = colour * head + (1 - head), alpha * head
        carried, far, trust = carry(sheet, view, side)
        trust = trust * (far < resize(volume.depth, side) + BEHIND)
        shown, coarse = resize_weighted(torch.cat([far, carried], 1), trust, raw.shape[-1])
        known = coarse > 0.5
        depth = torch.where(known, shown[:, :1], volume.depth)
        alpha = torch.maximum(alpha, known.to(alpha.dtype))
        weight = coarse + (1 - coarse) * UNSEEN_WEIGHT * (1.0 if target.white else solid.to(coarse.dtype))
        colour = coarse * shown[:, 1:] + (1 - coarse) * colour
        out.append(SideView(view, depth, alpha, colour, weight, carried, trust))
    return tuple(out)


def guard_cameras(count: int, camera: Camera, whole: bool, rng: torch.Generator) -> tuple[Camera, ...]:
    """Cameras with the lens of `camera`, alternating left and right of the front; of a `whole` head every other pair of
    them goes round the rest of it, evenly spread."""
    focal, bands = camera.intrinsics[:1, 0, 0].cpu(), math.ceil(count / 4)
    out = []
    for index in range(count):
        u, v = (torch.rand(2, generator=rng) * 2 - 1).tolist()
        if whole and index % 4 >= 2:
            yaw = YAW + (math.pi - YAW) * (index // 4 + 0.5 + 0.5 * u) / bands
        else:
            yaw = YAW * (0.25 + 0.75 * abs(u))
        out.append(orbit(yaw if index % 2 else -yaw, PITCH * v, focal=focal).to(camera.cam2world.device))
    return tuple(out)


def back_cameras(camera: Camera) -> tuple[Camera, ...]:
    """Cameras with the lens of `camera` round the back of the head."""
    focal = camera.intrinsics[:1, 0, 0].cpu()
    return tuple(
        orbit(math.radians(yaw), math.radians(pitch), focal=focal).to(camera.cam2world.device)
        for yaw, pitch in BACK_VIEWS
    )


@dataclass(frozen=True)
class Sheet:
    """The photo's pixels in space."""

    points: Float[Tensor, "1 m 3"]
    normals: Float[Tensor, "1 m 3"]
    """Towards the photo's camera."""
    colour: Float[Tensor, "1 3 s s"]
    weight: Float[Tensor, "1 1 s s"]
    """1 where the place is known, else 0."""


def lay_out(target: Target, camera: Camera, depth: Float[Tensor, "1 1 r r"], sure: Float[Tensor, "1 1 r r"]) -> Sheet:
    """Put the photo's pixels, at twice their number along each side, where `depth` has them, if it is `sure`."""
    side = 2 * target.image.shape[-1]
    fine, share = resize_weighted(depth, sure, side)
    points = surface_points(fine, camera)
    grid = points.reshape(side, side, 3)
    across = torch.gradient(grid, dim=1)[0]
    down = torch.gradient(grid, dim=0)[0]
    normals = F.normalize(torch.linalg.cross(down, across), dim=-1).reshape(1, -1, 3)
    towards = F.normalize(camera.origin[:, None] - points, dim=-1)
    normals = normals * (normals * towards).sum(-1, keepdim=True).sign()
    weight = ((share > 0.6) & (resize(target.mask, side) > 0.9)).to(depth.dtype)
    return Sheet(points, normals, resize(target.image, side), weight)


def carry(
    sheet: Sheet, camera: Camera, side: int
) -> tuple[Float[Tensor, "1 3 r r"], Float[Tensor, "1 1 r r"], Float[Tensor, "1 1 r r"]]:
    """What a camera sees of the sheet's front: colours, distance along the ray, and where they hold (1 or 0)."""
    towards = camera.origin[:, None] - sheet.points
    distance = torch.linalg.vector_norm(towards, dim=-1)
    facing = (sheet.normals * towards).sum(-1) / distance
    weight = sheet.weight * (facing > FACING).reshape(sheet.weight.shape)
    source = torch.cat([sheet.colour, distance.reshape(sheet.weight.shape)], 1)
    found, full = forward_splat(source, sheet.points, weight, camera, side, BEHIND_ITSELF)
    return found[:, :3], found[:, 3:], erode((full > 0.5).to(full.dtype), 1)


@dataclass(frozen=True)
class Tones:
    """Seen points: the pivot's colour and place there, and the photo's colour."""

    keys: Float[Tensor, "k 6"]
    colour: Float[Tensor, "k 3"]


def tone_samples(
    raw: Float[Tensor, "1 3 r r"],
    depth: Float[Tensor, "1 1 r r"],
    alpha: Float[Tensor, "1 1 r r"],
    camera: Camera,
    target: Target,
) -> Tones:
    """The photo's colours at the points that it and the pivot's surface share."""
    side = raw.shape[-1]
    photo = resize(target.image, side)
    solid = ((alpha > 0.9) & (erode(resize(target.mask, side), 1) > 0.95)).flatten()
    keys = tone_keys(raw.flatten(2)[0].T, surface_points(depth, camera)[0])
    return Tones(keys[solid], photo.flatten(2)[0].T[solid])


def tone_keys(colours: Float[Tensor, "k 3"], points: Float[Tensor, "k 3"]) -> Float[Tensor, "k 6"]:
    """What makes two points alike: colour, and place up to the mirror."""
    mirrored = torch.cat([points[:, :1].abs(), points[:, 1:]], 1)
    return torch.cat([colours / COLOUR_SCALE, mirrored / PLACE_SCALE], 1)


def transfer_tones(
    raw: Float[Tensor, "1 3 r r"], points: Float[Tensor, "1 m 3"], tones: Tones
) -> Float[Tensor, "1 3 r r"]:
    """The photo's mean colour over the seen points, weighted by their likeness to each point (a Gaussian kernel)."""
    if not len(tones.keys):
        return raw
    keys = tone_keys(raw.flatten(2)[0].T, points[0])
    likeness = torch.softmax(-0.5 * torch.cdist(keys, tones.keys).square(), dim=1)
    return (likeness @ tones.colour).T.reshape(raw.shape)


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


def erode(mask: Float[Tensor, "n 1 h w"], pixels: int) -> Float[Tensor, "n 1 h w"]:
    """The smallest value within so many pixels."""
    return -F.max_pool2d(-mask, 2 * pixels + 1, stride=1, padding=pixels)


def guard_losses(
    generator: Generator,
    planes: Float[Tensor, "1 j c p p"],
    ws: Float[Tensor, "1 l w"],
    view: SideView,
    colour: bool,
    side: int | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """How far a side view has gone from what it must keep: depth where it was solid, opacity everywhere, colours.

    With a `side` the volume is rendered with so many pixels along each side, not with as many as the view has.
    """
    side = side or view.colour.shape[-1]
    alpha = resize(view.alpha, side)
    output: VolumeOutput | RenderOutput
    losses = {}
    if colour:
        output = generator.render(planes, ws, view.camera, side, cut=CUT)
        wanted, trust = resize(view.colour, side), resize(view.trust, side)
        colours = squared_error(output.raw, wanted, trust)
        if view.carried is not None:
            colours = colours + squared_error(output.image, view.carried, view.seen)
        losses["side_colour"] = colours + squared_error(resize(output.image, side), wanted, trust)
    else:
        output = generator.volume(planes, view.camera, side, cut=CUT)
    return losses | {
        "side_depth": depth_error(output.depth, resize(view.depth, side), alpha),
        "side_alpha": squared_error(output.alpha, alpha),
    }
