"""Videos, read back: codec, layout, colours, clock and loops."""

import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image

from headlift.errors import OutputError
from headlift.export.paths import turntable
from headlift.export.video import render_path, write_video
from headlift.values import Camera, RenderOutput


def frames(count: int, height: int = 64, width: int = 96) -> Iterator[np.ndarray]:
    """A bright bar that wanders over a coloured ground."""
    for i in range(count):
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        pixels[:] = (200, 40, 60)
        pixels[:, 8 * i % width : 8 * i % width + 8] = (250, 250, 240)
        yield pixels


def boxes(data: bytes) -> list[str]:
    """Names of an MP4's outermost boxes in their order."""
    names, at = [], 0
    while at < len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        names.append(name.decode())
        at += size if size > 1 else struct.unpack_from(">Q", data, at + 8)[0]
    return names


def test_mp4_plays_on_phones(tmp_path: Path) -> None:
    write_video(frames(12), tmp_path / "a.mp4", fps=25)
    data = (tmp_path / "a.mp4").read_bytes()
    order = boxes(data)
    assert order.index("moov") < order.index("mdat")  # faststart
    assert b"avc1" in data
    assert b"colrnclx" + struct.pack(">HHHB", 1, 1, 1, 0) in data  # BT.709 three times, limited range
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.codec_context.profile == "High"
        assert stream.average_rate == 25
        decoded = list(container.decode(video=0))
    assert len(decoded) == 12
    for i, (frame, pixels) in enumerate(zip(decoded, frames(12), strict=True)):
        assert frame.time == pytest.approx(i / 25)
        difference = np.abs(frame.to_ndarray(format="rgb24").astype(int) - pixels.astype(int))
        assert np.median(difference) <= 3


def test_mp4_colours_are_bt709(tmp_path: Path) -> None:
    """Pure red in BT.709, limited range: Y 63, Cb 102, Cr 240 (in BT.601 it would be 81, 90, 240)."""
    red = np.zeros((32, 32, 3), dtype=np.uint8)
    red[..., 0] = 255
    write_video([red] * 3, tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        planes = [np.asarray(p)[:8] for p in next(container.decode(video=0)).planes]
    for plane, value in zip(planes, (63, 102, 240), strict=True):
        assert abs(int(np.median(plane)) - value) <= 2


def test_mp4_sides_become_even(tmp_path: Path) -> None:
    write_video(frames(2, height=33, width=47), tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width) == (34, 48)


def test_mp4_is_written_as_frames_come(tmp_path: Path) -> None:
    """The encoder starts before the last frame is there: frames are not collected first."""
    seen: list[bool] = []

    def slow() -> Iterator[np.ndarray]:
        for pixels in frames(120):
            seen.append(any(p.stat().st_size > 0 for p in tmp_path.iterdir()))
            yield pixels

    write_video(slow(), tmp_path / "a.mp4")
    assert not seen[0]
    assert seen[-1]


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_loop(tmp_path: Path, suffix: str) -> None:
    write_video(frames(6), tmp_path / f"a{suffix}", fps=20)
    with Image.open(tmp_path / f"a{suffix}") as picture:
        assert picture.n_frames == 6
        assert picture.info["loop"] == 0
        for i, pixels in enumerate(frames(6)):
            picture.seek(i)
            picture.load()
            assert picture.info["duration"] == 50
            assert np.median(np.abs(np.asarray(picture.convert("RGB")).astype(int) - pixels)) <= 4


def test_gif_clock_is_in_hundredths(tmp_path: Path) -> None:
    write_video(frames(3), tmp_path / "a.gif", fps=30)
    with Image.open(tmp_path / "a.gif") as picture:
        picture.seek(1)
        assert picture.info["duration"] == 30


def test_unknown_format_and_no_frames(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"\.mp4, \.gif, \.webp"):
        write_video(frames(1), tmp_path / "a.avi")
    with pytest.raises(OutputError, match="at least one frame"):
        write_video([], tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_render_path_in_order_and_size() -> None:
    """A head whose brightness tells the camera's x."""

    class Lamp:
        spec = SimpleNamespace(render=SimpleNamespace(box_warp=1.0))

        def render(self, planes: torch.Tensor, ws: torch.Tensor, camera: Camera) -> RenderOutput:
            n = len(camera)
            image = (camera.origin[:, 0] / 2.7)[:, None, None, None].expand(n, 3, 8, 8)
            flat = torch.ones(n, 1, 4, 4)
            return RenderOutput(image, image[..., :4, :4], image[..., :4, :4], flat, flat)

        def query(self, planes: torch.Tensor, xyz: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            raise AssertionError("not asked")

    cameras = turntable(7)
    shown = list(render_path(Lamp(), torch.zeros(1, 3, 1, 1, 1), torch.zeros(1, 1, 1), cameras, size=20))
    assert [f.shape for f in shown] == [(20, 20, 3)] * 7
    expected = (cameras.origin[:, 0] / 2.7 + 1) * 127.5
    np.testing.assert_allclose([float(f.mean()) for f in shown], expected.numpy(), atol=0.6)
