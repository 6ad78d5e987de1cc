"""A first guess at the camera, learned from synthetic heads: from the points and a small look at the picture.

The points are normalised to a frontal template (Procrustes), so that place, size and tilt of the face drop out. A ridge
regression on their principal components is corrected by small networks that also see the face, 40 x 40 grey pixels in
the same normalised frame: ears, jaw and hairline say of pitch what the mesh's points leave open. The networks differ in
what they started from; all are asked of face and mirrored face, and averaged. `learn_head_model.py` trains them and
measures their errors on heads they were not trained on.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from headlift.pose_estimation.head_model import POINTS, Guess, HeadModel, load_head_model, normalise
from headlift.pose_estimation.landmarks import mirror_order
from headlift.pose_estimation.warp import warp

KAPPA = 300.0
"""How many of the mesh's points are worth one independent measurement beside the guess: chosen on training heads so
that the fit's covariance is as large as its errors."""
CHIP = 80
"""Side in pixels of the picture of the face before it is halved for the network."""
CHIP_EXTENT = 1.1
"""Its side in units of the template, about crops."""
MIRRORED = np.array([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0])
"""Signs of `head_model.UNKNOWNS` in a mirrored picture."""
SCALES = np.array([0.05, 0.05, 0.04, 0.04, 0.01, 0.01])
"""Units of the network's answers, about the errors of the ridge regression."""
_GREY = np.array([0.299, 0.587, 0.114])


def coordinates(
    points: Float[np.ndarray, "p d"], keys: Float[np.ndarray, "8 2"] | None, template: Float[np.ndarray, "468 2"]
) -> tuple[Float[np.ndarray, " 952"], complex, Float[np.ndarray, " 2"]]:
    """The 468 points and 8 key points, normalised, in one row; with the factor and the centre of the normalisation.

    Missing key points (None) are NaN.
    """
    moved, factor, center = normalise(points[:POINTS, :2], template)
    if keys is None:
        turned = np.full((8, 2), np.nan)
    else:
        z = ((keys - center) @ (1, 1j)) * factor
        turned = np.stack([z.real, z.imag], axis=1)
    return np.concatenate([moved.ravel(), turned.ravel()]), factor, center


def mirror_rows(rows: Float[np.ndarray, "n 952"]) -> Float[np.ndarray, "n 952"]:
    """What `coordinates` gives for the mirrored pictures."""
    mesh = rows[:, : 2 * POINTS].reshape(-1, POINTS, 2)[:, mirror_order()[:POINTS]] * (-1, 1)
    keys = rows[:, 2 * POINTS :].reshape(-1, 8, 2)[:, [1, 0, 2, 3, 5, 4, 6, 7]] * (-1, 1)
    keys[:, [6, 7], 0] = keys[:, [7, 6], 0]  # of a box, left and right change places
    return np.concatenate([mesh.reshape(len(rows), -1), keys.reshape(len(rows), -1)], axis=1)


def chip_matrix(points: Float[np.ndarray, "p d"], template: Float[np.ndarray, "468 2"]) -> Float[np.ndarray, "2 3"]:
    """The similarity from photo pixels to those of the face's chip."""
    _, factor, center = normalise(points[:POINTS, :2], template)
    g = factor * CHIP / CHIP_EXTENT
    linear = np.array([[g.real, -g.imag], [g.imag, g.real]])
    return np.concatenate([linear, (CHIP / 2 - linear @ center)[:, None]], axis=1)


def chip(
    photo: UInt8[np.ndarray, "h w 3"], points: Float[np.ndarray, "p d"], model: HeadModel
) -> Float[Tensor, "1 1 c c"]:
    """The face as the network sees it: grey, in [0, 1], in the normalised frame."""
    cut = warp(photo, chip_matrix(points, model.template), (CHIP, CHIP), border="edge")
    grey = torch.from_numpy(cut.astype(np.float64) @ _GREY / 255).float()
    return functional.avg_pool2d(grey[None, None], 2)


def guess(
    photo: UInt8[np.ndarray, "h w 3"],
    points: Float[np.ndarray, "478 3"],
    keys: Float[np.ndarray, "8 2"] | None,
    model: HeadModel,
) -> Guess:
    """What the regression says of the camera and the similarity, with the spread of its errors on new heads."""
    row, _, _ = coordinates(points, keys, model.template)
    row = np.where(np.isnan(row), model.features_mean, row)
    face = chip(photo, points, model)
    here = _ask(row, face, model)
    there = _ask(mirror_rows(row[None])[0], face.flip(3), model) * MIRRORED
    return Guess((here + there) / 2, model.guess_covariance)


def _ask(row: Float[np.ndarray, " 952"], face: Float[Tensor, "1 1 c c"], model: HeadModel) -> Float[np.ndarray, " 6"]:
    features = (row - model.features_mean) @ model.features
    with torch.no_grad():
        rest = networks(_members(), network_features(features[None], model.features_scale), face)
    return np.append(features, 1.0) @ model.ridge + rest[0].double().numpy() * SCALES


@functools.cache
def _members() -> list[dict[str, Tensor]]:
    return members(load_head_model().network)


def members(stacked: Mapping[str, np.ndarray]) -> list[dict[str, Tensor]]:
    """The layers of each network, from arrays that hold those of all along their first axis."""
    count = len(next(iter(stacked.values())))
    return [{name: torch.from_numpy(v[i]).float() for name, v in stacked.items()} for i in range(count)]


def networks(
    several: Sequence[Mapping[str, Tensor]], features: Float[Tensor, "n f"], faces: Float[Tensor, "n 1 c c"]
) -> Float[Tensor, "n 6"]:
    """The mean of what several networks say."""
    return torch.stack([network(layers, features, faces) for layers in several]).mean(0)


def network_features(features: Float[np.ndarray, "n f"], scale: Float[np.ndarray, " f"]) -> Float[Tensor, "n f"]:
    """Whitened features as the network takes them: the strong ones larger, outliers clipped."""
    return torch.from_numpy(np.clip(features * scale, -6, 6)).float()


def network(
    layers: Mapping[str, Tensor], features: Float[Tensor, "n f"], faces: Float[Tensor, "n 1 c c"]
) -> Float[Tensor, "n 6"]:
    """What is left of the ridge regression's answer to correct, in units of `SCALES`."""
    x = (faces - faces.mean((2, 3), keepdim=True)) / (faces.std((2, 3), keepdim=True) + 0.05)
    for index, stride in enumerate((2, 2, 2, 1)):
        kernel = layers[f"conv{index}"]
        x = functional.gelu(
            functional.conv2d(x, kernel, layers[f"conv{index}_bias"], stride=stride, padding=kernel.shape[-1] // 2)
        )
    seen = functional.gelu(functional.linear(x.flatten(1), layers["seen"], layers["seen_bias"]))
    told = functional.gelu(functional.linear(features, layers["told"], layers["told_bias"]))
    both = functional.gelu(functional.linear(torch.cat([seen, told], 1), layers["both"], layers["both_bias"]))
    return functional.linear(both, layers["last"], layers["last_bias"])
