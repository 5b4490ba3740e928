from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import transformers

from cclm.data.options import ImageTransformConfig
from cclm.errors import ConfigError
from cclm.pretrained.towers import pixel_values, with_pixel_values

HALF = (0.5, 0.5, 0.5)
PLAIN = ImageTransformConfig()


def write(folder: Path, content: object, name: str = "preprocessor_config.json") -> str:
    (folder / name).write_text(json.dumps(content))
    return str(folder)


def test_what_transformers_writes_is_read(tmp_path: Path) -> None:
    transformers.SiglipImageProcessor().save_pretrained(tmp_path)
    assert pixel_values(str(tmp_path)) == (HALF, HALF)
    transformers.CLIPImageProcessor().save_pretrained(tmp_path)
    assert pixel_values(str(tmp_path)) == (PLAIN.mean, PLAIN.std)


def test_a_processor_that_holds_the_image_processor(tmp_path: Path) -> None:
    content = {"image_processor": {"image_mean": list(HALF), "image_std": 0.25}, "processor_class": "SiglipProcessor"}
    assert pixel_values(write(tmp_path, content, "processor_config.json")) == (HALF, (0.25, 0.25, 0.25))


def test_fields_that_the_recipe_sets_stay(tmp_path: Path) -> None:
    source = write(tmp_path, {"image_mean": HALF, "image_std": HALF})
    assert with_pixel_values(PLAIN, source) == replace(PLAIN, mean=HALF, std=HALF)
    own = replace(PLAIN, mean=(0.1, 0.2, 0.3))
    assert with_pixel_values(own, source) == replace(own, std=HALF)


def test_pictures_that_are_not_normalised(tmp_path: Path) -> None:
    source = write(tmp_path, {"do_normalize": False, "image_mean": HALF, "image_std": HALF})
    assert pixel_values(source) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_a_source_that_says_nothing_changes_nothing(tmp_path: Path) -> None:
    assert with_pixel_values(PLAIN, str(tmp_path)) is PLAIN
    assert with_pixel_values(PLAIN, write(tmp_path, {"size": 224})) is PLAIN


@pytest.mark.parametrize("mean", [[0.5, 0.5], ["red", 0.5, 0.5], None])
def test_a_file_of_another_shape_is_refused(tmp_path: Path, mean: object) -> None:
    source = write(tmp_path, {"image_mean": mean, "image_std": HALF})
    with pytest.raises(ConfigError, match=r"preprocessor_config.json: expected image_mean and image_std with a number"):
        pixel_values(source)
