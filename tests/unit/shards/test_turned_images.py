"""Images that a camera stored sideways, and files that make decoders stumble, on their way through a build."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cclm.data.decoding import decode_image, stored_orientation
from cclm.data.tokens import TextTokenizer
from cclm.errors import DataError
from cclm.shardfile.reader import ShardSet
from cclm.types import ImageTextRecord, Region
from cclm.views.regions.samples import region_sample
from shards.__main__ import main
from shards.corpora.image_corpus import fit_regions, image_size
from shards.filters import refusal_of_image
from shards.recipe import FilterSettings, ImageSettings
from shards.sketch import SourceImage, perceptual_hash, written_anew
from tests.image_files import (
    CORNERS,
    ORIENTATIONS,
    corner_names,
    encoded,
    marked,
    short_profile_behind_pixels,
    stored_turned,
    turned_file,
)
from tests.tiny_views import REGIONS
from tests.unit.data.data_sets import make_tokenizer
from tests.unit.shards.tiny_pictures import drawing

UPRIGHT = (0.0, 0.0, 24.0, 16.0)
"""The red quarter of `marked`."""


def build(folder: Path, lines: list[dict[str, Any]], **settings: Any) -> tuple[list[ImageTextRecord], list[bytes]]:
    """Records of a set that was built from a folder of images, and the lines of its quarantine."""
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    recipe = {"view": "image_text", "corpus": "image_folder", "num_shards": 1, "max_bad_fraction": 1.0}
    sets = {"s": {**recipe, "options": {"folder": str(folder)}, **settings}}
    (folder / "recipe.yaml").write_text(json.dumps({"sets": sets}), encoding="utf-8")
    out = folder / "out"
    assert main(["build", str(folder / "recipe.yaml"), "--out", str(out)], Console(file=io.StringIO())) == 0
    shards = ShardSet(out / "s")
    records = [shards.image_text(0, sample) for sample in range(shards.samples_per_shard[0])]
    return records, (out / "s" / "quarantine.jsonl").read_bytes().splitlines()


def stored_box(orientation: int) -> list[float]:
    """Where the red quarter lies in the file's own pixels."""
    pixels = np.asarray(stored_turned(marked(), orientation))
    rows, columns = np.nonzero((pixels == CORNERS["red"]).all(-1))
    return [
        float(value)
        for value in (columns.min(), rows.min(), columns.max() - columns.min() + 1, rows.max() - rows.min() + 1)
    ]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_boxes_turn_with_their_image(orientation: int) -> None:
    frame = stored_turned(marked(), orientation).size
    x, y, width, height = stored_box(orientation)
    region = Region(box=(x, y, width, height), captions={"en": ["red"]})
    for annotated, shrink in ((None, 1.0), (frame, 1.0), ((frame[0] * 2, frame[1] * 2), 2.0)):
        given = replace(region, box=(x * shrink, y * shrink, width * shrink, height * shrink))
        (found,) = fit_regions([given], (48, 32), annotated, orientation)
        assert found.box == UPRIGHT


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_drawn_on_the_upright_image_stay(orientation: int) -> None:
    region = Region(box=(0.0, 0.0, 48.0, 32.0), captions={"en": ["red"]})
    (found,) = fit_regions([region], (48, 32), (96, 64), orientation)
    assert found.box == UPRIGHT


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("images", [{}, {"format": "png"}, {"short_side": 16}])
def test_a_build_keeps_image_and_boxes_together(tmp_path: Path, orientation: int, images: dict[str, Any]) -> None:
    data = turned_file(orientation)
    (tmp_path / "a.jpg").write_bytes(data)
    region = {"box": stored_box(orientation), "captions": {"en": ["aa ab"]}}
    (record,), _ = build(tmp_path, [{"image": "a.jpg", "captions": {"en": ["ac"]}, "regions": [region]}], images=images)
    assert (record.image == data) == (not images), "kept bit for bit, tag included, unless the recipe asks for more"
    assert stored_orientation(record.image) == (1 if images else orientation)
    assert corner_names(decode_image(record.image)) == list(CORNERS)
    assert record.regions[0].box == pytest.approx([side / (2 if "short_side" in images else 1) for side in UPRIGHT])
    view = replace(REGIONS, transform=replace(REGIONS.transform, size=16, flip_probability=0.0), patch_grid=4)
    for seed in range(4):  # the crop that training takes holds the box that it says
        sample = region_sample(record, record.image, view, TextTokenizer(make_tokenizer()), np.random.default_rng(seed))
        box = next(text.box for text in sample.texts if not text.is_whole)
        row, column = (int(side * 16 - 0.5) for side in (box[1], box[0]))
        assert np.abs(sample.pixels_CHW[:, row, column].astype(int) - CORNERS["red"]).max() < 40


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_sizes_hashes_and_new_files_are_those_of_the_upright_image(orientation: int) -> None:
    image = drawing(3, (90, 60))
    turned = SourceImage(turned_file(orientation, upright=image))
    assert turned.size == image_size(turned.data, "") == (90, 60)
    plain = SourceImage(encoded(image, "JPEG", quality=95, subsampling=0))
    one, other = (int.from_bytes(perceptual_hash(each), "big") for each in (turned, plain))
    assert bin(one ^ other).count("1") <= 2
    data, _, factor = written_anew(turned, "jpg", ImageSettings(short_side=30))
    assert (decode_image(data).size, factor, stored_orientation(data)) == ((45, 30), 0.5, 1)


