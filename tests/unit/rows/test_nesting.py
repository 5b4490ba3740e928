"""Documents that nest without end are told, at once and in little memory; sound ones pass, wherever blocks end."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cclm.errors import DataError
from cclm.rows.tables import DEEPEST, ShallowJson, json_items

TEXTS = st.text(st.sampled_from('[]{}"\\,:a é'), max_size=12)
VALUES = st.recursive(TEXTS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))


def nested(depth: int, text: str = "") -> bytes:
    return b'{"a": [' * (depth // 2) + b"[" * (depth % 2) + json.dumps(text).encode()


def read_in_blocks(data: bytes, size: int) -> bytes:
    file = ShallowJson(io.BytesIO(data))
    return b"".join(iter(lambda: file.read(size), b""))


@given(VALUES, st.integers(1, 9), st.booleans())
def test_a_sound_document_passes_whatever_its_texts_hold(value: Any, size: int, is_ascii: bool) -> None:
    data = json.dumps([value] * 3, ensure_ascii=is_ascii).encode()
    assert read_in_blocks(data, size) == data


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
@pytest.mark.parametrize("text", ["", '[" \\', "]]]}\\" * 300])
def test_the_deepest_document_passes_and_one_deeper_does_not(size: int, text: str) -> None:
    read_in_blocks(nested(DEEPEST, text), size)
    with pytest.raises(DataError) as refused:
        read_in_blocks(nested(DEEPEST + 1, text), size)
    assert refused.value.reason == "file_broken"


def test_closed_lists_are_not_open_ones() -> None:
    data = json.dumps([[[]] * 3 * DEEPEST] * 4).encode()
    assert read_in_blocks(data, 1000) == data
    with pytest.raises(DataError):
        read_in_blocks(b"[" * DEEPEST + b"[]" + b"]" * DEEPEST, 1 << 16)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_a_hundred_thousand_brackets_cost_a_reader_nothing(opening: bytes, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_bytes(b'{"annotations": [1, ' + opening * 100_000)
    tracemalloc.start()
    try:
        found = [value for _, value in json_items("d.json", tmp_path / "d.json", "annotations.item")]
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
    assert isinstance(found[-1], DataError) and found[-1].reason == "file_broken"
