"""The edited head back in the photo that it came from, through the similarity that cut the crop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from headlift.editing.edit import Subject
from headlift.editing.regions import Region, soften
from headlift.eg3d.generator import VolumeOutput
from headlift.export.images import to_uint8
from headlift.pose_estimation.crop import cut, inside_photo, paste_back, to_tensor
from headlift.pose_estimation.warp import warp
from headlift.values import Camera, Similarity

LARGEST = 1024
"""Side of the crop in which the edit is laid over, pixels at most."""
UNCHANGED, CHANGED = 0.04, 0.12
"""Changes of colour, in [-1, 1], from which on a pixel begins to be replaced, and is replaced altogether."""
FAINT = 0.25
"""What is less opaque than this, haze beside a small prior's heads, is never laid over."""
FEATHER = 0.015
"""Width of the soft edge, in crops."""
TONE = 0.03
"""Coarser than this, in crops, the photo's own tones stay."""
BORDER = 0.03
"""The border of what is laid over is never touched; its width in crops."""
WIDER = 0.72
"""Heads on white are laid over with a lens so much shorter than the crop's, which cuts hair off at its upper edge."""


@dataclass(frozen=True)
class Pasted:
    """A photo with an edited head in it."""

    photo: UInt8[np.ndarray, "h w 3"]
    crop: UInt8[np.ndarray, "s s 3"]
    """What was laid over where the edit changes much."""
    mask: Float[np.ndarray, "s s"]
    """How much of the edit there is: 0 leaves the photo bit for bit as it was."""


@torch.no_grad()
def into_photo(
    photo: UInt8[np.ndarray, "h w 3"],
    similarity: Similarity,
    before: Subject,
    after: Subject,
    region: Region | None = None,
) -> Pasted:
    """Lay over the photo what the edit has changed as the photo's camera sees it; with a region, inside it alone.

    Where the edit changes little, its difference is added to the photo's own pixels, which keeps all their detail;
    where it changes much, the render replaces the photo, in the photo's own tones (what the photo has over the
    unedited render at coarse scales is added). Priors on white know the head's outline: beyond it the photo's
    background shows, and where the edited head has become narrower, the background round it is drawn in. Pixels outside
    the mask stay.
    """
    camera = before.camera
    if before.generator.spec.render.white_background:
        camera, similarity = wider(camera, WIDER), shrunk(similarity, WIDER)
    side = int(min(LARGEST, max(64, round(1 / similarity.scale))))
    whole = to_tensor(cut(photo, similarity, side)).to(before.ws)
    (was, was_alpha), (now, now_alpha) = (_shown(head, camera, side) for head in (before, after))
    solid = ((torch.maximum(was_alpha, now_alpha) - FAINT) / FAINT).clamp(0, 1)
    difference = (now - was).abs().amax(1, keepdim=True) * solid
    if region is not None:
        seen = [_volume(head, camera) for head in (before, after)]
        inside = torch.maximum(region(camera, seen[0]), region(camera, seen[1]))
        difference = difference * F.interpolate(inside, size=(side, side), mode="bilinear", align_corners=False)
    near = soften(difference, FEATHER / 2)
    share = ((near - UNCHANGED) / (CHANGED - UNCHANGED)).clamp(0, 1)
    mask = soften(F.max_pool2d(share, 2 * _pixels(FEATHER, side) + 1, 1, _pixels(FEATHER, side)), FEATHER)
    mask = (
        _cut_off(mask)
        * _inner(side, before.ws)
        * torch.from_numpy(inside_photo((photo.shape[0], photo.shape[1]), similarity, side)).to(before.ws)
    )

    ground = whole
    if before.generator.spec.render.white_background:
        ground = _filled(whole, (was_alpha > 0.02).to(whole))
        was, now = (image - (1 - alpha) * (1 - ground) for image, alpha in ((was, was_alpha), (now, now_alpha)))
    over_head = was_alpha.clamp_min(1e-3)
    tone = soften_channels((whole - was) * over_head, TONE) / soften(over_head, TONE)
    replaced = now + tone * now_alpha
    gone = soften((was_alpha - now_alpha).clamp(0, 1), 0.004).clamp(0, 1)
    crop = to_uint8(replaced.lerp(ground, gone))
    cover, over = (part[0, 0].double().cpu().numpy() for part in (mask, mask * torch.maximum(share, gone)))
    changed = added(photo, (mask * (now - was))[0].permute(1, 2, 0).float().cpu().numpy(), similarity)
    return Pasted(paste_back(changed, crop, similarity, over), crop, cover)


