"""Evaluation of a fine-tuned model: exact, shared out to the ranks, resumed with the run.

behind an epoch    dev sets ─▶ evaluations.jsonl ─▶ the best checkpoint is pinned
at the end         the best weights ─▶ test sets, once ─▶ predictions/*.jsonl, results.jsonl
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cclm.annotations.retrieval import PARTS, Part
from cclm.config import FineTuneConfig, RunConfig
from cclm.data.batch import Batch
from cclm.data.loader import StepDataset
from cclm.engine.protocol import Engine
from cclm.errors import CheckpointError, ConfigError
from cclm.evaluate.results import (
    ON_NOTHING,
    Result,
    ResultStore,
    as_reranked,
    file_name_of,
    measured,
    value_of,
    write_predictions,
)
from cclm.files.atomic import file_sha256, make_folder
from cclm.recipe.epochs import steps_per_epoch
from cclm.recipe.read import CONFIG_FILE, read_run_config
from cclm.run.checkpoints import newest_complete, pinned
from cclm.run.machine import PACKAGES, describe_environment
from cclm.train.shared_evaluation import EVALUATIONS_FILE, SharedEvaluation
from cclm.train.step import CrossViewTraining
from cclm.views.annotated.options import language_of
from cclm.views.annotated.source import AnnotatedSource, AnnotatedView, Line

RESULTS_FILE = "results.jsonl"
"""In the run folder: what was measured on test, and on what (`cclm.evaluate.results`)."""
Known = tuple[str, str]
"""Results of a test set in a language that are there: path of the predictions, hash of the data."""
PREDICTIONS = "predictions"
"""In the run folder: what was predicted for every row of the test sets."""


@dataclass(frozen=True, kw_only=True)
class TaskMetric:
    """What a task measures."""

    task: str
    view: str
    metrics: Sequence[str]
    """Of `cclm.evaluate.scores`; the first one chooses the best epoch."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was predicted for a set in one language."""

    language: str
    lines: Sequence[Line]
    """As `cclm.evaluate.scores` has them."""
    denominators: Mapping[str, int] | None
    """What an accuracy may be divided by; None: the lines."""
    data_sha256: str
    """Of the annotation file, or of the manifest of the shard set."""
    hashes: Sequence[str] = ()
    """Of several annotation files: of each."""
    split: str = "test"
    """As the data set calls it."""
    data_file: str = ""
    """Path of the annotation files; "": what the set is named by."""
    reranked: int = 0
    """How many candidates of each query were ordered anew; then lines have a second rank."""
    cost: Mapping[str, float] = field(default_factory=dict)
    """Of re-ranking: pairs that were scored, seconds, and their share of all seconds that this took."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a set on which the epoch is chosen gives."""

    value: float
    """The first metric, re-ranked where that is done, as a mean over languages."""
    features_alone: float | None
    """The same without re-ranking, where that is done; of equal values it decides."""
    pairs: int
    """That were scored to re-rank."""


