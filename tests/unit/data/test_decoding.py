from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cclm.data import decoding
from cclm.data.decoding import decode_image, decode_scaled, image_size, stored_orientation
from cclm.errors import DataError
from tests.image_files import (
    CORNERS,
    ORIENTATIONS,
    chunk,
    corner_names,
    encoded,
    exif,
    marked,
    raw_png,
    short_profile_behind_pixels,
    stored_turned,
    turned_file,
)
from tests.unit.data.test_image import noise


def reason_of(data: bytes) -> str:
    with pytest.raises(DataError) as caught:
        decode_image(data)
    assert "0x" not in str(caught.value), "the same sentence each time"
    return caught.value.reason


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_an_image_is_decoded_as_stored(image_format: str) -> None:
    image = noise(9, 5)
    assert decode_image(encoded(image, image_format, lossless=True)).tobytes() == image.tobytes()


def test_ordinary_photographs_are_pillows_pixels_to_the_bit() -> None:
    data = encoded(noise(40, 30), "JPEG", quality=90)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(np.asarray(decode_image(data)), expected)
    assert np.array_equal(decode_scaled(data, 1), expected)


# --- orientation ---


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_image_is_turned_upright(orientation: int, image_format: str) -> None:
    data = turned_file(orientation, image_format)
    found = decode_image(data)
    assert corner_names(found) == list(CORNERS)
    assert found.size == image_size(data) == (48, 32)
    with Image.open(io.BytesIO(data)) as opened:
        assert np.array_equal(np.asarray(found), np.asarray(ImageOps.exif_transpose(opened)))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("fast", [True, False])
def test_the_fast_path_turns_too(orientation: int, scale: int, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(decoding, "_simplejpeg", lambda: None)
    data = turned_file(orientation)
    found = decode_scaled(data, scale)
    assert found.shape == (32 // scale, 48 // scale, 3)
    assert corner_names(Image.fromarray(found)) == list(CORNERS)
    assert np.array_equal(found, np.asarray(decode_image(data, scale)))
    assert image_size(data) == (48, 32)


def test_the_tag_may_stand_behind_the_pixels() -> None:
    rows = [bytes([10 * row + column for column in range(3) for _ in range(3)]) for row in range(2)]
    data = raw_png(rows, 3, 8, 2, after=chunk(b"eXIf", exif(6)[6:]))
    assert image_size(data) == decode_image(data).size == (2, 3)
    assert stored_orientation(data) == 6


def test_the_tag_may_be_xmp() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    data = encoded(stored_turned(marked(), 8), "JPEG", quality=95, xmp=xmp)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))  # Pillow 11.0 does not look there yet
    assert np.array_equal(np.asarray(decode_image(data)), expected)
    assert np.array_equal(decode_scaled(data, 1), expected)


@pytest.mark.parametrize("value", [0, 9, 65535, "6", (6, 6), 6.5])
def test_odd_tags_turn_nothing(value: object) -> None:
    tags = exif(1)
    if isinstance(value, int):
        tags = exif(value)
    elif isinstance(value, str):
        tags = tags[:-10] + struct.pack(">H", 2) + tags[-8:]  # the tag's type: text instead of a number
    data = encoded(marked(), "JPEG", exif=tags, quality=95)
    assert corner_names(decode_image(data)) == list(CORNERS)
    assert decode_scaled(data, 1).shape == (32, 48, 3)


