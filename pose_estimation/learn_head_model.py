"""Make `data/head_model.npz`: the 3D landmark model and the regression that starts its fit.

    python -m headlift.pose_estimation.collect_landmarks heads-00.zip --out marks-00.npz     (for each archive)
    python -m headlift.pose_estimation.learn_head_model marks-0*.npz --held-out 2800 --out head_model.npz

Heads from `--held-out` on are used by nothing here. Steps: (1) pictures of the wider lens are brought into the FFHQ
camera at the same position, exactly, since both see the same rays; (2) the points of each head are triangulated from
its views, towards what the model of the round before expects where rays say little, and a principal component analysis
of the heads makes the next model; (3) a ridge regression on the normalised points, then small networks on what it
leaves; their errors are measured on a tenth of the heads, left out for that.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from headlift.eg3d.camera import FFHQ_FOCAL, FFHQ_RADIUS
from headlift.pose_estimation.head_model import POINTS, load_head_model, orbit_axes, project
from headlift.pose_estimation.landmarks import mirror_order
from headlift.pose_estimation.regression import (
    CHIP,
    MIRRORED,
    SCALES,
    coordinates,
    members,
    mirror_rows,
    network,
    network_features,
    networks,
)

COMPONENTS = 40
"""Of the shape."""
FEATURES = 80
"""Principal components that the regression sees."""
ROUNDS = 4
"""Of triangulation and analysis."""
RIDGE = 3e-3
BATCH = 64


@dataclass(frozen=True)
class Marks:
    """Found points of n pictures in FFHQ cameras, crop fractions, with the cameras' true angles (radians)."""

    head: Int[np.ndarray, " n"]
    yaw: Float[np.ndarray, " n"]
    pitch: Float[np.ndarray, " n"]
    points: Float[np.ndarray, "n 468 2"]
    keys: Float[np.ndarray, "n 8 2"]
    chips: UInt8[np.ndarray, "n c c 2"]

    def __getitem__(self, chosen: np.ndarray) -> Marks:
        return Marks(*(getattr(self, name)[chosen] for name in ("head", "yaw", "pitch", "points", "keys", "chips")))


def read(files: list[Path]) -> Marks:
    """All rows of `collect_landmarks`' files, brought into FFHQ cameras."""
    columns: dict[str, list[np.ndarray]] = {}
    for path in files:
        with np.load(path, allow_pickle=False) as arrays:
            for name in ("head", "label", "points", "keys", "chips"):
                columns.setdefault(name, []).append(arrays[name])
    head, label, points, keys, chips = (np.concatenate(columns[name]) for name in columns)
    cam2world = label[:, :16].reshape(-1, 4, 4).astype(np.float64)
    origin, focal = cam2world[:, :3, 3], label[:, 16, None, None].astype(np.float64)
    radius = np.linalg.norm(origin, axis=1)
    if np.abs(radius - FFHQ_RADIUS).max() > 0.01:
        raise ValueError("cameras are expected on the sphere of radius 2.7")
    yaw, pitch = np.arctan2(origin[:, 0], origin[:, 2]), np.arcsin(origin[:, 1] / radius)
    target = np.stack([orbit_axes(y, p)[0] for y, p in zip(yaw, pitch, strict=True)])

    def convert(found: np.ndarray) -> Float[np.ndarray, "n m 2"]:
        rays = np.concatenate([(found[..., :2] - 0.5) / focal, np.ones((*found.shape[:2], 1))], axis=2)
        local = rays @ cam2world[:, :3, :3].transpose(0, 2, 1) @ target
        return FFHQ_FOCAL * local[..., :2] / local[..., 2:] + 0.5

    return Marks(head, yaw, pitch, convert(points[:, :POINTS]), convert(keys), chips)


