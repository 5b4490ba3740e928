"""What the search page says to a text: two rankings of images, the language, and what is to be known or done."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec

from cclm.errors import CclmError, MissingDependencyError
from cclm.report.page import language_name
from cclm.retrieve.embed_source import EmbedSource
from cclm.retrieve.search import EmbeddedSet, Hit, Searcher, look_again
from cclm.rows.cells import language_identifier

MOST_CHARACTERS = 1000
"""A longer query is refused; no model here reads so much."""
SURE, LIKELY = 0.7, 0.3
"""Probabilities from which on a language is named, and named with "perhaps"; below, it is not clear."""
WHOLE_TEXT = 1 << 16
"""Tokens, more than `MOST_CHARACTERS` can become."""
NUM_EXAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why there are no results, and what to do."""

    what: str
    do: str


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One image in a ranking."""

    number: int
    """Of the image, as its address has it."""
    key: str
    caption: str
    """In the language of the query, if there is one, else in English; "" without captions."""
    language: str
    """Of the caption."""
    cosine: float
    match: float | None = None
    rank_before: int | None = None
    """In the other ranking."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """One column."""

    name: str
    title: str
    about: str
    images: Sequence[Shown] = ()
    problem: Problem | None = None


@dataclass(frozen=True, kw_only=True)
class Guess:
    """The language that a text seems to be in."""

    tag: str
    name: str
    probability: float

    @property
    def words(self) -> str:
        """What the page says."""
        if self.probability >= SURE:
            return self.name
        return (
            f"perhaps {self.name} ({100 * self.probability:.0f} % sure)" if self.probability >= LIKELY else "not clear"
        )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the page shows; without query and problem: nobody has asked yet."""

    query: str = ""
    rankings: Sequence[Ranking] = ()
    guess: Guess | None = None
    notes: Sequence[str] = ()
    problem: Problem | None = None


