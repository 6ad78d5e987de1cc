"""Every kind of picture file is read as a viewer shows it; everything else gives one clear error."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from headlift.errors import PhotoError
from headlift.photo import read_photo

RED = (200, 30, 40)


def picture(size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Red, with a blue upper-left quarter, so that turns and mirrors show."""
    image = Image.new("RGB", size, RED)
    image.paste((20, 40, 220), (0, 0, size[0] // 2, size[1] // 2))
    return image


def assert_picture(pixels: np.ndarray, tolerance: int = 6) -> None:
    assert pixels.dtype == np.uint8
    assert pixels.shape == (40, 60, 3)
    np.testing.assert_allclose(pixels[30, 50], RED, atol=tolerance)
    np.testing.assert_allclose(pixels[8, 8], (20, 40, 220), atol=tolerance)


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "bmp", "jpg"])
def test_common_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    picture().save(path, quality=95, subsampling=0) if suffix == "jpg" else picture().save(path)
    assert_picture(read_photo(path), tolerance=40 if suffix == "webp" else 6)


def test_cmyk(tmp_path: Path) -> None:
    picture().convert("CMYK").save(tmp_path / "c.tiff")
    assert_picture(read_photo(tmp_path / "c.tiff"))


def test_palette_and_its_transparency(tmp_path: Path) -> None:
    picture().quantize(4).save(tmp_path / "p.png")
    assert_picture(read_photo(tmp_path / "p.png"))
    indexed = picture().quantize(4)
    indexed.save(tmp_path / "t.png", transparency=indexed.getpixel((50, 30)))
    np.testing.assert_array_equal(read_photo(tmp_path / "t.png")[30, 50], (255, 255, 255))


def test_alpha_is_laid_on_white(tmp_path: Path) -> None:
    image = picture().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    image.save(tmp_path / "a.png")
    assert (read_photo(tmp_path / "a.png") == 255).all()


def test_sixteen_bit_grey(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "g.png")
    pixels = read_photo(tmp_path / "g.png")
    np.testing.assert_allclose(pixels[..., 0], grey / 257.0, atol=0.51)
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_eight_bit_grey(tmp_path: Path) -> None:
    Image.new("L", (40, 40), 77).save(tmp_path / "g.png")
    assert (read_photo(tmp_path / "g.png") == 77).all()


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (60, 40), (0, 255, 0))])
    assert_picture(read_photo(tmp_path / "a.gif"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = picture().transpose(undo[orientation]) if orientation in undo else picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "e.png", exif=exif)
    assert_picture(read_photo(tmp_path / "e.png"))


def test_damaged_exif_counts_as_none(tmp_path: Path) -> None:
    picture().save(tmp_path / "cut.png", exif=b"Exif\0\0II*\0")
    assert_picture(read_photo(tmp_path / "cut.png"))


def test_heic(tmp_path: Path) -> None:
    import pillow_heif

    pillow_heif.from_pillow(picture((120, 80))).save(tmp_path / "h.heic", quality=95)
    pixels = read_photo(tmp_path / "h.heic")
    assert pixels.shape == (80, 120, 3)
    np.testing.assert_allclose(pixels[60, 100], RED, atol=12)


def test_embedded_profile_is_honoured_and_a_broken_one_ignored(tmp_path: Path) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, profile in {"srgb": srgb, "unsuitable": lab, "broken": b"no profile"}.items():
        picture().save(tmp_path / f"{name}.png", icc_profile=profile)
        assert_picture(read_photo(tmp_path / f"{name}.png"))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def encoded(form: str) -> bytes:
    stream = io.BytesIO()
    picture((400, 300)).save(stream, form)
    return stream.getvalue()


def test_bad_files(tmp_path: Path) -> None:
    cases = {
        "folder": (tmp_path, "is a folder"),
        "missing": (tmp_path / "none.jpg", "no such file"),
        "empty": (write(tmp_path / "empty.jpg", b""), "empty"),
        "text": (write(tmp_path / "text.jpg", b"this is no picture at all\n" * 20), "not a picture"),
        "truncated jpeg": (write(tmp_path / "cut.jpg", encoded("JPEG")[:900]), "damaged"),
        "truncated png": (write(tmp_path / "cut.png", encoded("PNG")[:200]), "damaged|not a picture"),
    }
    for name, (path, message) in cases.items():
        with pytest.raises(PhotoError, match=message):
            read_photo(path)
        assert name


def test_too_small_and_too_large(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    with pytest.raises(PhotoError, match="1 x 1"):
        read_photo(tmp_path / "one.png")
    Image.new("1", (20_001, 10_000)).save(tmp_path / "huge.png")
    with pytest.raises(PhotoError, match="megapixels"):
        read_photo(tmp_path / "huge.png")