def triangulate(marks: Marks, expected: Float[np.ndarray, "468 3"], stiffness: float) -> Float[np.ndarray, "468 3"]:
    """Points of one head, world units: nearest to the rays of all views, and a little to what is expected.

    The far side of a turned face is guessed by the mesh rather than seen, so its rays count less.
    """
    total, moment = stiffness * np.eye(3) + np.zeros((POINTS, 3, 3)), stiffness * expected
    for yaw, pitch, points in zip(marks.yaw, marks.pitch, marks.points, strict=True):
        rotation, origin = orbit_axes(yaw, pitch)
        rays = np.concatenate([(points - 0.5) / FFHQ_FOCAL, np.ones((POINTS, 1))], axis=1) @ rotation.T
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        hidden = (expected[:, 0] * np.sin(yaw) < -0.01) & (abs(yaw) > 0.6)
        across = np.where(hidden, 0.1, 1.0)[:, None, None] * (np.eye(3) - rays[:, :, None] * rays[:, None])
        total = total + across
        moment = moment + across @ origin
    return np.linalg.solve(total, moment[..., None])[..., 0]


def learn_shape(
    marks: Marks,
) -> tuple[Float[np.ndarray, "468 3"], Float[np.ndarray, "k 468 3"], Float[np.ndarray, " 468"]]:
    """Mean, components (each times its standard deviation) and noise (crop fractions) of the landmark model."""
    heads = [marks[marks.head == h] for h in np.unique(marks.head)]
    near = marks[np.abs(marks.yaw) < 0.5]
    mean = triangulate(near[np.arange(0, len(near.head), max(1, len(near.head) // 500))], np.zeros((POINTS, 3)), 1e-6)
    expected = np.repeat(mean[None], len(heads), axis=0)
    for _ in range(ROUNDS):
        shapes = np.stack([triangulate(m, e, 0.1) for m, e in zip(heads, expected, strict=True)])
        mean = shapes.mean(axis=0)
        rows = (shapes - mean).reshape(len(heads), -1)
        _, sizes, directions = np.linalg.svd(rows, full_matrices=False)
        kept = directions[:COMPONENTS]
        expected = mean + ((rows @ kept.T) @ kept).reshape(-1, POINTS, 3)
    basis = (sizes[:COMPONENTS, None] / np.sqrt(len(heads)) * kept).reshape(-1, POINTS, 3)
    errors = [
        points - project(yaw, pitch, shape)[0]
        for m, shape in zip(heads, expected, strict=True)
        for yaw, pitch, points in zip(m.yaw, m.pitch, m.points, strict=True)
    ]
    return mean, basis, np.sqrt(np.mean(np.square(errors), axis=(0, 2)))


def rows_and_answers(
    marks: Marks, template: Float[np.ndarray, "468 2"]
) -> tuple[Float[np.ndarray, "n 952"], Float[np.ndarray, "n 6"]]:
    """Normalised coordinates, and what `head_model.UNKNOWNS` are in truth."""
    rows, answers = [], []
    for yaw, pitch, points, keys in zip(marks.yaw, marks.pitch, marks.points, marks.keys, strict=True):
        row, factor, center = coordinates(points, keys, template)
        back = 1 / factor
        rows.append(row)
        answers.append((yaw, pitch, np.angle(back), np.log(abs(back)), center[0] - 0.5, center[1] - 0.5))
    found = np.array(rows)
    return np.where(np.isnan(found), np.nanmean(found, axis=0), found), np.array(answers)


def whiten(rows: Float[np.ndarray, "n d"], count: int) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d f"]]:
    """Mean, and the map to `count` principal components of unit variance."""
    mean = rows.mean(axis=0)
    values, vectors = np.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    return mean, vectors[:, ::-1][:, :count] / np.sqrt(values[::-1][:count])


def learn_ridge(features: Float[np.ndarray, "n f"], answers: Float[np.ndarray, "n 6"]) -> Float[np.ndarray, "f+1 6"]:
    """Linear regression, shrunk; offsets in the last row."""
    design = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    return np.linalg.solve(design.T @ design + RIDGE * len(design) * np.eye(design.shape[1]), design.T @ answers)


def learn_network(
    features: Float[Tensor, "2 n f"],
    chips: UInt8[np.ndarray, "n c c 2"],
    rest: Float[Tensor, "2 n 6"],
    epochs: int,
    seed: int,
) -> dict[str, Tensor]:
    """Train `regression.network` on what the ridge leaves; the pairs are the picture and its mirror image."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "conv0": (16, 1, 5, 5),
        "conv1": (32, 16, 3, 3),
        "conv2": (64, 32, 3, 3),
        "conv3": (64, 64, 3, 3),
        "seen": (64, 64 * (CHIP // 16) ** 2),
        "told": (192, features.shape[2]),
        "both": (96, 256),
        "last": (6, 96),
    }
    layers = {}
    for name, shape in shapes.items():
        bound = math.prod(shape[1:]) ** -0.5 * (0.1 if name == "last" else 1.0)
        layers[name] = (torch.rand(shape, generator=generator) * 2 - 1) * bound
        layers[f"{name}_bias"] = (torch.rand(shape[:1], generator=generator) * 2 - 1) * bound
    for layer in layers.values():
        layer.requires_grad_()
    faces = torch.from_numpy(chips).permute(0, 3, 1, 2)
    steps = epochs * len(faces) // BATCH
    optimiser = torch.optim.AdamW(list(layers.values()), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for step in range(steps):
        chosen, side = torch.randint(len(faces), (BATCH,), generator=generator), step % 2
        shown = faces[chosen].float() / 255
        shown = disturb(shown.flip(3) if side else shown, generator)
        told = features[side, chosen]
        said = network(layers, told + 0.05 * torch.randn(told.shape, generator=generator), shown)
        loss = torch.nn.functional.smooth_l1_loss(said, rest[side, chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return {name: layer.detach() for name, layer in layers.items()}


def disturb(chips: Float[Tensor, "n 2 c c"], generator: torch.Generator) -> Float[Tensor, "n 1 h h"]:
    """Faces as photos might show them: moved a little, on any background, lit, blurred, noisy, partly covered."""
    count, size = len(chips), CHIP // 2

    def between(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *(shape or (1, 1, 1)), generator=generator) * (high - low) + low

    turn, scale = between(-0.08, 0.08, 1)[:, 0], between(0.92, 1.08, 1)[:, 0]
    move = torch.stack([scale * turn.cos(), -scale * turn.sin(), scale * turn.sin(), scale * turn.cos()], 1)
    theta = torch.cat([move.reshape(-1, 2, 2), between(-0.03, 0.03, 2, 1)], dim=2)
    grid = torch.nn.functional.affine_grid(theta, [count, 2, size, size], align_corners=False)
    grey, opacity = torch.nn.functional.grid_sample(chips, grid, align_corners=False).split(1, dim=1)
    mottle = torch.nn.functional.interpolate(
        torch.randn(count, 1, 5, 5, generator=generator), (size, size), mode="bicubic"
    )
    image = grey + (1 - opacity) * (between(0, 1) + between(0, 0.35) * mottle).clamp(0, 1)
    image = image.clamp(1e-3, 1) ** between(0.6, 1.6) * between(0.6, 1.2)
    image = image + between(-0.5, 1).clamp(min=0) * (torch.nn.functional.avg_pool2d(image, 3, 1, 1) - image)
    image = image + between(0, 0.06) * torch.randn(image.shape, generator=generator)
    ticks = torch.arange(size)
    covered = (ticks - between(0, size)).abs() < between(0, 0.2 * size)
    covered = covered & ((ticks[:, None] - between(0, size)).abs() < between(0, 0.2 * size)) & (between(0, 1) < 0.4)
    return torch.where(covered, between(0, 1).expand_as(image), image)


def answer(
    model: dict[str, np.ndarray], rows: Float[np.ndarray, "n d"], chips: UInt8[np.ndarray, "n c c 2"]
) -> np.ndarray:
    """What `regression.guess` would say of many faces, on grey."""
    several = members({name.removeprefix("net_"): model[name] for name in model if name.startswith("net_")})
    total = np.zeros((len(rows), 6))
    for given, flipped in ((rows, False), (mirror_rows(rows), True)):
        features = (given - model["features_mean"]) @ model["features"]
        said = np.concatenate([features, np.ones((len(features), 1))], axis=1) @ model["ridge"]
        told = network_features(features, model["features_scale"])
        for part in np.array_split(np.arange(len(rows)), max(1, len(rows) // 256)):
            both = torch.from_numpy(chips[part]).float() / 255
            faces = torch.nn.functional.avg_pool2d(
                both[..., :1].permute(0, 3, 1, 2) + (1 - both[..., 1])[:, None] * 0.6, 2
            )
            with torch.no_grad():
                rest = networks(several, told[part], faces.flip(3) if flipped else faces)
            said[part] += rest.double().numpy() * SCALES
        total += said * (MIRRORED if flipped else 1) / 2
    return total


def learn_regression(
    rows: Float[np.ndarray, "n d"],
    answers: Float[np.ndarray, "n 6"],
    chips: UInt8[np.ndarray, "n c c 2"],
    epochs: int,
    count: int,
) -> dict[str, np.ndarray]:
    """Ridge and `count` networks, as arrays of the model file."""
    mean, whitening = whiten(rows, FEATURES)
    scale = np.linalg.norm(whitening, axis=0) ** -0.3
    scale /= np.sqrt(np.mean(scale**2))
    pairs = [
        ((given - mean) @ whitening, said) for given, said in ((rows, answers), (mirror_rows(rows), answers * MIRRORED))
    ]
    ridge = learn_ridge(*pairs[0])
    told = torch.stack([network_features(features, scale) for features, _ in pairs])
    left = [(said - np.concatenate([f, np.ones((len(f), 1))], axis=1) @ ridge) / SCALES for f, said in pairs]
    rest = torch.from_numpy(np.stack(left)).float()
    several = [learn_network(told, chips, rest, epochs, seed) for seed in range(count)]
    return {
        "features_mean": mean,
        "features": whitening,
        "features_scale": scale,
        "ridge": ridge,
        **{f"net_{name}": torch.stack([layers[name] for layers in several]).double().numpy() for name in several[0]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("marks", nargs="+", type=Path)
    parser.add_argument("--held-out", type=int, required=True, help="first head that is not learned from")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--networks", type=int, default=3, help="whose answers are averaged")
    parser.add_argument("--check", type=float, default=0.1, help="share of the heads that measure the errors instead")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    marks = read(options.marks)
    marks = marks[marks.head < options.held_out]
    check = marks.head * 7919 % 1000 < 1000 * options.check
    template = load_head_model().template
    rows, answers = rows_and_answers(marks, template)
    regression = learn_regression(rows[~check], answers[~check], marks.chips[~check], options.epochs, options.networks)
    inside = check & (np.abs(marks.yaw) < np.radians(60))
    errors = answer(regression, rows[inside], marks.chips[inside]) - answers[inside]
    mean, basis, noise = learn_shape(marks)
    single = {"mean": mean, "noise": noise, "template": template, "guess_covariance": errors.T @ errors / inside.sum()}
    half = {"basis": basis, **regression}
    exact = ("features_mean", "features_scale", "ridge")
    np.savez_compressed(
        options.out,
        mirror=mirror_order().astype(np.int16),
        **{name: values.astype(np.float32) for name, values in single.items()},
        **{name: values.astype(np.float32 if name in exact else np.float16) for name, values in half.items()},
    )
    off = np.degrees(np.abs(errors)).mean(axis=0)
    sys.stdout.write(
        f"{(~check).sum()} pictures learned from; mean error on {inside.sum()} others: "
        f"yaw {off[0]:.2f}, pitch {off[1]:.2f}, turn {off[2]:.2f} degrees\n"
    )


if __name__ == "__main__":
    main()
