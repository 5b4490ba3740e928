"""The store of results: one line a number, with all that it was made from; and the predictions that it follows from.

    predictions.jsonl ── METRICS ──▶ Result ── append ──▶ results.jsonl ── read ──▶ tables
            ▲                           │
            └────── derive (the same number, again)

A number without its data file's hash, seed and protocol cannot be compared to another; so all of them are fields.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, get_args

from cclm.annotations.rows import USABLE
from cclm.errors import ConfigError
from cclm.evaluate.scores import MEAN_RECALL, RECALLS, Line, percent, scores_by_row
from cclm.files.atomic import file_sha256, replace_text
from cclm.files.lines import append_line, text_lines
from cclm.files.reading import typed_values
from cclm.types import Language, Protocol

PROTOCOLS: Final = get_args(Protocol)
ON_DEV, ON_TEST, ON_NOTHING = "dev", "test", "last"
"""What a checkpoint was selected on; the published few-shot runs selected on the test file. "last": on nothing."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One number."""

    model: str
    """Its name in tables; runs that differ in the seed only have one name."""
    task: str
    protocol: str
    """One of `PROTOCOLS`."""
    language: Language
    split: str
    """Of the file that was measured on: "test"; sets with two tests say which."""
    metric: str
    """A name in `cclm.evaluate.scores.METRICS`, or "mean_recall"."""
    value: float
    """In percent."""
    num_rows: int
    """What was divided by."""
    num_unknown: int = 0
    """Of these, questions with no right answer in the list that answers are chosen from: wrong, whatever is said."""
    denominator: str = USABLE
    """"usable": the rows that the protocol keeps; "all": every row of the file, the others counting as wrong."""
    shots: str = ""
    """Of few-shot training: "48", "10x2"."""
    selected_on: str = ON_DEV
    """What the checkpoint was selected on: "dev", "test", which marks the number in tables, or "last"."""
    reranked: int = 0
    """How many candidates the fusion encoder ordered anew; 0: none."""
    cost: Mapping[str, float] = field(default_factory=dict)
    """Of re-ranking: "pairs" that were scored, "seconds", and their "share" of all seconds of the evaluation."""
    seed: int | None = None
    checkpoint: str = ""
    """Path or name of the weights."""
    config_sha256: str = ""
    data_file: str = ""
    """Name of the annotation file."""
    data_sha256: str = ""
    """Of several files: of their hashes."""
    data_hashes: tuple[str, ...] = ()
    """Of a benchmark that is put together of several files: of each."""
    predictions: str = ""
    """Path of the kept predictions, below the folder of the store."""
    predictions_sha256: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of this library, torch, transformers, …"""
    written: str = ""
    """When, in UTC; the store fills it in."""

    def validation_errors(self) -> Iterable[str]:
        """Yield what is wrong."""
        if self.protocol not in PROTOCOLS:
            yield f"protocol: expected one of {', '.join(PROTOCOLS)}, got {self.protocol}"
        if self.selected_on not in (ON_DEV, ON_TEST, ON_NOTHING):
            yield f"selected_on: expected {ON_DEV}, {ON_TEST} or {ON_NOTHING}, got {self.selected_on}"

    @property
    def key(self) -> tuple[Any, ...]:
        """Return what a later result must share to stand in this one's place."""
        return tuple(getattr(self, name) for name in _KEY)


_KEY: Final = (
    "model", "task", "protocol", "language", "split", "metric", "denominator", "shots", "selected_on", "reranked",
    "seed", "data_sha256",
)  # fmt: skip


