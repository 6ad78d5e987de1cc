"""Parts of a head: named by landmarks, painted as a picture, or told by colour (hair); seen from any side.

A region is a function from a view (its camera and what the volume shows there) to a soft mask, 1 inside. What one
camera sees is carried to the others along the surface, so a region is a piece of the surface and not of a picture.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from headlift.editing.edit import Subject
from headlift.editing.identity import Landmarks
from headlift.eg3d.camera import orbit, unproject
from headlift.eg3d.generator import Generator, VolumeOutput
from headlift.errors import ConfigError, FaceError
from headlift.export.images import to_uint8
from headlift.invert.losses import resize
from headlift.invert.regions import OUTLINE, inside_polygon
from headlift.invert.warp import backward_warp, pixel_centres, sample, surface_points
from headlift.values import Camera

Region = Callable[[Camera, VolumeOutput], Tensor]
"""From a view (one camera, what the volume shows) to a mask [1, 1, r, r] of the volume's resolution."""

LIPS = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
LEFT_EYE = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
RIGHT_EYE = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)
LEFT_BROW = (70, 63, 105, 66, 107, 55, 65, 52, 53, 46)
RIGHT_BROW = (300, 293, 334, 296, 336, 285, 295, 282, 283, 276)
NOSE = (168, 193, 245, 122, 188, 217, 126, 129, 64, 98, 2, 327, 294, 358, 355, 437, 412, 351, 465, 417)
PARTS = {
    "eyes": ((LEFT_EYE, 1.6), (RIGHT_EYE, 1.6)),
    "brows": ((LEFT_BROW, 1.3), (RIGHT_BROW, 1.3)),
    "nose": ((NOSE, 1.1),),
    "mouth": ((LIPS, 1.4),),
    "face": ((OUTLINE, 1.0),),
}  # fmt: skip
"""Rims of the parts in MediaPipe's mesh, and by how much each is widened about its middle."""
NAMES = (*PARTS, "hair")
SOFT = 0.012
"""Standard deviation of a mask's soft edge, in pictures."""
LOW_HAIR = 6.0
"""Below the chin hair must be likelier than skin and clothes by this much (logarithm), or it is a shaded neck."""
LEAST_APART = 1.5
"""Hair and skin whose colours differ by fewer standard deviations cannot be told apart."""


def check_name(name: str) -> None:
    """Raises ConfigError for a region that is not known."""
    if name not in NAMES:
        raise ConfigError(f"there is no region {name!r}; there are {', '.join(NAMES)}, or paint one (--region-mask)")


@torch.no_grad()
def named_region(name: str, subject: Subject, landmarks: Landmarks) -> Region:
    """A part of the face, or the hair, of a head as its own camera sees it.

    Raises:
        ConfigError: an unknown name, or hair that cannot be told from skin.
        FaceError: no face is found in the head's render.
    """
    check_name(name)
    generator, ws = subject.generator, subject.ws
    planes = generator.planes(ws)
    seen = generator.render(planes, ws, subject.camera)
    points = landmarks(to_uint8(seen.image))
    if points is None:
        raise FaceError("no face is found in the head's render, so its parts cannot be named: paint the region instead")
    points = points[:, :2] / seen.image.shape[-1]
    if name == "hair":
        return hair_region(generator, planes, subject.camera, points)
    side = seen.image.shape[-1]
    mask = torch.zeros(1, 1, side, side)
    for rim, widened in PARTS[name]:
        mask = torch.maximum(mask, polygon_mask(points[list(rim)], widened, side))
    return carried_region(soften(mask.to(ws)), generator.volume(planes, subject.camera), subject.camera)


@torch.no_grad()
def painted_region(mask: Float[Tensor, "1 1 h w"], subject: Subject) -> Region:
    """What is painted over the head's crop, 1 inside. Raises ConfigError for a picture that is black all over."""
    if float(mask.max()) < 0.5:
        raise ConfigError("the painted region is empty: paint what shall change in white on black, over crop.png")
    generator = subject.generator
    soft = soften(resize(mask, generator.spec.image_resolution).to(subject.ws))
    return carried_region(soft, generator.volume(generator.planes(subject.ws), subject.camera), subject.camera)


def carried_region(mask: Float[Tensor, "1 1 s s"], volume: VolumeOutput, camera: Camera) -> Region:
    """The part of the surface that a mask covers as its camera sees it."""

    def region(view: Camera, seen: VolumeOutput) -> Tensor:
        carried, visible = backward_warp(mask, volume.depth, camera, seen.depth, view)
        return (carried * visible * (seen.alpha > 0.5)).clamp(0, 1)

    return region


def polygon_mask(corners: Float[np.ndarray, "k 2"], widened: float, side: int) -> Float[Tensor, "1 1 s s"]:
    """1 inside a polygon (picture fractions) that is widened about its middle."""
    middle = corners.mean(0)
    rim = (middle + widened * (corners - middle)).astype(np.float64)
    held = inside_polygon(pixel_centres(side).double().numpy(), rim)
    return torch.from_numpy(held.reshape(1, 1, side, side).astype(np.float32))


def soften(mask: Float[Tensor, "1 1 s s"], sigma: float = SOFT) -> Float[Tensor, "1 1 s s"]:
    """A Gaussian blur, `sigma` in pictures; the border goes on beyond the edge."""
    width = max(sigma * mask.shape[-1], 0.3)
    reach = max(1, round(3 * width))
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1.0, device=mask.device) / width) ** 2).to(mask)
    taps = taps / taps.sum()
    padded = F.pad(mask, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, taps[None, None, None]), taps[None, None, :, None])


