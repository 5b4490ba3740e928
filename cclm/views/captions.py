"""Texts of a record: which one is taken, by two uniform numbers for language and caption; whether one names a side."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from cclm.data.mix_plan import RequestedLanguage
from cclm.errors import DataError
from cclm.types import Language
from cclm.views.image_text.options import ImageViewConfig

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


def choose_caption(
    captions: Mapping[str, Sequence[str]],
    config: ImageViewConfig,
    language_draw: float,
    caption_draw: float,
    requested: RequestedLanguage | None = None,
) -> tuple[str, int]:
    """Pick a language (the requested one, or all alike) and one of its captions, by two uniform numbers."""
    names = sorted(captions) if config.languages is None else [name for name in config.languages if name in captions]
    names = [name for name in names if captions[name]]
    found = None if requested is None else requested.pick(names, language_draw)
    if not names or (requested is not None and found is None):
        raise DataError(
            reason="caption_missing",
            expected="a caption in "
            + ("any language" if config.languages is None else ", ".join(config.languages))
            + ("" if requested is None else f" with a weight ({', '.join(requested.weights)})"),
            got=f"captions in {', '.join(sorted(captions)) or 'no language'}",
            do="Change `languages`, or leave the record out of the shards.",
        )
    name = found or names[int(language_draw * len(names))]
    count, first = len(captions[name]), config.first_caption_probability
    if count == 1:
        return name, 0
    if first is None:
        return name, int(caption_draw * count)
    if caption_draw < first:
        return name, 0
    rest = (caption_draw - first) / (1.0 - first)
    return name, min(count - 1, 1 + int(rest * (count - 1)))


def other_captions(
    captions: Mapping[str, Sequence[str]],
    language: str,
    choice: int,
    config: ImageViewConfig,
    requested: RequestedLanguage | None = None,
) -> dict[str, Sequence[str]]:
    """What the second caption is chosen from: the other languages (with a weight, if languages have weights); without
    any, the language's other captions."""
    wanted = captions if config.languages is None else {name: captions.get(name, ()) for name in config.languages}
    if requested is not None:
        wanted = {name: texts for name, texts in wanted.items() if name in requested.weights}
    rest: dict[str, Sequence[str]] = {name: texts for name, texts in wanted.items() if texts and name != language}
    if not rest:
        own = captions[language]
        rest = {language: [*own[:choice], *own[choice + 1 :]]}
    if not any(rest.values()):
        raise DataError(
            reason="caption_single",
            expected="two captions in the wanted languages (captions_per_image: 2)",
            got="one",
            do="Set captions_per_image: 1, or leave the record out of the shards.",
        )
    return rest


def names_a_side(captions: Mapping[Language, Sequence[str]]) -> bool:
    """Whether one of the texts, by language, speaks of left or right: then its image must not be mirrored.

    The published guard looked for two English words among the *language codes* of a caption, so it never fired.
    """
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
