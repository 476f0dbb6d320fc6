"""Single pictures: their pixels are the same in every format."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from picture_folders import COLOURS
from PIL import Image

from pipeline.errors import UserError
from pipeline.images import pixels as image_pixels
from pipeline.images import sources as image_sets
from pipeline.images.pixels import read_square


def test_of_a_photo_the_central_square_is_taken(tmp_path) -> None:
    photo = Image.new("RGB", (300, 100), COLOURS["red"])
    photo.paste(COLOURS["green"], (100, 0, 200, 100))
    photo.save(tmp_path / "wide.png")
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "high.png")
    for name in ("wide.png", "high.png"):
        pixels = image_sets.resized(str(tmp_path / name), 10)
        assert (pixels[:, 1:-1, 1:-1].transpose(1, 2, 0) == COLOURS["green"]).all()


def test_a_photo_made_smaller_is_averaged_not_sampled(tmp_path) -> None:
    stripes = np.zeros((512, 512), dtype=np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    for image in (str(tmp_path / "stripes.png"), stripes[None]):
        pixels = image_sets.resized(image, 16).astype(int)
        assert np.abs(pixels - 127.5).max() < 2


@pytest.mark.parametrize("side", [1, 5, 16, 40])
def test_arrays_of_one_and_of_three_channels_become_three(side) -> None:
    gray = np.full((1, 16, 16), 77, dtype=np.uint8)
    assert (image_sets.resized(gray, side) == np.full((3, side, side), 77)).all()
    colour = np.array([1, 2, 3], dtype=np.uint8)[:, None, None].repeat(16, 1).repeat(16, 2)
    assert (image_sets.resized(colour, side) == np.array([1, 2, 3])[:, None, None]).all()
    assert image_sets.resized(colour, side).shape == (3, side, side)


def to_16_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


@pytest.mark.parametrize(
    ("suffix", "convert"),
    [
        ("png", lambda image: image),
        ("png", lambda image: image.convert("L")),
        ("png", lambda image: image.convert("RGBA")),
        ("png", lambda image: image.convert("P")),
        ("png", to_16_bits),
        ("tiff", to_16_bits),
        ("jpg", lambda image: image),
        ("jpg", lambda image: image.convert("L")),
        ("jpg", lambda image: image.convert("CMYK")),
        ("webp", lambda image: image),
        ("bmp", lambda image: image),
        ("ppm", lambda image: image),
    ],
)
def test_a_gray_photo_is_the_same_in_every_format(suffix, convert, tmp_path) -> None:
    path = tmp_path / f"photo.{suffix}"
    convert(Image.new("RGB", (40, 30), (120, 120, 120))).save(path)
    pixels = image_sets.resized(str(path), 8)
    assert pixels.shape == (3, 8, 8)
    assert np.abs(pixels.astype(int) - 120).max() <= 3


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_stands_upright_however_the_camera_was_held(orientation, suffix, tmp_path) -> None:
    upright = Image.new("L", (32, 32), 0)
    upright.paste(255, (0, 0, 16, 16))  # the top left quarter is bright
    upright.paste(128, (16, 0, 32, 16))
    stored = upright.transpose(INVERSE_TURNS[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.convert("RGB").save(tmp_path / f"photo.{suffix}", exif=exif)
    pixels = image_sets.resized(str(tmp_path / f"photo.{suffix}"), 32)[0]
    quarters = [pixels[4:12, 4:12], pixels[4:12, 20:28], pixels[20:28, 4:12], pixels[20:28, 20:28]]
    assert [round(float(quarter.mean()) / 64) for quarter in quarters] == [4, 2, 0, 0]


INVERSE_TURNS = {
    turn: {
        Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
        Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    }.get(method, method)
    for turn, method in image_pixels._TURNS.items()
}


@pytest.mark.filterwarnings("ignore")  # Pillow warns about what it overlooks
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), suffix=st.sampled_from(["png", "jpg", "bmp", "tiff", "webp", "ppm"]))
def test_a_damaged_file_is_read_or_refused_with_its_name(data, suffix, tmp_path) -> None:
    path = tmp_path / f"photo.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert image_sets.resized(str(path), 4).shape == (3, 4, 4)
    except UserError as error:
        assert str(path) in str(error)


# Depths

RAMP = np.linspace(0, 1, 256).reshape(16, 16)
EXPECTED = (np.linspace(0, 1, 256) * 255).reshape(16, 16)


def tiff(path: Path, content: bytes, bits: int, kind: int = 1, order: str = "<") -> None:
    """Write a gray TIFF file of 16×16 pixels; `kind` of values: 1 unsigned, 2 signed, 3 real."""
    tags = [(256, 3, 16), (257, 3, 16), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 0), (277, 3, 1)]
    tags += [(278, 3, 16), (279, 4, len(content)), (339, 3, kind)]
    start = 8 + 2 + 12 * len(tags) + 4
    lines = [
        struct.pack(f"{order}HHI", tag, size, 1)
        + struct.pack(f"{order}{'HH' if size == 3 else 'I'}", *((value, 0) if size == 3 else (value or start,)))
        for tag, size, value in tags
    ]
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    path.write_bytes(head + struct.pack(f"{order}H", len(tags)) + b"".join(lines) + bytes(4) + content)


def packed_12_bits(values: np.ndarray) -> bytes:
    pairs = values.ravel().astype(int).reshape(-1, 2)
    return b"".join(bytes([one >> 4, (one & 15) << 4 | two >> 8, two & 255]) for one, two in pairs)


def pgm(path: Path, most: int) -> None:
    content = np.rint(RAMP * most).astype(">u2" if most > 255 else np.uint8).tobytes()
    path.write_bytes(b"P5\n16 16\n%d\n" % most + content)


def saved(values: np.ndarray) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(values).save(path)


GRAY = {
    "8.png": saved((RAMP * 255).round().astype(np.uint8)),
    "16.png": saved((RAMP * 65535).astype(np.uint16)),
    "16.jp2": saved((RAMP * 65535).astype(np.uint16)),
    "10.pgm": lambda path: pgm(path, 1023),
    "12.pgm": lambda path: pgm(path, 4095),
    "16.pgm": lambda path: pgm(path, 65535),
    "12.tif": lambda path: tiff(path, packed_12_bits(RAMP * 4095), 12),
    "16.tif": saved((RAMP * 65535).astype(np.uint16)),
    "16 big endian.tif": lambda path: tiff(path, (RAMP * 65535).astype(">u2").tobytes(), 16, order=">"),
    "16 signed.tif": lambda path: tiff(path, (RAMP * 32767).astype("<i2").tobytes(), 16, kind=2),
    "32 of 8.tif": saved((RAMP * 255).round().astype(np.int32)),
    "32 of 16.tif": saved((RAMP * 65535).astype(np.int32)),
    "32 unsigned of 16.tif": lambda path: tiff(path, (RAMP * 65535).astype("<u4").tobytes(), 32),
    "real of 1.tif": saved(RAMP.astype(np.float32)),
    "real of 255.tif": saved((RAMP * 255).astype(np.float32)),
    "real big endian.tif": lambda path: tiff(path, RAMP.astype(">f4").tobytes(), 32, kind=3, order=">"),
}


@pytest.mark.parametrize("name", GRAY)
def test_a_gray_ramp_is_the_same_in_every_depth(name, tmp_path) -> None:
    GRAY[name](tmp_path / name)
    pixels = read_square(str(tmp_path / name), 16)
    assert np.abs(pixels - EXPECTED).max() <= 1


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((RAMP * 70000).astype(np.int32), "from 0 to 70000: must be on a scale of 0 to 255 or 0 to 65535"),
        ((RAMP * -5).astype(np.int32), "from -5 to 0: must be"),
        ((RAMP * 1000).astype(np.float32), "from 0 to 1000: must be on a scale of 0 to 1 or 0 to 255"),
        ((RAMP - 0.5).astype(np.float32), "from -0.5 to 0.5: must be"),
        (np.where(RAMP > 0.5, np.nan, 0).astype(np.float32), "from 0 to 0 and some that are no numbers: must be"),
        (np.where(RAMP > 0.5, np.inf, RAMP).astype(np.float32), "from 0 to inf: must be"),
    ],
)
def test_values_outside_of_all_scales_are_refused_with_what_they_are(values, reason, tmp_path) -> None:
    Image.fromarray(values).save(tmp_path / "map.tif")
    with pytest.raises(UserError) as caught:
        read_square(str(tmp_path / "map.tif"), 16)
    assert f"{tmp_path}/map.tif has values {reason}" in str(caught.value)


def test_32_bits_without_a_sign_are_not_called_negative(tmp_path) -> None:
    tiff(tmp_path / "map.tif", (RAMP * (2**32 - 1)).astype("<u4").tobytes(), 32)
    with pytest.raises(UserError, match=r"has values from 0 to 4\.29\d*e\+09: must be"):
        read_square(str(tmp_path / "map.tif"), 16)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "pbm", "gif"])
def test_one_bit_is_black_or_white(suffix, tmp_path) -> None:
    bits = np.random.default_rng(0).random((16, 16)) > 0.5
    Image.fromarray(bits).save(tmp_path / f"page.{suffix}")
    assert (read_square(str(tmp_path / f"page.{suffix}"), 16) == 255 * bits).all()


# Colours and transparency


def with_palette() -> Image.Image:
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16) % 3, mode="P")
    image.putpalette([0, 0, 0, 200, 100, 50, 10, 20, 30])
    return image


@pytest.mark.parametrize("suffix", ["png", "gif", "bmp", "tif", "tga"])
def test_a_palette_becomes_its_colours(suffix, tmp_path) -> None:
    with_palette().save(tmp_path / f"map.{suffix}")
    pixels = read_square(str(tmp_path / f"map.{suffix}"), 16)
    assert pixels[:, 0, :3].T.tolist() == [[0, 0, 0], [200, 100, 50], [10, 20, 30]]


@pytest.mark.parametrize(
    ("name", "image", "options"),
    [
        ("gray and alpha.png", Image.new("LA", (16, 16), (0, 0)), {}),
        ("gray and alpha.tif", Image.new("LA", (16, 16), (0, 0)), {}),
        ("colours and alpha.png", Image.new("RGBA", (16, 16), (9, 9, 9, 0)), {}),
        ("colours and alpha.tif", Image.new("RGBA", (16, 16), (9, 9, 9, 0)), {}),
        ("colours and alpha.webp", Image.new("RGBA", (16, 16), (9, 9, 9, 0)), {"lossless": True}),
        ("one colour.png", Image.new("RGB", (16, 16), (9, 9, 9)), {"transparency": (9, 9, 9)}),
        ("one gray.png", Image.new("L", (16, 16), 9), {"transparency": 9}),
        ("one gray of 16 bits.png", Image.fromarray(np.full((16, 16), 999, dtype=np.uint16)), {"transparency": 999}),
        ("one of a palette.png", Image.new("P", (16, 16), 0), {"transparency": 0}),
        ("one of a palette.gif", Image.new("P", (16, 16), 0), {"transparency": 0}),
        ("all of a palette.png", Image.new("P", (16, 16), 0), {"transparency": bytes(256)}),
    ],
)
def test_what_is_transparent_is_white(name, image, options, tmp_path) -> None:
    image.save(tmp_path / name, **options)
    assert (read_square(str(tmp_path / name), 8) == 255).all()


def test_what_is_half_transparent_is_half_white(tmp_path) -> None:
    Image.new("LA", (16, 16), (0, 128)).save(tmp_path / "shade.png")
    assert np.abs(read_square(str(tmp_path / "shade.png"), 8).astype(int) - 127).max() <= 1


# Size


def claimed_png(path: Path, width: int, height: int) -> Path:
    """Write a PNG file that says that it has so many pixels, and has none of them."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return path


def test_an_image_above_the_limit_is_refused_with_the_setting_before_it_is_unpacked(tmp_path) -> None:
    path = claimed_png(tmp_path / "map.png", 100_000, 100_000)
    with pytest.raises(UserError) as caught:
        read_square(str(path), 8)
    assert f"{path} has 10,000,000,000 pixels, more than images.max_pixels = 180000000" in str(caught.value)
    assert "raise images.max_pixels" in str(caught.value)


@pytest.mark.parametrize("limit", [255, 256])
def test_the_limit_itself_is_accepted(limit, tmp_path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "small.png")
    if limit >= 256:
        assert read_square(str(tmp_path / "small.png"), 8, limit).shape == (3, 8, 8)
    else:
        with pytest.raises(UserError, match=r"has 256 pixels, more than images\.max_pixels = 255"):
            read_square(str(tmp_path / "small.png"), 8, limit)


@pytest.mark.filterwarnings("error")
def test_no_limit_of_pillow_stops_a_higher_one(tmp_path) -> None:
    path = claimed_png(tmp_path / "map.png", 20_000, 20_000)
    with pytest.raises(UserError, match=r"cannot be read as an image: .*truncated"):
        read_square(str(path), 8, max_pixels=400_000_000)
