"""Rows of tables: ours, and published ones, each with its source. In percent; "avg" is over the non-English languages.

IGLUE's rows were computed anew from the logs in its repository, and its averages checked against its paper. A row that
could not be checked against a source says so (`is_verified`), and stands in a table only where it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cclm.evaluate.results import ON_TEST
from cclm.evaluate.significance import Comparison, Spread, over_seeds
from cclm.types import Language

Column = tuple[str, str]
"""Task and metric."""
AVERAGE: Final = "avg"
"""In place of a language: the mean over the languages but English."""
IGLUE: Final = "IGLUE (Bugliarello et al. 2022), computed from the logs in github.com/e-bug/iglue"
CCRK: Final = "CCRK (KDD 2024), Table 1"
MEMORY: Final = "CCLM (Zeng et al. 2023), quoted from memory: not checked against the paper"


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One model under one protocol."""

    model: str
    protocol: str
    shots: str
    denominator: str
    reranked: int
    selected_on: str
    cells: Mapping[str, Spread]
    """By language, and "avg"."""
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    """To the baseline, by language and "avg"."""
    missing: Sequence[Language] = ()
    """Test languages of the task that the average leaves out because nothing was measured in them."""
    unknown: Mapping[Language, int] = field(default_factory=dict)
    """Questions that count as wrong because no right answer is in the list that is chosen from, where there are any."""
    source: str = ""
    """Of a published row; "": it is ours."""
    is_verified: bool = True

    @property
    def title(self) -> str:
        """Return model and protocol with the marks."""
        shots = f" {self.shots}" if self.shots else ""
        reranked = f", re-ranked {self.reranked}" if self.reranked else ""
        every = ", of all rows" if self.denominator == "all" else ""
        marks = ("" if self.is_verified else " †") + (" ‡" if self.selected_on == ON_TEST else "")
        return f"{self.model} ({self.protocol}{shots}{reranked}{every}){marks}"


_Published = tuple[Column, TableRow]
_COLUMNS: Final = (
    ("xvnli", "accuracy"),
    ("xgqa", "exact_match"),
    ("marvl", "accuracy"),
    ("xflickrco", "t2i_r1"),
    ("xflickrco", "i2t_r1"),
    ("wit", "t2i_r1"),
    ("wit", "i2t_r1"),
)
"""Task and metric of the columns of IGLUE's tables: IR is text → image, TR is image → text."""
_ZERO_SHOT: Final[Mapping[str, Sequence[float]]] = {
    "mUNITER": (53.69, 9.97, 53.72, 8.06, 8.86, 9.16, 10.48),
    "xUNITER": (58.48, 21.72, 54.59, 14.04, 13.51, 8.72, 9.81),
    "UC2": (62.05, 29.35, 57.28, 20.31, 17.89, 7.83, 9.09),
    "M3P": (58.25, 28.17, 56.00, 12.91, 11.90, 8.12, 9.98),
}
_ENGLISH: Final[Mapping[str, Sequence[float]]] = {
    "mUNITER": (76.38, 54.68, 71.91, 44.50, 40.90, 19.90, 22.34),
    "xUNITER": (75.77, 54.83, 71.55, 38.45, 32.05, 16.70, 18.54),
    "UC2": (76.38, 55.19, 70.56, 37.40, 34.55, 17.90, 19.71),
    "M3P": (76.89, 53.75, 68.22, 31.35, 24.60, 15.50, 15.33),
}
_TRANSLATE_TEST: Final[Mapping[str, Sequence[float]]] = {
    "UNITER": (73.65, 50.62, 61.92, 41.04, 37.49, 15.43, 16.01),
    "ViLBERT": (73.45, 50.33, 62.39, 36.97, 33.21, 15.40, 16.93),
    "VisualBERT": (74.12, 48.72, 62.35, 41.64, 36.44, 15.36, 15.75),
    "VL-BERT": (73.86, 49.78, 64.16, 38.18, 31.84, 15.11, 16.09),
    "LXMERT": (72.57, 48.08, 62.51, 34.02, 26.66, 14.28, 14.85),
    "mUNITER": (73.09, 49.05, 63.82, 40.95, 36.78, 16.25, 16.64),
    "xUNITER": (72.83, 49.15, 64.04, 36.26, 30.29, 13.01, 14.20),
    "UC2": (73.67, 50.19, 63.09, 36.03, 30.37, 12.70, 14.11),
    "M3P": (73.37, 48.83, 62.52, 27.74, 21.29, 11.53, 13.63),
}
_MAX_SHOT: Final[Mapping[str, Sequence[float]]] = {
    "mUNITER": (53.95, 37.21, 53.41, 8.54, 9.32),
    "xUNITER": (60.55, 40.68, 57.46, 14.30, 13.54),
    "UC2": (63.68, 42.95, 58.32, 19.79, 17.59),
    "M3P": (59.36, 41.04, 49.79, 13.21, 12.26),
}
_SHOTS: Final = {"xvnli": "48", "xgqa": "48", "marvl": "10x2", "xflickrco": "100"}
_UC2_BY_LANGUAGE: Final[Mapping[tuple[str, str], Mapping[str, float]]] = {
    ("xvnli", "accuracy"): {"ar": 56.2, "es": 57.5, "fr": 69.7, "ru": 64.9},
    ("xgqa", "exact_match"): {
        "bn": 20.0, "de": 42.9, "id": 28.7, "ko": 21.4, "pt": 30.4, "ru": 31.0, "zh": 31.2,
    },
    ("marvl", "accuracy"): {"id": 56.7, "sw": 52.6, "ta": 60.5, "tr": 56.7, "zh": 59.9},
    ("xflickrco", "t2i_r1"): {"de": 28.6, "es": 16.0, "id": 14.6, "ja": 24.3, "ru": 20.0, "tr": 7.2, "zh": 31.6},
    ("xflickrco", "i2t_r1"): {"de": 23.9, "es": 15.3, "id": 13.6, "ja": 22.4, "ru": 16.8, "tr": 7.0, "zh": 26.3},
}  # fmt: skip
_MULTI30K: Final = ("en", "de", "fr", "cs")
_COCO: Final = ("en", "zh", "ja")
_MEAN_RECALL: Final[Mapping[tuple[str, str], Sequence[float]]] = {
    ("CCLM-3M", "zero-shot"): (90.4, 89.9, 89.4, 88.1, 92.3, 90.4, 87.3),
    ("UC2", "zero-shot"): (87.2, 74.9, 74.0, 67.9, 88.1, 82.0, 71.7),
    ("M3P", "zero-shot"): (87.4, 58.5, 46.0, 36.8, 88.6, 53.8, 56.0),
    ("CCLM-3M", "single-language"): (90.4, 89.6, 90.0, 88.8, 92.3, 92.1, 92.4),
    ("UC2", "single-language"): (87.2, 83.8, 77.6, 74.2, 88.1, 84.9, 87.3),
    ("M3P", "single-language"): (87.4, 82.1, 67.3, 65.0, 88.6, 75.8, 80.1),
}
"""Multi30K en, de, fr, cs, then COCO en, zh, ja."""
_CCRK_RERUNS: Final = (
    ("CCLM-3M", "xflickrco", "zero-shot", (64.47, 62.74)),
    ("CCLM-3M", "xflickrco", "few-shot", (65.31, 63.91)),
    ("TD-MML", "xflickrco", "zero-shot", (21.30, 26.35)),
    ("TD-MML", "wit", "zero-shot", (9.76, 10.61)),
)
_UNVERIFIED: Final[Mapping[str, Sequence[float]]] = {
    "CCLM-3M": (74.64, 42.36, 65.91, 67.35, 65.37, 27.46, 28.66),
    "CCLM-4M": (73.32, 46.24, 67.17, 76.56, 73.46),
    "CCLM-X2VLM-base": (74.78, 48.12, 68.49),
    "CCLM-X2VLM-large": (78.95, 56.25, 74.83),
}


