"""WIT, Wikipedia's images with their captions, as IGLUE publishes them; rows with one image_url are one image.

wit/annotations/test_bg.jsonl   {"language": "bg", "image_url", "caption_reference_description", "page_url", …}

Identity is the URL, compared without decoding: image_idx covers several URLs in places, and val_en has none. Captions
may be ".", or hold newlines; they stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from cclm.annotations.reading import Captioned, Problems, entries_of, known_language, read_captions
from cclm.annotations.rows import AnnotationFile, CaptionRow
from cclm.rows.cells import language, text
from cclm.rows.guard import refuse
from cclm.types import Language

CAPTION: Final = "caption_reference_description"


def read_wit(path: Path, language: str, problems: Problems | None = None) -> AnnotationFile[CaptionRow]:
    """Read a file of WIT, whose rows must be of this language (reasons in `dropped`: blank_caption, no_caption)."""
    tag = known_language(language, path)
    return read_captions(path, tag, entries_of(path), partial(_captioned, tag), problems)


def _captioned(expected: Language, _: str, entry: Mapping[str, Any]) -> Captioned:
    url, name, texts = url_and_texts(entry, (CAPTION,))
    if (tag := language(name)) != expected:
        refuse("line_broken", f"rows in {expected}", f"one in {tag}")
    return Captioned(url, url, texts)


def url_and_texts(entry: Mapping[str, Any], fields: Sequence[str]) -> tuple[str, str, list[str]]:
    """Return the URL of a row's image, the name of its language, and the texts in some fields (not None)."""
    url, name = (text(entry.get(field) or None, field) for field in ("image_url", "language"))
    return url, name, [text(entry[field], field) for field in fields if entry.get(field) is not None]
