"""Boxes follow their image through crops and mirrors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cclm.annotations.rows import BoxRow, ClassifyRow
from cclm.data.options import ImageTransformConfig, SourceConfig
from cclm.data.tokens import TextTokenizer
from cclm.errors import ConfigError, DataError
from cclm.files.atomic import replace_text
from cclm.views.annotated.locate import LocateSource
from cclm.views.annotated.options import LocateConfig
from tests.unit.data.data_sets import make_tokenizer

SIZE = 60


def source(folder: Path, text: str, method: str = "random_resized_crop", flips: float = 0.5) -> LocateSource:
    """Of one image, white but for the box that the text means; the annotated image was twice as large."""
    (folder / "images").mkdir()
    pixels = np.full((40, 60, 3), 255, dtype=np.uint8)
    pixels[5:15, 30:50] = 0
    Image.fromarray(pixels).save(folder / "images" / "a.png")
    row = f'[{{"image": "a.png", "text": "{text}", "bbox": [60, 10, 40, 20], "width": 120, "height": 80}}]'
    replace_text(folder / "refcoco_train.json", row)
    transform = ImageTransformConfig(method=method, size=SIZE, flip_probability=flips)  # type: ignore[arg-type]
    config = LocateConfig(
        sources={"en": SourceConfig(path="refcoco_train.json")}, folder=str(folder), format="refcoco", batch_size=1,
        max_tokens=8, transform=transform,
    )  # fmt: skip
    return LocateSource("locate", config, TextTokenizer(make_tokenizer()), seed=3)


@pytest.mark.parametrize("method", ["random_resized_crop", "none"])
def test_the_box_stays_on_what_it_means(tmp_path: Path, method: str) -> None:
    opened = source(tmp_path, "thing", method)
    boxes = []
    for step in range(20):
        batch = opened.batch(step, range(1), [])
        x, y, width, height = (batch.box_R4[0] * SIZE).tolist()
        dark = (batch.normalised().images[0].mean(0) < 0).numpy()
        rows, columns = np.nonzero(dark)
        seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert seen == pytest.approx((x - width / 2, y - height / 2, x + width / 2, y + height / 2), abs=1.5)
        boxes.append(seen)
    assert (len(set(boxes)) > 10) is (method != "none")


def test_an_image_whose_phrase_names_a_side_is_not_mirrored(tmp_path: Path) -> None:
    (tmp_path / "free").mkdir()
    (tmp_path / "bound").mkdir()
    free, bound = source(tmp_path / "free", "thing", flips=1.0), source(tmp_path / "bound", "left thing", flips=1.0)
    one, other = (opened.batch(0, range(1), []) for opened in (free, bound))
    assert one.box_R4[0, 0] == pytest.approx(1.0 - other.box_R4[0, 0].item())
    assert one.images_BCHW.flip(3).equal(other.images_BCHW)


@pytest.mark.parametrize("method", ["random_resized_crop", "none"])
def test_what_has_no_box_in_its_image_is_not_trained_on_and_does_not_end_an_evaluation(
    tmp_path: Path, method: str
) -> None:
    opened = source(tmp_path, "thing", method)
    row = BoxRow(id="1", image="a.png", text="thing", box=(130, 10, 5, 5), language="en", size=(120, 80))
    with pytest.raises(DataError) as caught:
        opened.trained(row, np.random.default_rng(0))
    assert caught.value.reason == "region_missing"
    assert opened.evaluated([row]).size_R2.tolist() == [[120.0, 80.0]]
    opened.look_at([row, replace(row, size=None)], 2)
    config = LocateConfig(sources={"en": SourceConfig(path="x")}, transform=ImageTransformConfig(method="affine"))
    assert any(error.startswith("transform.method") for error in config.validation_errors())
    with pytest.raises(ConfigError):
        opened.evaluated([ClassifyRow(id="1", images=("a.png",), text="thing", label=0, language="en")])


def test_names_of_annotation_files_begin_with_a_language() -> None:
    config = LocateConfig(sources={"no such": SourceConfig(path="x"), "pt-BR/own": SourceConfig(path="y")})
    (error,) = config.validation_errors()
    assert error.startswith("sources.no such: ")
    (error,) = replace(
        config, sources={"en": SourceConfig(path="x")}, test={"train": "z", "de": "y"}
    ).validation_errors()
    assert error.startswith("test.train: ")
