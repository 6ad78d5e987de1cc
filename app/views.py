"""Pictures of a head for whoever turns it: planes once for each edit, drafts while it moves, full pictures at rest."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from headlift.editing.directions import Directions
from headlift.editing.edit import edit
from headlift.editing.identity import Drift, Ruler
from headlift.edits import ruler_of
from headlift.export.images import jpeg_bytes, to_uint8
from headlift.export.views import orbit_cameras
from headlift.head import Head, Loader, load_head
from headlift.values import Camera

Amounts = tuple[tuple[str, float], ...]
"""Directions and how far a head is moved along them; the ones that are zero left out, sorted by name."""
MOST_PITCH = math.radians(60)
"""How far up or down the camera goes, radians."""
DRAFTS = ((24, 8, 8), (32, 12, 8), (48, 16, 12), (64, 24, 16))
"""Draft pictures from the cheapest on: side of the feature map in pixels, samples of a ray, and fine ones."""
DRAFT_SECONDS = 0.1
"""A draft that takes longer is made cheaper the next time."""
EDITS_KEPT = 4
"""Edits of one head whose planes are kept."""
HEADS_KEPT = 6
"""Heads that are kept in memory, over all visitors."""


def amounts_of(values: Mapping[str, float | int]) -> Amounts:
    """Amounts in their one form; those nearer to zero than a slider can be set are zero."""
    return tuple(sorted((name, float(value)) for name, value in values.items() if abs(value) > 1e-3))


class HeadView:
    """A head that can be looked at. One picture at a time."""

    def __init__(self, head: Head, directions: Directions | None) -> None:
        self.head = head
        self.directions = directions
        self._edits: OrderedDict[Amounts, tuple[Head, Float[Tensor, "1 j c p p"]]] = OrderedDict()
        self._draft = len(DRAFTS) - 1
        self._lock = threading.Lock()
        self._ruler: Ruler | None = None
        self._measuring = threading.Lock()

    def edited(self, amounts: Amounts) -> Head:
        """The head moved along directions. Raises ConfigError or CheckpointError as `editing.edit.edit` does."""
        if not amounts or self.directions is None:
            return self.head
        return edit(self.head, self.directions, dict(amounts))

    def jpeg(self, yaw: float, pitch: float, draft: bool = False, amounts: Amounts = ()) -> bytes:
        """The head from a camera around it (radians, yaw > 0 from its left, pitch > 0 from above), as a JPEG.

        Drafts skip super-resolution; their resolution follows from how long the last ones took.
        """
        camera = orbit_cameras(torch.tensor([yaw]), max(-MOST_PITCH, min(MOST_PITCH, pitch)))
        with self._lock, torch.no_grad():
            head, planes = self._planes(amounts)
            camera = camera.to(planes.device)
            if draft:
                return jpeg_bytes(to_uint8(self._draft_picture(head, planes, camera)), quality=80)
            return jpeg_bytes(to_uint8(head.generator.render(planes, head.ws, camera).image))

    def drift(self, amounts: Amounts) -> Drift:
        """How far directions take the head from being the same person, by the best measure there is.

        The first time takes longer: other heads are drawn to compare with. Pictures are drawn meanwhile. Raises
        ConfigError or CheckpointError as `editing.edit.edit` does.
        """
        after = self.edited(amounts)
        with self._measuring:
            if self._ruler is None:
                self._ruler = ruler_of(self.head)
            return self._ruler.drift(self._ruler.seen(after))[0]

    def _planes(self, amounts: Amounts) -> tuple[Head, Float[Tensor, "1 j c p p"]]:
        if amounts not in self._edits:
            head = self.edited(amounts)
            self._edits[amounts] = head, head.generator.planes(head.ws)
        self._edits.move_to_end(amounts)
        while len(self._edits) > EDITS_KEPT:
            self._edits.popitem(last=False)
        return self._edits[amounts]

    def _draft_picture(self, head: Head, planes: Tensor, camera: Camera) -> Float[Tensor, "1 3 r r"]:
        side, samples, fine = DRAFTS[self._draft]
        side = min(side, head.generator.spec.neural_resolution)
        began = time.perf_counter()
        raw = head.generator.volume(planes, camera, side, None, samples, fine).features[:, :3]
        took = time.perf_counter() - began
        if took > DRAFT_SECONDS:
            self._draft = max(0, self._draft - 1)
        elif took < DRAFT_SECONDS / 3:
            self._draft = min(len(DRAFTS) - 1, self._draft + 1)
        return raw


class Shelf:
    """The heads looked at last, read from their files when they are not in memory."""

    def __init__(self, loader: Loader, weights: str, device: torch.device, directions: Directions | None) -> None:
        self._loader, self._weights, self._device, self._directions = loader, weights, device, directions
        self._views: OrderedDict[Path, HeadView] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path) -> Head:
        """A head from its file, on the app's own generator whatever the file names. Raises HeadFileError."""
        return load_head(path, self._weights, self._device, self._loader)

    def view(self, path: Path) -> HeadView:
        """The view of a head file. Raises HeadFileError."""
        with self._lock:
            if path not in self._views:
                self._views[path] = HeadView(self.read(path), self._directions)
            self._views.move_to_end(path)
            while len(self._views) > HEADS_KEPT:
                self._views.popitem(last=False)
            return self._views[path]

    def drop(self, folder: Path) -> None:
        """Forget the heads below a folder."""
        with self._lock:
            for path in [p for p in self._views if p.is_relative_to(folder)]:
                del self._views[path]
