"""Pictures are copied bit for bit unless the recipe asks for more."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from cclm.errors import DataError
from shards.recipe import ImageSettings
from shards.sketch import SourceImage, written_anew
from tests.image_files import encoded
from tests.unit.shards.tiny_pictures import drawing


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (ImageSettings(), "nothing is asked"),
        (ImageSettings(short_side=64), "no larger than that"),
        (ImageSettings(format="png"), "that format"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_needs_no_change_is_copied_bit_for_bit(settings: Any, reason: str) -> None:
    data = encoded(drawing(1)) + b"bytes behind the end, too"
    assert written_anew(SourceImage(data), "png", settings) == (data, "png", 1.0)


def test_nothing_is_opened_when_nothing_is_asked() -> None:
    assert written_anew(SourceImage(b"no picture"), "jpg", ImageSettings()) == (b"no picture", "jpg", 1.0)


@pytest.mark.parametrize(("image_format", "name"), [("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_a_picture_is_scaled_and_stored_in_another_format(image_format: str, name: str) -> None:
    data = encoded(drawing(1, (300, 200)))
    image, stored, factor = written_anew(SourceImage(data), "png", ImageSettings(short_side=100, format=image_format))
    picture = Image.open(io.BytesIO(image))
    assert (picture.format, picture.size, stored, factor) == (name, (150, 100), image_format, 0.5)
    assert image == written_anew(SourceImage(data), "png", ImageSettings(short_side=100, format=image_format))[0]


def test_quality_decides_the_size() -> None:
    data = encoded(drawing(1, (300, 200)))
    sizes = [len(written_anew(SourceImage(data), "png", ImageSettings(format="jpg", quality=q))[0]) for q in (30, 95)]
    assert sizes[0] < sizes[1]


def test_transparent_is_white() -> None:
    data = encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0)))
    image, _, _ = written_anew(SourceImage(data), "png", ImageSettings(format="jpg"))
    assert Image.open(io.BytesIO(image)).getpixel((1, 1)) == (255, 255, 255)


def test_a_picture_that_does_not_decode() -> None:
    whole = encoded(drawing(1), "JPEG")
    for data, reason in ((b"nothing", "image_broken"), (whole[: len(whole) // 3], "image_truncated")):
        with pytest.raises(DataError) as caught:
            _ = SourceImage(data, "here").pixels
        assert (caught.value.reason, caught.value.where) == (reason, "here")
