"""GQA and xGQA: two shapes, and the vocabulary of answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cclm.annotations.questions import read_answers, read_gqa
from cclm.annotations.rows import QuestionRow
from cclm.errors import DataError
from tests.unit.annotations.annotation_files import broken_at, write_json, write_text

ASKED: dict[str, Any] = {"imageId": "n4", "question": "Ist es nah?", "answer": "no", "isBalanced": True, "groups": {}}
SCORED: dict[str, Any] = {"img_id": "n16", "label": {"yes": 1.0, "no": 0.3}, "question_id": "201", "sent": "Is it?"}


def test_questions_by_id(tmp_path: Path) -> None:
    path = write_json(tmp_path / "dev.json", {"7": ASKED, "8": {**ASKED, "question": "Wo?"}})
    file = read_gqa(path, "de")
    assert file.rows[0] == QuestionRow(
        id="7", image="n4.jpg", question="Ist es nah?", answers=(("no", 1.0),), language="de"
    )
    assert [row.id for row in file.rows] == ["7", "8"] and file.num_entries == 2


def test_a_list_with_scores(tmp_path: Path) -> None:
    rows = [SCORED, {**SCORED, "question_id": 202, "label": {}}]
    file = read_gqa(write_json(tmp_path / "train.json", rows, indent=4), "en")
    assert file.rows[0].answers == (("yes", 1.0), ("no", 0.3)) and file.rows[0].image == "n16.jpg"
    assert (file.rows[1].id, file.rows[1].answers) == ("202", ())


def test_questions_are_not_normalised(tmp_path: Path) -> None:
    question = "জামাটি কে\u200c পড\u09bcে?"
    (row,) = read_gqa(write_json(tmp_path / "dev.json", {"7": {**ASKED, "question": question}}), "bn").rows
    assert row.question == question


@pytest.mark.parametrize("change", [{"answer": ["no"]}, {"question": None}, {"imageId": None}])
def test_a_question_that_is_wrong_is_named_by_its_line(change: dict[str, Any], tmp_path: Path) -> None:
    path = write_text(tmp_path / "dev.json", f'{{"7": {json.dumps(ASKED)},\n"8": {json.dumps({**ASKED, **change})}}}')
    assert broken_at(read_gqa, path, "de") == ("line_broken", "dev.json:2")


@pytest.mark.parametrize("change", [{"label": ["no"]}, {"label": {"no": "much"}}, {"sent": 1}, {"question_id": None}])
def test_a_scored_question_that_is_wrong_is_named_by_its_line(change: dict[str, Any], tmp_path: Path) -> None:
    path = write_text(tmp_path / "t.json", f"[\n{json.dumps(SCORED)},\n{json.dumps({**SCORED, **change})}]")
    assert broken_at(read_gqa, path, "en") == ("line_broken", "t.json:3")


@pytest.mark.parametrize(
    "text", ['[\n{"a": 1},\n{"b"', "[\n{}\n{}]", '{"7": {"imageId": "n"},\n\n', '"a text"', "[]\n\n1"]
)
def test_a_broken_document_is_named_by_its_line(text: str, tmp_path: Path) -> None:
    reason, place = broken_at(read_gqa, write_text(tmp_path / "t.json", text), "en")
    assert reason in ("file_broken", "line_broken") and place.startswith("t.json:")


def test_both_files_of_answers_say_the_same(tmp_path: Path) -> None:
    by_answer = write_json(tmp_path / "a.json", {"soap": 1, "puddle": 0, "tent": 2})
    by_index = write_json(tmp_path / "b.json", ["puddle", "soap", "tent"])
    assert read_answers(by_answer) == read_answers(by_index) == ("puddle", "soap", "tent")


@pytest.mark.parametrize("answers", [{"a": 0, "b": 2}, {"a": 0, "b": 0}, ["a", "a"], "a", {"a": "first"}])
def test_answers_that_are_no_vocabulary(answers: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        read_answers(write_json(tmp_path / "a.json", answers))
