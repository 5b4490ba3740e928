"""What a run answered to each row of its test sets, put together again for people: text, images, right or not.

RUN/results.jsonl ─▶ kept predictions ─┬─ rows of annotation files, by id       (statements, questions)
                                       └─ captions of retrieval sets, by id     (text → image)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from cclm.recipe.read import read_run_config
from cclm.types import Language
from cclm.views.annotated.options import AnnotatedConfig, RetrieveConfig
from cclm.views.annotated.rows import Images, Row, read_rows, text_of

ENGLISH: Final = "en"
RESULTS_NAME: Final = "results.jsonl"
LABELS: Final[Mapping[str, Sequence[str]]] = {"statements": STATEMENT_LABELS, "xvnli": XVNLI_LABELS}
"""Names of classes by format of the annotation files; of other formats they are numbers."""


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
        name = _set_name(result)
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


def _set_name(result: Result) -> str:
    """Return the name of the test set in `predictions/NAME.LANGUAGE.jsonl`, as `file_name_of` writes it."""
    name = Path(result.predictions).name.removesuffix(".jsonl")
    return name.removesuffix(f".{result.language}")


def _other_data(result: Result, row: str) -> ConfigError:
    return ConfigError(
        where=f"{result.data_file}, {result.language}", expected=f"the row {row} that was predicted", got="none",
        do="Restore the test set that the run was measured on, or evaluate again.",
    )  # fmt: skip


def by_row(answers: Iterable[Answer]) -> dict[str, list[Answer]]:
    """Return the answers to the same row, in whatever language."""
    found = dict[str, list[Answer]]()
    for answer in answers:
        found.setdefault(answer.id, []).append(answer)
    return found


def languages_of(answers: Iterable[Answer]) -> Iterator[Language]:
    """Yield the languages, in their order."""
    return iter(dict.fromkeys(answer.language for answer in answers))
