"""Make `data/head_model.npz`: the 3D landmark model and the regression that starts its fit.

    python -m headlift.pose_estimation.collect_landmarks heads-00.zip --out marks-00.npz     (for each archive)
    python -m headlift.pose_estimation.learn_head_model marks-0*.npz --held-out 2800 --out head_model.npz

Heads from `--held-out` on are used by nothing here. Steps: (1) pictures of the wider lens are brought into the FFHQ
camera at the same position, exactly, since both see the same rays; (2) the points of each head are triangulated from
its views, towards what the model of the round before expects where rays say little, and a principal component analysis
of the heads makes the next model; (3) a ridge regression on the normalised points, then a small network on what it
leaves; their errors are measured by cross-validation over heads.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from headlift.eg3d.camera import FFHQ_FOCAL, FFHQ_RADIUS
from headlift.pose_estimation.head_model import POINTS, orbit_axes, project
from headlift.pose_estimation.regression import coordinates

COMPONENTS = 40
"""Of the shape."""
FEATURES = 80
"""Principal components that the regression sees."""
ROUNDS = 4
"""Of triangulation and analysis."""
RIDGE = 3e-3
HIDDEN = 48
FOLDS = 5


@dataclass(frozen=True)
class Marks:
    """Found points of n pictures in FFHQ cameras, crop fractions, with the cameras' true angles (radians)."""

    head: Int[np.ndarray, "n"]
    yaw: Float[np.ndarray, "n"]
    pitch: Float[np.ndarray, "n"]
    points: Float[np.ndarray, "n 468 2"]
    keys: Float[np.ndarray, "n 8 2"]

    def __getitem__(self, chosen: np.ndarray) -> Marks:
        return Marks(*(getattr(self, name)[chosen] for name in ("head", "yaw", "pitch", "points", "keys")))


def read(files: list[Path]) -> Marks:
    """All rows of `collect_landmarks`' files, brought into FFHQ cameras."""
    columns: dict[str, list[np.ndarray]] = {}
    for path in files:
        with np.load(path, allow_pickle=False) as arrays:
            for name in ("head", "label", "points", "keys"):
                columns.setdefault(name, []).append(arrays[name])
    head, label, points, keys = (np.concatenate(columns[name]) for name in ("head", "label", "points", "keys"))
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

    return Marks(head, yaw, pitch, convert(points[:, :POINTS]), convert(keys))


def triangulate(
    marks: Marks, expected: Float[np.ndarray, "468 3"], stiffness: float
) -> Float[np.ndarray, "468 3"]:
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


def learn_shape(marks: Marks) -> tuple[Float[np.ndarray, "468 3"], Float[np.ndarray, "k 468 3"], Float[np.ndarray, "468"]]:
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


def whiten(rows: Float[np.ndarray, "n d"], count: int) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d f"]]:
    """Mean, and the map to `count` principal components of unit variance."""
    mean = rows.mean(axis=0)
    values, vectors = np.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    return mean, vectors[:, ::-1][:, :count] / np.sqrt(values[::-1][:count])


def learn_regression(
    features: Float[np.ndarray, "n f"], answers: Float[np.ndarray, "n 6"], epochs: int
) -> list[Float[np.ndarray, "_ _"]]:
    """Ridge weights, then those of a small network (tanh) on what the ridge leaves; offsets are the last rows."""
    import torch

    design = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    ridge = np.linalg.solve(
        design.T @ design + RIDGE * len(design) * np.eye(design.shape[1]), design.T @ answers
    )
    if not epochs:
        return [ridge]
    x = torch.from_numpy(np.clip(features, -6, 6)).float()
    rest = torch.from_numpy(answers - design @ ridge).float()
    spread = rest.std(dim=0)
    generator = torch.Generator().manual_seed(0)
    sizes = ((x.shape[1] + 1, HIDDEN), (HIDDEN + 1, 6))
    layers = [(torch.randn(s, generator=generator) * s[0] ** -0.5 * g).requires_grad_() for s, g in zip(sizes, (1, 0.1), strict=True)]
    optimiser = torch.optim.AdamW(layers, lr=3e-3, weight_decay=0.3)
    steps = epochs * len(x) // 128
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(x), (128,), generator=generator)
        given = x[chosen] + 0.15 * torch.randn(128, x.shape[1], generator=generator)
        hidden = torch.tanh(given @ layers[0][:-1] + layers[0][-1])
        loss = (((hidden @ layers[1][:-1] + layers[1][-1]) - rest[chosen] / spread) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    first, last = (layer.detach().double().numpy() for layer in layers)
    return [ridge, first, last * spread.double().numpy()]


def answer(weights: list[np.ndarray], features: Float[np.ndarray, "n f"]) -> Float[np.ndarray, "n 6"]:
    """What `regression.guess` would say, for many faces."""
    linear, *layers = weights
    result = features @ linear[:-1] + linear[-1]
    if layers:
        hidden = np.tanh(np.clip(features, -6, 6) @ layers[0][:-1] + layers[0][-1])
        result = result + hidden @ layers[1][:-1] + layers[1][-1]
    return result


def cross_validate(
    rows: Float[np.ndarray, "n d"], answers: Float[np.ndarray, "n 6"], head: Int[np.ndarray, "n"], epochs: int
) -> Float[np.ndarray, "n 6"]:
    """What each picture's unknowns are answered to be by a regression that did not see its head."""
    fold = head * 7919 % FOLDS
    said = np.empty_like(answers)
    for index in range(FOLDS):
        train: Bool[np.ndarray, "n"] = fold != index
        mean, whitening = whiten(rows[train], FEATURES)
        features = (rows - mean) @ whitening
        said[~train] = answer(learn_regression(features[train], answers[train], epochs), features[~train])
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("marks", nargs="+", type=Path)
    parser.add_argument("--held-out", type=int, required=True, help="first head that is not learned from")
    parser.add_argument("--mirror", type=Path, required=True, help=".npz with the mesh's `mirror` order")
    parser.add_argument("--epochs", type=int, default=40, help="of the small network; 0 leaves it out")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with np.load(options.mirror, allow_pickle=False) as arrays:
        mirror = arrays["mirror"].astype(np.int16)
    marks = read(options.marks)
    marks = marks[marks.head < options.held_out]
    mean, basis, noise = learn_shape(marks)
    frontal = marks.points[np.abs(marks.yaw) < 0.15].mean(axis=0)
    template = frontal - frontal.mean(axis=0)
    rows, answers = rows_and_answers(marks, template)
    errors = cross_validate(rows, answers, marks.head, options.epochs) - answers
    inside = np.abs(marks.yaw) < np.radians(60)
    features_mean, whitening = whiten(rows, FEATURES)
    weights = learn_regression((rows - features_mean) @ whitening, answers, options.epochs)
    single = {
        "mean": mean,
        "basis": basis,
        "noise": noise,
        "template": template,
        "features": whitening,
        "features_mean": features_mean,
        "guess_covariance": errors[inside].T @ errors[inside] / inside.sum(),
        **{f"weights{i}": w for i, w in enumerate(weights)},
    }
    np.savez_compressed(options.out, mirror=mirror, **{k: v.astype(np.float32) for k, v in single.items()})


if __name__ == "__main__":
    main()
