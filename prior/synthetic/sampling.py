"""The parameters of a head, drawn from a seed and the number of the head.

Recipe 1 is the one of the first data set (its heads come out bit for bit); recipe 2 mends what was weak about it:
ancestry, gender and age are balanced in blocks of 64 heads, skin tones are spread evenly over the whole human range
and kept to its hues, children have no beards, the shape varies a little less, hair meshes that hide an eye are left
out, and one head in eight wears glasses. Its implausible faces are drawn again (`body.py` measures them).

Ancestry, age and gender are MakeHuman's coarse categories. They say what a head looks like, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from headlift.errors import DataError
from headlift.prior.synthetic.bundle import ANCESTRIES, BROWS, IRISES, LASHES, TEETH, Bundle

RECIPES = (1, 2)
SHAPE_PARTS = ("head", "forehead", "eyebrows", "eyes", "nose", "mouth", "chin", "cheek", "neck", "ears")
"""Parts of the face whose morph targets are axes of its shape."""
OPPOSITES = (
    ("decr", "incr"), ("down", "up"), ("in", "out"), ("backward", "forward"), ("concave", "convex"),
    ("compress", "uncompress"),
)  # fmt: skip
HEAD_SHAPES = ("diamond", "invertedtriangular", "oval", "rectangular", "round", "square", "triangular")
SKIN_TONES = (
    (228, 184, 160), (214, 166, 138), (190, 140, 110), (158, 110, 80), (124, 82, 58), (92, 60, 44), (70, 46, 34),
)  # fmt: skip
"""Human skin from light to dark, sRGB of a face in even light; recipe 2 draws a place between them."""
SMILES = ("mouth-corner-puller", "mouth-upward-retraction")
"""Expression units that drive the teeth through a child's cheeks when they are strong."""
COMBS = ("part", "part", "back", "fwd", "whorl")
BLOCK = 64
"""Heads in which recipe 2 has every combination of gender, ancestry (or a mixture) and age as often as it should."""
AGES = ((6.0, 16.0), (16.0, 26.0), (20.0, 32.0), (25.0, 36.0), (36.0, 48.0), (45.0, 58.0), (58.0, 70.0), (66.0, 85.0))
"""Years; each an eighth of recipe 2."""


@dataclass(frozen=True)
class Groom:
    """How hair or a beard grows. Lengths in centimetres; the rest are factors without a unit."""

    kind: str
    """buzz, short, curly, afro, mid, long or beard."""
    n: int
    """Ribbons."""
    seg: int
    """Segments of each."""
    part: float
    """Where the parting is, dm to the head's left of the middle."""
    lift: float
    """How far strands leave the skin instead of following it."""
    curl: float
    """Radius of curls (cm)."""
    turns: float
    """Turns of a curl along a strand."""
    grav: float
    layer: float
    """Thickness of the whole (cm)."""
    width: float
    """Half a ribbon's width (cm)."""
    mess: float
    kink: float
    """Noise of direction at each segment."""
    comb: str
    """part, back, fwd, whorl, or down for beards."""
    fringe: float
    recede: float
    """How far the hairline has gone back."""
    top: float
    """Length at the top (of a beard: everywhere)."""
    side: float | None = None
    back: float | None = None


@dataclass(frozen=True)
class Cloth:
    """A shirt. Colours are linear RGB."""

    col: tuple[float, float, float]
    neck: float
    """Height of the neckline (dm from its usual one)."""
    v: float
    """Depth of a V-neck."""
    pat: float
    """0 and 1 plain, 2 blotched, 3 striped."""
    thick: float
    """Distance from the skin (dm)."""


@dataclass(frozen=True)
class Glasses:
    """Spectacles. Lengths in millimetres."""

    width: float
    """Of one rim."""
    height: float
    """Of one rim."""
    roundness: float
    """Exponent of the rim's superellipse: 2 round, 4 nearly a rectangle."""
    taper: float
    """How much narrower the rim is below than above."""
    thickness: float
    """Of the frame."""
    drop: float
    """How far the rims' centres are below the pupils."""
    col: tuple[float, float, float]
    """The frame's linear RGB."""
    shade: float
    """Opacity of the lenses."""


