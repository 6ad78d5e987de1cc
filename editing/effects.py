"""What moving along directions does in the picture: landmarks and colours of renders, not readings of the code.

MediaPipe's face mesh (found by a function that is handed in) gives lengths in the face, as shares of others so that
size and place in the picture do not matter; colours and opacity come from the render itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from headlift.editing.directions import Directions
from headlift.editing.edit import moved_generator
from headlift.editing.identity import Landmarks
from headlift.eg3d.camera import orbit
from headlift.eg3d.generator import Generator
from headlift.export.images import to_uint8
from headlift.pose_estimation.warp import resize

MESH_SIDE = 288
"""Side of the pictures that the mesh network is shown, pixels."""
STEP = 1.5
"""Heads are moved so far both ways."""
SPREAD_OVER = 16
"""Random heads that say how much a measure differs between heads."""
OWN: Mapping[str, str] = {
    "smile": "mouth corners up", "toothy_smile": "lips apart", "open_mouth": "lips apart", "eyes_closed": "eyes open",
    "brows_up": "brows up", "frown": "brows up", "gaze_x": "gaze right", "gaze_y": "gaze down",
    "hair_length": "opaque area", "hair_light": "crown bright", "hair_red": "crown red", "skin_dark": "cheeks bright",
    "stubble": "chin bright", "beard": "chin bright", "face_width": "face wide", "face_fat": "jaw wide",
    "weight": "jaw wide", "jaw_width": "jaw wide", "nose_width": "nose wide", "mouth_width": "mouth wide",
    "lips": "lips full", "eye_size": "eyes wide", "makeup": "lips red",
}  # fmt: skip
"""The measure that shows a direction best."""


def face_measures(points: Float[np.ndarray, "478 3"]) -> dict[str, float]:
    """Lengths in a face seen from the front, from its mesh in pixels; each is a share of another length."""
    p = points[:, :2]

    def apart(a: int, b: int) -> float:
        return float(np.linalg.norm(p[a] - p[b]))

    height, eyes = apart(10, 152), apart(33, 263)
    iris = (p[468] - (p[33] + p[133]) / 2 + p[473] - (p[362] + p[263]) / 2) / 2
    corners, middle = (p[61, 1] + p[291, 1]) / 2, (p[13, 1] + p[14, 1]) / 2
    return {
        "mouth corners up": (middle - corners) / height,
        "lips apart": apart(13, 14) / height,
        "mouth wide": apart(61, 291) / eyes,
        "lips full": (apart(0, 13) + apart(14, 17)) / height,
        "eyes open": (apart(159, 145) + apart(386, 374)) / 2 / eyes,
        "eyes wide": (apart(33, 133) + apart(362, 263)) / 2 / apart(234, 454),
        "gaze right": float(iris[0]) / eyes,
        "gaze down": float(iris[1]) / eyes,
        "brows up": (p[159, 1] + p[386, 1] - p[105, 1] - p[334, 1]) / 2 / height,
        "face wide": apart(234, 454) / height,
        "jaw wide": apart(172, 397) / height,
        "nose wide": apart(129, 358) / eyes,
    }


def measures(
    picture: UInt8[np.ndarray, "h h 3"], alpha: Float[np.ndarray, "r r"], landmarks: Landmarks
) -> dict[str, float] | None:
    """Lengths and colours of a face seen from the front; None where no face is found."""
    small = resize(picture, (MESH_SIDE, MESH_SIDE))
    points = landmarks(small)
    if points is None:
        return None
    p = points[:, :2]

    def colour(at: np.ndarray) -> np.ndarray:
        x, y = (round(float(v)) for v in np.clip(at, 3, MESH_SIDE - 4))
        return small[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3).mean(0) / 255

    crown = colour(p[10] + (p[10] - p[152]) * 0.12)
    lip = colour((p[14] + p[17]) / 2)
    return {
        **face_measures(points),
        "cheeks bright": float((colour(p[50]) + colour(p[280])).mean() / 2),
        "chin bright": float(colour(p[199]).mean()),
        "lips red": float(lip[0] - lip[1]),
        "crown bright": float(crown.mean()),
        "crown red": float(crown[0] - crown[2]),
        "opaque area": float(alpha.mean()),
    }


@torch.no_grad()
def effects(
    generator: Generator, directions: Directions, heads: int, landmarks: Landmarks, seed: int = 0
) -> dict[str, dict[str, float]]:
    """How much each measure changes from -1.5 to +1.5 along each direction, in standard deviations over random heads.

    The mean over `heads` random heads, of those in which a face is found at both ends; directions and measures by name.
    The spread of random heads is taken from `SPREAD_OVER` at least.
    """
    still, moved = [], {name: [] for name in directions.names}  # type: ignore[var-annotated]
    rng = torch.Generator().manual_seed(seed)
    for index in range(max(heads, SPREAD_OVER)):
        ws = generator.mapping(torch.randn(1, generator.spec.mapping.z_dim, generator=rng))
        still.append(measured(generator, ws, landmarks))
        for name in directions.names if index < heads else ():
            ends = [
                measured(*moved_generator(generator, ws, directions, {name: sign * STEP}), landmarks)
                for sign in (-1, 1)
            ]
            if ends[0] is not None and ends[1] is not None:
                moved[name].append({key: ends[1][key] - value for key, value in ends[0].items()})
    found = [row for row in still if row is not None]
    if len(found) < 2:
        return {}
    spread = {key: max(float(np.std([row[key] for row in found])), 1e-9) for key in found[0]}
    return {
        name: {key: float(np.mean([row[key] for row in rows])) / spread[key] for key in spread}
        for name, rows in moved.items()
        if rows
    }


@torch.no_grad()
def measured(generator: Generator, ws: Float[Tensor, "1 l w"], landmarks: Landmarks) -> dict[str, float] | None:
    """The measures of a head's render from the front; None where no face is found."""
    output = generator.render(generator.planes(ws), ws, orbit(0.0, 0.0).to(ws.device))
    return measures(to_uint8(output.image), output.alpha[0, 0].cpu().numpy(), landmarks)


def table_of_effects(found: Mapping[str, Mapping[str, float]], others: int = 3) -> str:
    """A Markdown table: the measure that should move, then those that move most beside it."""
    lines = [f"| direction | meant to move (-{STEP} to +{STEP}, in sd) | what else moves most |", "|---|---|---|"]
    for name, row in found.items():
        own = OWN.get(name)
        rest = sorted((key for key in row if key != own), key=lambda key: -abs(row[key]))[:others]
        meant = "" if own is None else f"{own} {row[own]:+.2f}"
        lines.append(f"| {name} | {meant} | {', '.join(f'{key} {row[key]:+.2f}' for key in rest)} |")
    return "\n".join(lines)
