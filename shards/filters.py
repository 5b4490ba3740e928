"""Filters: pure functions of an image, a text or a pair that say why it goes, or nothing.

    reason -> (what the record must be like, function(facts, settings) -> what it is like instead, or None)

To add one: a field in `FilterSettings`, a function here, a line in its table.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeVar

from cclm.types import TextPair
from shards.benchmark import like_a_benchmark_image, normal_text, read_texts
from shards.blocked import find_blocked
from shards.language import language_probability
from shards.settings import FilterSettings
from shards.source_image import SourceImage

Facts = TypeVar("Facts")


class Refusal(NamedTuple):
    """Why a record, or one of its texts, goes."""

    reason: str
    expected: str
    got: str


@dataclass(frozen=True, kw_only=True)
class Text:
    """A caption, or one sentence of a pair."""

    text: str
    language: str


def _small(image: SourceImage, settings: FilterSettings) -> str | None:
    if settings.min_side == 0:
        return None  # and the file is not even opened
    width, height = image.size
    return f"{width} x {height} pixels" if min(width, height) < settings.min_side else None


def _aspect(image: SourceImage, settings: FilterSettings) -> str | None:
    if settings.max_aspect is None:
        return None
    width, height = image.size
    too_long = max(width, height) > settings.max_aspect * min(width, height)
    return f"{width} x {height} pixels" if too_long else None


def _test_image(image: SourceImage, settings: FilterSettings) -> str | None:
    return like_a_benchmark_image(image, settings) if settings.benchmark_images else None


def _short(text: Text, settings: FilterSettings) -> str | None:
    length = len(text.text.strip())
    return f"{length}" if length < settings.min_characters else None


def _long(text: Text, settings: FilterSettings) -> str | None:
    length, most = len(text.text.strip()), settings.max_characters
    return f"{length}" if most is not None and length > most else None


def _non_letters(text: Text, settings: FilterSettings) -> str | None:
    if settings.max_non_letters is None:
        return None
    share = non_letters(text.text)
    return f"{share:.0%}" if share > settings.max_non_letters else None


def non_letters(text: str) -> float:
    """Return the share of characters, spaces not counted, that are neither letters nor their marks."""
    seen = [unicodedata.category(character)[0] for character in text if not character.isspace()]
    return sum(kind not in "LM" for kind in seen) / max(len(seen), 1)


def _blocked(text: Text, settings: FilterSettings) -> str | None:
    return find_blocked(text.text, settings.blocked_words) if settings.blocked_words else None


def _language(text: Text, settings: FilterSettings) -> str | None:
    least = settings.min_language_probability
    if least is None or len(text.text.strip()) < settings.language_characters:
        return None
    probability, likeliest = language_probability(text.text, text.language)
    if probability is None or probability >= least:
        return None
    return f"{probability:.1%} for {text.language}, rather {likeliest}: {text.text[:60]!r}"


def _test_text(text: Text, settings: FilterSettings) -> str | None:
    if not settings.benchmark_texts:
        return None
    return repr(text.text[:60]) if normal_text(text.text) in read_texts(settings.benchmark_texts) else None


def _score(pair: TextPair, settings: FilterSettings) -> str | None:
    least = settings.min_score
    return f"{pair.score:.4g}" if least is not None and pair.score is not None and pair.score < least else None


def _length_ratio(pair: TextPair, settings: FilterSettings) -> str | None:
    longer, shorter = sorted((len(pair.text_a.strip()), len(pair.text_b.strip())), reverse=True)
    most = settings.max_length_ratio
    return f"{longer} and {shorter} characters" if most is not None and longer > most * shorter else None


Filter = tuple[str, Callable[[Facts, FilterSettings], str | None]]

IMAGE_FILTERS: Final[Mapping[str, Filter[SourceImage]]] = {
    "picture_small": ("a shorter side of at least {min_side} pixels", _small),
    "picture_aspect": ("an aspect of at most {max_aspect}", _aspect),
    "picture_of_benchmark": ("no test image of a benchmark", _test_image),
}
TEXT_FILTERS: Final[Mapping[str, Filter[Text]]] = {
    "text_short": ("at least {min_characters} characters", _short),
    "text_long": ("at most {max_characters} characters", _long),
    "text_non_letters": ("at most {max_non_letters:.0%} characters that are no letters", _non_letters),
    "text_blocked": ("no blocked word", _blocked),
    "text_language": ("a text that is in its language with {min_language_probability:.1%} or more", _language),
    "text_of_benchmark": ("no test sentence of a benchmark", _test_text),
}
PAIR_FILTERS: Final[Mapping[str, Filter[TextPair]]] = {
    "pair_score": ("a margin score of at least {min_score}", _score),
    "pair_length_ratio": ("lengths that differ by a factor of at most {max_length_ratio}", _length_ratio),
}


def refusal_of_image(image: SourceImage, settings: FilterSettings) -> Refusal | None:
    """Return why an image goes, with the first reason of the table, or None.

    Raises:
        DataError: reason image_broken.
    """
    return _first(IMAGE_FILTERS, image, settings)


def refusal_of_text(text: str, language: str, settings: FilterSettings) -> Refusal | None:
    """Return why a caption goes, or None."""
    return _first(TEXT_FILTERS, Text(text=text, language=language), settings)


def refusal_of_pair(pair: TextPair, settings: FilterSettings) -> Refusal | None:
    """Return why a pair goes: because of the pair, or of one of its sentences; or None."""
    if settings.are_off:
        return None
    return (
        _first(PAIR_FILTERS, pair, settings)
        or refusal_of_text(pair.text_a, pair.lang_a, settings)
        or refusal_of_text(pair.text_b, pair.lang_b, settings)
    )


def _first(table: Mapping[str, Filter[Facts]], facts: Facts, settings: FilterSettings) -> Refusal | None:
    if settings.are_off:
        return None
    for reason, (expected, function) in table.items():
        got = function(facts, settings)
        if got is not None:
            return Refusal(reason, expected.format(**_values(settings)), got)
    return None


@lru_cache(maxsize=16)
def _values(settings: FilterSettings) -> dict[str, Any]:
    return dict(vars(settings))