@pytest.mark.parametrize("tags", [b"", b"II", b"garbage!", b"MM\0*\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_broken_tags_fail_nothing(tags: bytes, image_format: str) -> None:
    if image_format == "PNG":
        data = encoded(marked())
        data = data[:33] + chunk(b"eXIf", tags) + data[33:]
    else:
        data = encoded(marked(), image_format, exif=b"Exif\0\0" + tags, quality=95)
    assert corner_names(decode_image(data)) == list(CORNERS)
    assert image_size(data) == (48, 32) and stored_orientation(data) == 1


def test_what_was_turned_carries_no_tag_into_the_next_file() -> None:
    for image_format in ("JPEG", "PNG", "WEBP"):
        again = encoded(decode_image(turned_file(6)), image_format)
        assert stored_orientation(again) == 1 and corner_names(decode_image(again)) == list(CORNERS)


# --- modes ---


def test_transparency_becomes_white() -> None:
    pixels = np.zeros((2, 2, 4), dtype=np.uint8)
    pixels[0, 0] = (200, 0, 0, 255)
    pixels[0, 1] = (200, 0, 0, 0)
    pixels[1, 0] = (0, 0, 0, 51)
    found = np.asarray(decode_image(encoded(Image.fromarray(pixels))))
    assert found.tolist()[0] == [[200, 0, 0], [255, 255, 255]]
    assert found[1, 0].tolist() == [204, 204, 204]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "I;16", "I", "F", "LAB", "YCbCr", "RGBA", "RGBX"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    wide = mode in ("I;16", "I", "F")
    image_format = "PNG" if mode in ("L", "LA", "P", "1", "I;16", "RGBA") else "TIFF"
    image_format = "JPEG" if mode == "YCbCr" else image_format
    image = Image.new(mode, (4, 3)) if wide else noise(4, 3).convert(mode)
    found = decode_image(encoded(image, image_format))
    assert found.mode == "RGB" and found.size == (4, 3)


def test_a_transparent_palette_becomes_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    assert np.asarray(decode_image(encoded(image, transparency=1))).tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize(
    ("depth", "row", "key", "expected"),
    [
        (1, b"\x40", 0, [255, 255]),
        (2, b"\x18", 1, [0, 255]),
        (4, b"\x5a", 5, [255, 170]),
        (8, b"\x07\x08", 7, [255, 8]),
        (16, b"\x12\x34\x80\x80", 0x1234, [255, 128]),
    ],
)
def test_a_transparent_grey_of_any_depth_becomes_white(depth: int, row: bytes, key: int, expected: list[int]) -> None:
    data = raw_png([row], 2, depth, 0, before=chunk(b"tRNS", struct.pack(">H", key)))
    assert np.asarray(decode_image(data))[0, :, 0].tolist() == expected


def test_a_transparent_colour_of_16_bits_becomes_white() -> None:
    row = struct.pack(">6H", *(0x1234,) * 3, *(0x8080,) * 3)
    data = raw_png([row], 2, 16, 2, before=chunk(b"tRNS", row[:6]))
    assert np.asarray(decode_image(data))[0].tolist() == [[255] * 3, [128] * 3]


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_greys_of_16_bits_are_scaled(image_format: str) -> None:
    values = np.linspace(0, 65535, 12, dtype=np.uint16).reshape(3, 4)
    found = np.asarray(decode_image(encoded(Image.fromarray(values), image_format)))
    assert np.array_equal(found[..., 0], np.rint(values / 257).astype(np.uint8))
    assert found.min() == 0 and found.max() == 255


def test_big_endian_and_32_bit_greys_are_scaled_alike() -> None:
    values = np.array([[0, 257, 2570, 65535]], dtype=np.uint16)
    netpbm = b"P5 4 1 65535\n" + values.astype(">u2").tobytes()
    for data in (netpbm, encoded(Image.fromarray(values.astype(np.int32)), "TIFF")):
        assert np.asarray(decode_image(data))[0, :, 0].tolist() == [0, 1, 10, 255]


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0, 3e6])
def test_floats_are_scaled_to_the_white_that_they_use(white: float) -> None:
    values = np.array([[0.0, 0.2 * white, white, np.nan, np.inf, -np.inf, -1.0]], dtype=np.float32)
    found = np.asarray(decode_image(encoded(Image.fromarray(values), "TIFF")))
    assert found[0, :, 0].tolist() == [0, 51, 255, 0, 255, 0, 0]


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for image_format in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:], lossless=True)
        assert decode_image(data).getpixel((3, 3)) == (255, 0, 0)


# --- broken files ---


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_cut_image_is_truncated(image_format: str, share: float) -> None:
    data = encoded(noise(64, 64), image_format)
    assert reason_of(data[: int(len(data) * share)]) == "image_truncated"


@pytest.mark.parametrize("progressive", [True, False])
def test_a_cut_jpeg_filled_up_with_zeros_is_truncated(progressive: bool) -> None:
    """Downloads that reserve their space first leave such files; the decoder would give half an image."""
    data = encoded(noise(64, 64), "JPEG", progressive=progressive)
    data = data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
    assert reason_of(data) == "image_truncated"
    with pytest.raises(DataError):
        decode_scaled(data, 1)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("tail", [bytes(10_000), b"ftypmp42 a video of two seconds", b"\xff\xd8\xff\xe0 another image"])
