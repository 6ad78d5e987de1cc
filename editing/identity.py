"""Identity drift: how far an edit has taken a head from being the same person.

Each measure is 0 for the same pictures and about 1 for two random heads as the first head's tuned generator shows them,
so that numbers of different measures can be read alike; these are somewhat more alike than the prior's own, as they
share what the tuning added. Offline there are two stand-ins for a face-recognition network: `features`, the features of
the builtin perceptual distance over the head, and `face_shape`, the landmarks of the face, less what the edit is meant
to move. Neither knows persons: they say how much the head has changed, not whether a friend would notice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from headlift.editing.edit import Subject
from headlift.eg3d.camera import orbit
from headlift.eg3d.generator import Generator
from headlift.export.images import to_uint8
from headlift.invert.losses import resize
from headlift.invert.perceptual import Distance, spatial_mean
from headlift.pose_estimation.identity import Recogniser
from headlift.values import Camera

YAWS = (0.0, -0.45, 0.45)
"""The views that are compared, radians to the side."""
JITTER = (-0.02, 0.02)
"""Turns of the camera, radians, that say how much the mesh scatters by itself."""
OTHERS = 5
"""Random heads that say how far apart two heads are."""
COARSE = 2
"""Of the perceptual network's stages the last so many are compared: parts of the face, not its texture."""

Picture = UInt8[np.ndarray, "h h 3"]
Landmarks = Callable[[Picture], "np.ndarray | None"]
"""From a picture of a face to its mesh [478, 3] in pixels, or None."""
Variant = Callable[[Generator, Tensor], tuple[Generator, Tensor]]
"""The same edit on another head: from a generator and a code [1, l, w] to those of the edited head."""


@dataclass(frozen=True)
class Drift:
    """How far two heads are apart, by one measure."""

    measure: str
    value: float
    """0 for the same head, about 1 for two random heads of its generator."""
    about: str
    """What it compares, in a few words."""
    stand_in: bool
    """It is no face-recognition network."""


class Ruler:
    """Measures how far edits take one head, again and again: what does not depend on the edit is drawn once.

    Args:
        recogniser: a face-recognition network, if its weights are on this machine.
    """

    @torch.no_grad()
    def __init__(
        self, before: Subject, distance: Distance, recogniser: Recogniser | None = None, seed: int = 0
    ) -> None:
        self.cameras = orbit(torch.tensor(YAWS), torch.zeros(len(YAWS))).to(before.ws.device)
        self.random = random_codes(before.generator, OTHERS, seed)
        self.shown = _seen(before.generator, before.ws, self.cameras)
        self.others = [_seen(before.generator, ws, self.cameras[:1]) for ws in self.random]
        self._distance, self._recogniser = distance, recogniser
        self._apart = _pairs(self.others, lambda x, y: feature_gap(x, y, distance))

    @torch.no_grad()
    def seen(self, after: Subject) -> tuple[Float[Tensor, "n 3 h w"], Float[Tensor, "n 1 r r"]]:
        """The edited head from the sides that are compared: pictures and opacities."""
        return _seen(after.generator, after.ws, self.cameras)

    @torch.no_grad()
    def drift(self, seen: tuple[Float[Tensor, "n 3 h w"], Float[Tensor, "n 1 r r"]]) -> tuple[Drift, ...]:
        """How far a head, as `seen` shows it, is from the one before; the first measure is the one to quote."""
        found = []
        if self._recogniser is not None:
            value = _recognition_drift([self.shown, seen], self.others, self._recogniser)
            if value is not None:
                found.append(Drift("recognition", value, "embeddings of a face-recognition network", False))
        value = feature_gap(self.shown, seen, self._distance) / self._apart
        found.append(Drift("features", value, "features of the builtin perceptual network over the head", True))
        return tuple(found)


@torch.no_grad()
def identity_drift(
    before: Subject,
    after: Subject,
    distance: Distance,
    landmarks: Landmarks | None = None,
    recogniser: Recogniser | None = None,
    variant: Variant | None = None,
    seed: int = 0,
) -> tuple[Drift, ...]:
    """How far an edit has changed a head, by each measure that there is; the first one is the one to quote.

    Args:
        landmarks: finds the face's mesh; without it there is no `face_shape`.
        recogniser: a face-recognition network, if its weights are on this machine.
        variant: the same edit for another head: what it moves on average over random heads is taken off `face_shape`.
    """
    ruler = Ruler(before, distance, recogniser, seed)
    seen = ruler.seen(after)
    found = ruler.drift(seen)
    if landmarks is None:
        return found
    shown, front = [ruler.shown, seen], ruler.cameras[:1]
    shape = _shape_drift(shown, ruler.others, ruler.random, before.generator, before.ws, front, landmarks, variant)
    if shape is None:
        return found
    about = "landmarks of the face" + (", less what the edit moves on other heads" if variant else "")
    return (*found, Drift("face_shape", shape, about, True))


def random_codes(generator: Generator, count: int, seed: int) -> list[Float[Tensor, "1 l w"]]:
    """Codes of random heads."""
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(count, generator.spec.mapping.z_dim, generator=rng).to(generator.w_avg.device)
    return list(generator.mapping(z, None).split(1))


