"""`python -m finetune gallery RUN`: what a model answers best, worst and most surprisingly, as one page with images.

RUN/results.jsonl ─▶ kept predictions ─┬─ rows of annotation files, by id       (statements, questions)
                                       └─ captions of retrieval sets, by id     (text → image)
    Answers ─┬─ by language: chosen answers, and what was taken for what
             └─ by concept: what is missed in most languages

An answer surprises if the same row turns out otherwise in the other languages: right where they are wrong, or wrong
where they are right. Where rows are in one language only, a right answer that was thought unlikely does.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from cclm.annotations.rows import BoxRow, QuestionRow, images_of
from cclm.annotations.statements import STATEMENT_LABELS, XVNLI_LABELS
from cclm.config import RunConfig
from cclm.errors import ConfigError
from cclm.evaluate.results import Result, ResultStore, file_name_of, predictions_of
from cclm.evaluate.scores import IOU_THRESHOLD, box_iou
from cclm.files.shipped import open_template
from cclm.recipe.read import read_run_config
from cclm.report.page import language_name
from cclm.report.thumbnails import thumbnail_uri
from cclm.types import Language
from cclm.views.annotated.options import AnnotatedConfig, RetrieveConfig
from cclm.views.annotated.rows import Images, Row, read_rows, text_of

ENGLISH: Final = "en"
RESULTS_NAME: Final = "results.jsonl"
LABELS: Final[Mapping[str, Sequence[str]]] = {"statements": STATEMENT_LABELS, "xvnli": XVNLI_LABELS}
"""Names of classes by format of the annotation files; of other formats they are numbers."""
NUM_CONCEPTS: Final = 40
NUM_CONFUSIONS: Final = 3
THUMBNAIL: Final = 96
"""Pixels."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One row of a test set, and what the model made of it."""

    id: str
    """Equal in several languages where a set is translated."""
    language: Language
    text: str
    meaning: str
    """The text of the same row in English; "" where there is none."""
    images: tuple[str, ...]
    """Names; of retrieval the right one, and the one that was found first."""
    truth: str
    said: str
    is_right: bool
    goodness: float
    """From 0 to 1: the probability that it gave the truth; of retrieval 1 / place."""
    note: str = ""
    """What else there is to say of it."""

    @property
    def concept(self) -> str:
        """What it is about, in English if possible."""
        return self.meaning or self.text


@dataclass(frozen=True, kw_only=True)
class Answers:
    """All answers of a run."""

    title: str
    answers: Sequence[Answer]
    image: Callable[[str], bytes] = field(repr=False)
    """Name → image file (DataError: it cannot be read)."""


def answers_of(run: Path) -> Answers:
    """Return what a run answered.

    Raises:
        ConfigError: it was not evaluated, kept no predictions, or its test files are others by now.
        DataError: a test file that cannot be read.
    """
    config, store = read_run_config(run), run / RESULTS_NAME
    by_file = {one.predictions: one for one in ResultStore(store).read() if not one.reranked} if store.is_file() else {}
    if not by_file:
        do = "Give the folder of a run that has evaluated a test set with answers."
        raise ConfigError(where=str(run), expected=f"a run with results in {RESULTS_NAME}", got="none", do=do)
    results = sorted(by_file.values(), key=lambda one: (one.language != ENGLISH, one.language))
    views = [one for one in config.views.values() if isinstance(one, AnnotatedConfig)]
    is_rows = bool(views) and not isinstance(views[0], RetrieveConfig)
    made = _of_rows(run, views[0], results) if is_rows else _of_retrieval(run, config, results)
    first = results[0]
    return Answers(title=f"{first.task}: {first.model} ({first.protocol}), seed {first.seed}", **made)


def _of_rows(run: Path, view: AnnotatedConfig, results: Sequence[Result]) -> dict[str, Any]:
    """Put rows of annotation files together with their predictions."""
    answers, english = list[Answer](), dict[str, str]()
    for result in results:
        rows: Mapping[str, Row] = {
            row.id: row
            for row in read_rows(view.path(result.data_file), view.format_of(result.data_file), result.language).rows
        }
        if result.language == ENGLISH:
            english = {name: text_of(row) for name, row in rows.items()}
        for line in predictions_of(result, run):
            row = rows.get(str(line["id"]))
            if row is None:
                raise _other_data(result, str(line["id"]))
            truth, said = _words(row, line, LABELS.get(view.format, ()))
            if not truth:
                continue  # what is right is not published: neither right nor wrong
            goodness, is_right, note = _judged(row, line, said in truth)
            answers.append(
                Answer(
                    id=row.id, language=result.language, text=text_of(row), meaning=english.get(row.id, ""),
                    images=images_of(row), truth=" / ".join(truth), said=said, is_right=is_right,
                    goodness=goodness, note=note,
                )
            )  # fmt: skip
    return {"answers": answers, "image": Images(*view.image_folders).read}


