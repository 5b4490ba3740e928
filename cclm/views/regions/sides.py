"""Words that name a side: an image whose text says "left" must not be mirrored.

The published guard looked for two English words among the *language codes* of a caption, so it never fired.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from cclm.types import Language

SIDE_STEMS: Mapping[str, tuple[str, ...]] = {
    "ar": ("يسار", "يمين", "اليسار", "اليمين"),
    "bn": ("বাম", "ডান"),
    "cs": ("vlevo", "vpravo", "doleva", "doprava", "lev", "prav"),
    "de": ("link", "recht"),
    "en": ("left", "right"),
    "es": ("izquierd", "derech"),
    "fr": ("gauche", "droit"),
    "hi": ("बाएँ", "बाएं", "दाएँ", "दाएं", "बाईं", "दाईं"),
    "id": ("kiri", "kanan"),
    "it": ("sinistr", "destr"),
    "nl": ("link", "recht"),
    "pt": ("esquerd", "direit"),
    "ru": ("лев", "прав", "слева", "справа", "налево", "направо", "влево", "вправо"),
    "sw": ("kushoto", "kulia"),
    "tr": ("sol", "sağ"),
    "vi": ("trái", "phải"),
}
"""A text of the language names a side if one of its words begins so. Rather too many images are not mirrored than one
with a wrong text. Of other languages, translations in these ones speak for them."""
SIDE_SIGNS: Mapping[str, tuple[str, ...]] = {
    "ja": ("左", "右"),
    "ko": ("왼쪽", "오른쪽", "좌측", "우측"),
    "ta": ("இடது", "வலது"),
    "th": ("ซ้าย", "ขวา"),
    "zh": ("左", "右"),
}
"""The same where words are not separated, or glued to others: anywhere in the text."""


def names_a_side(captions: Mapping[Language, Sequence[str]]) -> bool:
    """Whether one of the texts, by language, speaks of left or right."""
    for language, texts in captions.items():
        pattern = _pattern(language.partition("-")[0].lower())
        if pattern is not None and any(pattern.search(text.lower()) for text in texts):
            return True
    return False


@lru_cache(maxsize=256)
def _pattern(language: str) -> re.Pattern[str] | None:
    if language in SIDE_SIGNS:
        return re.compile("|".join(SIDE_SIGNS[language]))
    if language in SIDE_STEMS:
        return re.compile(r"\b(?:" + "|".join(SIDE_STEMS[language]) + ")")
    return None
