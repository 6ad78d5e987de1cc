"""Camera, crop and shape from the found points, together.

Unknown are the camera's yaw and pitch on EG3D's sphere, the similarity from photo to crop, and the coefficients of the
head model. What is minimised is the negative logarithm of a posterior,

    sum_i rho(|p_i - S^-1(proj(camera, X_i(c)))|^2 / s_i^2) / kappa + |c|^2 + (u - g)^T C^-1 (u - g),

with the points p_i (normalised to about the crop's scale), their noise s_i, the coefficients c, the guess (g, C) of a
learned regression for the other unknowns u, and rho the negative log-likelihood of Student's t (nu = 4): a few points
that went astray do not count. The points' errors are not independent of each other; kappa says how many points are
worth one. Gauss-Newton with iterated weights; the inverse of the normal matrix is the covariance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from headlift.pose_estimation.head_model import POINTS, Guess, HeadModel, normalise, project
from headlift.values import Similarity

_NU = 4.0
"""Degrees of freedom of Student's t."""


@dataclass(frozen=True)
class Fit:
    """What the points say about camera, crop and shape."""

    yaw: float
    """Radians, of the camera in EG3D's world."""
    pitch: float
    """Radians."""
    similarity: Similarity
    """Photo pixels to crop fractions."""
    coefficients: Float[np.ndarray, " k"]
    """Of the head model's components."""
    points: Float[np.ndarray, "468 3"]
    """The fitted head's points, world units."""
    residual: float
    """Robust root-mean-square distance of fitted to found points, crop fractions."""
    covariance: Float[np.ndarray, "6 6"]
    """Of yaw, pitch, turn, log scale and shift (`head_model.UNKNOWNS`)."""


def fit(
    points: Float[np.ndarray, "468 2"],
    model: HeadModel,
    guess: Guess | None = None,
    kappa: float = 1.0,
    steps: int = 30,
) -> Fit:
    """Fit the model to points in photo pixels; without a guess from the frontal view, and by the points alone.

    `kappa` >= 1 is the number of points worth one independent measurement.
    """
    moved, factor, center = normalise(points, model.template)
    z = moved @ (1, 1j)
    frontal = complex(np.vdot(z, (project(0.0, 0.0, model.mean)[0] - 0.5) @ (1, 1j)) / np.vdot(z, z).real)
    start = (0.0, 0.0, math.atan2(frontal.imag, frontal.real), math.log(abs(frontal)), 0.0, 0.0)
    unknowns = np.array(start) if guess is None else guess.mean.copy()
    precision = np.zeros((6, 6)) if guess is None else np.linalg.inv(guess.covariance)
    coefficients = np.zeros(len(model.basis))
    if guess is None:  # the mean face first: far from the truth, a free shape would follow the wrong camera
        unknowns, coefficients, _, _ = _descend(
            moved, unknowns, coefficients, 1e6, model, guess, precision, kappa, steps
        )
    unknowns, coefficients, error, normal = _descend(
        moved, unknowns, coefficients, 1.0, model, guess, precision, kappa, steps
    )
    yaw, pitch, turn, scale, x, y = unknowns
    combined = factor * np.exp(scale + 1j * turn)
    linear = np.array([[combined.real, -combined.imag], [combined.imag, combined.real]])
    shift = np.array([x + 0.5, y + 0.5]) - linear @ center
    distances = np.linalg.norm(error, axis=1) * math.exp(scale)
    robust = _weights(error / model.noise[:, None])
    return Fit(
        yaw=float(yaw),
        pitch=float(pitch),
        similarity=Similarity(np.concatenate([linear, shift[:, None]], axis=1)),
        coefficients=coefficients,
        points=model.shape(coefficients),
        residual=float(np.sqrt(np.average(distances**2, weights=robust))),
        covariance=np.linalg.inv(normal)[:6, :6],
    )


