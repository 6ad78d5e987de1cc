"""Reading a bundle of assets: base mesh, morph targets, proxies (hair, brows, lashes, teeth, eyes) and textures.

A bundle is a folder with `assets.npz` and `tex/*.png`; `assets.py` builds it. Positions are in MakeHuman's rest frame
(decimetres, y up, the face towards +z).
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Integer, UInt8

from headlift.errors import DataError

MESH_HAIR = (
    "afro01", "bob01", "bob02", "braid01", "long01", "ponytail01", "short01", "short02", "short03", "short04",
)  # fmt: skip
"""Hair that comes as a mesh with a texture; all other hair is grown."""
BROWS = tuple(f"eyebrow{i:03d}" for i in range(1, 13))
LASHES = tuple(f"eyelashes{i:02d}" for i in range(1, 5))
TEETH = ("teeth_base", *(f"teeth_shape{i:02d}" for i in range(1, 6)))
TONGUE = "tongue01"
EYE = "high-poly"
IRISES = ("brown", "brownlight", "blue", "lightblue", "deepblue", "bluegreen", "green", "grey", "ice")
ANCESTRIES = ("african", "asian", "caucasian")
PROXIES = (
    *(f"hair/{name}" for name in MESH_HAIR),
    *(f"brow/{name}" for name in BROWS),
    *(f"lash/{name}" for name in LASHES),
    *(f"teeth/{name}" for name in TEETH),
    f"tongue/{TONGUE}",
    f"eye/{EYE}",
)
"""Keys of the meshes that hang on the base mesh."""
SURFACES = ("skin", "cloth")
"""Meshes that are the base mesh itself, subdivided once."""
TEXTURES = (
    *(f"hair_{name}" for name in MESH_HAIR),
    *(f"brow_{name}" for name in BROWS),
    *(f"lash_{name}" for name in LASHES),
    *(f"eye_{name}" for name in IRISES),
    *(f"skin_{a}_{c}_{g}" for a in ("young", "middleage", "old") for c in ANCESTRIES for g in ("female", "male")),
    "teeth",
    "tongue",
)  # fmt: skip
"""Pictures that must be in `tex/`; further `skin_*` may be."""
TARGET_UNIT = 1e-3
"""Morph targets are stored as integers of this many decimetres."""
HOW_TO_BUILD = (
    "Build one with `python -m headlift.prior.synthetic bundle RELEASE BUNDLE` from MakeHuman's CC0 asset release; "
    "`python -m headlift.prior.synthetic bundle --where` says where to get that."
)

Target = tuple[Integer[np.ndarray, " m"], Float[np.ndarray, "m 3"]]
"""A morph target: which vertices of the base mesh it moves, and by how much (decimetres)."""


@dataclass(frozen=True)
class Bundle:
    """The assets, as they are stored; see the module for the frame."""

    folder: Path
    arrays: Mapping[str, np.ndarray]
    """Everything of `assets.npz` but the morph targets."""
    targets: Mapping[str, Target]
    """Morph targets by name. One that moves nothing of the head is not in a bundle."""

    @cached_property
    def base(self) -> Float[np.ndarray, "v 3"]:
        """Vertices of the base mesh that the head needs, at rest."""
        return self.arrays["base/v"].astype("f8")

    @cached_property
    def skins(self) -> tuple[str, ...]:
        """Names of the skin textures, without `skin_`."""
        return tuple(sorted(path.stem[5:] for path in (self.folder / "tex").glob("skin_*.png")))

    def subdivision(self, surface: str) -> sp.csr_matrix:
        """The linear map from the base mesh's vertices to those of a subdivided surface."""
        rows, columns = self.arrays[f"{surface}/S"]
        shape = (int(self.arrays[f"{surface}/n"]), len(self.base))
        return sp.csr_matrix((self.arrays[f"{surface}/Sw"], (rows, columns)), shape)

    def texture(self, name: str) -> UInt8[np.ndarray, "h w 4"]:
        """A texture as RGBA, sRGB, row 0 at the top. Raises DataError when it is missing or no picture."""
        from PIL import Image

        path = self.folder / "tex" / f"{name}.png"
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGBA"))
        except OSError as error:
            raise DataError(f"The texture {path} cannot be read ({error}). {HOW_TO_BUILD}") from error


def bundle_digest(folder: Path) -> str:
    """A sha256 of all files of a bundle: what is drawn from it is the same as long as it stays the same."""
    digest = hashlib.sha256()
    for path in (folder / "assets.npz", *sorted((folder / "tex").glob("*.png"))):
        digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()


def load_bundle(folder: Path) -> Bundle:
    """Read a bundle and look whether it is whole.

    Raises DataError, saying how to build one, when the folder is no bundle or lacks something.
    """
    path = folder / "assets.npz"
    if not path.is_file():
        raise DataError(f"There is no bundle of assets at {folder}: {path.name} is missing. {HOW_TO_BUILD}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read ({error}). {HOW_TO_BUILD}") from error
    targets = {
        name[4:-2]: (array.astype(int), arrays[f"{name[:-1]}d"].astype("f8") * TARGET_UNIT)
        for name, array in arrays.items()
        if name.startswith("tgt/") and name.endswith("/i")
    }
    needed = ["base/v", "skinlo/pos", "skinlo/tri"]
    needed += [f"{s}/{k}" for s in SURFACES for k in ("S", "Sw", "n", "pos", "tri", "uv")]
    needed += [f"{p}/{k}" for p in PROXIES for k in ("refs", "wts", "offs", "sref", "sden", "pos", "tri", "uv")]
    missing = [name for name in needed if name not in arrays]
    missing += [f"tex/{name}.png" for name in TEXTURES if not (folder / "tex" / f"{name}.png").is_file()]
    missing += [] if targets else ["tgt/*"]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise DataError(f"The bundle {folder} is not whole: it lacks {shown}. {HOW_TO_BUILD}")
    return Bundle(folder, {k: v for k, v in arrays.items() if not k.startswith("tgt/")}, targets)
