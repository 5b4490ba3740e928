"""Regions of an image: crop, flip, boxes, patch masks, texts, and how they become groups."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cclm.data.tokens import TextTokenizer
from cclm.errors import DataError
from cclm.types import ImageTextRecord, Region
from cclm.views.regions.options import RegionConfig
from cclm.views.regions.samples import (
    Corners,
    RegionSample,
    clip_to_crop,
    draw_crop,
    draw_rows,
    patch_mask,
    region_sample,
)
from tests.tiny_views import REGIONS

BOXES = ((1, 2, 6, 5), (10, 3, 8, 9), (0, 0, 20, 30))


def record(*boxes: tuple[float, float, float, float], **captions: str) -> ImageTextRecord:
    said = {language: [text] for language, text in (captions or {"en": "aa ab", "de": "ba"}).items()}
    return ImageTextRecord(
        key="k",
        image=b"",
        image_format="png",
        captions={"en": ["ac"]},
        source="s",
        licence="MIT",
        identity="thing",
        regions=[Region(box=box, captions=said, attributes={"en": ["ga"], "de": ["gb"]}) for box in boxes],
    )


def image(width: int = 20, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def samples(view: RegionConfig, tokenizer: TextTokenizer, source: ImageTextRecord, count: int) -> list[RegionSample]:
    return [region_sample(source, image(), view, tokenizer, np.random.default_rng(seed)) for seed in range(count)]


def test_a_crop_holds_its_box_and_reaches_every_border() -> None:
    crops = [draw_crop((4, 5, 9, 12), (20, 30), np.random.default_rng(seed)) for seed in range(800)]
    for left, top, right, bottom in crops:
        assert 0 <= left <= 4 and 0 <= top <= 5 and 9 <= right <= 20 and 12 <= bottom <= 30
    for side, (low, high) in enumerate(((0, 4), (0, 5), (9, 20), (12, 30))):
        assert {crop[side] for crop in crops} == set(range(low, high + 1))


def test_a_box_is_kept_if_more_than_half_of_it_is_inside() -> None:
    crop = (10, 10, 30, 20)
    assert clip_to_crop((0, 10, 20, 20), crop, 0.5) is None  # exactly half
    assert clip_to_crop((1, 10, 20, 20), crop, 0.5) == pytest.approx((0.0, 0.0, 0.5, 1.0))
    assert clip_to_crop((12, 12, 16, 15), crop, 0.5) == pytest.approx((0.1, 0.2, 0.3, 0.5))
    assert clip_to_crop((40, 12, 50, 15), crop, 0.0) is None


@pytest.mark.parametrize(
    ("corners", "rows", "columns"),
    [
        ((0.0, 0.0, 1.0, 1.0), (0, 7), (0, 7)),
        ((0.0, 0.0, 1 / 7, 1 / 7), (0, 1), (0, 1)),
        ((0.2, 0.5, 0.21, 0.5), (3, 4), (1, 2)),  # at least one patch
        ((32.5 / 224, 63 / 224, 96.5 / 224, 64 / 224), (1, 2), (1, 4)),  # floor(x / 32) … ceil((x + w) / 32) - 1
        ((1.0, 1.0, 1.0, 1.0), (6, 7), (6, 7)),
    ],
)
def test_patches_under_a_box(corners: Corners, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    mask = patch_mask(corners, 7)
    expected = np.zeros((7, 7), dtype=bool)
    expected[slice(*rows), slice(*columns)] = True
    assert mask[0]
    assert np.array_equal(mask[1:].reshape(7, 7), expected)


def test_boxes_follow_crop_and_flip(tokenizer: TextTokenizer) -> None:
    """The picture's left half is black, its right half white: the box of the left half must lie over black pixels."""
    halves = Image.new("RGB", (20, 30))
    halves.paste((255, 255, 255), (10, 0, 20, 30))
    source = record((0, 0, 10, 30))
    view = replace(REGIONS, with_caption=False, transform=replace(REGIONS.transform, resample="box"))
    flipped = Counter[bool]()
    for seed in range(60):
        sample = region_sample(source, halves, view, tokenizer, np.random.default_rng(seed))
        (text,) = sample.texts
        centre_x, _, width, _ = text.box
        first, last = round((centre_x - width / 2) * 16), round((centre_x + width / 2) * 16)
        columns = sample.pixels_CHW.mean((0, 1))
        dark, light = columns.min(), columns.max()
        assert np.abs(columns[first + 1 : last - 1] - dark).max() < 1e-5
        if light - dark > 1:  # the crop shows white too
            outside = np.concatenate([columns[: max(0, first - 1)], columns[last + 1 :]])
            assert np.abs(outside - light).max(initial=0) < 1e-5
            flipped[centre_x > 0.5] += 1
    assert min(flipped.values()) >= 10