def _words(row: Row, line: Mapping[str, Any], labels: Sequence[str]) -> tuple[list[str], str]:
    """Return the right answers and the one that was given; boxes as their numbers."""
    if isinstance(row, BoxRow):
        truth, said = (", ".join(f"{side:.0f}" for side in box) for box in (row.box, line["predicted"]))
        return [truth], said
    if isinstance(row, QuestionRow):
        return [answer for answer, _ in row.answers], str(line["predicted"])
    truth, said = (labels[number] if labels else str(number) for number in (line["label"], line["predicted"]))
    return [truth], said


def _judged(row: Row, line: Mapping[str, Any], is_said: bool) -> tuple[float, bool, str]:
    """Return how good an answer is, whether it is right, and a note."""
    if isinstance(row, BoxRow):
        overlap = box_iou(row.box, line["predicted"])
        return overlap, overlap >= IOU_THRESHOLD, f"IoU {overlap:.2f}"
    score = float(line["score"])
    return score if is_said else 1.0 - score, is_said, f"{score:.0%} sure"


def _of_retrieval(run: Path, config: RunConfig, results: Sequence[Result]) -> dict[str, Any]:
    """Put captions together with the image that each found first."""
    from cclm.train.retrieval_sets import named_sets, retrieval_set

    assert config.finetune is not None, "it has evaluated"
    answers, images, sets = list[Answer](), dict[str, Callable[[], bytes]](), dict[str, Any]()
    places = {file_name_of(name): (name, where) for name, where in named_sets(config.finetune, "test").items()}
    for result in results:
        # predictions/NAME.LANGUAGE.jsonl, NAME as `file_name_of` writes it
        name = Path(result.predictions).name.removesuffix(".jsonl").removesuffix(f".{result.language}")
        if name not in sets:
            sets[name] = retrieval_set(config.finetune, config.data.cache, *places[name], "test")
            images |= {key: partial(sets[name].image, number) for number, key in enumerate(sets[name].keys)}
        asked = {language: dict(zip(of.ids, of.texts, strict=True)) for language, of in sets[name].captions.items()}
        english = {key.rpartition("#")[0]: text for key, text in reversed(asked.get(ENGLISH, {}).items())}
        for line in predictions_of(result, run):
            if line["direction"] == "t2i":
                if line["id"] not in asked.get(result.language, {}) or line.get("predicted") not in images:
                    raise _other_data(result, str(line["id"]))
                answers.append(_found(line, result.language, asked[result.language][line["id"]], english))
    return {"answers": answers, "image": lambda name: images[name]()}


def _found(line: Mapping[str, Any], language: Language, text: str, english: Mapping[str, str]) -> Answer:
    key, first, rank = str(line["id"]).rpartition("#")[0], str(line["predicted"]), int(line["rank"])
    truth = english.get(key, "")
    return Answer(
        id=str(line["id"]), language=language, text=text, meaning=truth, truth=truth or key, is_right=rank == 0,
        images=(key,) if rank == 0 else (key, first), said=(truth or key) if rank == 0 else english.get(first, first),
        goodness=1 / (1 + rank), note=f"place {rank + 1:,}",
    )  # fmt: skip


def _other_data(result: Result, row: str) -> ConfigError:
    return ConfigError(
        where=f"{result.data_file}, {result.language}", expected=f"the row {row} that was predicted", got="none",
        do="Restore the test set that the run was measured on, or evaluate again.",
    )  # fmt: skip


def languages_of(answers: Iterable[Answer]) -> list[Language]:
    """Return the languages, in their order."""
    return list(dict.fromkeys(answer.language for answer in answers))


def _grouped(answers: Iterable[Answer], key: str) -> Mapping[str, list[Answer]]:
    """Return the answers by what is in one of their fields."""
    found = dict[str, list[Answer]]()
    for answer in answers:
        found.setdefault(getattr(answer, key), []).append(answer)
    return found


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
    for name, of_row in _grouped(answers, "id").items():
        total = sum(one.goodness for one in of_row)
        for one in of_row:
            if len(of_row) > 1:
                found[name, one.language] = abs(one.goodness - (total - one.goodness) / (len(of_row) - 1))
            else:
                found[name, one.language] = 1.0 - one.goodness if one.is_right else 0.0
    return found


def hardest(answers: Sequence[Answer], number: int = NUM_CONCEPTS) -> list[Concept]:
    """Return what is missed most often, over all languages."""
    by_concept = _grouped(answers, "concept").values()
    return sorted(map(_concept, by_concept), key=lambda one: (one.right, -one.num_answers, one.name))[:number]


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
