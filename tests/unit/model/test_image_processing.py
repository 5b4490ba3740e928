from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cclm.data.decoding import decode_image
from cclm.data.image import ImageTransformConfig, eval_image
from cclm.model.image_processing_cclm import CCLMImageProcessor


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


def test_something_else_is_a_sentence() -> None:
    with pytest.raises(TypeError, match=r"expected PIL images, got ndarray. Open the file with PIL.Image.open"):
        CCLMImageProcessor()([np.zeros((4, 4, 3))])
