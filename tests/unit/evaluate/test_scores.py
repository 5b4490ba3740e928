"""Metrics against twins that count by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from cclm.errors import ConfigError
from cclm.evaluate.retrieval import ranks, recall
from cclm.evaluate.scores import METRICS, box_iou, percent, scores_by_row


def iou_by_pixels(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    def pixels(box: tuple[int, ...]) -> set[tuple[int, int]]:
        x, y, width, height = box
        return {(column, row) for column in range(x, x + width) for row in range(y, y + height)}

    union = pixels(one) | pixels(other)
    return len(pixels(one) & pixels(other)) / len(union) if union else 0.0


def test_iou_is_the_share_of_pixels() -> None:
    chance = random.Random(0)
    for _ in range(200):
        one, other = (tuple(chance.randint(0, 9) for _ in range(4)) for _ in range(2))
        assert box_iou(one, other) == pytest.approx(iou_by_pixels(one, other))
    assert box_iou((0, 0, 2, 2), (4, 4, 2, 2)) == 0.0


@pytest.mark.parametrize(("width", "hit"), [(10.0, 1.0), (5.0, 1.0), (4.99, 0.0)])
def test_a_box_is_found_from_one_half_on(width: float, hit: float) -> None:
    assert METRICS["iou50"]({"id": 1, "predicted": [0, 0, width, 10], "box": [0, 0, 10, 10]}) == hit


def test_answers_are_compared_letter_by_letter() -> None:
    lines = [
        {"id": said, "predicted": said, "answers": [["no", 0.3], ["No way", 1.0]]}
        for said in ("no", "No", "No way", "")
    ]
    assert list(scores_by_row("exact_match", lines).values()) == [1, 0, 1, 0]
    assert list(scores_by_row("vqa_score", lines).values()) == [0.3, 0.0, 1.0, 0.0]


def test_accuracy_in_both_denominators() -> None:
    chance = random.Random(1)
    lines = [{"id": n, "predicted": chance.randrange(3), "label": chance.randrange(3)} for n in range(50)]
    right = sum(line["predicted"] == line["label"] for line in lines)
    scores = list(scores_by_row("accuracy", lines).values())
    assert percent(scores) == pytest.approx(100 * right / 50)
    assert percent(scores, 60) == pytest.approx(100 * right / 60)
    assert percent([]) == 0.0


def test_recall_equals_that_of_a_matrix_of_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    score_QC = torch.rand(40, 30, generator=generator)
    rank_Q = ranks(score_QC, torch.eye(30, dtype=torch.bool).repeat(2, 1)[:40])
    lines: list[dict[str, Any]] = [
        {"id": f"t{n}", "direction": "t2i", "rank": rank} for n, rank in enumerate(rank_Q.tolist())
    ]
    lines.append({"id": "i0", "direction": "i2t", "rank": 0})
    for name, value in recall(rank_Q).items():
        assert percent(list(scores_by_row(f"t2i_{name}", lines).values())) == pytest.approx(value)
    assert percent(list(scores_by_row("i2t_r1", lines).values())) == 100.0


def test_a_row_counts_once_and_metrics_have_names() -> None:
    line = {"id": "a", "predicted": 1, "label": 1}
    with pytest.raises(ConfigError):
        scores_by_row("accuracy", [line, line])
    with pytest.raises(ConfigError, match="did you mean accuracy"):
        scores_by_row("acuracy", [line])
