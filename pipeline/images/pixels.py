"""Image files as 8-bit colours, whatever they hold: other depths, transparency, orientation.

Dimensions: H and W sides in pixels, S the side that images are resized to.
"""

from __future__ import annotations

import socket
import struct

import numpy as np
from PIL import ExifTags, Image

from pipeline.errors import UserError

WIDE_MODES = ("I", "F")
"""First letters of Pillow's modes of more than 8 bits a channel; its own conversion would clip them."""


def read_square(path: str, image_size: int, max_pixels: int) -> np.ndarray:
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
                    f"{path} has {file.width * file.height:,} pixels, more than the limit of {max_pixels:,}\n"
                    "make it smaller or take it out: a small file can unpack to more than the memory holds"
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
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
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
    """Return the values of a gray image of more than 8 bits, scaled to uint8 (H, W).

    Integers are on the scale of 16 bits, which Pillow gives to files of 9 to 16 bits, or of 8 bits, if none is larger.
    Real numbers are on a scale of 0 to 1, or to 255.

    Raises:
        UserError: there are values outside these scales.
    """
    values_HW = np.asarray(image)
    low, high = float(values_HW.min(initial=0)), float(values_HW.max(initial=0))
    is_real = image.mode.startswith("F")
    is_16_bit = image.mode.startswith("I;16") or image.format in ("PPM", "PNG")
    scales = (1.0, 255.0) if is_real else (65535.0,) if is_16_bit else (255.0, 65535.0)
    scale = next((scale for scale in scales if high <= scale), None)
    if scale is None or low < 0 or not np.isfinite(values_HW).all():
        expected = " or ".join(f"0 to {scale:g}" for scale in scales)
        raise UserError(f"{path} has values from {low:g} to {high:g}: must be on a scale of {expected}")
    return np.rint(values_HW * (255 / scale)).astype(np.uint8)


_TURNS = {  # by EXIF orientation, which says how the camera was held
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