@dataclass(kw_only=True)
class SearchBox:
    """A searcher with its images, and how much is shown. One query at a time, from any thread."""

    searcher: Searcher
    source: EmbedSource
    texts: EmbeddedSet | None = None
    """Captions, if they were embedded: what images are called, and examples of queries."""
    top_k: int = 10
    rerank_top: int = 50
    """Best images that the fusion encoder orders anew; 0: no second column."""
    name: str = ""
    """Of the set."""
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)

    @cached_property
    def numbers(self) -> frozenset[int]:
        """Images that may be shown."""
        return frozenset(self.searcher.embedded.unit)

    @property
    def version(self) -> str:
        """Tells sets apart, in the addresses of images."""
        return self.searcher.embedded.facts.source[:12]

    def image(self, number: int) -> bytes:
        """Return an image file (DataError: it is gone)."""
        with self._lock:
            return self.source.image(number)

    @cached_property
    def captions(self) -> Mapping[int, Mapping[str, str]]:
        """The first caption of each image by language."""
        found: dict[int, dict[str, str]] = {}
        if self.texts is not None:
            for unit, language, text in zip(self.texts.unit, self.texts.language, self.texts.text, strict=True):
                if unit in self.numbers and text:
                    found.setdefault(unit, {}).setdefault(language or "", text)
        return found

    @cached_property
    def examples(self) -> Sequence[tuple[str, str]]:
        """(language, text) of some captions, each of another image and in another language."""
        languages = list(dict.fromkeys(language for texts in self.captions.values() for language in texts if language))
        chosen = languages[:: -(-len(languages) // NUM_EXAMPLES)] if languages else []
        found, step = [], max(1, len(self.captions) // NUM_EXAMPLES)
        for place, language in enumerate(chosen):
            texts = [texts[language] for texts in list(self.captions.values())[place * step :] if language in texts]
            found += [(language, text) for text in texts[:1]]
        return found

    def answer(self, query: str | None) -> Answer:
        """Return what is shown to a query; None: nobody has asked."""
        if query is None:
            return Answer()
        text = " ".join(query.split())
        if problem := self._problem(text):
            return Answer(query=text[:MOST_CHARACTERS], problem=problem)
        guess = guessed_language(text)
        try:
            with self._lock:
                hits = self.searcher.best([text], max(self.top_k, self.rerank_top))[0]
                rankings = [self._by_cosine(hits, guess)]
                if self.rerank_top:
                    rankings.append(self._by_fusion(text, hits[: self.rerank_top], guess))
        except CclmError as error:
            return Answer(query=text, problem=Problem(what=f"The search failed: {error}", do=error.do))
        return Answer(query=text, rankings=rankings, guess=guess, notes=self._notes(text))

    def _problem(self, text: str) -> Problem | None:
        if not text:
            return Problem(what="The query is empty.", do="Type what the image should show, in any language.")
        if len(text) > MOST_CHARACTERS:
            what = f"The query has {len(text):,} characters; at most {MOST_CHARACTERS:,} are read."
            return Problem(what=what, do="Say it in a sentence or two.")
        pieces = self._pieces(text)
        if not pieces:
            return Problem(
                what="Nothing of this text is left once it is prepared for the model.",
                do="Use words: punctuation alone says nothing.",
            )
        if all(piece == self.searcher.opened.tokenizer.unk_id for piece in pieces):
            return Problem(
                what="The model's vocabulary knows no piece of this text.",
                do="Try other words, or a language whose script the model was trained with.",
            )
        return None

    def _notes(self, text: str) -> list[str]:
        pieces, opened = self._pieces(text), self.searcher.opened
        found, most = [], opened.max_tokens - 2
        if len(pieces) > most:
            found.append(f"The text has {len(pieces)} tokens, and the model reads the first {most}: shorten it.")
        if unknown := sum(piece == opened.tokenizer.unk_id for piece in pieces):
            found.append(f"{unknown} of {len(pieces)} tokens are not in the model's vocabulary.")
        return found

    def _pieces(self, text: str) -> list[int]:
        try:
            return self.searcher.opened.tokenizer.encode([text], WHOLE_TEXT)[0][1:-1]
        except CclmError:
            return []

    def _by_cosine(self, hits: Sequence[Hit], guess: Guess | None) -> Ranking:
        return Ranking(
            name="dual",
            title="Dual encoder",
            about="Image and text are encoded apart; ranked by cosine.",
            images=[self._shown(hit, guess) for hit in hits[: self.top_k]],
        )

    def _by_fusion(self, text: str, hits: Sequence[Hit], guess: Guess | None) -> Ranking:
        ranking = Ranking(
            name="reranked",
            title="Re-ranked",
            about=f"The fusion encoder looks at the best {len(hits)} together with the text.",
        )
        rank_of = {hit.unit: rank for rank, hit in enumerate(hits, start=1)}
        try:
            found = look_again(self.searcher.opened, self.source, text, hits)[: self.top_k]
        except CclmError as error:
            return replace(ranking, problem=Problem(what=f"An image could not be read: {error}", do=error.do))
        return replace(ranking, images=[self._shown(hit, guess, rank_of[hit.unit]) for hit in found])

    def _shown(self, hit: Hit, guess: Guess | None, rank_before: int | None = None) -> Shown:
        captions = self.captions.get(hit.unit, {})
        wanted = (guess.tag if guess else "en", "en", *captions)
        language = next((one for one in wanted if one in captions), "")
        return Shown(
            number=hit.unit,
            key=hit.key,
            caption=captions.get(language, ""),
            language=language,
            cosine=hit.cosine,
            match=hit.match,
            rank_before=rank_before,
        )


def guessed_language(text: str) -> Guess | None:
    """Return the language that a text seems to be in; None: what identifies languages is not installed."""
    try:
        identifier = language_identifier("")
    except MissingDependencyError:
        return None
    tag, probability = identifier.rank(text)[0]
    return Guess(tag=tag, name=_name(tag), probability=float(probability))


def _name(tag: str) -> str:
    """In English; of few languages where langcodes has no names at hand."""
    from langcodes import Language

    return language_name(tag) if find_spec("language_data") is None else str(Language.get(tag).display_name())
