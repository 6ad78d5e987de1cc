"""Pictures: view grids, depth and normal maps, overlays. Arrays are rows by columns, uint8 sRGB unless said."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8, UInt16
from torch import Tensor

from headlift.eg3d.camera import project, unproject
from headlift.export.files import write_bytes
from headlift.export.views import Volume, orbit_cameras, render_views
from headlift.values import Camera, Crop

DEPTH_STEP = 1e-4
"""World units for one count of a 16-bit depth map; 0 is nothing."""


def to_uint8(image: Float[Tensor, "1 3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """A network's picture (RGB in [-1, 1], values outside are clipped) as bytes: (x + 1) / 2 * 255, rounded."""
    scaled = (image[0].detach().float().clamp(-1, 1) + 1) * 127.5
    pixels: UInt8[np.ndarray, "h w 3"] = scaled.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return pixels


def png_bytes(pixels: Shaped[np.ndarray, "h w *c"], text: Mapping[str, str] | None = None) -> bytes:
    """A PNG of uint8 [h w 3], uint8 [h w] or uint16 [h w] (16 bit), with text entries in its head."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, format="PNG", pnginfo=info)
    return stream.getvalue()


def jpeg_bytes(pixels: UInt8[np.ndarray, "h w 3"], quality: int = 90) -> bytes:
    """A JPEG, for photos inside the report."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


def write_png(path: Path | str, pixels: Shaped[np.ndarray, "h w *c"], text: Mapping[str, str] | None = None) -> None:
    """Write uint8 [h w 3], uint8 [h w] or uint16 [h w]. Raises OutputError when the place cannot be written."""
    write_bytes(path, png_bytes(pixels, text))


def shrink(pixels: UInt8[np.ndarray, "h w 3"], longest: int) -> UInt8[np.ndarray, "i j 3"]:
    """A picture whose longer side is at most `longest` pixels."""
    from PIL import Image

    height, width = pixels.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


# Grids


def grid(
    pictures: Sequence[UInt8[np.ndarray, "h w 3"]], labels: Sequence[str] | None = None, columns: int = 4, gap: int = 4
) -> UInt8[np.ndarray, "i j 3"]:
    """Equal pictures side by side on white, row by row, with small labels in their lower left corners."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = pictures[0].shape[:2]
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(max(10, height // 20))
    for i, picture in enumerate(pictures):
        x, y = i % columns * (width + gap), i // columns * (height + gap)
        sheet.paste(Image.fromarray(picture), (x, y))
        if labels is not None:
            pad = max(2, height // 64)
            anchor = (x + 2 * pad, y + height - 2 * pad)
            left, top, right, bottom = draw.textbbox(anchor, labels[i], font=font, anchor="ls")
            draw.rectangle((left - pad, top - pad, right + pad, bottom + pad), fill="white")
            draw.text(anchor, labels[i], fill=(60, 60, 60), font=font, anchor="ls")
    return np.asarray(sheet)


def views_all_round(count: int = 8) -> tuple[Camera, list[str]]:
    """Cameras all round the whole head at eye level, starting in front, and their labels in degrees of yaw."""
    yaw = torch.arange(count) * (2 * math.pi / count)
    degrees = [round(360 * i / count) for i in range(count)]
    return orbit_cameras(yaw), [f"yaw {d if d <= 180 else d - 360:+d}°" if d else "yaw 0°" for d in degrees]


def views_grid(
    generator: Volume, planes: Float[Tensor, "1 ..."], ws: Float[Tensor, "1 n w"], count: int = 8
) -> UInt8[np.ndarray, "i j 3"]:
    """The head from `count` sides all round, labelled: what `views.png` shows."""
    cameras, labels = views_all_round(count)
    pictures = [to_uint8(out.image) for out in render_views(generator, planes, ws, cameras)]
    return grid(pictures, labels, columns=4)


# Depth and normals


def depth_to_uint16(depth: Float[Tensor, "1 1 r r"], alpha: Float[Tensor, "1 1 r r"]) -> UInt16[np.ndarray, "r r"]:
    """Distance along the ray in counts of 1e-4 world units; 0 where alpha is at most 0.5. Write it with `write_png`."""
    counts = (depth.detach().double() / DEPTH_STEP).round().clamp(1, 65535)
    return torch.where(alpha > 0.5, counts, 0.0)[0, 0].cpu().numpy().astype(np.uint16)


_RAMP = np.array(
    [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137], [53, 183, 121],
     [110, 206, 88], [181, 222, 43], [253, 231, 37]],
    dtype=np.float64,
)  # fmt: skip


def depth_in_color(depth: Float[Tensor, "1 1 r r"], alpha: Float[Tensor, "1 1 r r"]) -> UInt8[np.ndarray, "r r 3"]:
    """Depth for the eye: near yellow, far violet, over the range of the picture; white where there is nothing."""
    shown = (alpha[0, 0] > 0.5).cpu().numpy()
    values = depth[0, 0].detach().double().cpu().numpy()
    pixels = np.full((*values.shape, 3), 255, dtype=np.uint8)
    if shown.any():
        near, far = np.quantile(values[shown], [0.005, 0.995])
        level = np.clip((far - values[shown]) / max(far - near, 1e-9), 0, 1) * (len(_RAMP) - 1)
        stops = np.arange(len(_RAMP))
        pixels[shown] = np.rint(np.stack([np.interp(level, stops, _RAMP[:, c]) for c in range(3)], axis=-1))
    return pixels


def normals_from_depth(depth: Float[Tensor, "1 1 r r"], camera: Camera) -> Float[Tensor, "1 3 r r"]:
    """World-space unit normals of the surface that a depth map (distance along the ray) shows.

    Points are unprojected, and their central differences along rows and columns crossed; the normals face the camera.
    """
    size = depth.shape[-1]
    centres = (torch.arange(size, device=depth.device, dtype=depth.dtype) + 0.5) / size
    v, u = torch.meshgrid(centres, centres, indexing="ij")
    uv = torch.stack([u, v], dim=-1).reshape(1, -1, 2)
    camera = camera.to(device=depth.device, dtype=depth.dtype)
    points = unproject(camera, uv, depth.reshape(1, -1)).transpose(1, 2).reshape(1, 3, size, size)
    padded = F.pad(points, (1, 1, 1, 1), mode="replicate")
    right = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    return F.normalize(torch.cross(down, right, dim=1), dim=1)


def normal_map(
    depth: Float[Tensor, "1 1 r r"], alpha: Float[Tensor, "1 1 r r"], camera: Camera
) -> UInt8[np.ndarray, "r r 3"]:
    """A normal map as 3D tools expect it: red right, green up, blue towards the viewer, 128 for zero.

    In the camera's frame; where alpha is at most 0.5 it points at the viewer (128, 128, 255).
    """
    world = normals_from_depth(depth, camera)
    rotation = camera.rotation[0].to(world)
    local = torch.einsum("nchw,ck->nkhw", world, rotation) * torch.tensor([1.0, -1.0, -1.0]).to(world)[:, None, None]
    facing = torch.tensor([0.0, 0.0, 1.0]).to(world)[:, None, None]
    shown = torch.where(alpha > 0.5, local, facing)
    return (shown[0] * 127 + 128).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()


# Overlays


def pose_overlay(photo: UInt8[np.ndarray, "h w 3"], crop: Crop) -> UInt8[np.ndarray, "h w 3"]:
    """The photo with what was found in it: landmarks, the crop's frame, the head's axes (red x, green y, blue z)."""
    back = crop.similarity.inverse()
    corners = back.apply(np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
    axes = back.apply(_axis_tips(crop.camera))
    return _overlay(photo, crop.face.landmarks[:, :2], axes, corners)


def crop_overlay(crop: Crop) -> UInt8[np.ndarray, "h w 3"]:
    """The crop with landmarks and the head's axes."""
    size = crop.image.shape[-1]
    landmarks = crop.similarity.apply(crop.face.landmarks[:, :2]) * size
    return _overlay(to_uint8(crop.image), landmarks, _axis_tips(crop.camera) * size, None)


