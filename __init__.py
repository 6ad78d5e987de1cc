"""headlift: one photo of a face in, a 3D head out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "reconstruct": "headlift.pipeline",
    "ReconstructConfig": "headlift.config",
    "preset": "headlift.config",
    "Camera": "headlift.values",
    "HeadliftError": "headlift.errors",
}

if TYPE_CHECKING:
    from headlift.config import ReconstructConfig as ReconstructConfig
    from headlift.config import preset as preset
    from headlift.errors import HeadliftError as HeadliftError
    from headlift.pipeline import reconstruct as reconstruct
    from headlift.values import Camera as Camera


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'headlift' has no attribute {name!r}")
