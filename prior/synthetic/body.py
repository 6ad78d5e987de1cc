"""From parameters to meshes: morph targets, what hangs on the base mesh, hair, and the place in the world.

A head is morphed and dressed in MakeHuman's rest frame (decimetres) and then scaled and moved so that its eyes and
mouth are where they are in FFHQ's crops, in EG3D's world.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Integer

from headlift.errors import ConfigError
from headlift.prior.synthetic import glasses as spectacles
from headlift.prior.synthetic import hair
from headlift.prior.synthetic.bundle import ANCESTRIES, EYE, MESH_HAIR, PROXIES, SURFACES, TONGUE, Bundle
from headlift.prior.synthetic.geometry import Binding, Mesh, Topology
from headlift.prior.synthetic.sampling import RECIPES, HeadParams, Vocabulary, draw_balanced, draw_params

EYE_HEIGHT, MOUTH_HEIGHT, EYE_DEPTH, EYE_DISTANCE = 0.0617, -0.1073, 0.195, 0.159
"""Where the centres of eyes and mouth are in the world (units): fitted to FaceMesh's landmarks on FFHQ's crops."""
UPPER_LIP, LOWER_LIP = 468, 495
"""Vertices on the lips' seam, as positions in the bundle's base mesh."""
ATTEMPTS = 20
"""How often recipe 2 draws an implausible face again."""
WIDEST_JAW, WIDEST_CHIN, LENGTHS = 0.835, 0.70, (0.625, 0.83)
"""Bounds of a plausible face over the width of its cheekbones. They turn away one face in twelve of recipe 2."""
CORNEA = (0.9, 0.14)
"""The eye mesh's triangles right of and below this texel are the cornea's shell, which is not drawn."""
LIPS_PART = 0.02
"""From this gap between the lips on (dm) teeth and tongue are there."""


@dataclass(frozen=True)
class Face:
    """Measures of a neutral face, decimetres, by which implausible ones are told."""

    cheek_width: float
    """Between the cheekbones."""
    jaw_width: float
    """At the height of the mouth."""
    length: float
    """From the eyes down to the chin."""
    chin_width: float
    """Halfway between mouth and chin."""

    @property
    def plausible(self) -> bool:
        """Whether jaw and chin are not too wide, the face neither very long nor very short."""
        return (
            self.jaw_width < WIDEST_JAW * self.cheek_width
            and self.chin_width < WIDEST_CHIN * self.cheek_width
            and LENGTHS[0] * self.cheek_width < self.length < LENGTHS[1] * self.cheek_width
        )


@dataclass(frozen=True)
class HeadGeometry:
    """A head's meshes in the world, and what else the renderer and the parameters' file want to know."""

    parts: Mapping[str, Mesh]
    """skin, cloth, eye, brow, lash, and where there are such: teeth, tongue, hair, beard, glasses."""
    occluder: tuple[Float[np.ndarray, "v 3"], Integer[np.ndarray, "t 3"]]
    """The skin before subdivision: what casts shadows."""
    gaze: Float[np.ndarray, " 3"]
    """Where both eyes look, a unit vector."""
    lip_gap: float
    """How far the expression opens the lips, dm."""


class Body:
    """Builds heads from one bundle."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.vocabulary = Vocabulary.of(bundle)
        arrays = bundle.arrays
        self._subdivision = {s: bundle.subdivision(s) for s in SURFACES}
        self._topology = {s: Topology.of(int(arrays[f"{s}/n"]), _triangles(bundle, s)) for s in SURFACES}
        self.rest = {s: (self._subdivision[s] @ bundle.base).astype("f4") for s in SURFACES}
        self._binding = {
            p: Binding(
                arrays[f"{p}/refs"],
                arrays[f"{p}/wts"].astype("f8"),
                arrays[f"{p}/offs"].astype("f8"),
                arrays[f"{p}/sref"],
                arrays[f"{p}/sden"].astype("f8"),
            )
            for p in PROXIES
        }
        for p in PROXIES:
            self._topology[p] = Topology.of(len(arrays[f"{p}/refs"]), _triangles(bundle, p))
        self._left_eye = self._binding[f"eye/{EYE}"].fit(bundle.base)[:, 0] > 0
        x, y, z = bundle.base.T
        body = np.zeros(len(bundle.base), bool)
        body[arrays["skinlo/pos"]] = True
        self._bands = {
            "cheek": body & (np.abs(y - 7.0) < 0.12) & (np.abs(x) < 0.82) & (z > 0.5),
            "jaw": body & (np.abs(y - 6.62) < 0.12) & (z > 0.35),
            "chin": body & (np.abs(y - 6.38) < 0.10) & (z > 0.6),
            "bottom": body & (y > 6.0) & (y < 6.45) & (np.abs(x) < 0.2) & (z > 1.1),
        }

    def draw(self, seed: int, index: int, recipe: int) -> tuple[HeadParams, np.random.Generator]:
        """The parameters of head `index`, and the generator of its random numbers for light and cameras.

        Raises ConfigError for an unknown recipe.
        """
        if recipe not in RECIPES:
            raise ConfigError(f"There is no recipe {recipe}. Choose from {', '.join(map(str, RECIPES))}.")
        rng = np.random.default_rng([seed, index])
        if recipe == 1:
            return draw_params(self.vocabulary, rng), rng
        for attempt in range(1, ATTEMPTS + 1):
            params = draw_balanced(self.vocabulary, rng, seed, index)
            if self.measure(params).plausible:
                break
            rng = np.random.default_rng([seed, index, attempt])
        return params, rng

    def measure(self, params: HeadParams) -> Face:
        """The face's measures without its expression."""
        neutral, _ = self.morph(params)
        eyes = self._binding[f"eye/{EYE}"].fit(neutral)[:, 1].mean()
        widths = {name: float(np.ptp(neutral[band, 0])) for name, band in self._bands.items()}
        return Face(
            cheek_width=widths["cheek"],
            jaw_width=widths["jaw"],
            length=float(eyes - neutral[self._bands["bottom"], 1].min()),
            chin_width=widths["chin"],
        )

    def morph(self, params: HeadParams) -> tuple[Float[np.ndarray, "v 3"], Float[np.ndarray, "v 3"]]:
        """The base mesh with a head's shape, without and with its expression (decimetres)."""
        neutral = self.bundle.base.copy()
        for name, weight in _macro_weights(params).items():
            self._add(neutral, name, weight)
        for axis, amount in params.axes.items():
            self._add(neutral, self.vocabulary.axes[axis][amount > 0], abs(amount))
        self._add(neutral, *params.shape)
        for name, amount in params.asym.items():
            self._add(neutral, name, amount)
        expressive = neutral.copy()
        for unit, amount in params.expr.items():
            for ancestry, share in zip(ANCESTRIES, params.race, strict=True):
                self._add(expressive, f"expression/units/{ancestry}/{unit}", amount * share)
        return neutral, expressive

    def build(self, params: HeadParams) -> HeadGeometry:
        """The meshes of a head, in the world."""
        arrays = self.bundle.arrays
        neutral, v = self.morph(params)
        place = self._placement(neutral)
        parts: dict[str, Mesh] = {}

        def part(kind: str, key: str, positions: np.ndarray, texture: str | None = None) -> Mesh:
            placed = place(positions)
            topology = self._topology[key]
            normals = topology.normals(placed).astype("f4")
            corner, uv, triangles = (arrays[f"{key}/{k}"] for k in ("pos", "uv", "tri"))
            return Mesh(kind, placed, normals, corner, uv, triangles, texture, topology, self.rest.get(key))

        def hung(kind: str, key: str, texture: str) -> Mesh:
            return part(kind, key, self._binding[key].fit(v), texture)

        parts["skin"] = part("skin", "skin", self._subdivision["skin"] @ v)
        shirt = self._subdivision["cloth"] @ v
        shirt = shirt + self._topology["cloth"].normals(shirt) * params.cloth.thick
        parts["cloth"] = part("cloth", "cloth", shirt)
        turn = _rotation(*params.gaze)
        eyes, centres = self._turned_eyes(v, turn)
        ball = part("eye", f"eye/{EYE}", eyes, f"eye_{params.eye}")
        middle = ball.uv[ball.triangles].mean(1)
        shell = (middle[:, 0] > CORNEA[0]) & (middle[:, 1] < CORNEA[1])
        outward = ball.positions - place(centres)
        outward = outward / np.linalg.norm(outward, axis=1, keepdims=True)
        parts["eye"] = replace(ball, normals=outward, triangles=ball.triangles[~shell])
        gap = float((v[UPPER_LIP] - v[LOWER_LIP])[1] - (neutral[UPPER_LIP] - neutral[LOWER_LIP])[1])
        if gap > LIPS_PART:
            parts["teeth"] = hung("teeth", f"teeth/{params.teeth}", "teeth")
            parts["tongue"] = hung("teeth", f"tongue/{TONGUE}", "tongue")
        brow = hung("card", f"brow/{params.brow}", f"brow_{params.brow}")
        parts["brow"] = brow.with_positions(brow.positions + brow.normals * np.float32(0.0012))
        parts["lash"] = hung("card", f"lash/{params.lash}", f"lash_{params.lash}")
        if params.hair in MESH_HAIR:
            worn = hung("hair", f"hair/{params.hair}", f"hair_{params.hair}")
            parts["hair"] = _mirrored(worn) if params.hairjit[0] < 0 else worn
        skin = parts["skin"]
        grown = {}
        if params.groom is not None:
            mask = hair.scalp_mask(self.rest["skin"], params.groom.recede)
            grown["hair"] = hair.grow(skin, params.groom, mask, np.random.default_rng(params.seed))
        if params.beard > 0:
            mask = hair.beard_mask(self.rest["skin"], params.beardstyle)
            grown["beard"] = hair.grow(skin, params.bgroom, mask, np.random.default_rng(params.seed + 1))
        parts.update({name: mesh for name, mesh in grown.items() if mesh is not None})
        if params.glasses is not None:
            pupils = parts["eye"].positions, self._left_eye
            parts.update(spectacles.build(params.glasses, skin, *pupils))
        low = arrays["skinlo/pos"][arrays["skinlo/tri"]]
        return HeadGeometry(parts, (place(v), low), (turn @ [0, 0, 1]).astype("f4"), gap)

    def _add(self, vertices: Float[np.ndarray, "v 3"], name: str, weight: float) -> None:
        """One morph target, in place. Targets that a bundle lacks move nothing of the head."""
        if weight and name in self.bundle.targets:
            index, offset = self.bundle.targets[name]
            vertices[index] += weight * offset

    def _placement(self, neutral: Float[np.ndarray, "v 3"]) -> Placement:
        eye = self._binding[f"eye/{EYE}"].fit(neutral)
        left, right = eye[self._left_eye].mean(0), eye[~self._left_eye].mean(0)
        mouth = (neutral[UPPER_LIP] + neutral[LOWER_LIP]) / 2
        between = (left + right) / 2
        by_eyes = EYE_DISTANCE / np.linalg.norm(left - right)
        by_height = (EYE_HEIGHT - MOUTH_HEIGHT) / (between[1] - mouth[1])
        return Placement(
            scale=float(0.5 * (by_eyes + by_height)),
            centre=np.array([between[0], (between[1] + mouth[1]) / 2, between[2]]),
            target=np.array([0, (EYE_HEIGHT + MOUTH_HEIGHT) / 2, EYE_DEPTH]),
        )

    def _turned_eyes(
        self, v: Float[np.ndarray, "v 3"], turn: Float[np.ndarray, "3 3"]
    ) -> tuple[Float[np.ndarray, "e 3"], Float[np.ndarray, "e 3"]]:
        """The eyes' vertices after the gaze's rotation about each eyeball's centre, and the centre of each (dm)."""
        eyes = self._binding[f"eye/{EYE}"].fit(v)
        centres = np.zeros_like(eyes)
        for side in (self._left_eye, ~self._left_eye):
            ball = eyes[side]
            centre = (ball.max(0) + ball.min(0)) / 2
            eyes[side] = (ball - centre) @ turn.T + centre
            centres[side] = centre
        return eyes, centres


