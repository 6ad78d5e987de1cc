"""From the parameters of heads to latent codes whose density is the standard normal one.

Each parameter is brought to a normal marginal by its rank over the training heads, and all together are whitened
(a Gaussian copula). Categories become intervals of one ordered axis or blends of attributes, and equal values are
spread at random over their interval, anew in each epoch: so the whole axis is learned, not only its grid of values.
A code drawn from N(0, I) is then a head as the training heads are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

HAIR_ORDER = (
    "bald", "+buzz", "short03", "short02", "short01", "short04", "+short", "+curly", "afro01", "+afro",
    "bob01", "bob02", "+mid", "+long", "long01", "ponytail01", "braid01",
)  # fmt: skip
"""Hair styles from none to long, tied hair last."""
BROWS = 12
EYE_ORDER = ("brown", "brownlight", "green", "grey", "bluegreen", "deepblue", "blue", "lightblue", "ice")
"""Irises from dark to light."""
COMBS = ("fwd", "whorl", "part", "back")
SINCE_RECIPE_2 = ("skin tone",)
"""Features that the heads of recipe 1 do not have: data without them has no column for them, and codes as before."""
GROOM = ("part", "lift", "curl", "turns", "grav", "layer", "width", "mess", "kink", "fringe", "recede", "top", "side")


def features(params: Mapping[str, Any]) -> dict[str, float]:
    """The visible parameters of a head as named numbers; tied left and right axes become one.

    NaN says that a parameter has no meaning for this head (the parting of a bald one).
    """
    f: dict[str, float] = {"gender": params["gender"], "age": params["age"]}
    f["african"], f["asian"], _ = params["race"]
    f["muscle"], f["weight"] = params["muscle"], params["weight"]
    for name, value in params["axes"].items():
        if "/r-" not in name:
            other = params["axes"].get(name.replace("/l-", "/r-"), value)
            f[name.replace("/l-", "/")] = (value + other) / 2
    shape, amount = params["shape"]
    for name in ("diamond", "invertedtriangular", "oval", "rectangular", "round", "square", "triangular"):
        f[f"shape {name}"] = amount if shape == f"head/head-{name}" else 0.0
    expression = params["expr"]
    for name in (
        "mouth-corner-puller", "mouth-upward-retraction", "mouth-parling", "mouth-open", "mouth-compression",
        "mouth-pursing", "mouth-protusion", "mouth-part-later", "mouth-depression", "eye-left-slit",
        "eye-left-closure", "eyebrows-left-up", "eyebrows-left-down", "eyebrows-left-inner-up",
    ):  # fmt: skip
        f[name] = expression.get(name, 0.0)
    f["gaze x"], f["gaze y"] = params["gaze"]
    mix = params["skinmix"]
    for attribute in ("middleage", "old", "african", "asian", "2"):
        has = [attribute in name.split("_") or name.endswith(attribute) for name in params["skin"]]
        f[f"skin {attribute}"] = mix * has[0] + (1 - mix) * has[1]
    f["tone light"], f["tone red"], f["tone yellow"] = params["tone"]
    f["freckles"], f["oil"] = params["freckles"], params["oil"]
    colour = np.log(np.maximum(params["haircol"], 1e-3))
    f["hair light"] = float(colour.mean())
    f["hair red"], f["hair blue"] = float(colour[0] - colour[1]), float(colour[2] - colour[1])
    f["hair"] = float(HAIR_ORDER.index(params["hair"]))
    groom = params["groom"] or {}
    for name in GROOM:
        f[f"groom {name}"] = float(groom.get(name, np.nan))
    f["groom comb"] = float(COMBS.index(groom["comb"])) if groom else np.nan
    f["hair mirrored"] = np.nan if groom else params["hairjit"][0]
    f["stubble"], f["beard"] = params["stubble"], params["beard"]
    for i, value in enumerate(params["beardstyle"]):
        f[f"beard style {i}"] = value if params["beard"] > 0 else np.nan
    for i in range(1, BROWS):
        f[f"brow {i}"] = float(params["brow"] == f"eyebrow{i + 1:03d}")
    f["makeup"] = params["makeup"]
    for i, value in enumerate(params["lip"]):
        f[f"lip {i}"] = value
    f["eye"] = float(EYE_ORDER.index(params["eye"]))
    cloth = params["cloth"]
    colour = np.log(np.maximum(cloth["col"], 1e-3))
    f["cloth light"] = float(colour.mean())
    f["cloth red"], f["cloth blue"] = float(colour[0] - colour[1]), float(colour[2] - colour[1])
    for name in ("neck", "v", "pat"):
        f[f"cloth {name}"] = cloth[name]
    f["lip gap"] = params["lipgap"]
    tone = params.get("skintone")
    f["skin tone"] = np.nan if tone is None else tone
    return f


@dataclass(frozen=True)
class Density:
    """A Gaussian copula over the features of the training heads."""

    names: tuple[str, ...]
    """The features, in order."""
    values: Float[np.ndarray, "n f"]
    """Their sorted values over the training heads, a column each; NaN last."""
    whiten: Float[np.ndarray, "f f"]
    """From normal marginals to uncorrelated ones: the inverse square root of their correlation (ZCA), so that each
    axis of the code stays close to its feature."""

    def encode(self, table: Float[np.ndarray, "m f"], rng: np.random.Generator | None) -> Float[np.ndarray, "m f"]:
        """Codes of heads given by their features; ties are spread by `rng`, or sit in the middle without it."""
        z = np.empty_like(table)
        for j in range(table.shape[1]):
            column = self.values[~np.isnan(self.values[:, j]), j]
            n = max(1, len(column))
            low = np.searchsorted(column, table[:, j], "left")
            high = np.maximum(np.searchsorted(column, table[:, j], "right"), low + 1)
            spread = np.full(len(table), 0.5) if rng is None else rng.random(len(table))
            rank = np.where(np.isnan(table[:, j]), spread, (low + spread * (high - low)) / n)
            z[:, j] = torch.special.ndtri(torch.from_numpy(rank.clip(0.3 / n, 1 - 0.3 / n))).numpy()
        return z @ self.whiten


def feature_table(params: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], Float[np.ndarray, "n f"]]:
    """The features of heads as a table with the names of its columns; of `SINCE_RECIPE_2` those that some head has."""
    rows = [features(p) for p in params]
    names = tuple(n for n in rows[0] if n not in SINCE_RECIPE_2 or not all(np.isnan(row[n]) for row in rows))
    return names, np.array([[row[name] for name in names] for row in rows], np.float64)


def fit_density(names: tuple[str, ...], table: Float[np.ndarray, "n f"], seed: int = 0) -> Density:
    """The density of heads with these features."""
    rng = np.random.default_rng(seed)
    values = np.sort(table, axis=0)
    plain = Density(names, values, np.eye(table.shape[1]))
    normal = np.concatenate([plain.encode(table, rng) for _ in range(4)])
    eigenvalues, vectors = np.linalg.eigh(np.cov(normal.T))
    whiten = (vectors / np.sqrt(np.maximum(eigenvalues, 0.02))) @ vectors.T
    return Density(names, values, whiten)
