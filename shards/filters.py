"""Filters: pure functions of an image, a text or a pair that say why it goes, or nothing.

    reason -> (option, what the record must be like, function(facts, limit, settings) -> what it is like instead)

The limit is the option's value; at its default, nothing is asked. To add one: a field in `FilterSettings`, a function
here, a line in its table.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np

from cclm.errors import DataError
from cclm.rows.cells import language_identifier
from cclm.rows.guard import mistaken, without_addresses
from cclm.rows.lines import sound_lines
from cclm.shardfile.scores import StoredScores, hash_of_caption, hash_of_pair, label_of_pair
from cclm.types import TextPair
from shards.corpora.files import named_files
from shards.recipe import IMAGE_SUFFIXES, FilterSettings
from shards.sketch import SourceImage, differing_bits, perceptual_hash

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


def normal_text(text: str) -> str:
    """Return a text without case, punctuation, spacing and the differences of Unicode's compatible characters.

    Combining marks stay: in many scripts they are vowels.
    """
    kept = (c for c in unicodedata.normalize("NFKC", text).casefold() if unicodedata.category(c)[0] in "LMN")
    return "".join(kept)


@lru_cache(maxsize=4)
def read_texts(paths: tuple[str, ...]) -> frozenset[str]:
    """Return the normal form of every line of some files (also compressed). ConfigError: one cannot be read."""
    return frozenset(normal_text(line) for path in paths for line in sound_lines(Path(path))) - {""}


@lru_cache(maxsize=4)
def _read_images(folder: str) -> tuple[list[str], Any]:
    """Return the test images' names, and their hashes (number, 8) as uint8. ConfigError: one does not decode."""
    root = Path(folder)
    paths = named_files(root, IMAGE_SUFFIXES).values()
    try:
        hashes = [perceptual_hash(SourceImage(path.read_bytes(), str(path))) for path in paths]
    except DataError as error:
        do = "Take it out of filters.benchmark_images, or fetch it again."
        mistaken("test images that decode", without_addresses(error.got), do, error.where)
    return [str(path.relative_to(root)) for path in paths], np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 8)


def read_benchmarks(settings: FilterSettings) -> None:
    """Read all that is to be kept out of a set: a ConfigError ends the build before it begins."""
    read_texts(settings.benchmark_texts)
    if settings.benchmark_images:
        _read_images(settings.benchmark_images)


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


def _small(image: SourceImage, least: int, _: FilterSettings) -> str | None:
    width, height = image.size
    return f"{width} x {height} pixels" if min(width, height) < least else None


def _aspect(image: SourceImage, most: float, _: FilterSettings) -> str | None:
    width, height = image.size
    return f"{width} x {height} pixels" if max(width, height) > most * min(width, height) else None


def _test_image(image: SourceImage, folder: str, settings: FilterSettings) -> str | None:
    """Return the name of the nearest test image if it is near enough to be the same, or None (reason: image_broken)."""
    names, hashes = _read_images(folder)
    distances = differing_bits(hashes, perceptual_hash(image))
    nearest = int(np.argmin(distances))
    is_like = distances[nearest] <= settings.benchmark_distance
    return f"{names[nearest]} ({distances[nearest]} bits of 64 differ)" if is_like else None


def _short(text: Text, least: int, _: FilterSettings) -> str | None:
    length = len(text.text.strip())
    return f"{length}" if length < least else None


def _long(text: Text, most: int, _: FilterSettings) -> str | None:
    length = len(text.text.strip())
    return f"{length}" if length > most else None


def _non_letters(text: Text, most: float, _: FilterSettings) -> str | None:
    share = non_letters(text.text)
    return f"{share:.0%}" if share > most else None


def non_letters(text: str) -> float:
    """Return the share of characters, spaces not counted, that are neither letters nor their marks."""
    seen = [unicodedata.category(character)[0] for character in text if not character.isspace()]
    return sum(kind not in "LM" for kind in seen) / max(len(seen), 1)


def _blocked(text: Text, path: str, _: FilterSettings) -> str | None:
    """Return the first blocked word or phrase: whole words, whatever their case."""
    phrases, longest, anywhere = _read_blocked(path)
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


def _language(text: Text, least: float, settings: FilterSettings) -> str | None:
    if len(text.text.strip()) < settings.language_characters:
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


def _test_text(text: Text, paths: tuple[str, ...], _: FilterSettings) -> str | None:
    return repr(text.text[:60]) if normal_text(text.text) in read_texts(paths) else None


