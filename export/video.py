"""Videos of a head: MP4 that phones and browsers play, GIF, animated WebP. Frames are uint8 sRGB, rows by columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from headlift.errors import OutputError
from headlift.export.files import atomic_path
from headlift.export.images import to_uint8
from headlift.export.views import Volume, render_views
from headlift.values import Camera

Frame = UInt8[np.ndarray, "h w 3"]
SUFFIXES = (".mp4", ".gif", ".webp")


def render_path(
    generator: Volume,
    planes: Float[Tensor, "1 ..."],
    ws: Float[Tensor, "1 n w"],
    cameras: Camera,
    size: int | None = None,
    batch: int = 2,
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """A head from each camera, one frame after the other; `size` is the side in pixels, else the generator's own."""
    for out in render_views(generator, planes, ws, cameras, batch):
        image = out.image.float()
        if size is not None and size != image.shape[-1]:
            image = F.interpolate(image, size=(size, size), mode="bicubic", antialias=True)
        yield to_uint8(image)


def write_video(frames: Iterable[UInt8[np.ndarray, "h w 3"]], path: Path | str, fps: float | int = 30) -> None:
    """Write frames as .mp4, .gif or .webp, by the path's suffix; GIF and WebP play in a loop.

    MP4 frames are encoded as they come; GIF and WebP hold them until the end (a GIF one byte a pixel).
    Raises OutputError for another suffix, no frames at all, or a place that cannot be written.
    """
    path = Path(path)
    writers = {".mp4": _write_mp4, ".gif": _write_gif, ".webp": _write_webp}
    writer = writers.get(path.suffix.lower())
    if writer is None:
        raise OutputError(f"{path}: no such video format. headlift writes {', '.join(SUFFIXES)}.")
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise OutputError(f"{path}: a video needs at least one frame.")
    with atomic_path(path) as temporary:
        writer(_chain(first, frames), temporary, fps)


def _chain(first: Frame, rest: Iterator[Frame]) -> Iterator[Frame]:
    yield first
    yield from rest


def _write_mp4(frames: Iterator[Frame], path: Path, fps: float | int) -> None:
    """H.264 in 4:2:0, BT.709 in limited range and tagged so, even sides (the last row or column is repeated), and
    the index in front of the data so that playing starts before the download ends."""
    import av
    from av.video.reformatter import ColorRange, Colorspace

    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = None
        for pixels in frames:
            pixels = _even(pixels)
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.options = {"crf": "17", "preset": "medium", "profile": "high"}
                context = stream.codec_context
                context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1  # all BT.709
                context.color_range = 1  # limited ("MPEG")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            converted = frame.reformat(
                format="yuv420p",
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
                dst_colorspace=Colorspace.ITU709,
            )
            container.mux(stream.encode(converted))
        assert stream is not None
        container.mux(stream.encode(None))


def _even(pixels: Frame) -> UInt8[np.ndarray, "i j 3"]:
    height, width = pixels.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return pixels
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _write_gif(frames: Iterator[Frame], path: Path, fps: float | int) -> None:
    """Each frame has a palette of its own."""
    from PIL import Image

    pictures = [Image.fromarray(pixels).quantize(255, dither=Image.Dither.FLOYDSTEINBERG) for pixels in frames]
    # A GIF's clock ticks in hundredths of a second; below two of them, viewers slow down to ten frames a second.
    pictures[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=max(20, round(100 / fps) * 10),
        loop=0,
        disposal=1,
    )


def _write_webp(frames: Iterator[Frame], path: Path, fps: float | int) -> None:
    from PIL import Image

    pictures = [Image.fromarray(pixels) for pixels in frames]
    pictures[0].save(
        path,
        format="WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 / fps),
        loop=0,
        quality=85,
        method=4,
    )
