"""Finding directions in a generator's latent space, without labels (SeFa, PCA) or with scores (SVM, regression).

All of it is closed form or convex, so the same samples give the same directions. Points are codes in W or styles in S,
[n, d]; scores are numbers, one column an attribute, NaN where one is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from headlift.editing.directions import Direction, Directions, Space, row_mask
from headlift.editing.styles import affine, style_layers, styles
from headlift.eg3d.camera import orbit
from headlift.eg3d.generator import Generator
from headlift.errors import ConfigError
from headlift.export.images import to_uint8

LEAST_SCORED = 20
"""Fewer scored heads than this say nothing about an attribute."""
TRAINED = 0.7
"""Share of the samples that a boundary is fitted to; the rest tells how well it holds (InterFaceGAN)."""

Scorer = Callable[[UInt8[np.ndarray, "h w 3"]], "Mapping[str, float] | float | None"]
"""From a render of a head to its attributes by name (or one number); None where it sees none."""


@dataclass(frozen=True)
class Fitted:
    """Directions as they were found."""

    vectors: Float[Tensor, "k d"]
    """What an amount of 1 adds: one standard deviation, of the attribute or along the direction."""
    readers: Float[Tensor, "d k"]
    """From points (about their mean) to the attributes, in standard deviations."""
    quality: tuple[float, ...]
    """Correlation of read and true attribute on held-out samples; NaN without attributes."""
    std: tuple[float, ...]
    """Of each attribute over the samples, or of the points along the direction."""
    about: tuple[str, ...]
    """What is known of each direction besides."""


# Samples


@torch.no_grad()
def sample_codes(generator: Generator, z: Float[Tensor, "n z"]) -> Float[Tensor, "n w"]:
    """Codes of random heads, seen from the front, without truncation."""
    return generator.mapping(z.to(generator.w_avg.device), None)[:, 0]


def random_z(generator: Generator, count: int, seed: int) -> Float[Tensor, "n z"]:
    """What random heads are mapped from: the same for a seed."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator.spec.mapping.z_dim, generator=rng)


@torch.no_grad()
def points_in(generator: Generator, codes: Float[Tensor, "n w"], space: Space) -> Float[Tensor, "n d"]:
    """Codes as points of W, or as the styles that they give."""
    return styles(generator, rows(generator, codes)) if space == "s" else codes


def rows(generator: Generator, codes: Float[Tensor, "n w"]) -> Float[Tensor, "n l w"]:
    """The same code for every layer."""
    return codes[:, None].expand(-1, generator.num_ws, -1)


@torch.no_grad()
def scores_of_renders(
    generator: Generator,
    codes: Float[Tensor, "n w"],
    scorer: Scorer,
    on_head: Callable[[int], None] = lambda done: None,
) -> dict[str, list[float]]:
    """What a scorer says of the front view of each head; NaN where it says nothing."""
    front = orbit(0.0, 0.0).to(codes.device)
    found: list[dict[str, float]] = []
    for index, ws in enumerate(rows(generator, codes).split(1)):
        said = scorer(to_uint8(generator.render(generator.planes(ws), ws, front).image))
        found.append({} if said is None else dict(said) if isinstance(said, Mapping) else {"score": float(said)})
        on_head(index + 1)
    names = list(dict.fromkeys(name for row in found for name in row))
    return {name: [float(row.get(name, math.nan)) for row in found] for name in names}


# Without labels


def sefa(
    generator: Generator, count: int, layers: Sequence[int] | None = None, unit_rows: bool = True
) -> tuple[Float[Tensor, "k w"], Float[Tensor, " k"]]:
    """SeFa (Shen and Zhou 2021, eq. 7): the unit eigenvectors of A^T A with the largest eigenvalues, and those.

    A stacks the affine layers that read the chosen rows of the code. Each vector's largest entry is positive.

    Args:
        unit_rows: rows of A are brought to length 1 first, as the authors' released code does; the paper's formula does
            not have it.

    Raises:
        ConfigError: a layer that does not exist, or more directions than w has numbers.
    """
    mask = row_mask(generator.num_ws, layers)
    chosen = [layer for layer in style_layers(generator) if mask[layer.row]]
    weight = torch.cat([affine(generator, layer).effective()[0].detach().double().cpu() for layer in chosen])
    if not 1 <= count <= weight.shape[1]:
        raise ConfigError(f"{count} directions were asked for; w has {weight.shape[1]} numbers, so take 1 to that many")
    if unit_rows:
        weight = F.normalize(weight, dim=1)
    values, vectors = torch.linalg.eigh(weight.T @ weight)
    best = values.argsort(descending=True)[:count]
    return _signed(vectors[:, best].T).float(), values[best].float()