def test_texts_are_the_caption_then_regions_in_a_random_order(tokenizer: TextTokenizer) -> None:
    found = samples(replace(REGIONS, attributes="none", languages=("en",)), tokenizer, record(*BOXES), 60)
    for sample in found:
        first, *others = sample.texts
        assert first.is_whole and first.mask_N.all() and first.box == (0.5, 0.5, 1.0, 1.0)
        assert first.ids == tokenizer.encode(["ac"], 8)[0]
        assert 1 <= len(others) <= 2 and not any(text.is_whole for text in others)
        assert all(text.ids == tokenizer.encode(["aa ab"], 8)[0] for text in others)
        assert all(
            side - length / 2 >= 0 and side + length / 2 <= 1 + 1e-9
            for text in others
            for side, length in zip(text.box[:2], text.box[2:], strict=True)
        )
        assert len({text.identity for text in sample.texts}) == len(sample.texts)
    assert len({text.identity for sample in found for text in sample.texts}) == 1 + len(BOXES)
    bare = samples(replace(REGIONS, with_caption=False), tokenizer, record(*BOXES), 20)
    assert not any(text.is_whole for sample in bare for text in sample.texts)


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"attributes": "same_language"}, {"ga aa ab", "gb ba"}),
        ({"attributes": "any_language"}, {"ga aa ab", "gb aa ab", "ga ba", "gb ba"}),
        ({"attributes": "any_language", "reference": True}, {"g aa ab", "g ba"}),
        ({"attributes": "same_language", "languages": ("de",)}, {"gb ba"}),
        ({"attributes": "none"}, {"aa ab", "ba"}),
    ],
)
def test_attributes_are_said_first(tokenizer: TextTokenizer, changes: dict[str, Any], allowed: set[str]) -> None:
    view = replace(REGIONS, with_caption=False, **changes)
    said = {tuple(text.ids) for sample in samples(view, tokenizer, record(*BOXES), 60) for text in sample.texts}
    assert said == {tuple(tokenizer.encode([text], 8)[0]) for text in allowed}


def test_a_picture_whose_text_names_a_side_is_not_mirrored(tokenizer: TextTokenizer) -> None:
    view = replace(REGIONS, transform=replace(REGIONS.transform, flip_probability=1.0))
    plain, sided = record(*BOXES), record(*BOXES, en="aa ab", de="die linke ba")
    for seed in range(5):
        normal, kept, published = (
            region_sample(source, image(), replace(view, reference=reference), tokenizer, np.random.default_rng(seed))
            for source, reference in ((plain, False), (sided, False), (sided, True))
        )
        assert np.array_equal(kept.pixels_CHW, normal.pixels_CHW[:, :, ::-1])
        assert np.array_equal(published.pixels_CHW, normal.pixels_CHW)


@pytest.mark.parametrize(
    ("boxes", "view", "reason"),
    [
        ((), REGIONS, "region_missing"),
        (((15, 0, 6, 5), (0, 0, 0.5, 5), (-1, 0, 5, 5)), REGIONS, "region_missing"),
        (BOXES, replace(REGIONS, languages=("xx",)), "caption_missing"),
    ],
)
def test_unusable_records(
    tokenizer: TextTokenizer, boxes: tuple[tuple[float, float, float, float], ...], view: RegionConfig, reason: str
) -> None:
    with pytest.raises(DataError) as caught:
        region_sample(record(*boxes), image(), view, tokenizer, np.random.default_rng(0))
    assert caught.value.reason == reason


def test_a_group_has_its_number_of_texts_whatever_its_pictures_have(tokenizer: TextTokenizer) -> None:
    many = samples(REGIONS, tokenizer, record(*BOXES), 5)
    rows = draw_rows(many, REGIONS, tokenizer, np.random.default_rng(0))
    places = [(image, text.identity) for image, text, _ in rows]
    assert len(rows) == 8 and len(set(places)) == 8, "enough texts: none twice"
    images = [image for image, *_ in rows]
    assert images[:4] == sorted(images[:4]) and images[4:] == sorted(images[4:]), "neighbours share images"
    assert len(set(images[:4])) > 1
    few = draw_rows(many[:2], REGIONS, tokenizer, np.random.default_rng(0))
    total = sum(len(sample.texts) for sample in many[:2])
    counts = Counter((image, text.identity) for image, text, _ in few)
    assert len(few) == 8 and len(counts) == total < 8
    published = draw_rows(many[:2], replace(REGIONS, reference=True), tokenizer, np.random.default_rng(0))
    assert len({text.identity for _, text, _ in published}) == 8, "duplicates are negatives of each other"
