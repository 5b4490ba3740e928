"""XVNLI: does an image entail a statement, contradict it, or neither? Rows as IGLUE publishes them.

XVNLI/annotations/{lang}/test.jsonl
    {"gold_label": "contradiction", "sentence1": "…", "sentence2": "…", "captionID": "759822302.jpg#2",
     "pairID": "759822302.jpg#2r1c", "Flikr30kID": "759822302"}

The image is the premise: sentence1, its caption, is not read. Rows whose annotators did not agree have the label "-":
the published CCLM drops them (`usable`), IGLUE counts them as wrong (`all`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from cclm.annotations.reading import Dropped, Problems, entries_of, known_language, name_at, read_entries, text_at
from cclm.annotations.rows import NO_LABEL, AnnotationFile, ClassifyRow
from cclm.rows.guard import refuse, shown
from cclm.types import Language

XVNLI_LABELS: Final = ("contradiction", "entailment", "neutral")
"""Classes in the order of their indices, as the published heads have them."""
_UNDECIDED: Final = "-"


def read_xvnli(path: Path, language: str, problems: Problems | None = None) -> AnnotationFile[ClassifyRow]:
    """Read a file of XVNLI (reasons in `dropped`: no_label)."""
    tag = known_language(language, path)
    return read_entries(path, tag, entries_of(path), partial(_row, tag), problems)


def _row(language: Language, _: str, entry: Mapping[str, Any]) -> ClassifyRow | Dropped:
    label = text_at(entry, "gold_label")
    if label == _UNDECIDED:
        return Dropped(NO_LABEL)
    if label not in XVNLI_LABELS:
        refuse("line_broken", f"a gold_label of {', '.join(XVNLI_LABELS)} or -", shown(label))
    return ClassifyRow(
        id=name_at(entry, "pairID"),
        # The key is spelt so in every published file.
        images=(xvnli_image(name_at(entry, "Flikr30kID")),),
        text=text_at(entry, "sentence2"),
        label=XVNLI_LABELS.index(label),
        language=language,
    )


def xvnli_image(flickr30k_id: str) -> str:
    """Return the name of an image among those of Flickr30k."""
    return f"{flickr30k_id}.jpg"
