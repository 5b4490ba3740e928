"""VQA v2 and CVQA; boxes of RefCOCO."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from cclm.annotations.questions import CVQA_LANGUAGES, read_cvqa, read_vqa, soft_scores, unpack_images
from cclm.annotations.refcoco import read_refcoco
from cclm.annotations.rows import BoxRow
from cclm.errors import DataError
from tests.unit.annotations.annotation_files import broken_at, write_json

CHOICE: dict[str, Any] = {
    "ID": "58_0",
    "Subset": "('Breton', 'France')",
    "Question": "Petra eo?",
    "Translated Question": "What is it?",
    "Options": ["a", "b", "c", "d"],
    "Translated Options": ["one", "two", "three", "four"],
    "Label": 2,
    "image": {"bytes": b"\xff\xd8pixels", "path": None},
}


def write_choices(path: Path, *changes: dict[str, Any]) -> Path:
    pyarrow.parquet.write_table(pa.Table.from_pylist([{**CHOICE, **change} for change in changes]), path)
    return path


def test_vqa_joins_questions_and_answers(tmp_path: Path) -> None:
    questions = {
        "data_subtype": "val2014",
        "questions": [{"image_id": 42, "question": "Is it?", "question_id": 420}],
    }
    answers = [{"answer": "yes", "answer_id": n} for n in range(1, 3)] + [{"answer": "no"}] * 8
    path = write_json(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", questions)
    assert read_vqa(path, "en").rows[0].answers == ()
    beside = tmp_path / "v2_mscoco_val2014_annotations.json"
    write_json(beside, {"annotations": [{"question_id": 420, "answers": answers}]})
    (row,) = read_vqa(path, "en").rows
    assert row.answers == (("yes", 0.6), ("no", 1.0)) and row.image == "COCO_val2014_000000000042.jpg"
    write_json(beside, {"annotations": []})
    assert broken_at(read_vqa, path, "en")[0] == "line_unmatched"
    write_json(beside, {"annotations": [{"question_id": 420, "answers": [7]}]})
    assert broken_at(read_vqa, path, "en")[1] == f"{beside.name}:annotations[0]"


def test_scores_are_the_official_mean_over_nine_annotators() -> None:
    for count in range(1, 11):
        given = ["yes"] * count + ["no"] * (10 - count)
        nine = [min(1.0, sum(one == "yes" for one in chosen) / 3) for chosen in combinations(given, 9)]
        assert dict(soft_scores(given))["yes"] == pytest.approx(sum(nine) / len(nine))


def test_published_lists_of_questions(tmp_path: Path) -> None:
    rows = [
        {"question_id": 1, "question": "What?", "image": "val2014/COCO_val2014_000000000001.jpg", "answer": ["a"] * 10},
        {"question_id": 2, "question": "Who?", "image": "vg/2.jpg", "answer": "b", "dataset": "vg"},
        {"question_id": 3, "question": "Why?", "image": "3.jpg"},
    ]
    file = read_vqa(write_json(tmp_path / "vqa_train.json", rows), "en")
    assert [row.answers for row in file.rows] == [(("a", 1.0),), (("b", 1.0),), ()]


def test_cvqa_in_its_language_or_in_english(tmp_path: Path) -> None:
    path = write_choices(tmp_path / "test.parquet", {}, {"ID": "59_0", "Subset": "('Urdu', 'India')", "Label": -1})
    file = read_cvqa(path, "br")
    (row,) = file.rows
    assert (row.question, row.choices, row.answers) == ("Petra eo?", ("a", "b", "c", "d"), (("c", 1.0),))
    assert (row.image, row.language, file.dropped) == ("58.jpg", "br", {"other_language": 1})
    assert file.denominators == {"usable": 1, "all": 1}, "rows in other languages are none of its own"
    every = read_cvqa(path, translated=True)
    assert every.denominators == {"usable": 1, "all": 1}, "an answer that is not published may be right"
    assert [one.language for one in every.rows] == ["br", "ur"] and every.rows[1].answers == ()
    assert every.rows[0].answers == (("three", 1.0),)
    assert len(set(CVQA_LANGUAGES.values())) == 31


@pytest.mark.parametrize("change", [{"Label": 4}, {"Subset": "Breton"}, {"Subset": "('Klingon', 'Space')"}])
def test_cvqa_that_is_wrong_is_named_by_its_row(change: dict[str, Any], tmp_path: Path) -> None:
    path = write_choices(tmp_path / "test.parquet", {}, change)
    assert broken_at(read_cvqa, path)[1] == "test.parquet:2"


def test_cvqa_images_are_unpacked_once(tmp_path: Path) -> None:
    path = write_choices(tmp_path / "test.parquet", {}, {"ID": "58_1"}, {"ID": "60_0"})
    assert unpack_images(path, tmp_path / "images") == 2
    assert (tmp_path / "images/58.jpg").read_bytes() == b"\xff\xd8pixels"
    with pytest.raises(DataError):
        unpack_images(write_choices(tmp_path / "none.parquet", {"image": None}), tmp_path / "images")


def test_boxes_in_both_forms(tmp_path: Path) -> None:
    rows = [{"image": "train2014/COCO_1.jpg", "text": "man", "ref_id": 7, "bbox": [1, 2, 3.5, 4]}]
    rows += [{**rows[0], "text": "tall man"}, {**rows[0], "ref_id": None}]
    expected = BoxRow(id="7-1", image="train2014/COCO_1.jpg", text="man", box=(1, 2, 3.5, 4), language="en")
    first, *others = read_refcoco(write_json(tmp_path / "refcoco+_val.json", rows), "en").rows
    assert first == expected and [row.id for row in others] == ["7-2", "2"], "several phrases mean one thing"
    joined = {
        "images": [{"id": 3, "file_name": "COCO_1.jpg", "caption": "left cup", "width": 640, "height": 480}],
        "annotations": [{"id": 9, "image_id": 3, "bbox": [0, 0, 5, 5]}],
    }
    (row,) = read_refcoco(write_json(tmp_path / "finetune_refcoco_val.json", joined), "en").rows
    assert (row.id, row.text, row.size, row.image) == ("9", "left cup", (640, 480), "COCO_1.jpg")


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, 0, 4], None, ["a", 1, 1, 1]])
def test_boxes_that_are_none(box: Any, tmp_path: Path) -> None:
    path = write_json(tmp_path / "r.json", [{"image": "1.jpg", "text": "man", "bbox": box}])
    assert broken_at(read_refcoco, path, "en") == ("line_broken", "r.json:1")
    unlisted = write_json(tmp_path / "u.json", {"images": [], "annotations": [{"image_id": 3, "bbox": [0, 0, 5, 5]}]})
    assert broken_at(read_refcoco, unlisted, "en")[1] == "u.json:annotations[0]"
