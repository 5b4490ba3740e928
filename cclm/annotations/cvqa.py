"""CVQA: multiple choice about images of many cultures, each question in a local language and in English.

data/test-00000-of-00001.parquet   ID "5865662_0", Subset "('Breton', 'France')", Question, Translated Question,
                                   Options [4 texts], Translated Options, Label 0…3, Category, image {bytes}, …

The images lie in the file itself; `unpack_images` writes them where rows look for them.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from cclm.annotations.reading import Dropped, Problems, known_language, name_at, read_entries, text_at
from cclm.annotations.rows import OTHER_LANGUAGE, AnnotationFile, QuestionRow
from cclm.files.atomic import make_folder, replace_bytes
from cclm.rows.cells import listed, text, whole_number
from cclm.rows.guard import refuse, shown
from cclm.rows.tables import read_rows
from cclm.types import Language

CVQA_LANGUAGES: Final[Mapping[str, Language]] = {
    "Amharic": "am", "Bengali": "bn", "Breton": "br", "Bulgarian": "bg", "Chinese": "zh", "Egyptian_Arabic": "arz",
    "Filipino": "fil", "Hindi": "hi", "Igbo": "ig", "Indonesian": "id", "Irish": "ga", "Japanese": "ja",
    "Javanese": "jv", "Kinyarwanda": "rw", "Korean": "ko", "Malay": "ms", "Marathi": "mr", "Minangkabau": "min",
    "Mongolian": "mn", "Norwegian": "no", "Oromo": "om", "Portuguese": "pt", "Romanian": "ro", "Russian": "ru",
    "Sinhala": "si", "Spanish": "es", "Sundanese": "su", "Swahili": "sw", "Tamil": "ta", "Telugu": "te", "Urdu": "ur",
}  # fmt: skip
"""The names in `Subset` and their tags."""
_COLUMNS: Final = ("ID", "Subset", "Question", "Translated Question", "Options", "Translated Options", "Label")


def read_cvqa(
    path: Path, language: str = "", problems: Problems | None = None, *, translated: bool = False
) -> AnnotationFile[QuestionRow]:
    """Read the questions in one language, or all ("").

    `translated`: the English translations, whose rows keep the language that they were asked in.
    """
    tag = known_language(language, path) if language else ""
    rows = read_rows(str(path), path, needed=_COLUMNS)
    return read_entries(path, tag, rows, partial(_row, tag, "Translated " if translated else ""), problems)


def _row(wanted: Language, prefix: str, _: str, entry: Mapping[str, Any]) -> QuestionRow | Dropped:
    tag = language_of(text_at(entry, "Subset"))
    if wanted and tag != wanted:
        return Dropped(OTHER_LANGUAGE)
    choices = tuple(text(choice, "an option") for choice in listed(entry.get(f"{prefix}Options"), "a list of options"))
    label = entry.get("Label")
    number = None if label is None or label == -1 else whole_number(label, "Label")
    if number is not None and number >= len(choices):
        refuse("line_broken", f"a Label below {len(choices)}", shown(label))
    return QuestionRow(
        id=name_at(entry, "ID"),
        image=cvqa_image(name_at(entry, "ID")),
        question=text_at(entry, f"{prefix}Question"),
        answers=() if number is None else ((choices[number], 1.0),),
        language=tag,
        choices=choices,
    )


def language_of(subset: str) -> Language:
    """Return the language of a subset: "('Breton', 'France')" → br."""
    try:
        name = ast.literal_eval(subset)[0]
        return CVQA_LANGUAGES[name]
    except (ValueError, SyntaxError, LookupError, TypeError):
        return refuse("language_unknown", "a subset ('Language', 'Country')", shown(subset))


def cvqa_image(question_id: str) -> str:
    """Return the name of a question's image: "5865662_0" → 5865662.jpg."""
    return f"{question_id.rpartition('_')[0] or question_id}.jpg"


def unpack_images(path: Path, folder: Path) -> int:
    """Write the images of a file of CVQA into a folder, each once; return how many were written."""
    make_folder(folder)
    written = 0
    for place, row in read_rows(str(path), path, needed=("ID", "image")):
        if isinstance(row, Exception):
            raise row
        target = folder / cvqa_image(name_at(row, "ID"))
        data = (row["image"] or {}).get("bytes")
        if not isinstance(data, bytes):
            refuse("image_missing", "an image in the column image", shown(data), place)
        if not target.exists():
            replace_bytes(target, data)
            written += 1
    return written
