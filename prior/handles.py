"""Semantic handles: `python -m headlift.prior.handles HEADS WEIGHTS OUT`.

The parameters of the training heads are known, and with them their codes (`headlift.prior.codes`): each head's
parameters, brought to a normal marginal by rank (its scores), become z and through the mapping w. For a few attributes
two linear maps are fitted over the training heads:

- w from the scores of all attributes at once. Its rows are the directions: what one attribute changes while the others
  stay. Ancestry is held still as well, and everything that is no attribute moves as it usually does with one: wrinkled
  skin with age, make-up with gender.
- the scores from w (ridge). It reads attributes off a code: how well is told by its correlation with the true values of
  heads that nothing learned from. It also gives the entanglement, what else changes along a direction; there the two
  maps come from different halves of the heads.

The directions are then turned so that, as read from the code, each changes its own attribute alone (`--plain`: not). An
amount of 1 is one standard deviation; for what most heads lack (a beard, closed eyes), +2 leads from none to much.
`--measure` looks at renders of random heads moved both ways, with MediaPipe's landmarks and the colours of the picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from headlift.editing.directions import Direction, Directions, move, save_directions
from headlift.editing.discover import report
from headlift.editing.effects import effects, table_of_effects
from headlift.eg3d.camera import orbit
from headlift.eg3d.generator import Generator
from headlift.errors import CheckpointError, DataError
from headlift.export.files import atomic_path
from headlift.export.images import grid, shrink, to_uint8
from headlift.pose_estimation import mediapipe_models
from headlift.prior.codes import Density, feature_table, fit_density
from headlift.prior.command import at_least, run_command
from headlift.prior.heads import HELD_OUT, read_index
from headlift.values import Camera
from headlift.weights import load_generator


@dataclass(frozen=True)
class Handle:
    """An attribute that can be moved."""

    name: str
    features: tuple[str, ...]
    """Features (`prior.codes`) whose scores are added up."""
    about: str
    """What moving forwards does."""
    unit: str = ""


HANDLES = (
    Handle("age", ("age",), "older", "years"),
    Handle("gender", ("gender",), "more male", "0 female to 1 male"),
    Handle("weight", ("weight",), "heavier"),
    Handle("smile", ("mouth-corner-puller",), "corners of the mouth up and out"),
    Handle("toothy_smile", ("mouth-upward-retraction",), "lips drawn back from the teeth"),
    Handle("open_mouth", ("mouth-open",), "jaw dropped"),
    Handle("eyes_closed", ("eye-left-closure",), "lids closed"),
    Handle("brows_up", ("eyebrows-left-up",), "brows raised"),
    Handle("frown", ("eyebrows-left-down",), "brows lowered"),
    Handle("gaze_x", ("gaze x",), "eyes to one side", "radians"),
    Handle("gaze_y", ("gaze y",), "eyes up or down", "radians"),
    Handle("hair_length", ("hair",), "longer hair", "steps from bald to long"),
    Handle("hair_light", ("hair light",), "lighter hair", "natural logarithm of the albedo"),
    Handle("hair_red", ("hair red",), "redder hair", "logarithm of red over green"),
    Handle("hair_curl", ("groom curl",), "curlier hair"),
    Handle("beard", ("beard",), "fuller beard"),
    Handle("stubble", ("stubble",), "darker stubble"),
    Handle("skin_dark", ("skin african",), "darker skin"),
    Handle("freckles", ("freckles",), "freckles"),
    Handle("makeup", ("makeup",), "make-up"),
    Handle("eyes_light", ("eye",), "lighter irises", "steps from brown to ice"),
    Handle("face_width", ("head/head-scale-horiz-decr|incr",), "wider head"),
    Handle("face_fat", ("head/head-fat-decr|incr",), "rounder cheeks and jaw"),
    Handle("jaw_width", ("chin/chin-width-decr|incr", "chin/chin-bones-decr|incr"), "wider jaw"),
    Handle("chin", ("chin/chin-prominent-decr|incr",), "chin further forward"),
    Handle("nose_size", ("nose/nose-scale-depth-decr|incr", "nose/nose-volume-decr|incr"), "larger nose"),
    Handle("nose_width", ("nose/nose-scale-horiz-decr|incr",), "wider nose"),
    Handle("mouth_width", ("mouth/mouth-scale-horiz-decr|incr",), "wider mouth"),
    Handle("lips", ("mouth/mouth-lowerlip-volume-decr|incr", "mouth/mouth-upperlip-volume-decr|incr"), "fuller lips"),
    Handle("eye_size", ("eyes/eye-scale-decr|incr",), "larger eyes"),
    Handle("ears", ("ears/ear-wing-decr|incr",), "ears further out"),
)
SKIN_TONE = Handle("skin_dark", ("skin tone",), "darker skin", "0 the lightest to 1 the darkest")
"""Instead of the handle of that name, for heads that have a tone of their own (recipe 2)."""
STILL = ("african", "asian")
"""Features that are held still as well, and get no handle."""
SPREADS = 4
"""Codes for each head: equal values are spread over their interval at random, as in training."""
RIDGE = 1e-3
"""Share of the largest possible variance that is added to each input's."""


