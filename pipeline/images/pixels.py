"""Image files as 8-bit colours, whatever they hold: other depths, transparency, orientation.

Dimensions: H and W sides in pixels, S the side that images are resized to.
"""

from __future__ import annotations

import socket
import struct

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from pipeline.errors import UserError

MAX_PIXELS = 180_000_000
"""The most pixels that an image file may have, where no setting says it (`images.max_pixels`): 540 MB of colours."""

Image.MAX_IMAGE_PIXELS = (
    None  # Pillow's own limit, which would stop a higher one; `read_square` has its limit as argument
)

WIDE_MODES = ("I", "F")
"""First letters of Pillow's modes of more than 8 bits a channel; its own conversion would clip them."""


SIGNED = 2
"""TIFF's SampleFormat of signed integers."""

PIXELS_FORMAT = 3
"""Part of the settings hash of image files. Raise it when a file would give other pixels than before."""


def read_square(path: str, image_size: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the central square of an image file, uint8 (3, S, S).

    Resizing is bilinear and averages over all pixels that become one (antialiasing).

    Args:
        image_size: S, in pixels.
        max_pixels: the most pixels that an image may have.

    Raises:
        UserError: the file cannot be read, or its values fit no scale; the message names it.
    """
    try:
        with Image.open(path) as file:
            if file.width * file.height > max_pixels:
                raise UserError(
                    f"{path} has {file.width * file.height:,} pixels, more than images.max_pixels = {max_pixels}\n"
                    "make it smaller, take it out, or raise images.max_pixels: a thread holds one such image in memory"
                )
            # A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that is large enough, which is much faster.
            file.draft(None, (2 * image_size, 2 * image_size))
            file.load()  # before the orientation is read, because Pillow turns TIFF files itself
            turn = _TURNS.get(file.getexif().get(ExifTags.Base.Orientation, 1))
            image = _in_colours(file, path)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is not there, on {socket.gethostname()}\n"
            "the folder of images must stay as it is, and be visible from every node of a cluster"
        ) from error
    # Pillow raises these for files that are incomplete, damaged or no images.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise UserError(f"{path} cannot be read as an image: {error}\nrepair it or remove it") from error
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    image = image.resize((image_size, image_size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(image if turn is None else image.transpose(turn)).transpose(2, 0, 1)


def _in_colours(image: Image.Image, path: str) -> Image.Image:
    """Return an image in mode RGB; what is transparent is white."""
    if image.mode.startswith(WIDE_MODES):
        return Image.fromarray(_to_8_bits(image, path)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        layers = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(image: Image.Image, path: str) -> np.ndarray:
    """Return the values of a gray image of more than 8 bits, scaled to uint8 (H, W); what is transparent is white.

    Raises:
        UserError: there are values outside the scales that the image may have.
    """
    values_HW, scales = np.asarray(image), _scales(image)
    if _is_unsigned_32_bit(image):
        values_HW = values_HW.view(np.uint32)  # which Pillow reads as signed
    low, high = (float(function(values_HW)) for function in (np.nanmin, np.nanmax))
    scale = next((scale for scale in scales if high <= scale), None)
    if scale is None or low < 0 or np.isnan(values_HW).any():
        missing = " and some that are no numbers" if np.isnan(values_HW).any() else ""
        expected = " or ".join(f"0 to {scale:g}" for scale in scales)
        raise UserError(
            f"{path} has values from {low:g} to {high:g}{missing}: must be on a scale of {expected}\n"
            "scale it, or take it out"
        )
    gray_HW = np.rint(values_HW * (255 / scale)).astype(np.uint8)
    transparent = image.info.get("transparency")
    return gray_HW if transparent is None else np.where(values_HW == transparent, np.uint8(255), gray_HW)


def _scales(image: Image.Image) -> tuple[float, ...]:
    """Return the largest values that a gray image of more than 8 bits may be scaled to; the first that fits it counts.

    Real numbers are on a scale of 0 to 1, or to 255. TIFF files say how many bits their integers have. Other formats
    of 9 to 16 bits are on the scale of 16, because Pillow puts them there. Of 32 bits, people use 8 or 16.
    """
    if image.mode.startswith("F"):
        return 1.0, 255.0
    bits, is_signed = _tiff_bits(image)
    if bits is not None and 8 < bits <= 16:
        return (float(2 ** (bits - is_signed) - 1),)
    if image.mode.startswith("I;16") or image.format in ("PPM", "PNG"):
        return (65535.0,)
    return 255.0, 65535.0


def _tiff_bits(image: Image.Image) -> tuple[int | None, bool]:
    """Return how many bits the values of a TIFF file have, and whether they are signed; None for other files."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None, False
    bits, kind = (
        image.tag_v2.get(tag, (1,))[0] for tag in (TiffImagePlugin.BITSPERSAMPLE, TiffImagePlugin.SAMPLEFORMAT)
    )
    return bits, kind == SIGNED


def _is_unsigned_32_bit(image: Image.Image) -> bool:
    return image.mode == "I" and _tiff_bits(image) == (32, False)


_TURNS = {  # by EXIF orientation, which says how the camera was held
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