def added(
    photo: UInt8[np.ndarray, "h w 3"], difference: Float[np.ndarray, "s s 3"], similarity: Similarity
) -> UInt8[np.ndarray, "h w 3"]:
    """The photo with a difference of the crop's colours, in [-1, 1], added to its pixels."""
    side = len(difference)
    back = similarity.inverse().matrix
    matrix = np.concatenate([back[:, :2] / side, back[:, 2:]], axis=1)
    moved = warp(difference * 127.5, matrix, (photo.shape[1], photo.shape[0]), border="constant")
    return np.clip(np.rint(photo + moved), 0, 255).astype(np.uint8)


def soften_channels(image: Float[Tensor, "1 c s s"], sigma: float) -> Float[Tensor, "1 c s s"]:
    """`soften` for each channel."""
    return torch.cat([soften(image[:, i : i + 1], sigma) for i in range(image.shape[1])], dim=1)


def wider(camera: Camera, factor: float) -> Camera:
    """The same camera with a lens `factor` times as long: the picture shrinks about its middle (0.5, 0.5)."""
    k = camera.intrinsics.clone()
    k[..., :2, :2] *= factor
    k[..., :2, 2] = 0.5 + factor * (k[..., :2, 2] - 0.5)
    return Camera(camera.cam2world, k)


def shrunk(similarity: Similarity, factor: float) -> Similarity:
    """The similarity of the picture that `wider` gives: crop fractions shrink about the middle of the crop."""
    matrix = factor * similarity.matrix
    matrix[:, 2] += 0.5 * (1 - factor)
    return Similarity(matrix)


def _shown(head: Subject, camera: Camera, side: int) -> tuple[Tensor, Tensor]:
    """A head at a camera, `side` pixels, and its opacity (1 everywhere for priors with a background)."""
    out = head.generator.render(head.generator.planes(head.ws), head.ws, camera)
    size = (side, side)
    image = F.interpolate(out.image.clamp(-1, 1), size=size, mode="bicubic", align_corners=False).clamp(-1, 1)
    if not head.generator.spec.render.white_background:
        return image, torch.ones_like(image[:, :1])
    return image, F.interpolate(out.alpha, size=size, mode="bilinear", align_corners=False).clamp(0, 1)


def _volume(head: Subject, camera: Camera) -> VolumeOutput:
    return head.generator.volume(head.generator.planes(head.ws), camera)


def _filled(image: Float[Tensor, "1 3 s s"], hole: Float[Tensor, "1 1 s s"]) -> Float[Tensor, "1 3 s s"]:
    """The picture with a hole drawn in from its rim: at each scale the mean of what is known nearby, fine first."""
    known = 1 - hole
    result, done = image * known, known
    for sigma in (0.01, 0.03, 0.1, 0.3):
        weight = soften(known, sigma)
        guess = soften_channels(image * known, sigma) / weight.clamp_min(1e-6)
        sure = (weight / 0.05).clamp(0, 1) * (1 - done)
        result, done = result + sure * guess, done + sure
    return result + (1 - done) * image


def _cut_off(mask: Tensor) -> Tensor:
    """Small shares count as none."""
    return ((mask - 0.02) / 0.98).clamp(0, 1)


def _inner(side: int, like: Tensor) -> Float[Tensor, "1 1 s s"]:
    """0 on the crop's border, 1 further in."""
    at = torch.arange(side, device=like.device, dtype=like.dtype) + 0.5
    edge = torch.minimum(at, side - at) / side
    ramp = ((edge - BORDER) / BORDER).clamp(0, 1)
    return torch.minimum(ramp[:, None], ramp[None])[None, None]


def _pixels(width: float, side: int) -> int:
    return max(1, round(width * side))