def _descend(
    moved: Float[np.ndarray, "468 2"],
    unknowns: Float[np.ndarray, " 6"],
    coefficients: Float[np.ndarray, " k"],
    stiffness: float,
    model: HeadModel,
    guess: Guess | None,
    precision: Float[np.ndarray, "6 6"],
    kappa: float,
    steps: int,
) -> tuple[Float[np.ndarray, " 6"], Float[np.ndarray, " k"], Float[np.ndarray, "468 2"], Float[np.ndarray, "u u"]]:
    """Levenberg and Marquardt's descent; returns the unknowns, coefficients, errors and the normal matrix at the end.

    `stiffness` weighs the squared coefficients: 1 for the prior as it is, more to hold the shape at the mean.
    """
    sigma = model.noise[:, None] * math.sqrt(kappa)
    count = len(coefficients)

    def cost_of(error: np.ndarray, unknowns: np.ndarray, coefficients: np.ndarray) -> float:
        data = (_NU + 2) * np.log1p(kappa * ((error / sigma) ** 2).sum(axis=1) / _NU).sum() / kappa
        prior = 0.0 if guess is None else (unknowns - guess.mean) @ precision @ (unknowns - guess.mean)
        return float(data + stiffness * coefficients @ coefficients + prior)

    damping = 1e-3
    error, slopes = _errors(moved, unknowns, coefficients, model)
    cost = cost_of(error, unknowns, coefficients)
    for _ in range(steps):
        weight = _weights(error / model.noise[:, None])[:, None] / sigma**2
        flat = (slopes * weight[..., None]).reshape(-1, 6 + count)
        normal = slopes.reshape(-1, 6 + count).T @ flat
        gradient = flat.T @ error.reshape(-1)
        normal[6:, 6:] += stiffness * np.eye(count)
        gradient[6:] += stiffness * coefficients
        normal[:6, :6] += precision
        if guess is not None:
            gradient[:6] += precision @ (unknowns - guess.mean)
        step = -np.linalg.solve(normal + damping * np.diag(normal.diagonal()), gradient)
        tried = unknowns + step[:6], coefficients + step[6:]
        tried[0][:2] = np.clip(tried[0][:2], (-1.7, -1.3), (1.7, 1.3))
        new_error, new_slopes = _errors(moved, *tried, model)
        new_cost = cost_of(new_error, *tried)
        if new_cost > cost + 1e-12:
            damping *= 10
            if damping > 1e6:
                break
            continue
        damping = max(damping / 10, 1e-12)
        done = cost - new_cost < 1e-12 * (1 + cost) and np.abs(step).max() < 1e-9
        (unknowns, coefficients), error, slopes, cost = tried, new_error, new_slopes, new_cost
        if done:
            break
    return unknowns, coefficients, error, normal


def _errors(
    moved: Float[np.ndarray, "468 2"],
    unknowns: Float[np.ndarray, " 6"],
    coefficients: Float[np.ndarray, " k"],
    model: HeadModel,
) -> tuple[Float[np.ndarray, "468 2"], Float[np.ndarray, "468 2 u"]]:
    """Found minus fitted normalised points, and the derivatives with respect to all unknowns.

    Errors are taken where the points were found, not in the crop: there a shrinking similarity would shrink the noise.
    """
    yaw, pitch, turn, scale, x, y = unknowns
    shape = model.shape(coefficients)
    seen, by_point = project(yaw, pitch, shape)
    back = np.exp(-scale - 1j * turn)
    linear = np.array([[back.real, -back.imag], [back.imag, back.real]])
    fitted = (seen - (x + 0.5, y + 0.5)) @ linear.T
    slopes = np.empty((POINTS, 2, 6 + len(coefficients)))
    h = 1e-5
    slopes[..., 0] = -(project(yaw + h, pitch, shape)[0] - project(yaw - h, pitch, shape)[0]) @ linear.T / (2 * h)
    slopes[..., 1] = -(project(yaw, pitch + h, shape)[0] - project(yaw, pitch - h, shape)[0]) @ linear.T / (2 * h)
    slopes[..., 2] = np.stack([-fitted[:, 1], fitted[:, 0]], axis=1)
    slopes[..., 3] = fitted
    slopes[..., 4], slopes[..., 5] = linear[:, 0], linear[:, 1]
    slopes[..., 6:] = -(linear @ by_point) @ model.basis.transpose(1, 2, 0)
    return moved - fitted, slopes


def _weights(scaled: Float[np.ndarray, "468 2"]) -> Float[np.ndarray, " 468"]:
    """Of Student's t with two coordinates a point: (nu + 2) / (nu + |e|^2)."""
    return (_NU + 2) / (_NU + (scaled**2).sum(axis=1))
