"""Results → the table of a paper: a row a model and protocol, a column a language, and the published rows beside.

    stores ─ results_in ─▶ [(folder, Result)] ─ build_table ─▶ BenchmarkTable ─ render ─▶ text

Numbers are means over seeds ± sample deviation; "avg" is the mean, of each seed, then over seeds, over the languages
but English that the task is published in (all but English where none are known). A mark says what a reader must know:
* a significant difference to the baseline, § an average over some of the task's languages only, † a row that was not
checked against its source, ‡ a checkpoint that was selected on the test file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from cclm.annotations.layouts import EVERY
from cclm.annotations.rows import USABLE
from cclm.annotations.tasks import TASKS
from cclm.errors import ConfigError
from cclm.evaluate.published import AVERAGE, TableRow, published_rows
from cclm.evaluate.results import PROTOCOLS, Result, predictions_of
from cclm.evaluate.scores import METRICS, scores_by_row
from cclm.evaluate.significance import Comparison, Scores, Spread, compare, mean_scores, over_seeds
from cclm.types import Language

ENGLISH: Final = "en"
Found = tuple[Path, Result]
"""A result and the folder of its store."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkTable:
    """All rows of one task, split and metric."""

    task: str
    split: str
    metric: str
    languages: Sequence[Language]
    rows: Sequence[TableRow]
    baseline: str = ""

    @property
    def title(self) -> str:
        """Return what is measured."""
        return f"{self.task}, {self.split}, {self.metric} in %"

    @property
    def columns(self) -> list[str]:
        """Return the languages, then the average where there are others than English."""
        return [*self.languages, *([AVERAGE] if any(AVERAGE in row.cells for row in self.rows) else [])]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which results a table shows; what is not named may be anything."""

    task: str
    metric: str
    split: str = "test"


def tables_in(found: Sequence[Found]) -> list[Choice]:
    """Return the tables that results can fill: each task, metric and split once, in their order."""
    return list(dict.fromkeys(Choice(task=one.task, metric=one.metric, split=one.split) for _, one in found))


def build_table(
    found: Sequence[Found],
    choice: Choice,
    *,
    baseline: str = "",
    with_published: bool = True,
    include_unverified: bool = False,
) -> BenchmarkTable:
    """Build one table.

    Args:
        found: results with the folders of their stores.
        choice: task, metric and split.
        baseline: "MODEL": each other row is compared to this model's under the same protocol; "MODEL:PROTOCOL": every
            row to this one, such as "mine:no-fine-tuning" to see what fine-tuning costs a language.
        with_published: whether published rows stand beside.
        include_unverified: also those that were not checked against their source.

    Raises:
        ConfigError: nothing is of this task and metric, the baseline has no row, predictions are missing, or a row
            would mix runs or test files.
    """
    groups = groups_of(found, choice)
    rows = [_row(key, groups[key], _baseline(key, groups, baseline)) for key in sorted(groups, key=_order)]
    if baseline and not any(row.comparisons for row in rows) and choice.metric in METRICS:
        got = f"{baseline}; there are {', '.join(f'{key.model}:{key.protocol}' for key in groups)}"
        raise ConfigError(expected="a baseline that another row can be compared to", got=got, do="Name one of those.")
    if with_published and choice.split.startswith("test"):
        rows += published_rows(choice.task, choice.metric, include_unverified=include_unverified)
    languages = dict.fromkeys(language for row in rows for language in row.cells if language != AVERAGE)
    return BenchmarkTable(
        task=choice.task,
        split=choice.split,
        metric=choice.metric,
        languages=sorted(languages, key=lambda language: (language != ENGLISH, language)),
        rows=rows,
        baseline=baseline,
    )


def groups_of(found: Sequence[Found], choice: Choice) -> dict[RowKey, list[Found]]:
    """Return the results of each row of a table (ConfigError: nothing is chosen, or a row would mix runs)."""
    chosen = [one for one in found if tables_in([one]) == [choice]]
    if not chosen:
        got = ", ".join(f"{one.task} {one.metric} {one.split}" for one in tables_in(found)) or "none"
        expected = f"results of {choice.task} {choice.metric} {choice.split}"
        raise ConfigError(expected=expected, got=got, do="Name one of those.")
    groups: dict[RowKey, list[Found]] = {}
    for one in chosen:
        groups.setdefault(RowKey(*(getattr(one[1], name) for name in RowKey._fields)), []).append(one)
    for of_one in groups.values():
        _refuse_mixtures(of_one)
    return groups


class RowKey(NamedTuple):
    """What the results of one row share."""

    model: str
    protocol: str
    shots: str
    denominator: str
    reranked: int
    selected_on: str


def _refuse_mixtures(of_one: Sequence[Found]) -> None:
    """Raise `ConfigError` where two results of a row and language are of one seed but other weights, or of other data.

    One of the two would silently take the other's place, or the mean would be over different tests.
    """
    firsts: dict[tuple[Any, ...], Found] = {}
    for found in of_one:
        result = found[1]
        for field_name, of_seed in (("data_sha256", ()), ("checkpoint", (result.seed,))):
            first = firsts.setdefault((field_name, result.language, *of_seed), found)
            if getattr(first[1], field_name) != getattr(result, field_name):
                expected = "one run for each seed" if of_seed else "one test file for all seeds"
                do = "Give one of the runs another finetune.name, or name fewer folders."
                if first[0] == found[0]:
                    do = "Measure each in a run of its own, with another finetune.name."
                raise ConfigError(
                    where=f"{result.model} ({result.protocol}), {result.task} {result.metric} in {result.language}",
                    expected=expected, got=f"{_origin(first)}, and {_origin(found)}", do=do,
                )  # fmt: skip


def _origin(found: Found) -> str:
    folder, one = found
    data = f"{one.data_file or 'a file'} (SHA-256 {one.data_sha256[:12] or 'not known'})"
    return f"{folder}: seed {one.seed}, checkpoint {one.checkpoint or 'not known'}, measured on {data}"


def _order(key: RowKey) -> tuple[Any, ...]:
    return (PROTOCOLS.index(key.protocol), *key)


def _baseline(key: RowKey, groups: Mapping[RowKey, Sequence[Found]], baseline: str) -> Sequence[Found]:
    """Return the results that a row is compared to; those of other denominators have no scores of their own.

    Where the baseline stands there re-ranked, too: as the row is; and its own re-ranked rows to the one that is not.
    """
    model, _, protocol = baseline.rpartition(":")
    if protocol not in PROTOCOLS:
        wanted = [key._replace(model=baseline)]
    else:
        wanted = [other for other in groups if (other.model, other.protocol) == (model, protocol)]
    fitting = sorted(
        (one for one in wanted if one in groups and one.denominator == USABLE), key=lambda one: one.reranked
    )
    if not fitting or key == fitting[0] or key.denominator != USABLE:
        return ()
    alike = [other for other in fitting if other.reranked == key.reranked and other != key]
    return groups[(alike or fitting)[0]]


def _row(key: RowKey, of_one: Sequence[Found], against: Sequence[Found]) -> TableRow:
    cells = cells_of([result for _, result in of_one])
    missing = [language for language in test_languages(of_one[0][1].task) if language not in cells]
    return TableRow(
        **key._asdict(),
        cells=cells,
        missing=missing if AVERAGE in cells else (),
        unknown={one.language: one.num_unknown for _, one in of_one if one.num_unknown},
        comparisons=comparisons_with(against, of_one) if against else {},
    )


def test_languages(task: str) -> list[Language]:
    """Return the languages but English that a task is tested in (none are known of another task)."""
    data_sets = TASKS.get(task, ())[-1:]
    splits = (split for data_set in data_sets for split in data_set.splits if split.name.startswith("test"))
    return list(dict.fromkeys(one for split in splits for one in split.languages if one not in (ENGLISH, EVERY)))


def averaged(task: str, languages: Iterable[Language]) -> list[Language]:
    """Return those languages that a task's average is over."""
    tested = test_languages(task)
    return [one for one in languages if one != ENGLISH and (not tested or one in tested)]


