"""Measures of a finished head: is the photo matched, and is it a whole head from the side?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from headlift.config import Frame
from headlift.eg3d.camera import orbit
from headlift.export.images import to_uint8
from headlift.export.views import render_views
from headlift.invert.result import Inversion
from headlift.pose_estimation.redetect import redetect

MIN_PSNR = 24.0
"""Of the input view over the mask at 256 pixels, dB."""
MAX_YAW_ERROR = 6.0
"""Between a side view's camera and the face found in its picture, degrees."""
MAX_DEPTH_MOVED = 0.02
"""Median change of depth by the tuning, world units."""
SIDE_YAWS = (-30.0, 30.0)
"""Side views that are looked at, degrees."""


@dataclass(frozen=True)
class SideView:
    """What a face detector sees in a render from the side; degrees."""

    yaw: float
    """Of the camera."""
    found: float | None
    """Yaw of the face found in the picture; None where no face is found."""

    @property
    def error(self) -> float:
        return 180.0 if self.found is None else abs(self.found - self.yaw)


@dataclass(frozen=True)
class HeadCheck:
    """One row of the table that says whether a head came out well."""

    psnr: float
    """Input view against the crop over the mask at 256 pixels, dB."""
    views: tuple[SideView, ...]
    depth_moved: float
    """Median change of depth by the tuning, world units."""

    @property
    def ok(self) -> bool:
        """All three within their limits."""
        return not self.complaints

    @property
    def complaints(self) -> tuple[str, ...]:
        """Each limit that is missed, with its number; a number that is none misses it."""
        found = []
        if not self.psnr >= MIN_PSNR:
            found.append(f"the input view is matched at {self.psnr:.1f} dB, below {MIN_PSNR:.0f}")
        for view in self.views:
            if view.found is None:
                found.append(f"no face is found at yaw {view.yaw:+.0f} degrees")
            elif not view.error <= MAX_YAW_ERROR:
                found.append(f"at yaw {view.yaw:+.0f} the face looks to {view.found:+.0f} degrees")
        if not self.depth_moved <= MAX_DEPTH_MOVED:
            found.append(f"tuning moved the depth by {self.depth_moved:.3f} units, above {MAX_DEPTH_MOVED}")
        return tuple(found)


@torch.no_grad()
def check_head(inversion: Inversion, planes: Float[Tensor, "1 j c p p"], frame: Frame = "embedded") -> HeadCheck:
    """Render a head from both sides and look for its face there; with the match of its input view.

    `frame` is what the generator takes for straight ahead (`PoseConfig.frame`).
    """
    yaw = torch.tensor([math.radians(angle) for angle in SIDE_YAWS])
    cameras = orbit(yaw, torch.zeros_like(yaw))
    views = []
    for angle, out in zip(SIDE_YAWS, render_views(inversion.generator, planes, inversion.ws, cameras), strict=True):
        face = redetect(to_uint8(out.image), frame)
        views.append(SideView(angle, None if face is None else math.degrees(face[0])))
    return HeadCheck(inversion.metrics["psnr"], tuple(views), inversion.metrics["depth_moved"])
