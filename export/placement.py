"""Where a mesh's coordinates in a file lie in EG3D's world: unit, upward axis and origin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from headlift.config import MeshConfig
from headlift.errors import ConfigError

METRES_PER_UNIT = 0.396
"""Scale of a head: 63 mm between the pupils, which lie 0.159 units apart."""
Z_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
"""Turns y up, face towards +z, into z up, face towards -y (Blender's front)."""


@dataclass(frozen=True)
class Placement:
    """How world coordinates become those of a file."""

    metres_per_unit: float = METRES_PER_UNIT
    up: Literal["y", "z"] | None = None
    """The axis that points up; None for the format's own."""
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """The world point that lies at the file's origin."""

    @classmethod
    def of(cls, config: MeshConfig, vertices: Float[np.ndarray, "v 3"]) -> Placement:
        """As the settings say, for a mesh with these vertices (world units).

        Raises:
            ConfigError: a scale that is not above zero.
        """
        metres = config.metres_per_unit * config.scale
        if not metres > 0:
            raise ConfigError(f"a mesh cannot be {metres:g} metres a unit large; give a --scale above 0")
        base = (0.0, float(vertices[:, 1].min()), 0.0) if config.origin == "base" else (0.0, 0.0, 0.0)
        return cls(metres, config.up, base)

    def up_axis(self, suffix: str) -> Literal["y", "z"]:
        """The upward axis in files of this suffix.

        Raises:
            ConfigError: z is asked for in GLB, which is y up by its specification.
        """
        if suffix == ".glb" and self.up == "z":
            raise ConfigError(
                "a GLB is y up by its specification, and every program turns it as it needs; leave out --up z, or "
                "write .obj, .ply, .stl or .usdz"
            )
        return self.up or ("z" if suffix == ".stl" else "y")

    def from_world(self, suffix: str) -> Float[np.ndarray, "4 4"]:
        """The 4x4 from EG3D's world units to the coordinates in a file (column vectors): metres, in STL millimetres."""
        turn = Z_UP if self.up_axis(suffix) == "z" else np.eye(3)
        matrix = np.eye(4)
        matrix[:3, :3] = turn * self.metres_per_unit * (1000.0 if suffix == ".stl" else 1.0)
        matrix[:3, 3] = -matrix[:3, :3] @ np.array(self.origin)
        return matrix

    def to_world(self, suffix: str) -> Float[np.ndarray, "4 4"]:
        """The way back: the 4x4 that every file carries as `mesh_to_world`."""
        matrix: Float[np.ndarray, "4 4"] = np.linalg.inv(self.from_world(suffix)) + 0.0
        return matrix

    def points(self, points: Float[np.ndarray, "v 3"], suffix: str) -> Float[np.ndarray, "v 3"]:
        """World points as they stand in a file, float32."""
        matrix = self.from_world(suffix)
        return (points @ matrix[:3, :3].T + matrix[:3, 3]).astype(np.float32)

    def directions(self, vectors: Float[np.ndarray, "v 3"], suffix: str) -> Float[np.ndarray, "v 3"]:
        """World directions of unit length as they stand in a file, float32."""
        turned = vectors @ Z_UP.T if self.up_axis(suffix) == "z" else vectors
        return turned.astype(np.float32)

    def describe(self, suffix: str) -> str:
        """Unit and axes in words, for the head of a file."""
        axes = "z up, face towards -y" if self.up_axis(suffix) == "z" else "y up, face towards +z"
        return f"{'mm' if suffix == '.stl' else 'metres'}, {axes}"

    def matrix_lines(self, suffix: str) -> list[str]:
        """`mesh_to_world` row by row, for comments."""
        rows = self.to_world(suffix).tolist()
        return [f"mesh_to_world {i} " + " ".join(f"{value:.9g}" for value in row) for i, row in enumerate(rows)]
