from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cclm.data.decoding import decode_image
from cclm.data.image import eval_image
from cclm.data.options import ImageTransformConfig
from cclm.model.image_processing_cclm import CCLMImageProcessor
from tests.image_files import ORIENTATIONS, encoded, turned_file


def picture(mode: str = "RGB", side: int = 20, seed: int = 0) -> Image.Image:
    """Noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 3, 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def test_it_is_a_plain_resize_and_normalise() -> None:
    processor = CCLMImageProcessor(
        size={"height": 8, "width": 8}, image_mean=(0.5, 0.4, 0.3), image_std=(0.2, 0.3, 0.4)
    )
    pixels = processor(picture(), return_tensors="pt")["pixel_values"]
    resized = np.asarray(picture().resize((8, 8), Image.Resampling.BOX), dtype=np.float32) / 255
    expected = (resized - np.float32([0.5, 0.4, 0.3])) / np.float32([0.2, 0.3, 0.4])
    assert pixels.shape == (1, 3, 8, 8)
    torch.testing.assert_close(pixels[0], torch.tensor(expected).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK"])
@pytest.mark.parametrize("side", [8, 21])
def test_it_equals_the_evaluation_transform_to_the_last_bit(tmp_path: Path, mode: str, side: int) -> None:
    path = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
    picture(mode, side).save(path)
    transform = ImageTransformConfig(size=8, resample="box", mean=(0.8, 0.8, 0.8), std=(0.3, 0.3, 0.3))
    with Image.open(path) as opened:
        pixels = CCLMImageProcessor(size={"height": 8, "width": 8})(opened)["pixel_values"]
    assert np.array_equal(pixels[0], eval_image(decode_image(path.read_bytes()), transform))


def test_transparency_shows_white() -> None:
    clear = Image.new("RGBA", (4, 4), (9, 9, 9, 0))
    pixels = CCLMImageProcessor(size={"height": 4, "width": 4}, image_mean=[0] * 3, image_std=[1] * 3)(clear)
    np.testing.assert_allclose(pixels["pixel_values"], 1.0)


def test_several_pictures_make_a_batch() -> None:
    pictures = [picture(seed=0), picture(side=40, seed=1)]
    both = CCLMImageProcessor()(pictures)["pixel_values"]
    assert np.array_equal(both[1:], CCLMImageProcessor()(pictures[1])["pixel_values"])


def test_it_survives_saving(tmp_path: Path) -> None:
    processor = CCLMImageProcessor(size={"height": 6, "width": 7}, resample=3, image_mean=(0.1, 0.2, 0.3))
    processor.save_pretrained(tmp_path)
    loaded = CCLMImageProcessor.from_pretrained(tmp_path)
    assert (loaded.size, loaded.resample, loaded.image_mean) == (processor.size, 3, [0.1, 0.2, 0.3])


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_it_turns_images_as_training_does(orientation: int, image_format: str) -> None:
    data = turned_file(orientation, image_format)
    transform = ImageTransformConfig(size=8, resample="box", mean=(0.8, 0.8, 0.8), std=(0.3, 0.3, 0.3))
    expected = eval_image(decode_image(data), transform)
    processor = CCLMImageProcessor(size={"height": 8, "width": 8})
    for image in (Image.open(io.BytesIO(data)), Image.open(io.BytesIO(data)).convert("RGB")):
        assert np.array_equal(processor(image)["pixel_values"][0], expected)


def test_it_scales_16_bits_as_training_does() -> None:
    data = encoded(Image.fromarray(np.linspace(0, 65535, 48, dtype=np.uint16).reshape(6, 8)))
    plain = CCLMImageProcessor(size=6, image_mean=0.0, image_std=1.0)
    transform = ImageTransformConfig(size=6, resample="box", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    found = plain(Image.open(io.BytesIO(data)))["pixel_values"][0]
    assert np.array_equal(found, eval_image(decode_image(data), transform)) and 0.4 < found.mean() < 0.6


OPTIONS: list[dict[str, Any]] = [
    {"size": {"height": 6, "width": 9}},
    {"size": 7},
    {"size": (7, 5)},
    {"resample": 3},
    {"resample": Image.Resampling.BILINEAR},
    {"do_normalize": False},
    {"do_rescale": False, "do_normalize": False},
    {"rescale_factor": 1 / 127.5},
    {"image_mean": 0.5, "image_std": [0.5, 0.25, 0.125]},
    {"do_resize": False},
    {"data_format": "channels_last"},
    {"do_convert_rgb": True, "do_center_crop": False, "do_pad": None},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_of_a_call_do_what_those_of_a_processor_do(options: dict[str, Any], tmp_path: Path) -> None:
    default, changed = CCLMImageProcessor(), CCLMImageProcessor(**options)
    found = default(picture(), **options)["pixel_values"]
    assert np.array_equal(found, changed(picture())["pixel_values"])
    changed.save_pretrained(tmp_path)
    for again in (
        CCLMImageProcessor.from_pretrained(tmp_path),
        CCLMImageProcessor.from_pretrained(tmp_path, **options),
    ):
        assert np.array_equal(again(picture())["pixel_values"], found)
    if "do_convert_rgb" not in options:
        assert not np.array_equal(found, default(picture())["pixel_values"]), "it makes a difference"
    assert np.array_equal(default(picture())["pixel_values"], CCLMImageProcessor()(picture())["pixel_values"])


def test_options_mean_what_they_mean_in_transformers() -> None:
    image, rows = picture(side=8), np.asarray(picture(side=8), dtype=np.float32)
    processor = CCLMImageProcessor(do_resize=False)
    assert np.array_equal(
        processor(image, do_rescale=False, do_normalize=False)["pixel_values"][0], rows.transpose(2, 0, 1)
    )
    np.testing.assert_allclose(processor(image, do_normalize=False)["pixel_values"][0].transpose(1, 2, 0), rows / 255)
    last = processor(image, data_format="channels_last", do_normalize=False)["pixel_values"][0]
    np.testing.assert_allclose(last, rows / 255)
    halved = processor(image, rescale_factor=0.5, image_mean=1.0, image_std=2.0)["pixel_values"][0]
    np.testing.assert_allclose(halved.transpose(1, 2, 0), (rows * 0.5 - 1) / 2, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"do_center_crop": True},
        {"crop_size": 7},
        {"do_pad": True},
        {"input_data_format": "channels_first"},
        {"device": "cuda"},
        {"do_convert_rgb": False},
        {"do_normalise": False},
        {"size": {"shortest_edge": 7}},
        {"size": 0},
        {"image_mean": [0.1, 0.2]},
        {"image_std": 0.0},
        {"data_format": "channels_middle"},
    ],
    ids=str,
)
def test_what_it_does_not_do_is_refused_by_name(options: dict[str, Any]) -> None:
    (name,) = options
    for action in (lambda: CCLMImageProcessor(**options), lambda: CCLMImageProcessor()(picture(), **options)):
        with pytest.raises((TypeError, ValueError), match=name):
            action()


def test_something_else_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        CCLMImageProcessor()([])
    with pytest.raises(TypeError, match=r"expected PIL images, got ndarray\. .* an array with PIL.Image.fromarray"):
        CCLMImageProcessor()([np.zeros((4, 4, 3))])
    with pytest.raises(TypeError, match="expected PIL images, got bool"):
        CCLMImageProcessor()(True)
