"""The skin's texture: two of the bundle's mixed, tinted, with a mask of the lips."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from headlift.errors import DataError
from headlift.prior.synthetic.body import Body
from headlift.prior.synthetic.bundle import HOW_TO_BUILD
from headlift.prior.synthetic.sampling import SKIN_TONES, HeadParams

SIDE = 1024
"""Texels along a side."""
MIDDLE_OF_FACE = (slice(470, 590), slice(790, 960))
"""Rows and columns whose mean is taken for a skin's colour."""
REDDEST, YELLOWEST = 1.92, 1.6
"""Largest ratios of red to green and green to blue in that mean: redder and more orange textures are tamed."""
MOUTH = ((0.0, 6.61, 1.56), (0.27, 0.13, 0.22))
"""Centre and half sides of the mouth's surroundings in the rest frame (dm)."""
LIPS_FROM = "young_caucasian_female"
"""The skin whose red lips give the mask; all skins share one layout."""
TONE_STRENGTH = 0.85
"""How far of the way to the drawn skin tone a texture is taken (recipe 2)."""
LIP_COLOUR, LIP_STRENGTH = np.array([0.92, 0.60, 0.60]), np.float32(0.5)
"""Lips over the skin's colour, and how far of the way to it they are taken (recipe 2): tinted ones are too pale."""


class SkinPainter:
    """Textures of one bundle's skins. Those read once are kept: 12 MiB each."""

    def __init__(self, body: Body) -> None:
        self._bundle = body.bundle
        self._read: dict[str, np.ndarray] = {}
        self._lips = _lip_mask(body)

    def paint(self, params: HeadParams) -> Float[np.ndarray, "s s 4"]:
        """Linear RGB of a head's skin and how much of a lip a texel is (0 to 1); row 0 at the top."""
        first, second = (self._skin(name) for name in params.skin)
        share = params.skinmix
        mixed = first * share + second * (1 - share) if params.skin[0] != params.skin[1] else first
        if params.skintone is not None:
            mean = mixed[MIDDLE_OF_FACE].reshape(-1, 3).mean(0)
            mixed = mixed * ((skin_colour(params.skintone) / mean) ** TONE_STRENGTH).astype("f4")
            lip = (mixed[MIDDLE_OF_FACE].reshape(-1, 3).mean(0) * LIP_COLOUR).astype("f4")
            mixed = mixed + LIP_STRENGTH * self._lips[..., None] * (lip - mixed)
        light, red, yellow = params.tone
        change = np.array([light + red, light - red * 0.6, light - red * 0.4 - yellow * 2], "f4")
        return np.dstack([np.clip(mixed * np.exp(change), 0.004, 1), self._lips])

    def _skin(self, name: str) -> Float[np.ndarray, "s s 3"]:
        if name not in self._read:
            texture = (_enlarged(self._bundle.texture(f"skin_{name}")) / 255) ** np.float32(2.2)
            red, green, blue = texture[MIDDLE_OF_FACE].reshape(-1, 3).mean(0)
            more_green = max(1, red / green / REDDEST)
            texture = texture * np.array([1, more_green, 1], "f4")
            texture[..., 2] *= max(1, green * more_green / blue / YELLOWEST)
            self._read[name] = texture
        return self._read[name]


def skin_colour(tone: float) -> Float[np.ndarray, " 3"]:
    """The linear RGB of a place between the lightest (0) and the darkest (1) of `SKIN_TONES`."""
    at = np.linspace(0, 1, len(SKIN_TONES))
    return np.array([np.interp(tone, at, channel) for channel in np.array(SKIN_TONES).T / 255]) ** 2.2


def _lip_mask(body: Body) -> Float[np.ndarray, "s s"]:
    """Where one skin is redder than most of the mouth's surroundings, softly bounded."""
    from PIL import Image, ImageFilter

    colour = _enlarged(body.bundle.texture(f"skin_{LIPS_FROM}"))
    redness = (colour[..., 0] - colour[..., 1]) / np.maximum(colour[..., 0] + colour[..., 1], 1)
    arrays = body.bundle.arrays
    rest = body.rest["skin"][arrays["skin/pos"]]
    near = (np.abs(rest - MOUTH[0]) < MOUTH[1]).all(1)
    if not near.any():
        raise DataError(f"The bundle {body.bundle.folder} has no mouth where one is expected. {HOW_TO_BUILD}")
    u, v = arrays["skin/uv"][near].T
    x, y = (u * SIDE).astype(int), ((1 - v) * SIDE).astype(int)
    close = (np.abs(x - np.median(x)) < 60) & (np.abs(y - np.median(y)) < 60)
    box = np.zeros((SIDE, SIDE), "f4")
    box[y[close].min() : y[close].max(), x[close].min() : x[close].max()] = 1
    mask = np.clip((redness - np.percentile(redness[box > 0], 55)) / 0.06, 0, 1) * box
    soft = Image.fromarray((mask * 255).astype("u1")).filter(ImageFilter.GaussianBlur(1.6))
    return np.asarray(soft, "f4") / 255


def _enlarged(texture: np.ndarray) -> Float[np.ndarray, "s s 3"]:
    from PIL import Image

    rgb = Image.fromarray(np.ascontiguousarray(texture[..., :3]))
    return np.asarray(rgb.resize((SIDE, SIDE), Image.Resampling.LANCZOS), "f4")
