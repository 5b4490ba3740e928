"""Scores of single predictions, from 0 to 1, and the metrics that are their means: all that a table's number is.

A metric is a function from one line of kept predictions to its score, so that a number can be derived again, and two
models can be compared row by row:

    accuracy               {"id", "predicted": 1, "label": 1}
    exact_match            {"id", "predicted": "no", "answers": [["no", 1.0]]}     also for multiple choice; []: unknown
                           ("is_unknown": true, where none of the answers is in the list that is chosen from)
    vqa_score              the same; what the answer scores
    t2i_r1 … i2t_r10       {"id", "direction": "t2i", "rank": 0, "reranked": 0}    wrong candidates above: by features
                                                                                    alone, and after re-ranking
                           ("predicted": what was found first, by features alone)
    iou50                  {"id", "predicted": [x, y, w, h], "box": [x, y, w, h]}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from cclm.errors import ConfigError
from cclm.files.text import did_you_mean

Box = Sequence[float]
"""x, y, width, height."""
Line = Mapping[str, Any]
DIRECTIONS: Final = ("t2i", "i2t")
"""Text → image and image → text."""
RECALL_CUTS: Final = (1, 5, 10)
IOU_THRESHOLD: Final = 0.5


def box_iou(one: Box, other: Box) -> float:
    """Return the intersection over union of two boxes (0 where they have no area together)."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = one[2] * one[3] + other[2] * other[3] - shared
    return shared / union if union > 0 else 0.0


def _accuracy(line: Line) -> float:
    return float(line["predicted"] == line["label"])


def _exact_match(line: Line) -> float | None:
    """Letter by letter, as the published code compares; scores do not count."""
    return float(line["predicted"] in dict(line["answers"])) if line["answers"] else None


def _answer_score(line: Line) -> float | None:
    """VQA's accuracy."""
    return float(dict(line["answers"]).get(line["predicted"], 0.0)) if line["answers"] else None


def _located(line: Line) -> float:
    return float(box_iou(line["predicted"], line["box"]) >= IOU_THRESHOLD)


def _recall(direction: str, k: int, line: Line) -> float | None:
    return float(line["rank"] < k) if line["direction"] == direction else None


METRICS: Final[Mapping[str, Callable[[Line], float | None]]] = {
    "accuracy": _accuracy,
    "exact_match": _exact_match,
    "vqa_score": _answer_score,
    "iou50": _located,
    **{f"{way}_r{k}": partial(_recall, way, k) for way in DIRECTIONS for k in RECALL_CUTS},
}
"""Name → the score of a line; None: the line says nothing about it."""
MEAN_RECALL: Final = "mean_recall"
"""The mean of the six recalls, which published Multi30K and COCO tables have."""
RECALLS: Final = tuple(f"{way}_r{k}" for way in DIRECTIONS for k in RECALL_CUTS)


def scores_by_row(metric: str, lines: Sequence[Line]) -> dict[str, float]:
    """Return the score of each row by its id (ConfigError: there is no such metric, or a row stands twice)."""
    if metric not in METRICS:
        got, do = metric + did_you_mean(metric, METRICS), f"Choose one of {', '.join(METRICS)}."
        raise ConfigError(expected="a metric of single rows", got=got, do=do)
    scored = [(str(line["id"]), score) for line in lines if (score := METRICS[metric](line)) is not None]
    found = dict(scored)
    if len(found) < len(scored):
        got = f"{len(scored) - len(found)} ids again"
        raise ConfigError(expected="each row once", got=got, do="Keep the predictions of one evaluation only.")
    return found


def percent(scores: Sequence[float], num_rows: int | None = None) -> float:
    """Return the mean in percent; `num_rows`: of so many, of which those without a score are wrong."""
    total = len(scores) if num_rows is None else num_rows
    return 100.0 * sum(scores) / total if total else 0.0
