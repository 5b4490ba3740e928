"""Evaluation on rows of annotation files: each is predicted, and judged by its view."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from cclm.annotations.retrieval import Part
from cclm.annotations.rows import USABLE, ClassifyRow
from cclm.data.batch import Batch
from cclm.engine.protocol import Engine
from cclm.errors import ConfigError, DataError
from cclm.files.atomic import file_sha256
from cclm.rows.guard import MEND
from cclm.train.evaluation import Known, Measured, TaskEvaluation
from cclm.views.annotated.options import AnnotatedConfig, language_of
from cclm.views.annotated.rows import Row, RowSet
from cclm.views.annotated.source import AnnotatedSource, AnnotatedView, Line, batches_of


@dataclass(kw_only=True)
class RowEvaluation(TaskEvaluation):
    """Of a view with rows of annotation files."""

    view: AnnotatedView[Any, Any]
    source: AnnotatedSource[Any, Any]

    def sets(self, part: Part) -> Mapping[str, str]:
        """Return annotation files by language."""
        settings: AnnotatedConfig = self.view.config
        return settings.dev if part == "dev" else settings.test

    def __post_init__(self) -> None:
        """Look at the files that are trained on, too."""
        for rows in self.source.sets:
            assert isinstance(rows, RowSet)
            self._check_classes(rows)
        super().__post_init__()

    def _check_classes(self, rows: RowSet) -> None:
        """Refuse classes that the model has not: training would break off, and a test would count them as wrong."""
        number = self.config.model.num_classes
        for row in rows.rows:
            if isinstance(row, ClassifyRow) and row.label is not None and row.label >= number:
                expected, got = f"classes from 0 to {number - 1}", f"{row.label} in row {row.id}"
                do = f"Count classes from 0, or correct model.num_classes ({number})."
                raise DataError(reason="class_unknown", expected=expected, got=got, do=do, where=str(rows.path))

    def check(self, name: str, where: str, part: Part) -> None:
        """Read an annotation file, and look for the images that it names, if they will be needed.

        Raises:
            ConfigError: without answers nothing can be chosen on it; a row is not one of this task.
            DataError: two rows share an id (reason key_twice), a class that the model has not (class_unknown), a text
                that is blank (text_empty), an image that is not there (image_missing).
        """
        rows = self._rows(name, where)
        self._check_classes(rows)
        if again := [key for key, number in Counter(row.id for row in rows.rows).items() if number > 1]:
            expected, got = (
                "each id once in a file that is measured",
                f"{len(again)} again, such as {again[0]!r}",
            )
            raise DataError(reason="key_twice", expected=expected, got=got, do=MEND, where=str(rows.path))
        if part == self.finetune.select_on and not rows.read.denominators[USABLE]:
            do = "Name another file to choose the best epoch on."
            raise ConfigError(where=str(rows.path), expected="right answers", got="none", do=do)
        if not self.will_measure(part):
            return
        try:
            self.source.look_at(rows.rows, self.finetune.evaluation_batch)
        except (ConfigError, DataError) as error:
            raise error.at(", ".join(filter(None, (str(rows.path), error.where)))) from error

    def _rows(self, name: str, where: str) -> RowSet:
        settings: AnnotatedConfig = self.view.config
        return RowSet(settings.path(where), settings.format_of(where), name)

    def predict(
        self, name: str, where: str, part: Part, languages: Collection[str] = (), known: Collection[Known] = ()
    ) -> Iterator[Measured]:
        """Predict every row of an annotation file."""
        rows = self._rows(name, where)
        parts = list(batches_of(rows.rows, self.finetune.evaluation_batch))
        judged = self.in_turns(parts, partial(predict_rows, self.engine, self.view, self.source))
        yield Measured(
            language=rows.read.language or language_of(name),
            lines=[line for lines in judged for line in lines],
            denominators=rows.read.denominators,
            data_sha256=file_sha256(rows.path),
            split=name.partition("/")[2] or "test",
        )


def predict_rows(
    engine: Engine[Batch], view: AnnotatedView[Any, Any], source: AnnotatedSource[Any, Any], rows: Sequence[Row]
) -> list[Line]:
    """Return a prediction for every row, in their order. A collective.

    Raises:
        DataError: a text or an image that cannot be used.
    """
    batch = source.evaluated(rows).to(engine.device)

    def probe(module: nn.Module) -> dict[str, Tensor]:
        return view.predict(module.model, batch)  # type: ignore[arg-type]

    return view.judge(rows, engine.evaluate(probe))
