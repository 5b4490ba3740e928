from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from cclm.objectives.tokens import answer_log_likelihood, answer_loss, masked_lm


def test_it_is_the_cross_entropy_of_the_slots() -> None:
    hidden, weight, bias, label = torch.randn(7, 4), torch.randn(9, 4), torch.randn(9), torch.randint(0, 9, (7,))
    losses = masked_lm(hidden, weight, bias, label, torch.full((7,), 1 / 7))
    logits = hidden @ weight.T + bias
    torch.testing.assert_close(losses.total, functional.cross_entropy(logits, label))
    torch.testing.assert_close(losses.loss_T, functional.cross_entropy(logits, label, reduction="none"))
    assert torch.equal(losses.correct_T, logits.argmax(1) == label)


def test_no_slot_is_a_loss_of_zero() -> None:
    hidden = torch.randn(0, 4, requires_grad=True)
    losses = masked_lm(hidden, torch.randn(9, 4), torch.randn(9), torch.randint(0, 9, (0,)))
    losses.total.backward()  # type: ignore[no-untyped-call]
    assert losses.total.item() == 0.0
    assert losses.loss_T.shape == losses.correct_T.shape == (0,)


IDS = torch.tensor([[0, 3, 4, 2], [0, 5, 2, 1]])


def test_likelihood_is_a_sum_over_real_tokens() -> None:
    logits = torch.randn(2, 4, 7)
    found = answer_log_likelihood(logits, IDS, IDS != 1)
    log_probability = logits.log_softmax(-1)
    first = sum(log_probability[0, place, IDS[0, place + 1]] for place in range(3))
    second = sum(log_probability[1, place, IDS[1, place + 1]] for place in range(2))
    torch.testing.assert_close(found, torch.stack([first, second]))  # type: ignore[list-item]


def test_even_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    found = answer_log_likelihood(torch.zeros(2, 4, 7), IDS, IDS != 1)
    assert found.tolist() == pytest.approx([-3 * math.log(7), -2 * math.log(7)])


def test_padding_has_no_gradient() -> None:
    logits = torch.randn(2, 4, 7, requires_grad=True)
    answer_log_likelihood(logits, IDS, IDS != 1).sum().backward()
    assert logits.grad is not None
    assert not logits.grad[1, 2:].any()
    assert not logits.grad[:, 3].any(), "nothing comes after the last token"
    assert logits.grad[0, 2].any()


def test_answers_are_weighted_and_questions_counted() -> None:
    loss = answer_loss(torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([0.5, 0.5, 1.0]), 2)
    assert loss.item() == pytest.approx(5.5 / 2)