@dataclass(frozen=True)
class Placement:
    """From MakeHuman's frame (dm) to the world: p -> (p - centre) * scale + target."""

    scale: float
    centre: Float[np.ndarray, " 3"]
    target: Float[np.ndarray, " 3"]

    def __call__(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        return ((points - self.centre) * self.scale + self.target).astype("f4")


def _macro_weights(params: HeadParams) -> dict[str, float]:
    """MakeHuman's targets for age, gender, ancestry, muscle and weight: products of piecewise linear shares."""
    age = params.age
    ages = {
        "child": float(np.interp(age, [4, 10, 25], [1, 1, 0])),
        "young": float(np.interp(age, [10, 25, 90], [0, 1, 0])),
        "old": float(np.interp(age, [25, 90], [0, 1])),
    }
    weights = {}
    for gender, of_gender in (("male", params.gender), ("female", 1 - params.gender)):
        for stage, of_age in ages.items():
            for ancestry, share in zip(ANCESTRIES, params.race, strict=True):
                weights[f"macrodetails/{ancestry}-{gender}-{stage}"] = of_gender * of_age * share
            for muscle, of_muscle in _thirds(params.muscle, "muscle").items():
                for weight, of_weight in _thirds(params.weight, "weight").items():
                    name = f"macrodetails/universal-{gender}-{stage}-{muscle}-{weight}"
                    weights[name] = of_gender * of_age * of_muscle * of_weight
    return weights


def _thirds(x: float, name: str) -> dict[str, float]:
    return {f"min{name}": max(0.0, 1 - 2 * x), f"max{name}": max(0.0, 2 * x - 1), f"average{name}": 1 - abs(2 * x - 1)}


def _rotation(yaw: float, pitch: float) -> Float[np.ndarray, "3 3"]:
    """Of the eyes: about y after about x (radians)."""
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    return about_y @ np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])


def _mirrored(mesh: Mesh) -> Mesh:
    flip = np.array([-1, 1, 1], "f4")
    return replace(
        mesh, positions=mesh.positions * flip, normals=mesh.normals * flip, triangles=mesh.triangles[:, ::-1]
    )


def _triangles(bundle: Bundle, key: str) -> Integer[np.ndarray, "t 3"]:
    """Triangles of a mesh by geometric vertex."""
    return bundle.arrays[f"{key}/pos"][bundle.arrays[f"{key}/tri"]]