def test_filters_look_at_the_upright_image(tmp_path: Path) -> None:
    pytest.importorskip("imagehash")
    (tmp_path / "test.png").write_bytes(encoded(drawing(3, (90, 60))))
    settings = FilterSettings(benchmark_images=str(tmp_path))
    refusal = refusal_of_image(SourceImage(turned_file(6, upright=drawing(3, (90, 60)))), settings)
    assert refusal is not None and refusal.reason == "picture_of_benchmark"


def test_files_that_make_decoders_stumble_are_quarantined_the_same_way_each_time(tmp_path: Path) -> None:
    whole = turned_file(1)
    files = {
        "late.png": short_profile_behind_pixels(),
        "late2.png": short_profile_behind_pixels() + b"\0",
        "zeros.jpg": whole[: len(whole) // 2] + bytes(len(whole)),
        "text.jpg": b"\xff\xd8\xff" + bytes(60) + b"\xff\xd9",
        "motion.jpg": whole + bytes(9000),
        "film.jpg": turned_file(8) + b"ftypmp42" + bytes(range(256)),
    }
    quarantines = []
    for place in ("one", "two"):
        folder = tmp_path / place / "same name"
        folder.mkdir(parents=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        records, lines = build(folder, [{"image": name, "captions": {"en": [name]}} for name in files])
        assert sorted(record.captions["en"][0] for record in records) == ["film.jpg", "motion.jpg"]
        quarantines.append([line.replace(place.encode(), b"") for line in lines])
    assert quarantines[0] == quarantines[1]
    reasons = {json.loads(line)["key"].split("-")[0]: json.loads(line)["reason"] for line in quarantines[0]}
    assert reasons == {
        "late": "image_broken",
        "late2": "image_broken",
        "zeros": "image_truncated",
        "text": "image_broken",
    }


def test_sixteen_bit_greys_keep_their_shades(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    (record,), _ = build(tmp_path, [{"image": "grey.png", "captions": {"en": ["x"]}}], images={"format": "jpg"})
    assert abs(float(np.asarray(decode_image(record.image)).mean()) - 127.5) < 1.0


def test_a_download_refuses_such_files_by_reason() -> None:
    with pytest.raises(DataError) as caught:
        image_size(short_profile_behind_pixels(), "https://host/late.png")
    assert (caught.value.reason, caught.value.where) == ("image_broken", "https://host/late.png")
