"""From the bytes of an image file to RGB pixels, exactly as Pillow decodes them: the one way for every command."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from paddlevit.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # as Pillow calls them
_JPEG, _NETPBM = (b".jpg", b".jpeg", b".jpe", b".jfif"), (b".ppm", b".pgm", b".pbm", b".pnm")
_SUFFIXES = (*_JPEG, b".png", b".webp", b".bmp", b".tif", b".tiff", b".gif", *_NETPBM)
KNOWN = "JPEG, PNG, WebP, BMP, TIFF, GIF and PPM files"

_THUMBNAIL_SIDE = 160
_TINY_SIDE = 64  # up to which a thumbnail loses nothing

_PHOTOMETRIC = 0x0106  # a TIFF tag: whether 0 is black or white
_ORIENTATION = 0x0112  # an EXIF tag: how the camera was held
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Decoding(NamedTuple):
    """What decoding is free in."""

    upright: bool = False  # turn images as their EXIF orientation says; published accuracies were measured without
    max_pixels: int = 89_478_485  # of an image, against files that would fill the memory; Pillow's own limit


AS_PUBLISHED = Decoding()


def is_image(name: bytes) -> bool:
    """Whether a file has an image's name and is not hidden."""
    return name.lower().endswith(_SUFFIXES) and not name.startswith(b".")


def decode(data: bytes, name: str, decoding: Decoding = AS_PUBLISHED) -> Image.Image:
    """The image, or the first of several, as to_rgb makes it; `name` is what messages call it."""
    if not data:
        raise UserError(f"{name} is empty")
    if Image.MAX_IMAGE_PIXELS and decoding.max_pixels > AS_PUBLISHED.max_pixels:
        # Pillow has no other way to open larger images: it raises above twice its limit, and warns below that.
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, decoding.max_pixels)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height <= decoding.max_pixels:
            return to_rgb(image, decoding)
        size = f"{image.width} x {image.height} pixels"
    except UnidentifiedImageError:  # its message would name a place in memory
        raise UserError(f"{name} is not a readable image: it does not begin as {KNOWN} do") from None
    except Image.DecompressionBombError:  # at twice Pillow's own limit it does not even tell the size
        size = "too many pixels"
    except Exception as error:  # what Pillow's decoders raise on damaged files has no common class
        raise UserError(f"{name} is not a readable image: {error or type(error).__name__}") from error
    raise UserError(f"{name} has {size}, allowed: {decoding.max_pixels:,} in all (DATA.MAX_PIXELS)")


def to_rgb(image: Image.Image, decoding: Decoding = AS_PUBLISHED) -> Image.Image:
    """An image in mode RGB; an alpha channel is dropped, and grey of more than 8 bits keeps its levels."""
    image.load()
    turn = _turn(image) if decoding.upright else None
    image = _eight_bits(image) if image.mode[0] in "IF" else image
    image = image if image.mode == "RGB" else image.convert("RGB")  # even without a change it would copy
    return image if turn is None else image.transpose(turn)


def is_turned(data: bytes) -> bool:
    """Whether a JPEG file says that its pixels are to be turned."""
    if b"Exif\0\0" not in data[: 1 << 16]:
        return False
    try:
        return _turn(Image.open(io.BytesIO(data), formats=FORMATS)) is not None
    except Exception:  # decoding says what is wrong
        return False


def thumbnail(image: Image.Image) -> bytes:
    """An image in mode RGB or L, made small, as a PNG or JPEG file."""
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "PNG" if max(image.size) <= _TINY_SIDE else "JPEG")
    return file.getvalue()


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # what reading damaged EXIF data raises has no common class; the pixels are sound
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Whole numbers and floats, of 16 and 32 bits, as 8-bit grey; Pillow would cut off everything above 255.

    16-bit values are divided by 257, so that 65,535 is white, or black in a TIFF file that says so. Of other numbers 0
    is black, and white is 1 for floats up to 1, 255 up to 255, and 65,535 up to that; what lies outside is stretched
    from its smallest to its largest.
    """
    values = np.asarray(image)
    if values.dtype.kind == "u" or (values.dtype.kind == "i" and image.format in ("PNG", "PPM")):  # in a mode for 32
        white_is_zero = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0  # Pillow heeds it up to 8 bits
        return Image.fromarray(_rounded(values, *((65535.0, 0.0) if white_is_zero else (0.0, 65535.0))))
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    whites = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0)
    white = next((white for white in whites if low >= 0.0 and high <= white), None)
    return Image.fromarray(_rounded(values, *((low, high) if white is None else (0.0, white))))


def _rounded(values: np.ndarray, black: float, white: float) -> np.ndarray:
    """uint8 [H, W]: `black` is 0, `white` 255; what is not a number is black."""
    scaled = (values.astype(np.float64) - black) * (255.0 / (white - black or 1.0))
    return np.rint(np.nan_to_num(scaled).clip(0.0, 255.0)).astype(np.uint8)
