"""`python -m finetune gallery RUN`: what a model answers best, worst and most surprisingly, as one page with images.

    Answers ─┬─ by language: chosen answers, and what was taken for what
             └─ by concept: what is missed in most languages

An answer surprises if the same row turns out otherwise in the other languages: right where they are wrong, or wrong
where they are right. Where rows are in one language only, a right answer that was thought unlikely does.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cclm.files.shipped import open_template
from cclm.report.page import language_name
from cclm.report.thumbnails import thumbnail_uri
from cclm.types import Language
from finetune.answers import Answer, Answers, by_row, languages_of

NUM_CONCEPTS: Final = 40
NUM_CONFUSIONS: Final = 3
THUMBNAIL: Final = 96
"""Pixels."""


@dataclass(frozen=True, kw_only=True)
class LanguageGallery:
    """One language."""

    language: Language
    num_answers: int
    right: float
    """In percent."""
    confusions: Sequence[tuple[str, str, int]]
    """Truth, what was said, how often; the most frequent ones that happened more than once."""
    too_often: Sequence[tuple[str, int]]
    """What was said wrongly, whatever the truth; most frequent first."""
    chosen: Sequence[tuple[str, Sequence[Answer]]]
    """Title and answers."""


@dataclass(frozen=True, kw_only=True)
class Concept:
    """What some rows are about."""

    name: str
    num_answers: int
    right: float
    """In percent."""
    never_right: Sequence[Language]
    said: Sequence[tuple[str, int]]
    """What was said instead, most frequent first."""


def galleries(answers: Sequence[Answer], number: int) -> list[LanguageGallery]:
    """Return best, worst and most surprising answers of each language, so many of each, and its confusions."""
    surprise = surprises(answers)
    return [_gallery(language, [one for one in answers if one.language == language], surprise, number)
            for language in languages_of(answers)]  # fmt: skip


def _gallery(
    language: Language, own: Sequence[Answer], surprise: dict[tuple[str, Language], float], number: int
) -> LanguageGallery:
    by_goodness = sorted(own, key=lambda one: one.goodness)
    worst, best = by_goodness[:number], by_goodness[::-1][:number]
    shown = {id(one) for one in (*worst, *best)}
    others = [one for one in own if id(one) not in shown and surprise[one.id, language] > 0]
    surprising = sorted(others, key=lambda one: -surprise[one.id, language])[:number]
    confused = Counter((one.truth, one.said) for one in own if not one.is_right)
    return LanguageGallery(
        language=language,
        num_answers=len(own),
        right=_right(own),
        confusions=[(*pair, count) for pair, count in confused.most_common(NUM_CONFUSIONS) if count > 1],
        too_often=Counter(one.said for one in own if not one.is_right).most_common(NUM_CONFUSIONS),
        chosen=[
            (title, some) for title, some in (("best", best), ("worst", worst), ("most surprising", surprising)) if some
        ],
    )


def surprises(answers: Sequence[Answer]) -> dict[tuple[str, Language], float]:
    """Return how far each answer lies from those to the same row in other languages, by id and language.

    Of a row in one language: how unlikely a right answer was thought; 0 of a wrong one.
    """
    found = dict[tuple[str, Language], float]()
    for name, of_row in by_row(answers).items():
        total = sum(one.goodness for one in of_row)
        for one in of_row:
            if len(of_row) > 1:
                found[name, one.language] = abs(one.goodness - (total - one.goodness) / (len(of_row) - 1))
            else:
                found[name, one.language] = 1.0 - one.goodness if one.is_right else 0.0
    return found


def hardest(answers: Sequence[Answer], number: int = NUM_CONCEPTS) -> list[Concept]:
    """Return what is missed most often, over all languages."""
    by_concept = dict[str, list[Answer]]()
    for one in answers:
        by_concept.setdefault(one.concept, []).append(one)
    return sorted(map(_concept, by_concept.values()), key=lambda one: (one.right, -one.num_answers, one.name))[:number]


def _concept(of_one: Sequence[Answer]) -> Concept:
    wrong = Counter(one.said for one in of_one if not one.is_right)
    known = {one.language for one in of_one if one.is_right}
    return Concept(
        name=of_one[0].concept,
        num_answers=len(of_one),
        right=_right(of_one),
        never_right=[language for language in languages_of(of_one) if language not in known],
        said=wrong.most_common(NUM_CONFUSIONS),
    )


def _right(answers: Sequence[Answer]) -> float:
    return 100.0 * statistics.fmean(one.is_right for one in answers)


def gallery_page(found: Answers, number: int) -> str:
    """Return the page; every text on it is escaped, every image small and inside (DataError: an image is missing)."""
    uris = dict[str, str]()

    def uri(name: str) -> str:
        if name not in uris:
            uris[name] = thumbnail_uri(found.image(name), THUMBNAIL)
        return uris[name]

    page: str = open_template(Path(__file__).with_name("gallery.html.j2"), html=True).render(
        title=found.title,
        languages=galleries(found.answers, number),
        concepts=hardest(found.answers),
        uri=uri,
        language_name=language_name,
    )
    return page
