"""From the bytes of an image file to RGB pixels, exactly as Pillow decodes them."""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from paddlevit.errors import UserError


def decode(data: bytes, name: str) -> Image.Image:
    """The image in mode RGB; `name` is what messages call it.

    Grey, palette, CMYK and 16-bit images are converted, an alpha channel is dropped, and the EXIF orientation is
    ignored, as in the loaders that published accuracies were measured with. Raises UserError for what is no image, is
    damaged, or has more pixels than Pillow's limit (PIL.Image.MAX_IMAGE_PIXELS).
    """
    if not data:
        raise UserError(f"{name} is empty")
    try:
        image = Image.open(io.BytesIO(data))
        # Pillow itself raises only above twice its limit, and warns below that.
        if image.width * image.height <= most_pixels():
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")  # even without a change it would copy
        size = f"{image.width} x {image.height}"
    except UnidentifiedImageError:  # its message would name a place in memory
        raise UserError(f"{name} is not a readable image: its first bytes are those of no known format") from None
    except Exception as error:  # what Pillow's decoders raise on damaged files has no common class
        raise UserError(f"{name} is not a readable image: {error or type(error).__name__}") from error
    raise UserError(f"{name} has {size} pixels, allowed: {Image.MAX_IMAGE_PIXELS:,} in all")


def most_pixels() -> float:
    """Pixels that an image may have, against files that would fill the memory."""
    return Image.MAX_IMAGE_PIXELS or float("inf")
