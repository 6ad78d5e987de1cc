"""The sRGB transfer curve (IEC 61966-2-1), both ways; channel values in [0, 1]."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def srgb_to_linear(srgb: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
    """Display values to linear light; values outside [0, 1] are clipped."""
    c = np.clip(srgb, 0.0, 1.0)
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4).astype(srgb.dtype)


def linear_to_srgb(linear: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
    """Linear light to display values, the inverse of `srgb_to_linear`; values outside [0, 1] are clipped."""
    c = np.clip(linear, 0.0, 1.0)
    return np.where(c <= 0.0031308, c * 12.92, 1.055 * c ** (1 / 2.4) - 0.055).astype(linear.dtype)