def published_rows(task: str, metric: str, *, include_unverified: bool = False) -> list[TableRow]:
    """Return what is published for a task and metric, in the order of protocols."""
    rows = [row for column, row in _all_rows() if column == (task, metric)]
    return [row for row in rows if row.is_verified or include_unverified]


def _all_rows() -> Iterator[_Published]:
    for model, numbers in _ZERO_SHOT.items():
        for column, average, english in zip(_COLUMNS, numbers, _ENGLISH[model], strict=True):
            by_language = _UC2_BY_LANGUAGE.get(column, {}) if model == "UC2" else {}
            yield _row(model, column, "zero-shot", {"en": english, **by_language, AVERAGE: average}, IGLUE)
    for protocol, table in (("few-shot", _MAX_SHOT), ("translate-test", _TRANSLATE_TEST)):
        yield from _averages(table, protocol, IGLUE)
    for model, task, protocol, numbers in _CCRK_RERUNS:
        for metric, value in zip(("t2i_r1", "i2t_r1"), numbers, strict=True):
            yield _row(model, (task, metric), protocol, {AVERAGE: value}, CCRK)
    for (model, protocol), numbers in _MEAN_RECALL.items():
        for task, languages, part in (("multi30k", _MULTI30K, numbers[:4]), ("mscoco", _COCO, numbers[4:])):
            yield _row(model, (task, "mean_recall"), protocol, dict(zip(languages, part, strict=True)), CCRK)
    yield from _averages(_UNVERIFIED, "zero-shot", MEMORY)


def _averages(table: Mapping[str, Sequence[float]], protocol: str, source: str) -> Iterator[_Published]:
    for model, numbers in table.items():
        for column, average in zip(_COLUMNS, numbers, strict=False):
            yield _row(model, column, protocol, {AVERAGE: average}, source)


def _row(model: str, column: Column, protocol: str, values: Mapping[str, float], source: str) -> _Published:
    task, _ = column
    return column, TableRow(
        model=model,
        protocol=protocol,
        shots=_SHOTS[task] if protocol == "few-shot" and source == IGLUE else "",
        denominator="all" if task == "xvnli" and source == IGLUE else "usable",
        reranked=0,
        selected_on="",
        cells={language: over_seeds([value]) for language, value in values.items()},
        source=source,
        is_verified=source != MEMORY,
    )
