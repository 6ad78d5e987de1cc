"""Cutting EG3D's crop out of a photo, and putting a picture made from it back.

A `Similarity` takes photo pixels to the unit square of the crop; what the crop shows beyond the photo's edge is the
photo reflected, more and more blurred with the distance (as FFHQ's own alignment does it).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from headlift.pose_estimation.warp import blur, distance_outside, warp
from headlift.values import Similarity

_FADE = 0.08
"""Distance from the photo's edge, in crops, at which the padding is fully blurred."""
_PADDING_BLUR = 0.03
"""Its blur, standard deviation in crops."""


def cut(photo: UInt8[np.ndarray, "h w 3"], similarity: Similarity, size: int) -> UInt8[np.ndarray, "s s 3"]:
    """The crop of `size` pixels that `similarity` describes, padded by reflection and blurred where the photo ends."""
    crop = warp(photo, similarity.matrix * size, (size, size), border="reflect")
    inside = inside_photo((photo.shape[0], photo.shape[1]), similarity, size)
    if inside.all():
        return crop
    share = np.clip(distance_outside(inside) / (_FADE * size), 0, 1)[..., None]
    soft = blur(crop.astype(np.float32), _PADDING_BLUR * size)
    return np.clip(np.rint(crop + share * (soft - crop)), 0, 255).astype(np.uint8)


def inside_photo(shape: tuple[int, int], similarity: Similarity, size: int) -> np.ndarray:
    """Which pixels of the crop lie on the photo of `shape` (h, w): bool [size, size]."""
    ticks = (np.arange(size) + 0.5) / size
    across, down = np.meshgrid(ticks, ticks)
    x, y = similarity.inverse().apply(np.stack([across.ravel(), down.ravel()], axis=1)).T
    edge = 1e-6 * max(shape)
    inside = (x >= -edge) & (x <= shape[1] + edge) & (y >= -edge) & (y <= shape[0] + edge)
    return inside.reshape(size, size)


def paste_back(
    photo: UInt8[np.ndarray, "h w 3"],
    picture: UInt8[np.ndarray, "s s 3"],
    similarity: Similarity,
    mask: Float[np.ndarray, "s s"] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """The photo with `picture`, which shows the crop of `similarity`, laid over its place.

    `mask` in [0, 1] says where; without it the whole crop is laid over, its border feathered over 2 % of the side.
    """
    side = picture.shape[0]
    if mask is None:
        steps = np.minimum(np.arange(side) + 0.5, side - np.arange(side) - 0.5) / (0.02 * side)
        mask = np.clip(np.minimum(steps[:, None], steps[None]), 0, 1)
    back = similarity.inverse().matrix
    matrix = np.concatenate([back[:, :2] / side, back[:, 2:]], axis=1)
    size = (photo.shape[1], photo.shape[0])
    laid = warp(picture, matrix, size, border="edge").astype(np.float64)
    share = warp(mask.astype(np.float32), matrix, size, border="constant")[..., None]
    return np.clip(np.rint(photo + share * (laid - photo)), 0, 255).astype(np.uint8)


def to_tensor(image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "1 3 h w"]:
    """uint8 RGB to a batch of one in [-1, 1]."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def to_uint8(image: Float[Tensor, "1 3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """The inverse of `to_tensor`."""
    return ((image[0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
