"""Image files of any size as samples: decoded, cropped to a square and reduced."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lti.data.samples import IMAGE_SHAPE

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MAX_PIXELS", "read_pixels"]

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""None of which runs another program, as Pillow does for PostScript."""

MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
"""Eight bits a channel; Pillow cuts off the values of others when it converts them."""

MAX_PIXELS = 80_000_000
"""240 MB decoded; below this Pillow itself does not warn of a decompression bomb."""


def read_pixels(file: Path | bytes) -> np.ndarray:
    """Return an image as every stage takes it, uint8 (3, 32, 32), RGB.

    The image is turned as its EXIF orientation says, converted to RGB without its
    transparency, cropped to the largest square at its centre (of an odd margin the smaller
    half is left or above) and resized with antialiasing (Pillow's bilinear filter, whose
    support grows with the factor). An image of 32 x 32 pixels stays as it is. Of several
    frames the first is taken.

    Args:
        file: its path, or its content.

    Raises:
        ValueError: it is no image of a known format, is damaged, or has more than
            :data:`MAX_PIXELS` pixels or other than eight bits a channel.
    """
    from PIL import Image, ImageOps

    if isinstance(file, Path) and not file.is_file():
        raise ValueError("not a file that can be read")  # a pipe would be waited for
    try:
        with Image.open(
            io.BytesIO(file) if isinstance(file, bytes) else file, "r", FORMATS
        ) as image:
            _check(image)
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # decoders raise whatever a damaged file makes them
        raise ValueError(str(error).splitlines()[0] if str(error) else repr(error)) from None
    side = min(upright.size)
    left, top = ((length - side) // 2 for length in upright.size)
    # Not resize's own `box`, whose filter also sees what is outside of it.
    square = upright.crop((left, top, left + side, top + side))
    small = square.resize(IMAGE_SHAPE[1:], Image.Resampling.BILINEAR)
    return np.asarray(small).transpose(2, 0, 1)


def _check(image: Image.Image) -> None:
    """Refuse an image before any of its pixels are decoded."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"{image.width} x {image.height} pixels, expected at most {MAX_PIXELS:,} in all"
        )
    if image.mode not in MODES:
        raise ValueError(f"pixels of mode {image.mode}, expected eight bits a channel")
