"""Crossmodal-3600: 3,600 images with captions in 36 languages, two or more each.

captions.jsonl   {"image/key": "000411001ff7dd4f", "image/locale": "…",
                  "en": {"caption": ["…", "…"], "caption/tokenized": […], …}, "fil": {…}, "quz": {…}, …}
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from cclm.annotations.reading import Captioned, Dropped, Problems, entries_of, known_language, name_at, read_captions
from cclm.annotations.rows import AnnotationFile, CaptionRow
from cclm.rows.cells import mapping, texts

XM3600_LANGUAGES: Final = (
    "ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fil", "fr", "he", "hi", "hr", "hu", "id", "it",
    "ja", "ko", "mi", "nl", "no", "pl", "pt", "quz", "ro", "ru", "sv", "sw", "te", "th", "tr", "uk", "vi", "zh",
)  # fmt: skip
"""Keys of the languages, which are their codes."""
NO_LANGUAGE: Final = "no_caption_in_language"
"""Reason: an image without captions in the language that is asked for."""


def read_xm3600(path: Path, language: str, problems: Problems | None = None) -> AnnotationFile[CaptionRow]:
    """Read the captions in one language; `language` is its key in the file."""
    return read_captions(
        path, known_language(language, path), entries_of(path), partial(_captioned, language), problems
    )


def _captioned(key: str, _: str, entry: Mapping[str, Any]) -> Captioned | Dropped:
    image = name_at(entry, "image/key")
    if entry.get(key) is None:
        return Dropped(NO_LANGUAGE)
    captions = texts(mapping(entry[key], f"an object in {key!r}").get("caption"), "a list of captions")
    return Captioned(image, f"{image}.jpg", captions)