class ResultStore:
    """A file of results; runs append to it, also several at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, results: Iterable[Result]) -> None:
        """Add results; each is one write.

        Raises:
            ConfigError: one has a protocol that is none.
        """
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        for result in results:
            _typed(asdict(result), str(self.path))
            append_line(self.path, asdict(replace(result, written=result.written or now)))

    def read(self) -> list[Result]:
        """Return the results, of equal ones (`Result.key`) the last; a line that a kill cut short is left out.

        Raises:
            ConfigError: a line is no result, with its number.
        """
        lines = list(text_lines(self.path))
        found: dict[tuple[Any, ...], Result] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                if number == len(lines):
                    break
                got, do = f"broken JSON: {error}", "Remove the line."
                raise ConfigError(where=f"{self.path}:{number}", expected="a result", got=got, do=do) from error
            result = _typed(row, f"{self.path}:{number}")
            found[result.key] = result
        return list(found.values())


def _typed(row: Any, where: str) -> Result:
    return typed_values(Result, row, where=where, expected="a result", do="Remove the line, or mend it.")


def file_name_of(test_set: str) -> str:
    """Return what the predictions of a test set are called, without suffix: "/" is ".", no two sets share a name."""
    return test_set.replace("%", "%25").replace(".", "%2E").replace("/", ".")


def write_predictions(path: Path, lines: Iterable[Line]) -> str:
    """Write the predictions of one evaluation, whole or not at all; return their SHA-256."""
    replace_text(path, "".join(json.dumps(dict(line), ensure_ascii=False) + "\n" for line in lines))
    return file_sha256(path)


def read_predictions(path: Path) -> list[Line]:
    """Return the lines of predictions (ConfigError: they cannot be read)."""
    lines, found, whole = list(text_lines(path)), list[Line](), list[Line]()
    with suppress(ValueError):  # told below, with its line
        whole = json.loads(f"[{','.join(lines)}]")  # at once, in half the time
    if len(whole) == len(lines) and all(isinstance(one, dict) for one in whole):
        return whole
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            do = "Evaluate again."
            raise ConfigError(where=f"{path}:{number}", expected="a prediction", got="broken JSON", do=do) from error
    return found


def measured(
    common: Result,
    metrics: Sequence[str],
    lines: Sequence[Line],
    denominators: Mapping[str, int] | None = None,
) -> list[Result]:
    """Return the results that predictions give: `common` with each metric, value and denominator. Lines that no metric
    says anything about, as those of a test set whose answers are not published, give none.

    Args:
        common: what all have in common; its metric, value and num_rows are replaced.
        metrics: names in `METRICS`, and "mean_recall".
        lines: the predictions.
        denominators: name → number of rows; None: the rows that were predicted. Equal ones are told once.
    """
    results = []
    for metric in metrics:
        scored = len(scores_by_row(RECALLS[0] if metric == MEAN_RECALL else metric, lines))
        if not scored:
            continue
        common = replace(common, metric=metric, num_unknown=sum("is_unknown" in line for line in lines))
        for name, num_rows in _distinct(denominators or {USABLE: scored}).items():
            value = value_of(metric, lines, num_rows)
            results.append(replace(common, value=value, num_rows=num_rows, denominator=name))
    return results


def _distinct(denominators: Mapping[str, int]) -> dict[str, int]:
    distinct: dict[str, int] = {}
    for name, number in denominators.items():
        if number not in distinct.values():
            distinct[name] = number
    return distinct


def value_of(metric: str, lines: Sequence[Line], num_rows: int | None = None) -> float:
    """Return a metric of predictions, in percent; `num_rows`: as in `percent`."""
    if metric == MEAN_RECALL:
        return sum(value_of(recall, lines) for recall in RECALLS) / len(RECALLS)
    return percent(list(scores_by_row(metric, lines).values()), num_rows)


def as_reranked(lines: Iterable[Line]) -> list[Line]:
    """Return predictions of retrieval with the ranks that re-ranking gave in place of those of features alone."""
    return [{**line, "rank": line["reranked"]} for line in lines]


def predictions_of(result: Result, folder: Path) -> list[Line]:
    """Return the predictions that a result was made from.

    Raises:
        ConfigError: none were kept, or they are not those that it was made from any more.
    """
    where, path = f"{result.model}, {result.task} in {result.language}", folder / result.predictions
    if not result.predictions or not path.is_file():
        got = str(path) if result.predictions else "none"
        raise ConfigError(where=where, expected="kept predictions", got=got, do="Evaluate again, and keep them.")
    if result.predictions_sha256 and file_sha256(path) != result.predictions_sha256:
        do = "Restore the file, or evaluate again."
        raise ConfigError(where=str(path), expected="the predictions of this result", got="others", do=do)
    lines = read_predictions(path)
    return as_reranked(lines) if result.reranked else lines


def derive(result: Result, folder: Path) -> float:
    """Return a result's number, derived again from its predictions (ConfigError: as `predictions_of`)."""
    return value_of(result.metric, predictions_of(result, folder), result.num_rows)


def results_in(paths: Sequence[Path]) -> list[tuple[Path, Result]]:
    """Return (folder of the store, result) of stores, and of all stores (results.jsonl) below folders.

    Raises:
        ConfigError: there is none.
    """
    stores = [store for path in paths for store in (sorted(path.rglob("results.jsonl")) if path.is_dir() else [path])]
    if not stores:
        got = f"none below {', '.join(map(str, paths))}"
        raise ConfigError(expected="a results.jsonl", got=got, do="Name the folder of a run that has evaluated.")
    return [(store.parent, result) for store in stores for result in ResultStore(store).read()]