def _axis_tips(camera: Camera, length: float = 0.16) -> Float[np.ndarray, "4 2"]:
    """Picture fractions of a point between the eyes and of points `length` world units along x, y and z from it."""
    root = torch.tensor([0.0, 0.03, 0.22])
    points = root + torch.cat([torch.zeros(1, 3), length * torch.eye(3)])
    uv, _ = project(camera.to("cpu", torch.float32), points[None])
    tips: Float[np.ndarray, "4 2"] = uv[0].detach().double().numpy()
    return tips


def _overlay(
    picture: UInt8[np.ndarray, "h w 3"],
    landmarks: Float[np.ndarray, "p 2"],
    axes: Float[np.ndarray, "4 2"],
    frame: Float[np.ndarray, "4 2"] | None,
) -> UInt8[np.ndarray, "h w 3"]:
    from PIL import Image, ImageDraw

    # Drawn at twice the size and brought down again, for smooth lines; large pictures are drawn as they are.
    factor = 2 if max(picture.shape[:2]) <= 1600 else 1
    sheet = Image.fromarray(picture).resize((picture.shape[1] * factor, picture.shape[0] * factor))
    draw: Any = ImageDraw.Draw(sheet)
    span = float(np.ptp(landmarks, axis=0).max()) * factor
    radius, width = max(1.0, span / 170), max(2, round(span / 60))
    if frame is not None:
        ring = [tuple(p) for p in (np.concatenate([frame, frame[:1]]) * factor).tolist()]
        draw.line(ring, fill=(255, 255, 255), width=width + 2, joint="curve")
        draw.line(ring, fill=(40, 40, 40), width=max(1, width // 2), joint="curve")
    for x, y in (landmarks * factor).tolist():
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(255, 214, 64))
    root, *tips = [tuple(p) for p in (axes * factor).tolist()]
    for tip, color in zip(tips, ((226, 60, 60), (54, 180, 84), (64, 120, 240)), strict=True):
        draw.line([root, tip], fill=(255, 255, 255), width=width + max(2, width // 2))
        draw.line([root, tip], fill=color, width=width)
        draw.ellipse((tip[0] - width, tip[1] - width, tip[0] + width, tip[1] + width), fill=color)
    if factor != 1:
        sheet = sheet.resize((picture.shape[1], picture.shape[0]), Image.Resampling.LANCZOS)
    return np.asarray(sheet)