@dataclass(frozen=True)
class HeadParams:
    """Everything that makes a head; `params/headNNNNNN.json` has the same names."""

    gender: float
    """0 female, 1 male."""
    age: float
    """Years, 6 to 85."""
    race: tuple[float, float, float]
    """Mixture of African, Asian and Caucasian geometry; sums to 1."""
    muscle: float
    weight: float
    axes: Mapping[str, float]
    """Signed axes of shape, `part/name-decr|incr`."""
    shape: tuple[str, float]
    """One of MakeHuman's shapes of head, and how much of it."""
    asym: Mapping[str, float]
    """Targets that make a face unequal, each with its weight."""
    expr: Mapping[str, float]
    """Expression units with their weights."""
    gaze: tuple[float, float]
    """Yaw and pitch of the eyes (radians)."""
    skin: tuple[str, str]
    """Two skin textures ..."""
    skinmix: float
    """... and the share of the first."""
    tone: tuple[float, float, float]
    """Logarithmic changes of the skin's lightness, redness and yellowness."""
    freckles: float
    oil: float
    haircol: tuple[float, float, float]
    """Linear RGB of hair, brows and beard."""
    hair: str
    """bald, the name of a mesh, or `+` and the kind of what grows."""
    groom: Groom | None
    bgroom: Groom
    """Of the beard, whether there is one or not."""
    seed: int
    """Of the strands."""
    hairjit: tuple[float, float, float, float]
    """Hair meshes are mirrored where the first is negative; the others are spare."""
    stubble: float
    beard: float
    """0: none; what is above 0 has one."""
    beardstyle: tuple[float, float, float]
    brow: str
    lash: str
    makeup: float
    lip: tuple[float, float, float]
    """Lipstick, linear RGB."""
    eye: str
    """Texture of the iris."""
    teeth: str
    cloth: Cloth
    recipe: int = 1
    skintone: float | None = None
    """Recipe 2: place on `SKIN_TONES`, 0 the lightest, 1 the darkest."""
    glasses: Glasses | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values under the names of the fields. What recipe 1 did not have is left out of its heads."""
        plain: dict[str, Any] = _plain(asdict(self))
        for key in ("groom", "bgroom"):
            if plain[key] is not None:
                plain[key] = {k: v for k, v in plain[key].items() if v is not None}
        if self.recipe == 1:
            for key in ("recipe", "skintone", "glasses"):
                del plain[key]
        return plain

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> HeadParams:
        """The inverse of `to_json`; names it does not know are ignored. Raises DataError when one is missing."""
        try:
            given = _typed(cls, values)
            for key, kind in (("groom", Groom), ("bgroom", Groom), ("cloth", Cloth), ("glasses", Glasses)):
                if given.get(key) is not None:
                    given[key] = kind(**_typed(kind, given[key]))
            return cls(**given)
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"These are not the parameters of a head ({error}). Give a file of `params/` that this tool wrote."
            ) from error


@dataclass(frozen=True)
class Vocabulary:
    """What a bundle has to draw from."""

    axes: Mapping[str, tuple[str, str]]
    """Signed axis -> its targets for minus and for plus."""
    shapes: tuple[str, ...]
    asymmetries: tuple[str, ...]
    skins: tuple[str, ...]

    @classmethod
    def of(cls, bundle: Bundle) -> Vocabulary:
        """Pairs opposite targets into axes; lists shapes of head, asymmetries and skins."""
        names = list(bundle.targets)
        axes: dict[str, tuple[str, str]] = {}
        for part in SHAPE_PARTS:
            axes.update(_signed_axes([name for name in names if name.startswith(f"{part}/")]))
        shapes = tuple(n for n in names if n.startswith("head/") and n.rsplit("-")[-1] in HEAD_SHAPES)
        return cls(axes, shapes, tuple(n for n in names if n.startswith("asym/")), bundle.skins)


def draw_params(vocabulary: Vocabulary, rng: np.random.Generator) -> HeadParams:
    """A head of recipe 1. The order of the draws is part of the recipe."""
    u = rng.uniform
    gender = float(np.clip(rng.beta(0.35, 0.35), 0.0, 1.0))
    child = rng.random()
    age = float(u(6, 17) if child < 0.12 else u(17, 50) if child < 0.82 else u(50, 85))
    race = rng.dirichlet([0.45, 0.45, 0.75])
    dark, _, fair = race
    muscle = float(np.clip(rng.normal(0.5, 0.15), 0, 1))
    weight = float(np.clip(rng.normal(0.52, 0.17), 0.1, 1))
    axes = _draw_axes(sorted(vocabulary.axes), rng)
    shape = (str(rng.choice(vocabulary.shapes)), float(u(0, 0.45)))
    asym = {k: float(u(0, 0.25)) for k in rng.choice(vocabulary.asymmetries, 8, replace=False).tolist()}
    expr = _draw_expression(rng)
    gaze = (float(rng.normal(0, 0.09)), float(rng.normal(0, 0.05)))
    sex = "male" if gender > 0.5 else "female"
    skin = _draw_skins(vocabulary.skins, age, race, sex, rng)
    skinmix = float(u(0.55, 1))
    tone = (float(rng.normal(0, 0.08) + 0.12 * dark), float(rng.normal(0, 0.035)), float(rng.normal(0, 0.03)))
    freckles = float(max(0, rng.normal(-0.25, 0.45)) * (1 - dark) * (fair > 0.4))
    oil = float(u(0.1, 0.65))
    haircol, grey = _draw_hair_colour(age, fair, rng)
    hair = _draw_hair(sex, dark, grey, rng)
    groom = draw_groom(rng, hair[1:]) if hair[0] == "+" else None
    if groom:
        back = groom.recede * (0.2 if sex == "female" else 1) + (grey * 0.8 if sex == "male" else 0)
        groom = replace(groom, recede=back)
    bgroom = draw_groom(rng, "beard")
    seed = int(rng.integers(1 << 30))
    jitter = (float(u(-1, 1)), float(rng.normal(0, 0.02)), float(rng.normal(0, 0.02)), float(rng.normal(0, 0.02)))
    adult = np.clip((age - 16) / 8, 0, 1) * (gender > 0.6)
    shaven = rng.random()
    stubble = float(adult * u(0, 0.9)) if shaven < 0.6 else float(adult)
    beard = float(adult * u(0.25, 1)) if shaven > 0.66 else 0.0
    beardstyle = (float(rng.random()), float(rng.random()), float(rng.random()))
    brow, lash = BROWS[rng.integers(1, 13) - 1], LASHES[rng.integers(1, 5) - 1]
    makeup = float(u(0, 1) * (sex == "female") * (age > 16) * (rng.random() < 0.6))
    lip = _triple(np.array([0.55, 0.08, 0.1]) * u(0.4, 1.1) + rng.normal(0, 0.02, 3))
    light = 1 - min(1, 2.2 * (1 - fair))
    eye = str(rng.choice(IRISES, p=np.array([1] + [0.35] + [0.16 * light] * 7) / (1.35 + 1.12 * light)))
    teeth = str(rng.choice(TEETH))
    saturation = rng.dirichlet([12, 12, 12]) * 3 if rng.random() < 0.65 else rng.dirichlet([2, 2, 2]) * 3
    cloth = Cloth(
        col=_triple(np.clip(np.exp(u(np.log(0.015), np.log(0.7))) * saturation, 0.008, 0.85)),
        neck=float(u(-0.62, 0.0)),
        v=float(max(0, rng.normal(0, 0.5))),
        pat=float(rng.choice(4, p=[0.45, 0.3, 0.1, 0.15])),
        thick=float(u(0.03, 0.09)),
    )
    return HeadParams(
        gender=gender, age=age, race=_triple(race), muscle=muscle, weight=weight, axes=axes, shape=shape, asym=asym,
        expr=expr, gaze=gaze, skin=skin, skinmix=skinmix, tone=tone, freckles=freckles, oil=oil, haircol=haircol,
        hair=hair, groom=groom, bgroom=bgroom, seed=seed, hairjit=jitter, stubble=stubble, beard=beard,
        beardstyle=beardstyle, brow=brow, lash=lash, makeup=makeup, lip=lip, eye=eye, teeth=teeth, cloth=cloth,
    )  # fmt: skip


# Recipe 2


def draw_balanced(vocabulary: Vocabulary, rng: np.random.Generator, seed: int, index: int) -> HeadParams:
    """A head of recipe 2. Who it is comes from its place in its block, all else from `rng`."""
    u = rng.uniform
    male, origin, (youngest, oldest) = balanced_cell(seed, index)
    likeness = rng.beta(0.35, 0.35)
    gender = float(max(likeness, 1 - likeness) if male else min(likeness, 1 - likeness))
    age = float(u(youngest, oldest))
    if origin < len(ANCESTRIES):
        main = u(0.7, 1.0)
        race = np.insert((1 - main) * rng.dirichlet([1, 1]), origin, main)
    else:
        race = rng.dirichlet([3, 3, 3])
    dark, _, fair = race
    sex = "male" if male else "female"
    light, deep = ((0.45, 1.0), (0.05, 0.5), (0.0, 0.45), (0.15, 0.85))[origin]
    smile = float(np.interp(age, [8, 18], [0.6, 1.0]))
    base = draw_params(vocabulary, rng)
    haircol, grey = _draw_hair_colour(age, fair, rng)
    hair = _draw_hair(sex, dark, grey, rng, bald=0.35 * float(age > 25), awkward=0.0)
    groom = draw_groom(rng, hair[1:]) if hair[0] == "+" else None
    if groom:
        back = (groom.recede if sex == "male" and age > 25 else 0.2 * groom.recede) + 0.8 * grey * (sex == "male")
        groom = replace(groom, recede=float(back), mess=0.7 * groom.mess)
        if groom.kind == "curly":  # not over the eyes
            groom = replace(groom, top=min(groom.top, 5.5), fringe=0.0)
    grown = sex == "male" and gender > 0.6 and age > 21
    brown = 1 - min(1, 2.2 * (1 - fair))
    return replace(
        base,
        recipe=2,
        gender=gender,
        age=age,
        race=_triple(race),
        axes={k: 0.85 * v if "eyebrows-angle" not in k else v for k, v in base.axes.items()},
        expr={k: v * (smile if k in SMILES else 1.0) for k, v in base.expr.items()},
        skin=_draw_skins(vocabulary.skins, age, race, sex, rng),
        skintone=float(u(light, deep)),
        tone=_triple(0.6 * rng.normal(0, [0.08, 0.035, 0.03])),
        freckles=float(max(0, rng.normal(-0.25, 0.45)) * (1 - dark) * (fair > 0.4)),
        oil=base.oil * (1 - 0.45 * float(dark)),
        haircol=haircol,
        hair=hair,
        groom=groom,
        stubble=float(u(0, 0.9)) * grown,
        beard=float(u(0.25, 1)) * grown * bool(rng.random() < 0.34),
        makeup=float(u(0, 1) * (sex == "female") * (age > 16) * (rng.random() < 0.6)),
        eye=str(rng.choice(IRISES, p=np.array([1] + [0.35] + [0.16 * brown] * 7) / (1.35 + 1.12 * brown))),
        glasses=_draw_glasses(rng) if rng.random() < 0.125 and not _over_the_eyes(hair, groom) else None,
    )


def balanced_cell(seed: int, index: int) -> tuple[bool, int, tuple[float, float]]:
    """Who head `index` is in recipe 2: male or not, its ancestry (3: a mixture), the range of its age (years).

    Every block of 64 heads has each of the 2 x 4 x 8 combinations once, in an order of its own.
    """
    block, place = divmod(index, BLOCK)
    cell = int(np.random.default_rng([seed, block, 1 << 20]).permutation(BLOCK)[place])
    return bool(cell % 2), cell // 2 % 4, AGES[cell // 8]


def _over_the_eyes(hair: str, groom: Groom | None) -> bool:
    return hair in ("afro01",) or (groom is not None and groom.kind == "curly")


def _draw_glasses(rng: np.random.Generator) -> Glasses:
    u = rng.uniform
    dark = rng.random() < 0.6
    colour = (
        np.full(3, u(0.004, 0.05)) if dark else np.array([0.3, 0.16, 0.08]) * u(0.15, 1.2) + rng.uniform(0, 0.05, 3)
    )
    return Glasses(
        width=float(u(44, 53)),
        height=float(u(32, 44)),
        roundness=float(u(2.0, 4.2)),
        taper=float(u(0, 0.16)),
        thickness=float(u(1.6, 4.2)),
        drop=float(u(1, 5)),
        col=_triple(colour),
        shade=float(u(0.35, 0.85)) if rng.random() < 0.15 else float(u(0.02, 0.08)),
    )


# Draws that both recipes share


def draw_groom(rng: np.random.Generator, kind: str) -> Groom:
    """A random way of wearing one kind of hair, or a beard."""
    u = rng.uniform
    g: dict[str, Any] = {
        "kind": kind, "n": 4600, "seg": 8, "part": float(rng.choice([-1, 1]) * u(0.05, 0.3)), "lift": u(0.2, 0.6),
        "curl": 0.0, "turns": 1.0, "grav": u(0.25, 0.6), "layer": u(0.5, 1.2), "width": u(0.10, 0.15),
        "mess": u(0.05, 0.2), "kink": 0.0, "comb": str(rng.choice(COMBS)), "fringe": u(0, 1),
        "recede": max(0, rng.normal(-0.1, 0.3)),
    }  # fmt: skip
    if kind == "buzz":
        g |= {"top": u(0.3, 0.9), "side": u(0.2, 0.6), "back": u(0.2, 0.6), "lift": 1.2, "grav": 0.1, "n": 5000}
        g |= {"seg": 3, "width": 0.09, "layer": 0.05, "comb": "fwd"}
    if kind == "short":
        g |= {"top": u(2.5, 6), "side": u(0.8, 2.5), "back": u(0.8, 2.5), "lift": u(0.3, 0.9), "curl": u(0, 0.12)}
        g |= {"turns": u(0.3, 0.8)}
    if kind == "curly":
        g |= {"top": u(5, 11), "side": u(4, 9), "back": u(5, 10), "curl": u(0.3, 0.6), "turns": u(1.5, 3)}
        g |= {"mess": 0.25, "lift": u(0.6, 1.1), "comb": str(rng.choice(["whorl", "part"])), "seg": 16, "n": 2600}
        g |= {"width": 0.16}
    if kind == "afro":
        g |= {"top": u(2.0, 6), "side": u(1.5, 5), "back": u(1.5, 5), "kink": 1.3, "mess": 0.2, "lift": 2.0}
        g |= {"grav": 0.0, "comb": "whorl", "seg": 9, "n": 5200, "width": 0.15, "curl": 0.15, "turns": 3.0}
        g |= {"layer": 0.2}
    if kind == "mid":
        g |= {"top": u(11, 17), "side": u(8, 13), "back": u(8, 14)}
        g |= {"comb": str(rng.choice(["part", "part", "part", "back"])), "grav": u(0.8, 1.3), "seg": 14, "n": 3200}
        g |= {"mess": u(0.02, 0.09), "curl": u(0, 0.4) * (rng.random() < 0.5), "turns": u(0.5, 1.6)}
        g |= {"width": u(0.13, 0.2), "layer": u(0.4, 1.0), "lift": u(0.15, 0.45)}
    if kind == "long":
        g |= {"top": u(26, 34), "side": u(22, 32), "back": u(22, 32)}
        g |= {"comb": str(rng.choice(["part", "part", "part", "back"])), "grav": u(0.9, 1.4), "seg": 18, "n": 3200}
        g |= {"mess": u(0.015, 0.06), "curl": u(0, 0.7) * (rng.random() < 0.5), "turns": u(1, 3.5)}
        g |= {"width": u(0.15, 0.22), "layer": u(0.4, 0.9), "lift": u(0.1, 0.35)}
    if kind == "beard":
        g |= {"top": u(0.4, 2.6), "n": 5200, "seg": 4, "lift": 0.35, "grav": 0.7, "width": 0.06}
        g |= {"kink": u(0.05, 0.35), "mess": 0.25, "layer": 0.1, "comb": "down"}
    return Groom(**_typed(Groom, g))


def _draw_axes(names: Sequence[str], rng: np.random.Generator) -> dict[str, float]:
    """Left and right follow one draw, with a little of their own."""
    axes: dict[str, float] = {}
    tied: dict[str, float] = {}
    for name in names:
        both = name.replace("/l-", "/*-").replace("/r-", "/*-")
        if both not in tied:
            moves = ("trans" in name or "scale" in name) and not name.startswith(("mouth", "nose"))
            sigma = 0.13 if moves else 0.24
            if name.startswith("eyes/") and ("push" in name or "height" in name):
                sigma = 0.16
            if "age-" in name:
                sigma = 0.1
            raised = 0.55 if "eyebrows-angle" in name else 0  # less of a frown
            tied[both] = float(np.clip(rng.normal(0, sigma), -0.75, 0.75)) + raised
        axes[name] = tied[both] + (float(rng.normal(0, 0.03)) if both != name else 0.0)
    return axes


def _draw_expression(rng: np.random.Generator) -> dict[str, float]:
    """Neutral, closed smile, toothy smile, open mouth, frown, or a rarer one; brows raised, now and then a blink."""
    units: dict[str, float] = {}
    u = rng.uniform
    kind = rng.random()

    def both(name: str, weight: float) -> None:
        units.update({name.replace("*", side): weight for side in ("left", "right")})

    if kind < 0.30:
        pass
    elif kind < 0.52:
        units["mouth-corner-puller"] = u(0.3, 0.8)
        both("eye-*-slit", u(0, 0.15))
    elif kind < 0.76:
        units["mouth-corner-puller"] = u(0.2, 0.7)
        units["mouth-upward-retraction"] = u(0.35, 0.9)
        units["mouth-parling"] = u(0, 0.3)
        both("eye-*-slit", u(0, 0.2))
    elif kind < 0.86:
        units["mouth-open"] = u(0.1, 0.45)
        both("eyebrows-*-up", u(0, 0.6))
        units["mouth-corner-puller"] = u(0, 0.5)
    elif kind < 0.93:
        both("eyebrows-*-down", u(0.1, 0.5))
        units["mouth-compression"] = u(0, 0.5)
    else:
        rare = ["mouth-pursing", "mouth-protusion", "mouth-part-later", "mouth-depression"]
        units[str(rng.choice(rare))] = u(0.2, 0.6)
    if rng.random() < 0.6:
        both("eyebrows-*-up", u(0, 0.35))
    both("eyebrows-*-inner-up", u(0.15, 0.75))
    if rng.random() < 0.015:
        both("eye-*-closure", u(0.5, 1))
    return {k: float(v) for k, v in units.items()}


def _draw_skins(
    skins: Sequence[str], age: float, race: np.ndarray, sex: str, rng: np.random.Generator
) -> tuple[str, str]:
    """A texture near the head's age and ancestry and a second one to mix with it."""
    stage = "young" if age < 33 else "middleage" if age < 58 else "old"

    def pick(at: str) -> str:
        name = f"{at}_{ANCESTRIES[rng.choice(3, p=race)]}_{sex}"
        return name + ("2" if rng.random() < 0.5 else "")

    first = pick(stage)
    second = pick(str(rng.choice([stage, "young", "middleage"])))
    first, second = (name if name in skins else name.rstrip("2") for name in (first, second))
    return first, second