def cells_of(results: Sequence[Result]) -> dict[str, Spread]:
    """Return the spread over seeds by language, and of each seed's average."""
    by_language: dict[Language, dict[int | None, float]] = {}
    for result in results:
        by_language.setdefault(result.language, {})[result.seed] = result.value
    cells = {language: over_seeds(list(values.values())) for language, values in by_language.items()}
    others = [by_language[one] for one in averaged(results[0].task, by_language)]
    seeds = set.intersection(*map(set, others)) if others else set()
    averages = [sum(values[seed] for values in others) / len(others) for seed in sorted(seeds, key=str)]
    return {**cells, AVERAGE: over_seeds(averages)} if averages else cells


def comparisons_with(baseline: Sequence[Found], of_one: Sequence[Found]) -> dict[str, Comparison]:
    """Return the comparison in each language that both have, and in the average over them."""
    if of_one[0][1].metric not in METRICS:
        return {}
    ours, theirs = _scores(of_one), _scores(baseline)
    shared = [language for language in ours if language in theirs]
    found = {language: compare({language: ours[language]}, {language: theirs[language]}) for language in shared}
    others = averaged(of_one[0][1].task, shared)
    if others:
        found[AVERAGE] = compare({one: ours[one] for one in others}, {one: theirs[one] for one in others})
    return found


def _scores(found: Sequence[Found]) -> dict[Language, Scores]:
    by_language: dict[Language, list[Scores]] = {}
    for folder, result in found:
        scores = scores_by_row(result.metric, predictions_of(result, folder))
        by_language.setdefault(result.language, []).append(scores)
    return {language: mean_scores(of_seeds) for language, of_seeds in by_language.items()}
