"""Pictures of an edit: before and after from several sides, a strip over strengths, the frames of a video."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from headlift.editing.edit import S, Subject, blend
from headlift.eg3d.camera import orbit
from headlift.export.images import grid, to_uint8
from headlift.values import Camera

SIDE_YAW = 0.6
"""Of the side views beside the photo's, radians."""


@torch.no_grad()
def view(subject: Subject, camera: Camera) -> UInt8[np.ndarray, "h w 3"]:
    """What a camera sees of a head."""
    generator, ws = subject.generator, subject.ws
    return to_uint8(generator.render(generator.planes(ws), ws, camera).image)


@torch.no_grad()
def before_after(before: Subject, after: Subject, caption: str) -> UInt8[np.ndarray, "h w 3"]:
    """Two rows, before and after: the photo's camera, the front and both sides; `caption` stands below."""
    sides = orbit(torch.tensor([0.0, -SIDE_YAW, SIDE_YAW]), torch.zeros(3)).to(before.ws.device)
    pictures, labels = [], []
    for name, head in (("before", before), ("after", after)):
        planes = head.generator.planes(head.ws)
        cameras = [before.camera, *(sides[i : i + 1] for i in range(3))]
        pictures += [to_uint8(head.generator.render(planes, head.ws, camera).image) for camera in cameras]
        labels += [f"{name}, photo's camera", *(f"{name}, {degrees}" for degrees in ("front", "-34°", "+34°"))]
    return captioned(grid(pictures, labels, columns=4), caption)


def strip(
    rows: Iterable[Iterable[tuple[str, Subject]]], camera: Camera, caption: str = ""
) -> UInt8[np.ndarray, "h w 3"]:
    """Rows of labelled heads, all seen by one camera; rows must be equally long.

    Heads that a row makes as they are asked for are held one at a time.
    """
    shown = [[(label, view(head, camera)) for label, head in row] for row in rows]
    labels, pictures = zip(*(pair for row in shown for pair in row), strict=True)
    sheet = grid(pictures, labels, columns=len(shown[0]))
    return captioned(sheet, caption) if caption else sheet


def frames_between(before: S, after: S, shares: Sequence[float], cameras: Camera) -> Iterator[np.ndarray]:
    """Frames of a video: the head at each share of the way, seen by the camera of the same number."""
    for i, share in enumerate(shares):
        yield view(blend(before, after, share), cameras[i : i + 1])


def there_and_back(frames: int, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Shares from `low` to `high` and back, slow at both ends; the last frame leads into the first."""
    return [low + (high - low) * (0.5 - 0.5 * math.cos(2 * math.pi * i / frames)) for i in range(frames)]


def captioned(sheet: UInt8[np.ndarray, "h w 3"], text: str) -> UInt8[np.ndarray, "i w 3"]:
    """A picture with lines of text on white below it, broken where they would not fit."""
    from PIL import Image, ImageDraw, ImageFont

    width = sheet.shape[1]
    size = max(11, width // 64)
    font = ImageFont.load_default(size)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and measure.textlength(longer, font=font) > width - 16:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    height = round(1.4 * size)
    bar = Image.new("RGB", (width, height * len(lines) + 10), "white")
    draw = ImageDraw.Draw(bar)
    for i, line in enumerate(lines):
        draw.text((8, 5 + i * height), line, fill=(40, 40, 40), font=font)
    return np.concatenate([sheet, np.asarray(bar)])
