"""Any picture file to upright 8-bit sRGB, or an error that says what to do."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from headlift.errors import PhotoError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_MEGAPIXELS = 200
MIN_SIDE = 32


def read_photo(path: Path, ground: int = 255) -> UInt8[np.ndarray, "h w 3"]:
    """Read a photo as a viewer would show it: EXIF-upright, sRGB, transparency on white, an animation's first frame.

    `ground` is another grey under what is transparent, 0 to 255.

    Raises:
        PhotoError: the file is missing, a folder, empty, damaged, no picture, tiny or over 200 megapixels.
    """
    from PIL import Image, UnidentifiedImageError

    _check_file(path)
    enable_heic()
    Image.MAX_IMAGE_PIXELS = None  # the limit is ours, checked before anything is decoded
    try:
        with Image.open(path) as opened:
            _check_size(path, opened.size)
            opened.seek(0)
            opened.load()
            return np.asarray(_to_srgb(_upright(opened), ground))
    except UnidentifiedImageError:
        raise PhotoError(_unreadable(path)) from None
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        raise PhotoError(
            f"{path}: the picture is damaged or incomplete ({error}). Save or download it again."
        ) from None


def _upright(image: Image) -> Image:
    """Turned as its EXIF says; damaged EXIF counts as none, as in browsers."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except (struct.error, KeyError, TypeError, ValueError, SyntaxError):
        return image


def _check_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise PhotoError(
                f"{path} is a folder; give one photo (only `headlift pose` and `headlift batch` take one)."
            )
        if not path.exists():
            raise PhotoError(f"{path}: no such file. Check the name and the folder you are in.")
        with path.open("rb") as stream:
            empty = not stream.read(1)
    except OSError as error:
        raise PhotoError(f"{path}: cannot be opened ({error.strerror}). Check its permissions.") from None
    if empty:
        raise PhotoError(f"{path}: the file is empty. Save or download it again.")


def _check_size(path: Path, size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_MEGAPIXELS * 1_000_000:
        raise PhotoError(
            f"{path}: {width} x {height} is over {MAX_MEGAPIXELS} megapixels. Scale it down and try again; "
            "the crop of the face needs about 1000 pixels."
        )
    if min(width, height) < MIN_SIDE:
        raise PhotoError(
            f"{path}: {width} x {height} pixels are too few for a face; use a photo of at least {MIN_SIDE} pixels a "
            "side, better 500."
        )


def _unreadable(path: Path) -> str:
    if path.suffix.lower() in {".heic", ".heif", ".avif"}:
        return f"{path}: cannot read this format. For HEIC install the extra: pip install 'headlift[heic]'."
    return f"{path}: not a picture in any format known here. Use JPEG, PNG, WebP, TIFF or, with the extra, HEIC."


def enable_heic() -> None:
    """Let Pillow read HEIC, where the extra is installed."""
    try:
        import pillow_heif
    except ImportError:
        return
    pillow_heif.register_heif_opener()


def _to_srgb(image: Image, ground: int) -> Image:
    """8-bit sRGB with transparency laid on a grey."""
    from PIL import Image as PilImage

    if image.mode.startswith("I") or image.mode == "F":
        return PilImage.fromarray(_eight_bits(np.asarray(image, dtype=np.float64))).convert("RGB")
    profile = image.info.get("icc_profile")
    if image.mode == "P" or "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBa"):
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        below = PilImage.new("RGBA", image.size, (ground, ground, ground, 255))
        image = PilImage.alpha_composite(below, image).convert("RGB")
    return _apply_profile(image, profile).convert("RGB")


def _apply_profile(image: Image, profile: bytes | None) -> Image:
    """Convert from the embedded ICC profile; a damaged or unsuitable profile counts as none, as in browsers."""
    import io

    from PIL import ImageCms

    if not profile:
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    return image if converted is None else converted


def _eight_bits(values: np.ndarray) -> UInt8[np.ndarray, "h w"]:
    """16-bit and floating-point grey to 8 bits by the range of the format, not of the picture."""
    top = float(values.max(initial=0.0))
    full = 1.0 if top <= 1.0 else 255.0 if top <= 255.0 else 65535.0
    return np.clip(values / full * 255.0 + 0.5, 0, 255).astype(np.uint8)
