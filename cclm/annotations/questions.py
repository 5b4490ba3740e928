"""Questions about an image: GQA and xGQA, VQA v2 with the lists that X-VLM made of it, CVQA.

gqa/annotations/testdev.json                   [{"img_id": "n161313", "label": {"no": 1.0}, "question_id", "sent"}]
gqa/annotations/testdev_balanced_questions.json
xGQA/annotations/few_shot/bn/dev.json          {"202158849": {"imageId": "n406334", "question", "answer": "no", …}}
gqa/annotations/trainval_ans2label.json        {"puddle": 712, …}       the 1,842 answers and their indices
v2_OpenEnded_mscoco_val2014_questions.json     {"questions": [{"image_id", "question", "question_id"}],
                                                "data_subtype": "val2014", …}
v2_mscoco_val2014_annotations.json             {"annotations": [{"question_id", "answers": [{"answer": "yes"}, … 10]}]}
vqa_train.json                                 [{"question_id", "question", "image", "answer": ["…", … 10] or "…"}]
data/test-00000-of-00001.parquet (CVQA)        ID "5865662_0", Subset "('Breton', 'France')", Question, Translated
                                               Question, Options [4 texts], Translated Options, Label 0…3, image {bytes}

The answers of GQA and xGQA are English in every language. Texts stay as they are: half of the Bengali questions are not
in Unicode's composed form, a few have zero-width signs.

Scores are those of VQA's accuracy: an answer that n of the ten annotators gave has min(1, 0.3 n), which is what the
official mean over all choices of nine of them comes to.

CVQA is multiple choice about images of many cultures, each question in a local language and in English. The images lie
in the file itself; `unpack_images` writes them where rows look for them.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from cclm.annotations.images import coco_image
from cclm.annotations.reading import (
    KEY,
    Dropped,
    Problems,
    entries_of,
    indexed,
    items_at,
    name_at,
    object_in,
    read_entries,
    text_at,
)
from cclm.annotations.rows import OTHER_LANGUAGE, AnnotationFile, QuestionRow
from cclm.files.atomic import make_folder, replace_bytes
from cclm.rows.cells import listed, mapping, number, text, texts, whole_number
from cclm.rows.documents import json_document
from cclm.rows.guard import refuse, shown
from cclm.rows.tables import read_rows
from cclm.types import Language

Entry = Mapping[str, Any]
Answers = tuple[tuple[str, float], ...]

CVQA_LANGUAGES: Final[Mapping[str, Language]] = {
    "Amharic": "am", "Bengali": "bn", "Breton": "br", "Bulgarian": "bg", "Chinese": "zh", "Egyptian_Arabic": "arz",
    "Filipino": "fil", "Hindi": "hi", "Igbo": "ig", "Indonesian": "id", "Irish": "ga", "Japanese": "ja",
    "Javanese": "jv", "Kinyarwanda": "rw", "Korean": "ko", "Malay": "ms", "Marathi": "mr", "Minangkabau": "min",
    "Mongolian": "mn", "Norwegian": "no", "Oromo": "om", "Portuguese": "pt", "Romanian": "ro", "Russian": "ru",
    "Sinhala": "si", "Spanish": "es", "Sundanese": "su", "Swahili": "sw", "Tamil": "ta", "Telugu": "te", "Urdu": "ur",
}  # fmt: skip
"""The names in `Subset` and their tags."""
_COLUMNS: Final = ("ID", "Subset", "Question", "Translated Question", "Options", "Translated Options", "Label")


def read_gqa(path: Path, language: str, problems: Problems | None = None) -> AnnotationFile[QuestionRow]:
    """Read a file of GQA or xGQA in either form, a list or an object by question."""
    return read_entries(path, language, entries_of(path), _of_gqa, problems)


def _of_gqa(language: Language, entry: Entry) -> QuestionRow:
    if "imageId" in entry:
        answers: Answers = () if entry.get("answer") is None else ((text_at(entry, "answer"), 1.0),)
        identity, image, question = entry[KEY], name_at(entry, "imageId"), text_at(entry, "question")
    else:
        label = {} if entry.get("label") is None else mapping(entry["label"], "an object in 'label'")
        answers = tuple((text(answer), number(score, "a score")) for answer, score in label.items())
        identity, image, question = name_at(entry, "question_id"), name_at(entry, "img_id"), text_at(entry, "sent")
    return QuestionRow(id=identity, image=f"{image}.jpg", question=question, answers=answers, language=language)


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


def read_vqa(path: Path, language: str, problems: Problems | None = None) -> AnnotationFile[QuestionRow]:
    """Read VQA's questions with the answers in the file beside them, if it is there, or a list of both."""
    if not path.name.startswith("v2_OpenEnded"):
        return read_entries(path, language, entries_of(path), _of_list, problems)
    name = path.name.replace("v2_OpenEnded_", "v2_").replace("_questions.", "_annotations.")
    beside, document, answers = path.with_name(name), object_in(path, problems), None
    if beside.is_file():  # those to the test sets are not published
        answers = indexed(beside, object_in(beside, problems), "annotations", _answered, problems)
    make = partial(_of_vqa, str(document.get("data_subtype")), answers)
    return read_entries(path, language, items_at(path, document, "questions"), make, problems)


