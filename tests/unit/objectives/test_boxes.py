from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cclm.objectives.boxes import box_losses, corners, generalised_iou


def by_hand(first: list[float], second: list[float]) -> float:
    """GIoU of two boxes, from its definition, number by number."""
    left = [
        (box[0] - box[2] / 2, box[1] - box[3] / 2, box[0] + box[2] / 2, box[1] + box[3] / 2) for box in (first, second)
    ]
    (a0, b0, a1, b1), (c0, d0, c1, d1) = left
    shared = max(0.0, min(a1, c1) - max(a0, c0)) * max(0.0, min(b1, d1) - max(b0, d0))
    union = (a1 - a0) * (b1 - b0) + (c1 - c0) * (d1 - d0) - shared
    hull = (max(a1, c1) - min(a0, c0)) * (max(b1, d1) - min(b0, d0))
    return shared / union - (hull - union) / hull


BOXES = torch.tensor([[0.5, 0.5, 0.4, 0.2], [0.2, 0.3, 0.1, 0.1], [0.5, 0.5, 1.0, 1.0], [0.1, 0.9, 0.2, 0.2]])
TARGETS = torch.tensor([[0.6, 0.5, 0.4, 0.2], [0.8, 0.8, 0.1, 0.3], [0.5, 0.5, 1.0, 1.0], [0.15, 0.9, 0.1, 0.1]])


def test_giou_row_by_row() -> None:
    expected = torch.tensor([by_hand(a, b) for a, b in zip(BOXES.tolist(), TARGETS.tolist(), strict=True)])
    torch.testing.assert_close(generalised_iou(BOXES, TARGETS), expected)
    assert generalised_iou(BOXES, BOXES).tolist() == pytest.approx([1.0] * 4)
    assert expected[1] < 0 < expected[0] < expected[2]


def test_corners() -> None:
    low, high = corners(BOXES)
    assert low[0].tolist() == pytest.approx([0.3, 0.4])
    assert high[0].tolist() == pytest.approx([0.7, 0.6])


def test_row_by_row() -> None:
    distance, overlap = box_losses(BOXES, TARGETS)
    torch.testing.assert_close(distance, (BOXES - TARGETS).abs().sum(1))
    torch.testing.assert_close(overlap, 1 - generalised_iou(BOXES, TARGETS))


def test_gradients_by_finite_differences() -> None:
    def total(boxes: Tensor) -> Tensor:
        distance, overlap = box_losses(boxes, TARGETS)
        return (distance + overlap).sum()

    boxes = BOXES.clone().mul_(0.97).requires_grad_()
    total(boxes).backward()
    assert boxes.grad is not None
    for row, column in ((0, 0), (1, 2), (3, 3)):
        step = torch.zeros(4, 4)
        step[row, column] = 1e-3
        slope = (total(BOXES * 0.97 + step) - total(BOXES * 0.97 - step)).item() / 2e-3
        assert boxes.grad[row, column].item() == pytest.approx(slope, rel=2e-2, abs=2e-2)


def test_a_box_of_no_size_gives_numbers() -> None:
    empty = torch.zeros(1, 4, requires_grad=True)
    distance, overlap = box_losses(empty, torch.zeros(1, 4))
    (distance + overlap).sum().backward()
    assert empty.grad is not None
    assert torch.isfinite(empty.grad).all()