def _low_caption(text: Text, folder: str, settings: FilterSettings) -> str | None:
    if text.image is None:
        return None
    return _low(hash_of_caption(text.image, text.language, text.text), text.language, folder, settings)


def _low_pair(pair: TextPair, folder: str, settings: FilterSettings) -> str | None:
    return _low(hash_of_pair(pair), label_of_pair(pair), folder, settings)


def _low(content_hash: int, label: str, folder: str, settings: FilterSettings) -> str | None:
    """Return what a pair has instead of a score at its language's percentile or above."""
    percentile = settings.min_score_percentiles.get(label, settings.min_score_percentile)
    if percentile == 0:
        return None
    stored = read_scores(folder)
    score = stored.score(content_hash)
    if score is None:
        return "none"
    least = stored.at_percentile(label, percentile)
    return f"{score:.3f}, where {percentile} % of {label} have less than {least:.3f}" if score < least else None


@lru_cache(maxsize=4)
def read_scores(folder: str) -> StoredScores:
    """Return the scores of `cclm score`. ConfigError: there are none."""
    return StoredScores(Path(folder))


def _score(pair: TextPair, least: float, _: FilterSettings) -> str | None:
    return f"{pair.score:.4g}" if pair.score is not None and pair.score < least else None


def _length_ratio(pair: TextPair, most: float, _: FilterSettings) -> str | None:
    longer, shorter = sorted((len(pair.text_a.strip()), len(pair.text_b.strip())), reverse=True)
    return f"{longer} and {shorter} characters" if longer > most * shorter else None


Filter = tuple[str, str, Callable[[Facts, Any, FilterSettings], str | None]]

IMAGE_FILTERS: Final[Mapping[str, Filter[SourceImage]]] = {
    "picture_small": ("min_side", "a shorter side of at least {} pixels", _small),
    "picture_aspect": ("max_aspect", "an aspect of at most {}", _aspect),
    "picture_of_benchmark": ("benchmark_images", "no test image of a benchmark", _test_image),
}
TEXT_FILTERS: Final[Mapping[str, Filter[Text]]] = {
    "text_short": ("min_characters", "at least {} characters", _short),
    "text_long": ("max_characters", "at most {} characters", _long),
    "text_non_letters": ("max_non_letters", "at most {:.0%} characters that are no letters", _non_letters),
    "text_blocked": ("blocked_words", "no blocked word", _blocked),
    "text_language": ("min_language_probability", "a text that is in its language with {:.1%} or more", _language),
    "text_model_score": ("model_scores", "a score of the model at its language's percentile or above", _low_caption),
    "text_of_benchmark": ("benchmark_texts", "no test sentence of a benchmark", _test_text),
}
PAIR_FILTERS: Final[Mapping[str, Filter[TextPair]]] = {
    "pair_score": ("min_score", "a margin score of at least {}", _score),
    "pair_model_score": ("model_scores", "a score of the model at its languages' percentile or above", _low_pair),
    "pair_length_ratio": ("max_length_ratio", "lengths that differ by a factor of at most {}", _length_ratio),
}


def refusal_of_image(image: SourceImage, settings: FilterSettings) -> Refusal | None:
    """Return why an image goes, with the first reason of the table, or None. DataError: reason image_broken."""
    return _first(IMAGE_FILTERS, image, settings)


def refusal_of_text(text: str, language: str, settings: FilterSettings, image: str | None = None) -> Refusal | None:
    """Return why a caption (of the image with this key) or a sentence goes, or None."""
    return _first(TEXT_FILTERS, Text(text, language, image), settings)


def refusal_of_pair(pair: TextPair, settings: FilterSettings) -> Refusal | None:
    """Return why a pair goes: because of the pair, or of one of its sentences; or None."""
    return (
        _first(PAIR_FILTERS, pair, settings)
        or refusal_of_text(pair.text_a, pair.lang_a, settings)
        or refusal_of_text(pair.text_b, pair.lang_b, settings)
    )


def _first(table: Mapping[str, Filter[Facts]], facts: Facts, settings: FilterSettings) -> Refusal | None:
    if settings.are_off:
        return None
    for reason, (option, expected, function) in table.items():
        limit = getattr(settings, option)
        if limit != getattr(FilterSettings, option) and (got := function(facts, limit, settings)) is not None:
            return Refusal(reason, expected.format(limit), got)
    return None