# Hair


@torch.no_grad()
def hair_region(
    generator: Generator, planes: Float[Tensor, "1 j c p p"], camera: Camera, points: Float[np.ndarray, "478 2"]
) -> Region:
    """Hair by its colour: a Gaussian each for hair, skin and clothes, fitted to places where they are sure to be.

    Skin is the lower face between the rim of the mesh and mouth and eyes; hair the surface above the forehead; clothes
    what lies well below the chin. A pixel of any view belongs to the likeliest of the three.

    Raises:
        ConfigError: hair and skin have nearly the same colour, or there is no surface above the forehead.
    """
    front = generator.volume(planes, camera)
    side = front.depth.shape[-1]
    colours, places = _surface(front, camera)
    solid = (front.alpha > 0.9).flatten()
    face = polygon_mask(points[list(OUTLINE)], 0.9, side).flatten().to(colours) > 0
    features = torch.zeros(1, 1, side, side)
    for name in ("eyes", "brows", "mouth"):
        for rim, widened in PARTS[name]:
            features = torch.maximum(features, polygon_mask(points[list(rim)], widened, side))
    at = torch.from_numpy(points[[10, 152, 9]]).to(colours)[None]
    depth = sample(front.depth, at)[0, 0]
    top, chin, brow = (_lift(camera, at[0, i], depth[i])[1] for i in range(3))
    height = places[:, 1]
    skin = solid & face & (features.flatten().to(colours) < 0.5) & (height < brow)
    hair = solid & (height > top + 0.15 * (top - chin))
    clothes = solid & (height < chin - 0.25 * (top - chin))
    if int(hair.sum()) < 8 or int(skin.sum()) < 8:
        raise ConfigError("there is no hair above the forehead of this head; paint the region instead (--region-mask)")
    of_hair, of_skin = _gaussian(colours[hair]), _gaussian(colours[skin])
    apart = float((_far(of_hair[0][None], *of_skin) + _far(of_skin[0][None], *of_hair)).sqrt() / 2**0.5)
    if apart < LEAST_APART:
        raise ConfigError(
            f"hair and skin of this head differ by {apart:.1f} standard deviations only, too little to tell them "
            "apart; paint the region instead (--region-mask)"
        )
    of_clothes = _gaussian(colours[clothes]) if int(clothes.sum()) >= 8 else None
    inner = carried_region(polygon_mask(points[list(OUTLINE)], 1.0, side).to(colours), front, camera)

    def region(view: Camera, seen: VolumeOutput) -> Tensor:
        tones, where = _surface(seen, view)
        odds = _log_likelihood(tones, *of_hair) - _log_likelihood(tones, *of_skin)
        up = where[:, 1]
        if of_clothes is not None:
            low = up < chin - 0.1 * (top - chin)
            against = _log_likelihood(tones, *of_hair) - _log_likelihood(tones, *of_clothes)
            odds = torch.where(low, torch.minimum(odds, against) - LOW_HAIR, odds)
        lower_face = (inner(view, seen).flatten() > 0.5) & (up < brow + 0.25 * (top - brow))
        odds = torch.where(lower_face, torch.full_like(odds, -20.0), odds)
        mask = torch.sigmoid(odds.clamp(-20, 20)).reshape(seen.alpha.shape) * (seen.alpha > 0.5)
        return soften(mask, 1 / side)

    return region


def _surface(volume: VolumeOutput, camera: Camera) -> tuple[Float[Tensor, "m 3"], Float[Tensor, "m 3"]]:
    """Colours and world points of a view's pixels."""
    return volume.features[0, :3].flatten(1).T, surface_points(volume.depth, camera)[0]


def _lift(camera: Camera, uv: Float[Tensor, " 2"], depth: Float[Tensor, ""]) -> Float[Tensor, " 3"]:
    return unproject(camera, uv[None, None], depth.reshape(1, 1))[0, 0]


def _gaussian(colours: Float[Tensor, "m 3"]) -> tuple[Float[Tensor, " 3"], Float[Tensor, "3 3"]]:
    """Mean and covariance, at least 0.05 wide every way."""
    middle = colours.mean(0)
    around = colours - middle
    return middle, around.T @ around / max(1, len(colours) - 1) + 0.05**2 * torch.eye(3).to(colours)


def _far(x: Float[Tensor, "m 3"], mean: Float[Tensor, " 3"], covariance: Float[Tensor, "3 3"]) -> Float[Tensor, " m"]:
    """Squared Mahalanobis distances."""
    around = x - mean
    return (around * torch.linalg.solve(covariance, around.T).T).sum(1)


def _log_likelihood(
    x: Float[Tensor, "m 3"], mean: Float[Tensor, " 3"], covariance: Float[Tensor, "3 3"]
) -> Float[Tensor, " m"]:
    return -0.5 * (_far(x, mean, covariance) + torch.logdet(covariance))


def all_round(generator: Generator, whole: bool, focal: Float[Tensor, ""]) -> Camera:
    """The views in which a region is changed and the rest is kept: the front half, or all round."""
    yaws = [0.0, -0.35, 0.35, -0.75, 0.75, 0.0] + ([-1.4, 1.4, 2.4, -2.4] if whole else [])
    pitches = [0.0, 0.1, 0.1, 0.0, 0.0, 0.3] + ([0.0] * 4 if whole else [])
    device = generator.w_avg.device
    return orbit(torch.tensor(yaws), torch.tensor(pitches), focal=focal.cpu()).to(device)
