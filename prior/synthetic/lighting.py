"""Light on a head: a soft environment as spherical harmonics of order 2, and one key light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Light:
    """World axes; radiance in units of its own, since exposure follows the face's mean."""

    environment: Float[np.ndarray, "9 3"]
    """Radiance's coefficients on the real spherical harmonics of `harmonics`, for red, green, blue."""
    key: Float[np.ndarray, " 3"]
    """Towards the key light, a unit vector."""
    key_colour: Float[np.ndarray, " 3"]
    softness: float
    """Width of the key light's shadows' edges, in shares of the shadow map."""
    exposure: float
    """Factor on what exposure the face's mean asks for."""


def harmonics(direction: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 9"]:
    """Real spherical harmonics up to order 2 of unit vectors: 1, y, z, x, xy, yz, 3z2 - 1, xz, x2 - y2."""
    x, y, z = direction.T
    basis = [
        0.2821 + 0 * x, 0.4886 * y, 0.4886 * z, 0.4886 * x, 1.0925 * x * y, 1.0925 * y * z,
        0.3154 * (3 * z * z - 1), 1.0925 * x * z, 0.5463 * (x * x - y * y),
    ]  # fmt: skip
    return np.stack(basis, -1).astype("f4")


def spread_directions(n: int) -> Float[np.ndarray, "n 3"]:
    """Unit vectors evenly over the sphere: a Fibonacci spiral about y."""
    i = np.arange(n) + 0.5
    height = 1 - 2 * i / n
    turn = np.pi * (1 + 5**0.5) * i
    radius = np.sqrt(1 - height * height)
    return np.stack([radius * np.cos(turn), height, radius * np.sin(turn)], -1)


def draw_light(rng: np.random.Generator) -> Light:
    """A sky lighter above, one to three soft lamps before the head, and mostly a key light."""
    directions = spread_directions(256)

    def warm(t: float) -> Float[np.ndarray, " 3"]:
        return np.array([1 + 0.28 * t, 1, 1 - 0.33 * t])

    up = np.clip(directions[:, 1] * 0.5 + 0.5, 0, 1)[:, None]
    sky = up * rng.uniform(0.5, 1.1) * warm(rng.normal(-0.15, 0.25))
    radiance = sky + (1 - up) * rng.uniform(0.12, 0.5) * warm(rng.normal(0.15, 0.3))
    for _ in range(rng.integers(1, 4)):
        azimuth, height = rng.uniform(-np.pi, np.pi) * 0.8, rng.uniform(-0.2, 1.1)
        lamp = _towards(azimuth, height)
        strength = rng.uniform(0.3, 2.2)
        spot = np.exp(rng.uniform(2, 8) * (directions @ lamp - 1))[:, None]
        radiance += strength * spot * warm(rng.normal(0, 0.4))
    environment = harmonics(directions).T @ radiance * (4 * np.pi / len(directions))
    key = _towards(rng.normal(0, 0.75), rng.uniform(0.05, 1.0))
    colour = rng.uniform(0.2, 2.2) * warm(rng.normal(0.05, 0.25)) if rng.random() < 0.85 else np.zeros(3)
    return Light(
        environment.astype("f4"), key, colour, float(rng.uniform(0.006, 0.035)), float(rng.uniform(0.85, 1.15))
    )


def _towards(azimuth: float, height: float) -> Float[np.ndarray, " 3"]:
    return np.array([np.sin(azimuth) * np.cos(height), np.sin(height), np.cos(azimuth) * np.cos(height)])