def _of_vqa(split: str, answers: Mapping[str, Answers] | None, language: Language, entry: Entry) -> QuestionRow:
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


def _of_list(language: Language, entry: Entry) -> QuestionRow:
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


def read_cvqa(
    path: Path, language: str = "", problems: Problems | None = None, *, translated: bool = False
) -> AnnotationFile[QuestionRow]:
    """Read the questions in one language, or all ("").

    `translated`: the English translations, whose rows keep the language that they were asked in.
    """
    rows = read_rows(str(path), path, needed=_COLUMNS)
    return read_entries(path, language or None, rows, partial(_of_cvqa, "Translated " if translated else ""), problems)


def _of_cvqa(prefix: str, wanted: Language, entry: Entry) -> QuestionRow | Dropped:
    tag = _language_of(text_at(entry, "Subset"))
    if wanted and tag != wanted:
        return Dropped(OTHER_LANGUAGE)
    choices = tuple(text(choice, "an option") for choice in listed(entry.get(f"{prefix}Options"), "a list of options"))
    label = entry.get("Label")
    right = None if label is None or label == -1 else whole_number(label, "Label")
    if right is not None and right >= len(choices):
        refuse("line_broken", f"a Label below {len(choices)}", shown(label))
    return QuestionRow(
        id=name_at(entry, "ID"),
        image=_cvqa_image(name_at(entry, "ID")),
        question=text_at(entry, f"{prefix}Question"),
        answers=() if right is None else ((choices[right], 1.0),),
        language=tag,
        choices=choices,
    )


def _language_of(subset: str) -> Language:
    """Return the language of a subset: "('Breton', 'France')" → br."""
    try:
        return CVQA_LANGUAGES[ast.literal_eval(subset)[0]]
    except (ValueError, SyntaxError, LookupError, TypeError):
        return refuse("language_unknown", "a subset ('Language', 'Country')", shown(subset))


def _cvqa_image(question_id: str) -> str:
    """Return the name of a question's image: "5865662_0" → 5865662.jpg."""
    return f"{question_id.rpartition('_')[0] or question_id}.jpg"


def unpack_images(path: Path, folder: Path) -> int:
    """Write the images of a file of CVQA into a folder, each once; return how many were written."""
    make_folder(folder)
    written = 0
    for place, row in read_rows(str(path), path, needed=("ID", "image")):
        if isinstance(row, Exception):
            raise row
        target = folder / _cvqa_image(name_at(row, "ID"))
        data = (row["image"] or {}).get("bytes")
        if not isinstance(data, bytes):
            refuse("image_missing", "an image in the column image", shown(data), place)
        if not target.exists():
            replace_bytes(target, data)
            written += 1
    return written
