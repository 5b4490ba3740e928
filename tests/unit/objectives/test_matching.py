from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cclm.objectives.matching import draw_negatives, has_negative, matching
from cclm.objectives.options import ObjectiveConfig


def gumbel(*shape: int) -> Tensor:
    """Standard Gumbel noise."""
    return -torch.log(-torch.log(torch.rand(*shape).clamp(1e-20, 1 - 1e-7)))


@pytest.mark.parametrize("hardness", [0.0, 0.5, 1.0])
def test_draws_follow_the_published_weights(hardness: float) -> None:
    similarity = torch.tensor([1.0, 3.0, -2.0, 2.0, 0.5])
    same = torch.tensor([False, False, False, True, False])
    weights = ((hardness * similarity).softmax(0) + 1e-5).masked_fill(same, 0)
    expected = weights / weights.sum()
    draws = 20_000
    index = draw_negatives(similarity.expand(draws, -1), same.expand(draws, -1), gumbel(draws, 5), hardness)
    found = torch.bincount(index, minlength=5) / draws
    # five standard errors of a share near one half
    torch.testing.assert_close(found, expected, atol=0.018, rtol=0)
    reference = torch.bincount(torch.multinomial(expected, draws, replacement=True), minlength=5) / draws
    torch.testing.assert_close(found, reference, atol=0.025, rtol=0)


def test_the_floor_keeps_hopeless_candidates_in_reach() -> None:
    similarity, none = torch.tensor([[100.0, -100.0]]), torch.zeros(1, 2, dtype=torch.bool)
    assert draw_negatives(similarity, none, torch.tensor([[0.0, 11.0]]), 1.0).item() == 0
    assert draw_negatives(similarity, none, torch.tensor([[0.0, 12.0]]), 1.0).item() == 1


def test_the_same_identity_is_never_drawn() -> None:
    same = torch.tensor([[True, False, True, False]]).expand(500, -1)
    index = draw_negatives(50.0 * same, same, gumbel(500, 4), 1.0)
    assert set(index.tolist()) == {1, 3}


def test_a_row_without_candidate_is_told() -> None:
    assert has_negative(torch.tensor([[4, 4, 4], [4, 4, -1], [1, 2, 3]])).tolist() == [False, True, True]
    same = torch.tensor([[True, True], [True, False]])
    index = draw_negatives(torch.randn(2, 2), same, gumbel(2, 2), 1.0)
    assert index[1] == 1 and 0 <= index[0] < 2, "any column: the row does not count"


def test_matching_row_by_row() -> None:
    logits = torch.tensor([[0.0, 2.0], [1.0, -1.0], [0.5, 0.7]], requires_grad=True)
    labels = torch.tensor([1, 0, 0])
    loss, is_right = matching(logits, labels)
    torch.testing.assert_close(loss.mean(), functional.cross_entropy(logits, labels))
    assert is_right.tolist() == [True, True, False]
    loss.sum().backward()
    assert logits.grad is not None and logits.grad.abs().min() > 0


@pytest.mark.parametrize(("step", "expected"), [(0, 0.0), (50, 0.4), (100, 0.8), (1000, 0.8)])
def test_hardness_rises_linearly(step: int, expected: float) -> None:
    assert ObjectiveConfig(hardness_full_step=100, hardness=0.8).hardness_at(step) == pytest.approx(expected)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.0), (40, 0.0), (60, 0.25), (80, 0.5), (90, 0.5)])
def test_hardness_can_wait(step: int, expected: float) -> None:
    config = ObjectiveConfig(hardness_start_step=40, hardness_full_step=80, hardness=0.5)
    assert config.hardness_at(step) == pytest.approx(expected)


def test_no_ramp_is_full_hardness() -> None:
    assert ObjectiveConfig().hardness_at(0) == 1.0
