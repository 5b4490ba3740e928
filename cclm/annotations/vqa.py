"""VQA v2, and the lists of questions that X-VLM made of it and of Visual Genome.

v2_OpenEnded_mscoco_val2014_questions.json   {"questions": [{"image_id", "question", "question_id"}],
                                              "data_subtype": "val2014", …}
v2_mscoco_val2014_annotations.json           {"annotations": [{"question_id", "answers": [{"answer": "yes"}, … 10]}]}
vqa_train.json                               [{"question_id", "question", "image", "answer": ["…", … 10] or "…"}]

Scores are those of VQA's accuracy: an answer that n of the ten annotators gave has min(1, 0.3 n), which is what the
official mean over all choices of nine of them comes to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cclm.annotations.images import coco_image
from cclm.annotations.reading import (
    Problems,
    entries_of,
    indexed,
    items_at,
    known_language,
    name_at,
    object_in,
    read_entries,
    text_at,
)
from cclm.annotations.rows import AnnotationFile, QuestionRow
from cclm.rows.cells import listed, mapping, texts, whole_number
from cclm.rows.guard import refuse
from cclm.types import Language

Entry = Mapping[str, Any]
Answers = tuple[tuple[str, float], ...]


def read_vqa(
    path: Path, language: str, problems: Problems | None = None, *, annotations: Path | None = None
) -> AnnotationFile[QuestionRow]:
    """Read VQA's questions with the answers in `annotations` (None: the file beside them), or a list of both."""
    tag = known_language(language, path)
    if not path.name.startswith("v2_OpenEnded"):
        return read_entries(path, tag, entries_of(path), partial(_listed, tag), problems)
    annotations = annotations or annotations_beside(path)
    document, answers = object_in(path, problems), None
    if annotations.is_file():
        answers = indexed(annotations, object_in(annotations, problems), "annotations", _answered, problems)
    make = partial(_asked, tag, str(document.get("data_subtype")), answers)
    return read_entries(path, tag, items_at(path, document, "questions"), make, problems)


def annotations_beside(questions: Path) -> Path:
    """Return where the answers to a file of questions are published; those to the test sets are not."""
    name = questions.name.replace("v2_OpenEnded_", "v2_").replace("_questions.", "_annotations.")
    return questions.with_name(name)


def _asked(language: Language, split: str, answers: Mapping[str, Answers] | None, _: str, entry: Entry) -> QuestionRow:
    identity = name_at(entry, "question_id")
    if answers is not None and identity not in answers:
        refuse("line_unmatched", f"answers to the question {identity}", "none")
    return QuestionRow(
        id=identity,
        image=coco_image(whole_number(entry.get("image_id"), "image_id"), split),
        question=text_at(entry, "question"),
        answers=() if answers is None else answers[identity],
        language=language,
    )


def _listed(language: Language, _: str, entry: Entry) -> QuestionRow:
    return QuestionRow(
        id=name_at(entry, "question_id"),
        image=name_at(entry, "image"),
        question=text_at(entry, "question"),
        answers=soft_scores([] if entry.get("answer") is None else texts(entry["answer"], "one or several answers")),
        language=language,
    )


def _answered(entry: Entry) -> tuple[str, Answers]:
    given = [text_at(mapping(one, "an answer"), "answer") for one in listed(entry.get("answers"), "answers")]
    return name_at(entry, "question_id"), soft_scores(given)


def soft_scores(given: Sequence[str]) -> Answers:
    """Return the distinct answers with min(1, 0.3 · how often they were given); a single one counts fully."""
    if len(given) == 1:
        return ((given[0], 1.0),)
    return tuple((answer, min(1.0, round(0.3 * count, 1))) for answer, count in Counter(given).items())