def test_what_stands_behind_the_end_does_not_matter(image_format: str, tail: bytes) -> None:
    data = encoded(marked(), image_format)
    assert decode_image(data + tail).tobytes() == decode_image(data).tobytes()
    assert np.array_equal(decode_scaled(data + tail, 2), decode_scaled(data, 2))


def test_a_small_image_inside_the_header_is_not_the_end() -> None:
    small = encoded(noise(8, 8), "JPEG")
    data = encoded(noise(64, 64), "JPEG", exif=b"Exif\0\0" + small)
    assert decode_image(data).size == (64, 64)
    assert reason_of(data[: len(data) - 300]) == "image_truncated"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\xff\xd8\xff" + bytes(90) + b"\xff\xd9",
        b"\x89PNG\r\n\x1a\n" + bytes(99) + b"IEND\xaeB`\x82",
        bytes(1000),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        short_profile_behind_pixels(),
        raw_png([], 0, 8, 2),
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 99_999, 99_999, 8, 2, 0, 0, 0))
        + chunk(b"IEND", b""),
    ],
)
def test_what_is_no_image_is_broken(data: bytes) -> None:
    assert reason_of(data) == "image_broken"


def test_huge_sizes_in_a_jpegs_head_are_refused_before_memory_is_taken() -> None:
    data = bytearray(encoded(noise(16, 16), "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(DataError) as caught:
        decode_scaled(bytes(data), 1)
    assert caught.value.reason == "image_broken"


def test_messages_name_the_place_and_no_address() -> None:
    with pytest.raises(DataError) as caught:
        decode_image(b"hello", where="corpus/a.jpg")
    assert caught.value.where == "corpus/a.jpg" and "no known image format" in str(caught.value)
    with pytest.raises(DataError) as caught:
        decode_image(short_profile_behind_pixels())
    assert caught.value.reason == "image_broken"


BASES = (
    encoded(marked(20, 12)),
    turned_file(6, upright=marked(20, 12)),
    turned_file(8, "WEBP", marked(20, 12)),
    raw_png([bytes(8)] * 4, 4, 16, 0, after=chunk(b"tEXt", b"a\0b") + chunk(b"eXIf", exif(3)[6:])),
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    base=st.sampled_from(BASES),
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=0, max_size=6)), min_size=1, max_size=4),
    length=st.floats(0.2, 1.2),
)
def test_mutated_files_decode_or_have_a_reason(base: bytes, changes: list[tuple[float, bytes]], length: float) -> None:
    data = bytearray(base)
    for place, change in changes:
        at = int(place * len(data))
        data[at : at + len(change)] = change
    mutated = bytes(data[: int(length * len(data))])
    for function in (lambda: decode_image(mutated), lambda: decode_scaled(mutated, 2), lambda: image_size(mutated)):
        try:
            function()
        except DataError as error:
            assert error.reason in ("image_broken", "image_truncated")


CHUNKS = (b"iCCP", b"tRNS", b"eXIf", b"zTXt", b"iTXt", b"gAMA", b"acTL", b"fcTL", b"PLTE")


@settings(max_examples=100, deadline=None)
@given(chunks=st.lists(st.tuples(st.sampled_from(CHUNKS), st.binary(max_size=12)), min_size=1, max_size=3))
def test_odd_chunks_on_both_sides_of_the_pixels_decode_or_have_a_reason(chunks: list[tuple[bytes, bytes]]) -> None:
    extra = b"".join(chunk(kind, data) for kind, data in chunks)
    for data in (raw_png([bytes(9)] * 3, 3, 8, 2, before=extra), raw_png([bytes(9)] * 3, 3, 8, 2, after=extra)):
        try:
            assert decode_image(data).mode == "RGB"
        except DataError as error:
            assert error.reason in ("image_broken", "image_truncated")


def test_flipped_bits_are_broken_or_harmless() -> None:
    data = bytearray(encoded(noise(32, 32)))
    data[60:90] = bytes(30)
    assert reason_of(bytes(data)) == "image_broken"


def test_nothing_but_pillow_and_numpy_is_imported() -> None:
    """Shard builds start on login nodes."""
    import subprocess
    import sys

    code = "import cclm.data.decoding, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path.cwd(), check=False).returncode == 0


def test_compressed_bombs_are_refused() -> None:
    packed = zlib.compress(bytes(30_000_000))
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    assert reason_of(data) == "image_broken"
