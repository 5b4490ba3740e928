from __future__ import annotations

import torch
from torch.nn import functional

from cclm.objectives.masked_lm import masked_lm


def test_it_is_the_cross_entropy_of_the_slots() -> None:
    hidden, weight, bias, label = torch.randn(7, 4), torch.randn(9, 4), torch.randn(9), torch.randint(0, 9, (7,))
    term, correct = masked_lm(hidden, weight, bias, label)
    logits = hidden @ weight.T + bias
    torch.testing.assert_close(term.sum / term.count, functional.cross_entropy(logits, label))
    assert correct == (logits.argmax(1) == label).sum()


def test_no_slot_is_a_term_of_zero() -> None:
    hidden = torch.randn(0, 4, requires_grad=True)
    term, correct = masked_lm(hidden, torch.randn(9, 4), torch.randn(9), torch.randint(0, 9, (0,)))
    term.sum.backward()
    assert (term.sum.item(), term.count.item(), correct.item()) == (0.0, 0.0, 0)