@dataclass(kw_only=True)
class TaskEvaluation(SharedEvaluation):
    """Measures a task's dev sets behind epochs, and its test sets with the best weights when the run is done."""

    measured: TaskMetric
    finetune: FineTuneConfig

    def __post_init__(self) -> None:
        """Open all sets, so that what is wrong with one is said now; forget what a killed attempt wrote too much."""
        self._epoch_steps = steps_per_epoch(self.config) if self.config.steps else 1
        for part in PARTS:
            for name, where in self.sets(part).items():
                self.check(name, where, part)
        super().__post_init__()

    def will_measure(self, part: Part) -> bool:
        """Return whether sets of a part are measured: a run of no epochs chooses nothing on dev."""
        return part == "test" or (part == self.finetune.select_on and self.config.steps > 0)

    @abstractmethod
    def sets(self, part: Part) -> Mapping[str, str]:
        """Return the sets of "dev" or "test" by name: where each lies."""

    @abstractmethod
    def check(self, name: str, where: str, part: Part) -> None:
        """Look at a set (the errors of one that cannot be measured)."""

    @abstractmethod
    def predict(
        self, name: str, where: str, part: Part, languages: Collection[str] = (), known: Collection[Known] = ()
    ) -> Iterator[Measured]:
        """Predict a set, language by language (only `languages`; none: all), but for what is known. A collective."""

    def is_whole(self, last: Result) -> bool:
        """Return whether all results of a language are there when this one is; no: then it is measured again."""
        return False

    def task_of(self, name: str) -> str:
        """Return the task that a test set is the test of."""
        return self.finetune.benchmark or self.measured.task

    def languages_of(self, part: Part) -> Collection[str]:
        """Return the languages of dev sets that choose the best epoch, or of test sets that are measured; none: all."""
        return ()

    def is_due(self, step: int) -> bool:
        """Return whether dev is measured after `step` updates: they end an epoch that is evaluated, or the run."""
        epoch, rest = divmod(step, self._epoch_steps)
        first, every = self.finetune.first_evaluation, self.finetune.evaluate_every
        is_due = epoch >= first and not rest and (epoch - first) % every == 0
        return bool(self.sets(self.finetune.select_on)) and (is_due or step == self.config.steps)

    def after(self, step: int) -> bool:
        """Measure dev, if it is due."""
        self._step, epoch = step, step // self._epoch_steps
        if not self.is_due(step):
            return False
        chosen = sorted(self.sets(self.finetune.select_on).items())
        found = {name: self._choose(name, where) for name, where in chosen}
        self.note(step, {"epoch": epoch, **_line_of(found)})
        return True

    def finish(self) -> None:
        """Measure the test sets with the weights of the best epoch, and write down what was predicted."""
        self._step = self.config.steps
        checkpoint, is_chosen = self.engine.collectives.exchange((pinned(self._folder), any(self._lines.read())))[0]
        if checkpoint is not None:
            self.engine.load(checkpoint)
        elif is_chosen:
            raise CheckpointError(
                where=str(self._folder),
                expected="the checkpoint of the best epoch, to measure the test sets with",
                got=f"none, though {EVALUATIONS_FILE} has an evaluation",
                do="Restore checkpoints/pinned.json and the checkpoint that it names.",
            )
        store = ResultStore(self._folder / RESULTS_FILE)
        known = self.engine.collectives.exchange(self._known(store, checkpoint) if self.engine.rank == 0 else set())[0]
        for name, where in sorted(self.sets("test").items()):
            for found in self.predict(name, where, "test", self.languages_of("test"), known):
                if self.engine.rank == 0:
                    results = self._results(checkpoint, name, where, found)
                    store.append(results)
                    if results:
                        self._say(f"{name} {found.language}", results[0].value, found)
        self.engine.collectives.barrier()

    def _known(self, store: ResultStore, checkpoint: Path | None) -> set[Known]:
        """Keep what a stopped attempt has measured whole, with these weights and settings; forget the rest."""
        settings = {"checkpoint": self._weights(checkpoint), "config_sha256": file_sha256(self._folder / CONFIG_FILE)}
        found = store.read() if store.path.exists() else []
        alike = [one for one in found if all(getattr(one, name) == value for name, value in settings.items())]
        known = {
            (one.predictions, one.data_sha256)
            for one in alike
            if self.is_whole(one) and (self._folder / one.predictions).is_file()
        }
        store.path.unlink(missing_ok=True)
        store.append(one for one in alike if (one.predictions, one.data_sha256) in known)
        return known

    def _weights(self, checkpoint: Path | None) -> str:
        """Return what results call the weights: a checkpoint of this run, or what it has started from."""
        sources = self.config.start.sources
        own = checkpoint or newest_complete(self._folder)
        return str(own or (pinned(Path(sources[-1])) or sources[-1] if sources else None))

    def predictions(self, name: str, language: str) -> str:
        """Return where the predictions of a test set in a language are kept, in the run folder."""
        of_language = "" if language_of(name) == language else f".{language}"
        return f"{PREDICTIONS}/{file_name_of(name)}{of_language}.jsonl"

    def _results(self, checkpoint: Path | None, name: str, where: str, found: Measured) -> list[Result]:
        """Write down what was predicted, and return all metrics of it; re-ranked ones behind the others."""
        make_folder(self._folder / PREDICTIONS)
        kept, sources = self.predictions(name, found.language), self.config.start.sources
        common = Result(
            model=self.finetune.name or (Path(sources[-1]).name if sources else self._folder.name),
            task=self.task_of(name),
            protocol=self.finetune.protocol,
            language=found.language,
            split=found.split,
            metric="",
            value=0.0,
            num_rows=0,
            shots=self.finetune.shots,
            selected_on=self._selected_on(),
            seed=self.config.seed,
            checkpoint=self._weights(checkpoint),
            config_sha256=file_sha256(self._folder / CONFIG_FILE),
            data_file=found.data_file or where,
            data_sha256=found.data_sha256,
            data_hashes=tuple(found.hashes),
            predictions=kept,
            predictions_sha256=write_predictions(self._folder / kept, found.lines),
            versions={package: text for package, text in describe_environment().items() if package in PACKAGES},
        )
        results = measured(common, self.measured.metrics, found.lines, found.denominators)
        if found.reranked:
            common = replace(common, reranked=found.reranked, cost=found.cost)
            results += measured(common, self.measured.metrics, as_reranked(found.lines))
        return results

    def _selected_on(self) -> str:
        """Return what the weights were chosen on: of a run that trains nothing, in the run that it measures."""
        if self.config.steps:
            return self.finetune.select_on if self.sets(self.finetune.select_on) else ON_NOTHING
        run = Path(self.config.start.sources[-1]) if self.config.start.sources else self._folder
        measured = read_run_config(run).finetune if pinned(run) else None
        return ON_NOTHING if measured is None else measured.select_on

    def _choose(self, name: str, where: str) -> Chosen:
        metric, values, alone, pairs = self.measured.metrics[0], list[float](), list[float](), 0
        languages = self.languages_of("dev")
        for found in self.predict(name, where, self.finetune.select_on, languages):
            alone.append(value_of(metric, found.lines))
            values.append(value_of(metric, as_reranked(found.lines)) if found.reranked else alone[-1])
            pairs += int(found.cost.get("pairs", 0))
            self._say(f"{name} {found.language} after {self._step} updates", alone[-1], found)
        if not values:
            raise ConfigError(
                where=where, expected=f"a set with texts in {', '.join(languages)}", got="none",
                do="Name another set in finetune.dev_sets.",
            )  # fmt: skip
        mean, mean_alone = (sum(numbers) / len(numbers) for numbers in (values, alone))
        return Chosen(value=mean, features_alone=mean_alone if pairs else None, pairs=pairs)

    def _say(self, what: str, value: float, found: Measured) -> None:
        """Say in a line what was measured; of re-ranking also what it cost."""
        if self.engine.rank != 0:
            return
        metric = self.measured.metrics[0]
        text = f"{what}: {metric} {value:.2f}"
        if found.reranked:
            text += f", re-ranked {value_of(metric, as_reranked(found.lines)):.2f}"
            text += (
                f" ({found.cost['pairs']:,.0f} pairs in {found.cost['seconds']:,.1f} s, "
                f"{found.cost['share']:.0%} of the evaluation)"
            )
        sys.stderr.write(text + "\n")


