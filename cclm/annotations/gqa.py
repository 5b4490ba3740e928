"""GQA and xGQA: questions about an image, with English answers in every language.

gqa/annotations/testdev.json                   [{"img_id": "n161313", "label": {"no": 1.0}, "question_id", "sent"}]
gqa/annotations/testdev_balanced_questions.json
xGQA/annotations/few_shot/bn/dev.json          {"202158849": {"imageId": "n406334", "question", "answer": "no", …}}
gqa/annotations/trainval_ans2label.json        {"puddle": 712, …}       the 1,842 answers and their indices

Texts stay as they are: half of the Bengali questions are not in Unicode's composed form, a few have zero-width signs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cclm.annotations.reading import (
    KEY,
    Problems,
    entries_of,
    known_language,
    mapping_at,
    name_at,
    read_entries,
    text_at,
)
from cclm.annotations.rows import AnnotationFile, QuestionRow
from cclm.rows.cells import number, text, whole_number
from cclm.rows.documents import json_document
from cclm.rows.guard import refuse, shown
from cclm.types import Language


def read_gqa(path: Path, language: str, problems: Problems | None = None) -> AnnotationFile[QuestionRow]:
    """Read a file of GQA or xGQA in either form, a list or an object by question."""
    tag = known_language(language, path)
    return read_entries(path, tag, entries_of(path), partial(_row, tag), problems)


def _row(language: Language, _: str, entry: Mapping[str, Any]) -> QuestionRow:
    return _asked(language, entry) if "imageId" in entry else _scored(language, entry)


def _asked(language: Language, entry: Mapping[str, Any]) -> QuestionRow:
    answer = entry.get("answer")
    return QuestionRow(
        id=entry[KEY],
        image=gqa_image(name_at(entry, "imageId")),
        question=text_at(entry, "question"),
        answers=() if answer is None else ((text_at(entry, "answer"), 1.0),),
        language=language,
    )


def _scored(language: Language, entry: Mapping[str, Any]) -> QuestionRow:
    label = mapping_at(entry, "label") if entry.get("label") is not None else {}
    return QuestionRow(
        id=name_at(entry, "question_id"),
        image=gqa_image(name_at(entry, "img_id")),
        question=text_at(entry, "sent"),
        answers=tuple((text(answer), number(score, "a score")) for answer, score in label.items()),
        language=language,
    )


def gqa_image(image_id: str) -> str:
    """Return the name of an image: "n161313" → n161313.jpg."""
    return f"{image_id}.jpg"


def read_answers(path: Path) -> tuple[str, ...]:
    """Return the vocabulary of answers by index, of trainval_ans2label.json or of its inverse, trainval_label2ans.json.

    Raises:
        DataError: an answer or an index stands twice, or an index is missing.
    """
    found = json_document(path)
    if isinstance(found, list):
        answers = [text(answer, "an answer") for answer in found]
    elif isinstance(found, Mapping):
        by_index = {whole_number(index, "an index"): answer for answer, index in found.items()}
        if sorted(by_index) != list(range(len(found))):
            refuse("file_broken", f"the indices 0 to {len(found) - 1}, each once", "others", str(path))
        answers = [by_index[index] for index in range(len(found))]
    else:
        refuse("file_broken", "an object from answers to indices, or a list of answers", shown(found), str(path))
    if len(set(answers)) < len(answers):
        refuse("file_broken", "each answer once", "one twice", str(path))
    return tuple(answers)
