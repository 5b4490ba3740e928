from __future__ import annotations

import math

import pytest
import torch

from cclm.objectives.tokens import answer_log_likelihood

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