def _line_of(found: Mapping[str, Chosen]) -> dict[str, Any]:
    """Return what `evaluations.jsonl` says of an evaluation; nothing that a clock decides: a kill changes no line."""
    values = list(found.values())
    line: dict[str, Any] = {"sets": {name: one.value for name, one in found.items()}}
    line["value"] = sum(one.value for one in values) / len(values)
    alone = [one.features_alone for one in values if one.features_alone is not None]
    if alone:
        line |= {"features_alone": sum(alone) / len(alone), "reranked_pairs": sum(one.pairs for one in values)}
    return line


def evaluation_of(
    measured: TaskMetric, config: RunConfig, engine: Engine[Batch], dataset: StepDataset, start_step: int
) -> TaskEvaluation:
    """Return the evaluation of a run that fine-tunes."""
    assert config.finetune is not None, "fine-tuning says how"
    source, module = dataset.sources[measured.view], engine.module
    assert isinstance(module, CrossViewTraining)
    common: dict[str, Any] = dict(
        measured=measured, config=config, finetune=config.finetune, engine=engine, start_step=start_step
    )
    view = module.views[measured.view]
    if not isinstance(view, AnnotatedView):
        from cclm.train.retrieval_evaluation import RetrievalEvaluation

        return RetrievalEvaluation(source=source, **common)
    from cclm.train.row_evaluation import RowEvaluation

    assert isinstance(source, AnnotatedSource)
    return RowEvaluation(view=view, source=source, **common)