def pca(points: Float[Tensor, "n d"], count: int) -> tuple[Float[Tensor, "k d"], Float[Tensor, " k"]]:
    """GANSpace (Haerkoenen et al. 2020, section 2.1): unit principal components of the points, and their standard
    deviations. Raises ConfigError for more components than the points span."""
    centred = (points - points.mean(0)).double().cpu()
    if not 1 <= count <= min(len(points) - 1, points.shape[1]):
        most = min(len(points) - 1, points.shape[1])
        raise ConfigError(f"{count} components were asked for; these {len(points)} samples have {most}")
    _, spread, axes = torch.linalg.svd(centred, full_matrices=False)
    return _signed(axes[:count]).float(), (spread[:count] / math.sqrt(len(points) - 1)).float()


def along(vectors: Float[Tensor, "k d"], points: Float[Tensor, "n d"]) -> Fitted:
    """Unit vectors as directions: an amount of 1 is a standard deviation of the points along them, their own reader."""
    unit = F.normalize(vectors, dim=1).to(points)
    spread = ((points - points.mean(0)) @ unit.T).std(0).clamp_min(1e-12)
    share = spread.square() / (points - points.mean(0)).square().sum(1).mean().clamp_min(1e-12)
    about = tuple(f"{100 * float(part):.1f} % of the variance" for part in share)
    k = len(vectors)
    return Fitted(unit * spread[:, None], (unit / spread[:, None]).T, (math.nan,) * k, tuple(spread.tolist()), about)


def _signed(vectors: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0).to(vectors)


# With scores


def boundaries(
    points: Float[Tensor, "n d"], scores: Float[np.ndarray, "n k"], share: float = 0.3, seed: int = 0
) -> Fitted:
    """InterFaceGAN (Shen et al. 2020, section 3): for each attribute the unit normal of a linear SVM between the heads
    with the highest and those with the lowest scores.

    Args:
        share: of the scored heads, taken from either end (2 % of half a million in the paper; few samples need more).

    Raises:
        ConfigError: too few scored heads, or scores that do not differ.
    """
    x = points.detach().double().cpu().numpy()
    normals, quality, about = [], [], []
    for column in scores.T:
        train, test = _split(column, seed)
        count = max(2, round(share * len(train)))
        order = train[np.argsort(column[train], kind="stable")]
        chosen = np.concatenate([order[:count], order[-count:]])
        if not column[order[-count]] > column[order[count - 1]]:
            raise ConfigError("the scores hardly differ: no boundary can be drawn between high and low ones")
        normal, offset = linear_svm(x[chosen], np.repeat([-1.0, 1.0], count))
        normals.append(normal / np.linalg.norm(normal))
        quality.append(_correlation(x[test] @ normals[-1], column[test]))
        middle = np.median(column[train])
        right = ((x[test] @ normal + offset > 0) == (column[test] > middle)).mean()
        about.append(f"held-out accuracy {100 * right:.0f} %")
    found = along(torch.from_numpy(np.stack(normals)).to(points), points)
    return Fitted(found.vectors, found.readers, tuple(quality), tuple(_spread(scores)), tuple(about))


def regression(
    points: Float[Tensor, "n d"], scores: Float[np.ndarray, "n k"], strength: float = 0.1, seed: int = 0
) -> Fitted:
    """Directions by ridge regression, for all attributes at once.

    An attribute's direction is how the point changes with it while the other attributes stay: the least-squares map
    from standardised scores to points. The readers are the ridge regression the other way.

    Args:
        strength: of the ridge, in mean variances of the points.

    Raises:
        ConfigError: too few heads that have all scores, or scores that do not differ.
    """
    x = points.detach().double().cpu().numpy()
    whole = np.isfinite(scores).all(1)
    train, test = _split(np.where(whole, scores[:, 0], np.nan), seed)
    spread = np.array(_spread(scores[whole]))
    if not spread.all():
        raise ConfigError("a column of scores does not differ from head to head: nothing can be learned from it")
    y = (scores - scores[train].mean(0)) / spread
    centred = x - x[train].mean(0)
    vectors = np.linalg.lstsq(y[train], centred[train], rcond=None)[0]
    gram = centred[train].T @ centred[train]
    gram += strength * np.trace(gram) / len(gram) * np.eye(len(gram))
    readers = np.linalg.solve(gram, centred[train].T @ y[train])
    read = centred[test] @ readers
    quality = tuple(_correlation(read[:, k], y[test, k]) for k in range(y.shape[1]))
    return Fitted(
        torch.from_numpy(vectors).to(points),
        torch.from_numpy(readers).to(points),
        quality,
        tuple(spread.tolist()),
        ("",) * y.shape[1],
    )


