from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from cclm.data import decoding
from cclm.data.batch import PixelScale
from cclm.data.decoding import decode_scaled, decode_scaled_plain
from cclm.data.image import (
    eval_image,
    photo,
    photo_size,
    resize_box,
    scale_for,
    scaled_box,
    training_pixels,
)
from cclm.data.options import ImageTransformConfig, RandAugmentConfig
from cclm.errors import DataError

WHOLE = ImageTransformConfig(size=16, crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip_probability=0.0)


def smooth(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def far(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> int:
    return int(np.abs(first.astype(int) - second.astype(int)).max())


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2, "progressive": True}])
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_both_decoders_give_the_same_pixels(mode: str, options: dict[str, Any], scale: int) -> None:
    options = options if mode == "RGB" else {}
    data = jpeg(smooth(83, 61, mode), quality=90, **options)
    fast, plain = decode_scaled(data, scale), decode_scaled_plain(data, scale)
    assert fast.shape == (-(-61 // scale), -(-83 // scale), 3)
    assert np.array_equal(fast, plain)


def test_without_simplejpeg_a_sample_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data, config = jpeg(smooth(300, 200)), replace(WHOLE, crop_area=(0.2, 1.0), flip_probability=0.5)
    with_it = [photo(data, config, np.random.default_rng(seed)) for seed in range(6)]
    monkeypatch.setattr(decoding, "_simplejpeg", lambda: None)
    without = [photo(data, config, np.random.default_rng(seed)) for seed in range(6)]
    assert all(np.array_equal(first, second) for first, second in zip(with_it, without, strict=True))


@pytest.mark.parametrize("encode", [png, jpeg])
def test_the_size_is_read_from_the_header(encode: Any) -> None:
    assert photo_size(encode(smooth(31, 17))) == (31, 17)


@pytest.mark.parametrize(
    ("box", "scale"),
    [((0, 0, 31, 400), 1), ((0, 0, 32, 400), 2), ((7, 3, 71, 67), 4), ((0, 0, 127, 500), 4), ((0, 0, 999, 999), 8)],
)
def test_the_reduced_box_keeps_as_many_pixels_as_the_result(box: tuple[int, int, int, int], scale: int) -> None:
    assert scale_for(box, 16) == scale
    if scale > 1:
        left, top, right, bottom = scaled_box(box, (1000, 1000), (1000 // scale, 1000 // scale))
        assert right - left >= 16 - 1 and bottom - top >= 16 - 1  # a pixel may go in rounding


def test_a_reduced_decoding_shows_the_same_picture() -> None:
    image = smooth(512, 384)
    for seed in range(8):
        reduced = photo(jpeg(image, quality=95), replace(WHOLE, crop_area=(0.3, 1.0)), np.random.default_rng(seed))
        whole = photo(image, replace(WHOLE, crop_area=(0.3, 1.0)), np.random.default_rng(seed))
        assert (
            np.abs(reduced.astype(float) - whole.astype(float)).mean() < 6.0
        )  # the box is off by up to half a pixel; elsewhere: 40


@pytest.mark.parametrize("resample", ["bicubic", "bilinear", "box"])
def test_the_resize_is_pillows_up_to_rounding(resample: Any) -> None:
    image = smooth(90, 70)
    config, box = replace(WHOLE, resample=resample), (11, 5, 78, 66)
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR, "box": Image.Resampling.BOX}
    expected = np.asarray(image.crop(box).resize((16, 16), filters[resample]))
    assert far(resize_box(np.asarray(image), box, config), expected) <= 1


def test_a_crop_of_everything_is_the_evaluation_transform() -> None:
    image = smooth(32, 32)
    found = photo(image, WHOLE, np.random.default_rng(0))
    assert found.shape == (3, 16, 16) and found.dtype == np.uint8
    normalised = PixelScale(mean=WHOLE.mean, std=WHOLE.std)(torch.from_numpy(found)[None])[0].numpy()
    step = 1 / (255 * min(WHOLE.std))
    np.testing.assert_allclose(normalised, eval_image(image, WHOLE), atol=1.01 * step)
    flipped = photo(image, replace(WHOLE, flip_probability=1.0), np.random.default_rng(0))
    assert np.array_equal(flipped, found[:, :, ::-1])


def test_the_generator_decides() -> None:
    data = jpeg(smooth(60, 50))
    config = replace(WHOLE, crop_area=(0.2, 1.0), randaugment=RandAugmentConfig(probability=1.0))
    first, again, other = (photo(data, config, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    plain = photo(data, replace(config, randaugment=None), np.random.default_rng(4))
    augmented = photo(data, config, np.random.default_rng(4))
    assert not np.array_equal(plain, augmented)


@pytest.mark.parametrize("cut", [10, 200, 400])
def test_a_cut_picture_is_named(cut: int) -> None:
    data = jpeg(smooth(64, 64), quality=95)
    assert len(data) > 500
    with pytest.raises(DataError) as caught:
        photo(data[:cut], WHOLE, np.random.default_rng(0))
    assert caught.value.reason == "image_truncated"
    for junk in (b"", b"\xff\xd8\xff" + bytes(90) + b"\xff\xd9", b"GIF89a"):
        with pytest.raises(DataError) as caught:
            photo(junk, WHOLE, np.random.default_rng(0))
        assert caught.value.reason == "image_broken"


def test_transparent_pictures_come_on_white() -> None:
    pixels = np.zeros((20, 20, 4), dtype=np.uint8)
    found = photo(png(Image.fromarray(pixels)), WHOLE, np.random.default_rng(0))
    assert found.min() == 255


def test_icons_stay_floats() -> None:
    icon = replace(WHOLE, method="affine")
    assert training_pixels(smooth(16, 16), icon, np.random.default_rng(0)).dtype == np.float32
    assert training_pixels(png(smooth(16, 16)), icon, np.random.default_rng(0)).dtype == np.float32
    assert training_pixels(png(smooth(16, 16)), WHOLE, np.random.default_rng(0)).dtype == np.uint8


def test_the_scale_is_the_book_formula() -> None:
    scale = PixelScale(mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    found = scale(torch.full((1, 3, 1, 1), 51, dtype=torch.uint8))
    assert json.dumps([round(value, 5) for value in found.flatten().tolist()]) == "[-0.6, -0.05, 0.1]"
