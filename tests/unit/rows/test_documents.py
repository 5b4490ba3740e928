"""JSON documents entry by entry, with lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cclm.errors import DataError
from cclm.rows.documents import json_document, json_entries

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(document=st.lists(VALUES) | st.dictionaries(st.text(), VALUES), indent=st.none() | st.integers(0, 3))
def test_entries_are_those_that_json_finds(document: Any, indent: int | None, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("documents") / "d.json"
    path.write_text(json.dumps(document, indent=indent))
    pairs = document.items() if isinstance(document, dict) else ((str(n), value) for n, value in enumerate(document))
    assert [(key, value) for _, key, value in json_entries(path)] == list(pairs)
    assert json_document(path) == document


def test_places_are_lines_also_in_compressed_files(tmp_path: Path) -> None:
    text = '\ufeff{\n  "a": 1,\n\n  "b": [\n2],\n "c": 3}\n'
    (tmp_path / "d.json").write_text(text, encoding="utf-8")
    (tmp_path / "d.json.gz").write_bytes(gzip.compress(text.encode()))
    assert [Path(place).name for place, _, _ in json_entries(tmp_path / "d.json")] == [
        "d.json:2",
        "d.json:4",
        "d.json:6",
    ]
    assert [key for _, key, _ in json_entries(tmp_path / "d.json.gz")] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"[1,\n2,\n3", "d.json:3"),
        (b"[1,\n2,\n]", "d.json:3"),
        (b'{"a": 1,\n"b" 2}', "d.json:2"),
        (b'{"a": 1,\n2: 2}', "d.json:2"),
        (b'{"a": 1,\n"a": 2}', "d.json:2"),
        (b'[{"a": 1, "a": 2}]', "d.json:1"),
        (b"[1]\n[2]", "d.json:2"),
        (b'["\xff"]', "d.json:1"),
        (b"", "d.json:1"),
        (b"7", "d.json:1"),
    ],
)
def test_what_is_no_list_or_object_is_named_by_its_line(data: bytes, place: str, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_bytes(data)
    with pytest.raises(DataError) as found:
        list(json_entries(tmp_path / "d.json"))
    assert Path(found.value.where).name == place and found.value.reason in ("file_broken", "file_encoding")


def test_a_missing_file_and_a_broken_package_are_data_errors(tmp_path: Path) -> None:
    (tmp_path / "d.json.gz").write_bytes(gzip.compress(b"[1, 2]")[:-9])
    for path in (tmp_path / "none.json", tmp_path / "d.json.gz"):
        with pytest.raises(DataError):
            json_document(path)
