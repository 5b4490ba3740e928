"""Records and pairs survive the codec in every script; broken bytes each have their own word."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cclm.errors import DataError
from cclm.shardfile import codec, schema
from cclm.types import ImageTextRecord, Region, TextPair
from tests.shard_writers import table_of_pairs

JPEG = b"\xff\xd8\xff\xe1\x00\x06 \xff\xd9 \xff\xda\x00\x02 a scan \xff\xd9"
"""With the end of a small image in its header."""
PNG = b"\x89PNG\r\n\x1a\n" + b"body" + b"IEND\xaeB`\x82"
RECORD = ImageTextRecord(
    key="k-1_a", image=PNG, image_format="png", captions={"en": ["a dog"]}, source="artist", licence="MIT"
)
PAIR = TextPair(text_a="dog", lang_a="en", text_b="Hund", lang_b="de", source="names", group="g")

# Every character that UTF-8 can hold, so all scripts, emoji, controls and right-to-left marks.
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda text: bool(text.strip()))
CAPTIONS = st.dictionaries(
    st.sampled_from(["en", "zh-Hant", "ar", "th", "he"]), st.lists(TEXTS, min_size=1, max_size=3), min_size=1
)
SIDES = st.floats(allow_nan=False, allow_infinity=False)


def decode(record: ImageTextRecord) -> ImageTextRecord:
    (image_format, image), (extension, document) = codec.encode_image_text(record)
    assert extension == "json"
    return codec.decode_image_text(record.key, image_format, image, document)


@settings(max_examples=30, deadline=None)
@given(
    image=st.binary(min_size=1, max_size=50),
    image_format=st.sampled_from(schema.IMAGE_FORMATS),
    captions=CAPTIONS,
    identity=st.text(st.characters(codec="utf-8"), max_size=5),
    ids=st.dictionaries(TEXTS, TEXTS, max_size=2),
    boxes=st.lists(st.tuples(SIDES, SIDES, SIDES, SIDES), max_size=2),
    attributes=st.just({}) | CAPTIONS,
)
def test_a_record_comes_back_as_it_was(
    image: Any, image_format: str, captions: Any, identity: Any, ids: Any, boxes: Any, attributes: Any
) -> None:
    record = ImageTextRecord(
        key="key",
        image=image,
        image_format=image_format,
        captions=captions,
        source="s",
        licence="l",
        identity=identity,
        ids=ids,
        regions=tuple(Region(box=box, captions=captions, attributes=attributes) for box in boxes),
    )
    assert decode(record) == record


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.tuples(TEXTS, TEXTS, st.none() | st.floats(width=32, allow_nan=False)), min_size=1, max_size=6))
def test_a_block_comes_back_as_it_was(rows: Any) -> None:
    pairs = [replace(PAIR, text_a=a, text_b=b, score=score) for a, b, score in rows]
    assert codec.pairs_of(codec.decode_block(codec.encode_block(table_of_pairs(pairs)))) == pairs


def test_equal_records_give_equal_bytes_whatever_the_order_of_languages() -> None:
    one = replace(RECORD, captions={"en": ["a"], "de": ["b"]})
    two = replace(RECORD, captions={"de": ["b"], "en": ["a"]})
    assert codec.encode_image_text(one) == codec.encode_image_text(two)


def test_a_region_without_attributes_has_no_field_for_them() -> None:
    region = Region(box=(0, 0, 1, 1), captions={"en": ["x"]})
    plain, told = (
        codec.encode_image_text(replace(RECORD, regions=(each,)))[1][1]
        for each in (region, replace(region, attributes={"en": ["red"]}))
    )
    assert b"attributes" not in plain and b'"attributes":{"en":["red"]}' in told


def test_json_is_readable_by_eye() -> None:
    document = codec.encode_image_text(replace(RECORD, captions={"zh": ["狗"]}))[1][1]
    assert "狗".encode() in document and b" " not in document


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"key": "a.b"}, "key_bad"),
        ({"key": ""}, "key_bad"),
        ({"key": "a/b"}, "key_bad"),
        ({"image": b""}, "image_empty"),
        ({"image_format": "gif"}, "image_format"),
        ({"captions": {}}, "json_field"),
        ({"captions": {"en": []}}, "json_field"),
        ({"captions": {"en": ["  "]}}, "json_field"),
        ({"captions": {"en": "a text, not a list"}}, "json_field"),
        ({"captions": {"en": ["half \ud83d"]}}, "text_encoding"),
        ({"regions": (Region(box=(0, 0, float("nan"), 1), captions={"en": ["x"]}),)}, "json_field"),
        ({"ids": {"a": object()}}, "json_field"),
    ],
)
def test_a_record_that_cannot_be_stored_is_refused_with_its_reason(change: Any, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        codec.encode_image_text(replace(RECORD, **change))
    assert caught.value.reason == reason


def document_with(**changes: object) -> bytes:
    return codec.canonical_json(json.loads(codec.encode_image_text(RECORD)[1][1]) | changes)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"{", "json_broken"),
        (b"\xff\xfe", "json_broken"),
        (b"[1]", "json_broken"),
        (b"{}", "json_field"),
        (document_with(source=3), "json_field"),
        (document_with(captions={"en": "text"}), "json_field"),
        (document_with(ids={"a": 1}), "json_field"),
        (document_with(regions={}), "json_field"),
        (document_with(regions=[{"box": [1, 2, 3]}]), "json_field"),
        (document_with(regions=[{"box": ["1", 2, 3, 4], "captions": {"en": ["x"]}}]), "json_field"),
    ],
)
def test_broken_json_is_refused_with_its_reason(document: Any, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        codec.decode_image_text("k", "png", PNG, document, "shard s, offset 7, key k")
    assert caught.value.reason == reason
    assert str(caught.value).startswith("shard s, offset 7, key k: expected ")


def test_a_missing_or_empty_image_is_named() -> None:
    document = document_with()
    with pytest.raises(DataError) as caught:
        codec.decode_image_text("k", "", b"", document)
    assert caught.value.reason == "image_missing"
    with pytest.raises(DataError) as caught:
        codec.decode_image_text("k", "png", b"", document)
    assert caught.value.reason == "image_empty"


def test_unknown_json_fields_are_ignored() -> None:
    assert codec.decode_image_text("k-1_a", "png", PNG, document_with(later=1)) == RECORD


@pytest.mark.parametrize(
    ("image", "image_format", "reason"),
    [
        (PNG, "png", None),
        (PNG[:-1], "png", "image_truncated"),
        (b"GIF89a", "png", "image_format"),
        (b"", "png", "image_empty"),
        (JPEG, "jpg", None),
        (JPEG + bytes(9000), "jpg", None),
        (JPEG[:-2] + bytes(9000), "jpg", "image_truncated"),
        (JPEG[:8], "jpg", "image_truncated"),
        (PNG + bytes(9000), "png", None),
        (b"RIFF\x08\x00\x00\x00WEBPdata", "webp", None),
        (b"RIFF\x0c\x00\x00\x00WEBPdata", "webp", "image_truncated"),
        (PNG, "bmp", "image_format"),
    ],
)
def test_whole_images_are_told_from_cut_ones(image: Any, image_format: str, reason: str | None) -> None:
    if reason is None:
        codec.check_image(image, image_format)
    else:
        with pytest.raises(DataError) as caught:
            codec.check_image(image, image_format)
        assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ([], "group_empty"),
        ([PAIR, replace(PAIR, group="other")], "group_mixed"),
        ([PAIR, replace(PAIR, text_a="cat")], "group_mixed"),
        ([replace(PAIR, text_b=" ")], "text_empty"),
        ([replace(PAIR, text_b="\ud83d")], "text_encoding"),
    ],
)
def test_a_bad_group_is_refused_with_its_reason(pairs: Any, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        codec.check_group(pairs)
    assert caught.value.reason == reason


def test_a_broken_block_and_a_strange_block_differ() -> None:
    block = codec.encode_block(table_of_pairs([PAIR]))
    with pytest.raises(DataError) as caught:
        codec.decode_block(block[: len(block) // 2])
    assert caught.value.reason == "block_broken"
    sink = pa.BufferOutputStream()
    table = pa.table({"a": [1]})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError) as caught:
        codec.decode_block(bytes(sink.getvalue()))
    assert caught.value.reason == "block_schema"