def _draw_hair_colour(age: float, fair: float, rng: np.random.Generator) -> tuple[tuple[float, float, float], float]:
    """Linear RGB, and how grey it is (0 to 1)."""
    old = np.clip((age - 46) / 30, 0, 1) * rng.uniform(0.3, 1.3)
    pigments = np.array(
        [
            [0.012, 0.009, 0.008],
            [0.035, 0.018, 0.01],
            [0.085, 0.043, 0.02],
            [0.19, 0.105, 0.048],
            [0.44, 0.28, 0.12],
            [0.22, 0.06, 0.02],
        ]
    )
    share = rng.dirichlet([2.5, 2, 1.6, 1.0, 0.8, 0.35]) ** 2.5
    if fair < 0.5:
        share = np.array([3, 1.5, 0.2, 0, 0, 0]) * rng.uniform(0.5, 1, 6)
    colour = (pigments * (share / share.sum())[:, None]).sum(0) * rng.uniform(0.7, 1.3)
    colour = colour * 0.8
    grey = np.clip(old, 0, 1)
    colour = colour * (1 - grey) + grey * np.array([0.36, 0.35, 0.34]) * rng.uniform(0.5, 1.2)
    return _triple(colour), float(grey)


def _draw_hair(
    sex: str, dark: float, grey: float, rng: np.random.Generator, bald: float = 0.35, awkward: float = 1.0
) -> str:
    """A style. `bald` is the weight of baldness, `awkward` a factor on those of the meshes that hang over an eye."""
    if sex == "male":
        weights = {
            "short01": 0.8, "short02": 0.8, "short03": 0.7 * awkward, "short04": 0.5, "bald": bald + 1.4 * grey,
            "afro01": 0.2 * dark, "+buzz": 2.0, "+short": 4.0, "+curly": 1.2, "+afro": 0.2 + 2.2 * dark, "+mid": 0.6,
            "+long": 0.4,
        }  # fmt: skip
    else:
        weights = {
            "bob01": 0.5 * awkward, "bob02": 1.0 * awkward, "long01": 1.2, "ponytail01": 1.2, "braid01": 1.0,
            "short01": 0.2, "+short": 0.8, "+curly": 1.2, "+afro": 0.1 + 2 * dark, "+mid": 2.4, "+long": 3.2,
            "+buzz": 0.15,
        }  # fmt: skip
    p = np.array(list(weights.values()))
    return str(rng.choice(list(weights), p=p / p.sum()))


def _signed_axes(targets: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Pairs of opposite targets, in the order in which the first of each pair appears."""
    found: dict[str, list[str | None]] = {}
    for target in targets:
        stem, _, tail = target.rpartition("-")
        for minus, plus in OPPOSITES:
            if tail in (minus, plus):
                found.setdefault(f"{stem}-{minus}|{plus}", [None, None])[tail == plus] = target
    return {name: (a, b) for name, (a, b) in found.items() if a and b}


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    a, b, c = (float(v) for v in values)
    return a, b, c


def _typed(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a dataclass has fields for, lists as tuples, whole numbers as floats where it wants those."""
    given = {f.name: (f.type, values[f.name]) for f in fields(kind) if f.name in values}
    return {
        name: float(v) if wanted == "float" else tuple(v) if isinstance(v, list) else v
        for name, (wanted, v) in given.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value
