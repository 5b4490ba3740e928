"""Filters: pure functions of an image, a text or a pair that say why it goes, or nothing.

    reason -> (what the record must be like, function(facts, settings) -> what it is like instead, or None)

To add one: a field in `FilterSettings`, a function here, a line in its table.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from cclm.rows.cells import language_identifier
from cclm.rows.lines import sound_lines
from cclm.shardfile.scores import StoredScores, hash_of_caption, hash_of_pair, label_of_pair
from cclm.types import TextPair
from shards.benchmark import like_a_benchmark_image, normal_text, read_texts
from shards.recipe import FilterSettings
from shards.source_image import SourceImage

Facts = TypeVar("Facts")

_INSTALL: Final = 'pip install "cclm-pretraining[filters]", or leave min_language_probability out.'
_FAMILIES: Final = {
    "nb": "no", "nn": "no", "wuu": "zh", "yue": "zh", "arz": "ar", "ary": "ar", "uzs": "uz", "fil": "tl",
}  # fmt: skip
"""Tags that count as another: short texts do not tell them apart, or corpora use either."""
_WORD: Final = re.compile(r"\w+")
# Scripts that are written without spaces between words: there a word is looked for anywhere in the text.
_UNSPACED: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
)


class Refusal(NamedTuple):
    """Why a record, or one of its texts, goes."""

    reason: str
    expected: str
    got: str

    def message(self, key: str) -> str:
        """Return what quarantine says of it."""
        return f"{key}: expected {self.expected}, got {self.got}."


class Text(NamedTuple):
    """A caption, or one sentence of a pair."""

    text: str
    language: str
    image: str | None = None
    """Key of the image, if it is a caption."""


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
    """Return the first blocked word or phrase: whole words, whatever their case."""
    if settings.blocked_words is None:
        return None
    phrases, longest, anywhere = _read_blocked(settings.blocked_words)
    plain = _plain(text.text)
    words = _WORD.findall(plain)
    for start in range(len(words)):
        for length in range(1, min(longest, len(words) - start) + 1):
            if tuple(words[start : start + length]) in phrases:
                return " ".join(words[start : start + length])
    return next((word for word in anywhere if word in plain), None)


@lru_cache(maxsize=4)
def _read_blocked(path: str) -> tuple[frozenset[tuple[str, ...]], int, list[str]]:
    """Return the phrases of a list, the number of words of the longest, and words of scripts without spaces.

    A list is UTF-8, one word or phrase a line; lines that begin with # are comments.
    """
    wanted = [_plain(line.strip()) for line in sound_lines(Path(path)) if line.strip() and not line.startswith("#")]
    phrases = frozenset(tuple(_WORD.findall(line)) for line in wanted if not _UNSPACED.search(line)) - {()}
    return phrases, max(map(len, phrases), default=0), sorted(line for line in wanted if _UNSPACED.search(line))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _language(text: Text, settings: FilterSettings) -> str | None:
    least = settings.min_language_probability
    if least is None or len(text.text.strip()) < settings.language_characters:
        return None
    probabilities: dict[str, float] = {}
    for label, share in language_identifier(_INSTALL).rank(text.text):
        family = _FAMILIES.get(label, label)
        probabilities[family] = probabilities.get(family, 0.0) + share
    language = text.language.split("-")[0].lower()
    probability = probabilities.get(_FAMILIES.get(language, language))  # None: the model does not know it
    if probability is None or probability >= least:
        return None
    likeliest = max(probabilities, key=lambda name: probabilities[name])
    return f"{probability:.1%} for {text.language}, rather {likeliest}: {text.text[:60]!r}"


def _test_text(text: Text, settings: FilterSettings) -> str | None:
    if not settings.benchmark_texts:
        return None
    return repr(text.text[:60]) if normal_text(text.text) in read_texts(settings.benchmark_texts) else None


def _low_caption(text: Text, settings: FilterSettings) -> str | None:
    if settings.model_scores is None or text.image is None:
        return None
    return _low(hash_of_caption(text.image, text.language, text.text), text.language, settings)


def _low_pair(pair: TextPair, settings: FilterSettings) -> str | None:
    return None if settings.model_scores is None else _low(hash_of_pair(pair), label_of_pair(pair), settings)


def _low(content_hash: int, label: str, settings: FilterSettings) -> str | None:
    """Return what a pair has instead of a score at its language's percentile or above."""
    assert settings.model_scores is not None
    percentile = settings.min_score_percentiles.get(label, settings.min_score_percentile)
    if percentile == 0:
        return None
    stored = read_scores(settings.model_scores)
    score = stored.score(content_hash)
    if score is None:
        return "none"
    least = stored.at_percentile(label, percentile)
    return f"{score:.3f}, where {percentile} % of {label} have less than {least:.3f}" if score < least else None


@lru_cache(maxsize=4)
def read_scores(folder: str) -> StoredScores:
    """Return the scores of `cclm score`. ConfigError: there are none."""
    return StoredScores(Path(folder))


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
    "text_model_score": ("a score of the model at its language's percentile or above", _low_caption),
    "text_of_benchmark": ("no test sentence of a benchmark", _test_text),
}
PAIR_FILTERS: Final[Mapping[str, Filter[TextPair]]] = {
    "pair_score": ("a margin score of at least {min_score}", _score),
    "pair_model_score": ("a score of the model at its languages' percentile or above", _low_pair),
    "pair_length_ratio": ("lengths that differ by a factor of at most {max_length_ratio}", _length_ratio),
}


def refusal_of_image(image: SourceImage, settings: FilterSettings) -> Refusal | None:
    """Return why an image goes, with the first reason of the table, or None. DataError: reason image_broken."""
    return _first(IMAGE_FILTERS, image, settings)


def refusal_of_text(text: str, language: str, settings: FilterSettings, image: str | None = None) -> Refusal | None:
    """Return why a caption (of the image with this key) or a sentence goes, or None."""
    return _first(TEXT_FILTERS, Text(text, language, image), settings)


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
            return Refusal(reason, expected.format(**vars(settings)), got)
    return None