def feature_gap(
    first: tuple[Float[Tensor, "n 3 h w"], Float[Tensor, "n 1 r r"]],
    second: tuple[Float[Tensor, "n 3 h w"], Float[Tensor, "n 1 r r"]],
    distance: Distance,
) -> float:
    """Mean squared distance of the unit features of pictures over the union of their opacities."""
    (a, alpha), (b, beta) = first, second
    union = resize(torch.maximum(alpha, beta), min(a.shape[-1], 256))
    gaps = [
        spatial_mean((x - y).square().sum(1, keepdim=True), union)
        for x, y in zip(distance.features(a)[-COARSE:], distance.features(b)[-COARSE:], strict=True)
    ]
    return float(torch.stack(gaps).mean())


def _recognition_drift(
    shown: Sequence[tuple[Tensor, Tensor]], others: Sequence[tuple[Tensor, Tensor]], recogniser: Recogniser
) -> float | None:
    """None where no face is found in a view of both heads."""

    def embedded(images: Tensor) -> np.ndarray:
        return recogniser([to_uint8(image[None]) for image in images])

    gaps = [_off_cosine(a, b) for a, b in zip(embedded(shown[0][0]), embedded(shown[1][0]), strict=True)]
    rest = [vector for image, _ in others if np.isfinite(vector := embedded(image)[0]).all()]
    if np.isnan(gaps).all() or len(rest) < 2:
        return None
    return float(np.nanmean(gaps)) / _pairs(rest, _off_cosine)


def normal_shape(points: Float[np.ndarray, "478 3"]) -> Float[np.ndarray, "468 2"]:
    """A face's points about their middle, in units of their spread, turned level by the outer corners of the eyes."""
    flat = points[:468, :2] - points[:468, :2].mean(0)
    flat = flat / np.sqrt(np.square(flat).sum(1).mean())
    across = flat[263] - flat[33]
    c, s = across / np.linalg.norm(across)
    return flat @ np.array([[c, -s], [s, c]])


def _shape_drift(
    shown: Sequence[tuple[Tensor, Tensor]],
    others: Sequence[tuple[Tensor, Tensor]],
    random: Sequence[Tensor],
    generator: Generator,
    ws_before: Float[Tensor, "1 l w"],
    front: Camera,
    landmarks: Landmarks,
    variant: Variant | None,
) -> float | None:
    """None where no face is found. What the mesh scatters by itself, seen in slightly turned renders, is taken off."""
    focal = front.intrinsics[0, 0, 0].cpu()

    def shape(image: Tensor) -> np.ndarray | None:
        points = landmarks(to_uint8(image[:1]))
        return None if points is None else normal_shape(points)

    start, end = shape(shown[0][0]), shape(shown[1][0])
    rest = [shape(image) for image, _ in others]
    known = [points for points in rest if points is not None]
    if start is None or end is None or len(known) < 2:
        return None
    again = [shape(_seen(generator, ws_before, orbit(yaw, 0.0, focal=focal).to(ws_before.device))[0]) for yaw in JITTER]
    noise = _root_mean([float(np.square(points - start).sum()) for points in again if points is not None])
    moved = end - start
    if variant is not None:
        moves = []
        for ws, still in zip(random, rest, strict=True):
            went = shape(_seen(*variant(generator, ws), front)[0])
            if went is not None and still is not None:
                moves.append(went - still)
        if moves:
            moved = without(moved, np.mean(moves, axis=0))
    apart = _pairs(known, lambda x, y: float(np.linalg.norm(x - y)))
    return math.sqrt(max(0.0, float(np.square(moved).sum()) - noise**2) / max(apart**2 - noise**2, 1e-9))


def without(moved: Float[np.ndarray, "k 2"], meant: Float[np.ndarray, "k 2"]) -> Float[np.ndarray, "k 2"]:
    """A movement less its part along another one."""
    length = float(np.square(meant).sum())
    return moved - (float((moved * meant).sum()) / length) * meant if length > 0 else moved


def _seen(generator: Generator, ws: Tensor, cameras: Camera) -> tuple[Tensor, Tensor]:
    out = generator.render(generator.planes(ws), ws, cameras)
    return out.image.clamp(-1, 1), out.alpha


def _off_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return 1 - float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _root_mean(squares: Sequence[float]) -> float:
    return math.sqrt(sum(squares) / len(squares)) if squares else 0.0


def _pairs(items: Sequence, apart: Callable[..., float]) -> float:
    """Mean over all pairs, never 0."""
    values = [apart(a, b) for i, a in enumerate(items) for b in items[:i]]
    return max(float(np.mean(values)), 1e-9)


def to_json(drifts: Sequence[Drift]) -> list[Mapping[str, object]]:
    """The drifts for a JSON file."""
    return [{**drift.__dict__, "value": round(drift.value, 4)} for drift in drifts]


def in_words(drifts: Sequence[Drift]) -> str:
    """One line for a picture: `identity drift: features 0.12, face_shape 0.05 (0 same, 1 another head)`."""
    values = ", ".join(f"{drift.measure} {drift.value:.2f}" for drift in drifts)
    stand_in = "; no recognition network here" if all(drift.stand_in for drift in drifts) else ""
    return f"identity drift: {values} (0 the same head, 1 another one{stand_in})"
