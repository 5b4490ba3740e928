"""What an annotation file holds, whatever its format: four kinds of rows, and the account of a file.

    ClassifyRow   a statement about one or two images, and its class       XVNLI, NLVR2, MaRVL
    QuestionRow   a question about an image, its answers, or its choices   GQA, xGQA, VQA v2, CVQA
    CaptionRow    an image with its captions in one language               every retrieval set
    BoxRow        a phrase, and the box that it means                      RefCOCO

Images are names as the data set has them; `cclm.annotations.images` finds their files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Generic, TypeVar

from cclm.types import Language

USABLE, ALL = "usable", "all"
"""Two denominators: the rows that are left, as the published CCLM counts; and every row, as IGLUE counts XVNLI's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifyRow:
    """A statement about images, and its class."""

    id: str
    """Unique in its file."""
    images: tuple[str, ...]
    """Names of one image, or of a left and a right one."""
    text: str
    label: int | None
    """Index of the class (`XVNLI_LABELS`, `STATEMENT_LABELS`); None where a test set does not tell it."""
    language: Language
    """Of the benchmark: a translation to English keeps the language that it was translated from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionRow:
    """A question about an image."""

    id: str
    """Unique in its file."""
    image: str
    question: str
    answers: tuple[tuple[str, float], ...]
    """Right answers with their scores, in the file's order; empty where a test set does not tell them."""
    language: Language
    """Of the question; the answers of GQA and xGQA are English in every language."""
    choices: tuple[str, ...] = ()
    """Of multiple choice; the answer is one of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionRow:
    """An image with its captions in one language."""

    id: str
    """What the image shows: rows with one id, in whichever file and language, are the same image."""
    image: str
    captions: tuple[str, ...]
    """Unchanged; never blank."""
    language: Language


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxRow:
    """A phrase, and the box in an image that it means."""

    id: str
    """Unique in its file."""
    image: str
    text: str
    box: tuple[float, float, float, float]
    """x, y, width, height in pixels, origin at the top left."""
    language: Language
    size: tuple[int, int] | None = None
    """Width and height of the annotated image, where the file tells them."""


Row = TypeVar("Row", ClassifyRow, QuestionRow, CaptionRow, BoxRow)
AnyRow = ClassifyRow | QuestionRow | CaptionRow | BoxRow
NO_LABEL: Final = "no_label"
"""Reason: the annotators did not agree (XVNLI's "-")."""
NO_CAPTION: Final = "no_caption"
"""Reason: an image whose captions are all blank."""
BLANK_CAPTION: Final = "blank_caption"
"""Reason: one blank caption among others."""
OTHER_LANGUAGE: Final = "other_language"
"""Reason: a file of several languages, of which one is read; its rows in the others are none of this file."""


def images_of(row: AnyRow) -> tuple[str, ...]:
    """Return the names of a row's images."""
    return row.images if isinstance(row, ClassifyRow) else (row.image,)


@dataclass(frozen=True, kw_only=True)
class AnnotationFile(Generic[Row]):
    """The rows of one file, or of several that belong together, and what became of the others."""

    path: Path
    language: Language
    """As the rows have it; "" for a file of several languages."""
    rows: tuple[Row, ...]
    num_entries: int
    """Rows that the file has."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Reason → how many entries (or captions) the protocol leaves out."""

    @property
    def denominators(self) -> dict[str, int]:
        """Return what an accuracy may be divided by: `usable` rows, or `all` of the file, the others being wrong.

        A question whose right choice is not told is in neither: whether its answer is wrong is not known.
        """
        rows: Iterable[AnyRow] = self.rows
        choices = [row.choices for row in rows if isinstance(row, QuestionRow) and not row.answers]
        unknown = sum(map(bool, choices)) + self.dropped.get(OTHER_LANGUAGE, 0)
        return {USABLE: len(self.rows) - len(choices), ALL: self.num_entries - unknown}