def linear_svm(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, " n"], cost: float = 1.0
) -> tuple[Float[np.ndarray, " d"], float]:
    """Normal and offset of the linear support vector machine with squared hinge loss (Fan et al. 2008, L2-loss SVC).

    Minimises |n|^2 / 2 + cost times the sum of max(0, 1 - y (n x + b))^2, on points brought to unit mean square.
    """
    from scipy.optimize import minimize

    middle = x.mean(0)
    scale = math.sqrt(np.square(x - middle).sum(1).mean()) or 1.0
    inner = (x - middle) / scale

    def objective(v: np.ndarray) -> tuple[float, np.ndarray]:
        gap = np.maximum(0, 1 - y * (inner @ v[:-1] + v[-1]))
        pull = -2 * cost * gap * y
        slope = np.append(v[:-1] + inner.T @ pull, pull.sum())
        return 0.5 * float(v[:-1] @ v[:-1]) + cost * float(gap @ gap), slope

    best = minimize(objective, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x
    normal = best[:-1] / scale
    return normal, float(best[-1] - normal @ middle)


def _split(column: Float[np.ndarray, " n"], seed: int) -> tuple[np.ndarray, np.ndarray]:
    known = np.flatnonzero(np.isfinite(column))
    if len(known) < LEAST_SCORED:
        raise ConfigError(
            f"only {len(known)} heads have a score, and at least {LEAST_SCORED} are needed: score more (--samples)"
        )
    if float(column[known].std()) == 0:
        raise ConfigError("all scores of an attribute are the same: there is nothing to learn from them")
    mixed = np.random.default_rng(seed).permutation(known)
    count = round(TRAINED * len(mixed))
    return mixed[:count], mixed[count:]


def _spread(scores: Float[np.ndarray, "n k"]) -> list[float]:
    return [float(value) for value in np.nanstd(scores, axis=0)]


def _correlation(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 1 and a.std() > 0 and b.std() > 0 else math.nan


# Keeping directions apart


def conditional(vectors: Float[Tensor, "k d"], against: Float[Tensor, "m d"]) -> Float[Tensor, "k d"]:
    """Vectors less their parts in the span of others: n1 - (n1 . n2) n2 for one (InterFaceGAN, eq. 6).

    Raises:
        ConfigError: a vector lies in that span, so that nothing is left of it.
    """
    basis = torch.linalg.svd(against.double(), full_matrices=False)
    kept = basis.Vh[1e-6 * basis.S[0] < basis.S]
    whole = vectors.double()
    left = whole - (whole @ kept.T) @ kept
    lost = torch.linalg.vector_norm(left, dim=1) < 1e-3 * torch.linalg.vector_norm(whole, dim=1)
    if bool(lost.any()):
        raise ConfigError("a direction lies in the span of those that it was to be freed of: nothing is left of it")
    return left.to(vectors)


def entanglement(vectors: Float[Tensor, "k d"], readers: Float[Tensor, "d k"]) -> Float[Tensor, "k k"]:
    """Row j: standard deviations that each attribute changes by, as read from the point, for an amount of 1 along j."""
    return vectors @ readers.to(vectors)


def directions_of(
    generator: Generator,
    fitted: Fitted,
    names: Sequence[str],
    base_sha256: str,
    space: Space,
    source: str,
    licence: str,
    layers: Sequence[int] | None = None,
) -> Directions:
    """What was found, as it is kept in a file; with `layers`, as directions in W+ that leave the other layers alone.

    Raises:
        ConfigError: a name twice, or layers with directions in S.
    """
    if len(set(names)) != len(names):
        raise ConfigError("two directions have the same name; give each its own")
    entries = tuple(
        Direction(name, about, "", std, quality)
        for name, about, std, quality in zip(names, fitted.about, fitted.std, fitted.quality, strict=True)
    )
    vectors = fitted.vectors
    if layers is not None:
        if space == "s":
            raise ConfigError("layers are chosen for directions in W; those in S are limited when they are used")
        vectors = vectors[:, None] * row_mask(generator.num_ws, layers).to(vectors)[None, :, None]
        space = "w+"
    table = entanglement(fitted.vectors, fitted.readers)
    return Directions(entries, vectors, table, base_sha256, space, source, licence)


def report(directions: Directions, others: int = 3) -> str:
    """A Markdown table: how sure each direction is, and what else it moves, as read from the code."""
    lines = ["| direction | forwards | correlation, held out | own | what else moves, for an amount of 1 |"]
    lines.append("|---|---|---|---|---|")
    for j, entry in enumerate(directions.entries):
        row = directions.entanglement[j]
        rest = [k for k in row.abs().argsort(descending=True).tolist() if k != j][:others]
        told = ", ".join(f"{directions.names[k]} {float(row[k]):+.2f}" for k in rest)
        known = "" if math.isnan(entry.correlation) else f"{entry.correlation:.2f}"
        lines.append(f"| {entry.name} | {entry.about} | {known} | {float(row[j]):+.2f} | {told} |")
    return "\n".join(lines)