@dataclass(frozen=True)
class Fit:
    """Directions with what they were judged by."""

    directions: Directions
    explained: float
    """Share of the variance of w that the attributes explain linearly."""


def handles_for(params: Mapping[int, Mapping[str, Any]]) -> tuple[Handle, ...]:
    """`HANDLES`, with the tone of the skin itself where the heads have one."""
    toned = any(p.get("skintone") is not None for p in params.values())
    return tuple(SKIN_TONE if toned and handle.name == SKIN_TONE.name else handle for handle in HANDLES)


def fit_handles(
    handles: Sequence[Handle],
    params: Mapping[int, Mapping[str, Any]],
    generator: Generator,
    base_sha256: str,
    conditional: bool = True,
    held_out: Sequence[int] = HELD_OUT,
    seed: int = 0,
) -> Fit:
    """Fit directions in W for some attributes of heads whose parameters are known.

    Args:
        params: of all heads, by number; the density of codes is fitted as in training, without the held-out ones.
        conditional: turn the directions so that the linear reading of w sees each change its own attribute alone.

    Raises:
        CheckpointError: the generator takes codes of another length than these parameters make.
        DataError: too few heads, or an attribute that no head has.
    """
    numbers = sorted(params)
    names, table = feature_table([params[h] for h in numbers])
    out = np.isin(numbers, list(held_out))
    if len(names) != generator.spec.mapping.z_dim:
        raise CheckpointError(
            f"the generator takes codes of {generator.spec.mapping.z_dim} numbers and these heads have {len(names)} "
            "parameters: it was trained on other parameters, or with another version of prior/codes.py."
        )
    inputs = [name for handle in handles for name in handle.features] + list(STILL)
    missing = sorted(set(inputs) - set(names))
    if missing or (~out).sum() < 2 * len(handles):
        raise DataError(f"{(~out).sum()} heads to learn from, without the parameters {missing}: too little to fit.")
    density = fit_density(names, table[~out], 0)
    rng = np.random.default_rng(seed)
    z = np.concatenate([density.encode(table[~out], rng) for _ in range(SPREADS)])
    w, scores = codes_of(generator, z), attribute_scores(handles, names, density, z)
    mean = w.mean(0)

    still = _scores_of(STILL, names, density, z)
    inputs_and_still = np.concatenate([scores, still], axis=1)

    def fitted(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        towards = ridge(inputs_and_still[rows], w[rows] - mean, RIDGE)[: len(handles)]
        reading = ridge(w[rows] - mean, scores[rows], RIDGE)
        return (np.linalg.solve(towards @ reading, towards) if conditional else towards), reading

    towards, reading = fitted(np.ones(len(w), bool))
    explained = 1 - np.square(w - mean - inputs_and_still @ ridge(inputs_and_still, w - mean, RIDGE)).sum() / (
        np.square(w - mean).sum()
    )
    size = np.array([amount(raw_values([handle], names, table[~out])[:, 0]) for handle in handles])
    vectors = towards * size[:, None]
    half = np.arange(len(w)) % int((~out).sum()) % 2 == 0
    (one, read_one), (other, read_other) = fitted(half), fitted(~half)
    entanglement = (one @ read_other + other @ read_one) / 2 * size[:, None]

    raw = raw_values(handles, names, table)
    reached = np.full(len(handles), np.nan)
    if out.any():
        read = (codes_of(generator, density.encode(table[out], None)) - mean) @ reading
        reached = np.array([correlation(read[:, j], raw[out][:, j]) for j in range(len(handles))])
    entries = tuple(
        Direction(h.name, h.about, h.unit, float(np.nanstd(raw[~out][:, j])), float(reached[j]))
        for j, h in enumerate(handles)
    )
    found = Directions(
        entries,
        torch.from_numpy(vectors.astype(np.float32)),
        torch.from_numpy(entanglement.astype(np.float32)),
        base_sha256,
    )
    return Fit(found, float(explained))


@torch.no_grad()
def codes_of(generator: Generator, z: Float[np.ndarray, "n z"]) -> Float[np.ndarray, "n w"]:
    """The first layer's w of each z."""
    parts = torch.from_numpy(z.astype(np.float32)).split(2048)
    return torch.cat([generator.mapping(part)[:, 0] for part in parts]).double().numpy()


def attribute_scores(
    handles: Sequence[Handle], names: Sequence[str], density: Density, z: Float[np.ndarray, "n z"]
) -> Float[np.ndarray, "n k"]:
    """Each attribute as a standard normal number, from codes: whitening is undone, features are added up."""
    columns = [_scores_of(handle.features, names, density, z).sum(1) for handle in handles]
    scores = np.stack(columns, axis=1)
    return (scores - scores.mean(0)) / scores.std(0)


def _scores_of(
    features: Sequence[str], names: Sequence[str], density: Density, z: Float[np.ndarray, "n z"]
) -> Float[np.ndarray, "n f"]:
    back = np.linalg.inv(density.whiten)
    return z @ back[:, [list(names).index(name) for name in features]]


def raw_values(
    handles: Sequence[Handle], names: Sequence[str], table: Float[np.ndarray, "n f"]
) -> Float[np.ndarray, "n k"]:
    """The attributes in their own units: the sums of their features."""
    columns = [table[:, [list(names).index(f) for f in handle.features]].sum(1) for handle in handles]
    return np.stack(columns, axis=1)


def ridge(x: Float[np.ndarray, "n a"], y: Float[np.ndarray, "n b"], strength: float) -> Float[np.ndarray, "a b"]:
    """The least-squares map from x to y, both about mean 0, with `strength` times x's mean variance on its diagonal."""
    x, y = x - x.mean(0), y - y.mean(0)
    gram = x.T @ x
    gram += strength * np.trace(gram) / len(gram) * np.eye(len(gram))
    return np.linalg.solve(gram, x.T @ y)


def amount(values: Float[np.ndarray, " n"]) -> float:
    """How many scores an amount of 1 is: 1, or, where most heads share the lowest value, so that +2 reaches much.

    +2 leads from the median to the 97.7th percentile of the heads that are above that value.
    """
    values = values[~np.isnan(values)]
    share = float((values > values.min()).mean())
    share = share if share < 0.5 else 1.0
    quantile = torch.tensor(1 - 0.02275 * share, dtype=torch.float64)
    return float(torch.special.ndtri(quantile)) / 2


def correlation(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Pearson's, over the pairs that are there; NaN where one of the two is constant."""
    there = ~np.isnan(a) & ~np.isnan(b)
    a, b = a[there], b[there]
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


# Looking at it


@torch.no_grad()
def strip(
    generator: Generator,
    directions: Directions,
    ws: Float[Tensor, "1 l w"],
    amounts: Sequence[float] = (-2.0, -1.0, 0.0, 1.0, 2.0),
    side: int = 128,
    abreast: int = 3,
) -> UInt8[np.ndarray, "i j 3"]:
    """One head moved along each direction, from left to right, `abreast` directions in a row."""
    front = orbit(0.0, 0.0)
    still = shrink(to_uint8(_seen(generator, ws, front)), side)
    pictures, labels = [], []
    for name in directions.names:
        for step in amounts:
            moved = move(ws, directions, {name: step})
            pictures.append(still if step == 0 else shrink(to_uint8(_seen(generator, moved, front)), side))
            labels.append(name if step == 0 else f"{step:+g}")
    return grid(pictures, labels, columns=len(amounts) * abreast)


def _seen(generator: Generator, ws: Float[Tensor, "1 l w"], camera: Camera) -> Float[Tensor, "1 3 s s"]:
    return generator.render(generator.planes(ws), ws, camera).image


def main() -> None:
    from PIL import Image

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", type=Path, help="folder with heads-*.zip")
    parser.add_argument("weights", help="the generator's .safetensors, or embedded")
    parser.add_argument("out", type=Path, help="the .safetensors to write")
    parser.add_argument("--plain", action="store_true", help="do not turn the directions away from each other")
    parser.add_argument("--strip", type=Path, help="picture of one head moved along each direction")
    parser.add_argument("--seed", type=int, help="random head for the picture; the mean head when not given")
    parser.add_argument(
        "--measure", type=at_least(0), default=0, help="random heads on whose renders the effect is measured"
    )
    options = parser.parse_args()
    generator, sha256 = load_generator(options.weights)
    params = read_index(options.heads).params
    fit = fit_handles(handles_for(params), params, generator, sha256, not options.plain)
    save_directions(options.out, fit.directions)
    print(report(fit.directions))
    own = fit.directions.entanglement.diagonal()
    rest = fit.directions.entanglement - torch.diag(own)
    print(f"\nown attribute {float(own.mean()):.2f}, others {float(rest.abs().mean()):.3f} (mean), "
          f"{float(rest.abs().amax(1).mean()):.2f} (largest); they explain {fit.explained:.0%} of w")  # fmt: skip
    if options.measure:
        print("\n" + table_of_effects(effects(generator, fit.directions, options.measure, mediapipe_models.face_mesh)))
    if options.strip:
        ws = generator.w_avg.expand(1, generator.num_ws, -1)
        if options.seed is not None:
            random = torch.Generator().manual_seed(options.seed)
            ws = generator.mapping(torch.randn(1, generator.spec.mapping.z_dim, generator=random))
        with atomic_path(options.strip) as part:
            Image.fromarray(strip(generator, fit.directions, ws)).save(part, quality=88)


if __name__ == "__main__":
    run_command(main)
