"""Annotation files of our own format, and the images that rows name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cclm.annotations.rows import BoxRow, ClassifyRow, QuestionRow, images_of
from cclm.errors import ConfigError, DataError
from cclm.views.annotated.rows import Images, RowSet, read_rows, text_of
from tests.unit.data.data_sets import write_images

ROW: dict[str, Any] = {"id": "7", "images": ["a.jpg", "b.jpg"], "text": "two dogs", "label": 1, "language": "EN"}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_are_read(tmp_path: Path) -> None:
    answered = {"images": ["c.jpg"], "text": "what?", "answers": {"a dog": 1, "dog": 0.3}, "language": "pt-br"}
    plain = {"images": ["a.jpg"], "text": "x", "label": 0}
    rows = RowSet(write(tmp_path / "a.jsonl", ROW, answered, {**ROW, "label": None}, plain), "rows", "de")
    assert rows.read.denominators == {"usable": 3, "all": 4}
    assert rows.languages == ["de", "en", "pt-BR"]
    first, second, third = rows.rows
    assert first == ClassifyRow(id="7", images=("a.jpg", "b.jpg"), text="two dogs", label=1, language="en")
    assert isinstance(second, QuestionRow) and second.answers == (("a dog", 1.0), ("dog", 0.3))
    assert [(images_of(row), text_of(row)) for row in (second, third)] == [(("c.jpg",), "what?"), (("a.jpg",), "x")]
    assert rows.locate(0, 1) == ("a.jsonl", 1, "pt-BR:a.jsonl:2"), "row 2 of another language is another row"


def test_rows_of_a_list_on_one_line_need_no_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"images": ["a.jpg"], "text": "x", "label": label} for label in (0, 1)]))
    assert [row.id for row in RowSet(path, "rows", "de").rows] == ["de:a.json:0", "de:a.json:1"]


def test_rows_with_choices_and_with_boxes_are_read(tmp_path: Path) -> None:
    chosen = {"images": ["c.jpg"], "text": "what?", "answers": {}, "choices": ["a dog", "a cat"]}
    boxed = {"id": 3, "images": ["d.jpg"], "text": "the cat", "box": [1, 2, 3, 4.5]}
    asked = {"images": ["c.jpg"], "text": "what?", "answers": {}}
    rows = RowSet(write(tmp_path / "a.jsonl", chosen, boxed, asked), "rows", "de/own")
    first, second, _ = rows.rows
    assert isinstance(first, QuestionRow) and first.choices == ("a dog", "a cat")
    assert second == BoxRow(id="3", image="d.jpg", text="the cat", box=(1, 2, 3, 4.5), language="de")
    assert rows.languages == ["de"] and text_of(second) == "the cat"
    assert rows.read.denominators == {"usable": 1, "all": 2}, "a choice that is not told may be right"


@pytest.mark.parametrize(
    "change",
    [
        {"images": "a.jpg"},
        {"images": []},
        {"images": [""]},
        {"text": None},
        {"label": -1},
        {"label": True},
        {"language": "no such language"},
        {"answers": ["yes"]},
        {"answers": {"yes": "often"}},
        {"answers": {"yes": 1}, "choices": "yes"},
        {"box": [1, 2, 0, 4]},
    ],
)
def test_what_is_no_row_is_named_with_its_line(tmp_path: Path, change: dict[str, Any]) -> None:
    path = write(tmp_path / "rows.jsonl", ROW, {**ROW, **change})
    with pytest.raises(DataError) as caught:
        read_rows(path, "rows", "en")
    assert caught.value.where == f"{path}:2"


@pytest.mark.parametrize("content", ["", "\n", '{"images": ["a.jpg"], "text": "x", "label": null}\n'])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError):
        read_rows(path, "rows", "en")


def test_images_lie_in_a_folder_or_in_shards(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jpg").write_bytes(b"pixels")
    assert Images(tmp_path / "folder").read("a.jpg") == b"pixels"
    assert Images(tmp_path / "none", tmp_path / "folder").read("a.jpg") == b"pixels"
    write_images(tmp_path / "shards", 5, per_shard=2)
    found = [Images(tmp_path / "shards").read(f"k{number}") for number in range(5)]
    assert len(set(found)) == 5
    for folder, there in (("folder", "a.jpg"), ("shards", "k4")):
        images = Images(tmp_path / folder)
        images.look_for([there])
        for look in (images.look_for, lambda names, images=images: images.read(names[-1])):
            with pytest.raises(DataError) as caught:
                look([there, "no_such_image"])
            assert caught.value.reason == "image_missing"
