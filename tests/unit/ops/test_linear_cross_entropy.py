from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cclm.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference


def inputs(rows: int = 6, classes: int = 11) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.randn(rows, 4), torch.randn(classes, 4), torch.randn(classes), torch.randint(0, classes, (rows,))


def test_the_gradients_are_those_of_the_definition() -> None:
    hidden, weight, bias, label = (tensor.double() for tensor in inputs())
    # float32 inside: a wide step keeps the rounding of the loss out of the difference quotient
    function = lambda *tensors: linear_cross_entropy(*tensors, label.long(), max_logits=25)[0]  # noqa: E731
    arguments = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    assert torch.autograd.gradcheck(function, arguments, eps=1e-2, atol=2e-3, rtol=1e-2)


def test_equal_logits_cost_log_of_the_classes() -> None:
    loss, _ = linear_cross_entropy(torch.zeros(3, 4), torch.randn(7, 4), torch.zeros(7), torch.tensor([0, 3, 6]))
    assert loss.item() == pytest.approx(3 * math.log(7))


def test_the_count_is_how_often_the_highest_logit_is_the_label() -> None:
    weight, bias = torch.eye(4), torch.zeros(4)
    _, correct = linear_cross_entropy(5 * torch.eye(4), weight, bias, torch.tensor([0, 1, 3, 3]), max_logits=4)
    assert correct.item() == 3
    assert correct.dtype == torch.int64
    assert not correct.requires_grad


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, bias, label = inputs()
    loss, _ = linear_cross_entropy(hidden * 1e4, weight, bias, label)
    expected, _ = linear_cross_entropy_reference(hidden * 1e4, weight, bias, label)
    torch.testing.assert_close(loss, expected)


def test_logits_are_never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    plain = functional.linear

    def watched(hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor) -> Tensor:
        seen.append(hidden_TD.shape[0] * weight_VD.shape[0])
        return plain(hidden_TD, weight_VD, bias_V)

    monkeypatch.setattr(functional, "linear", watched)
    linear_cross_entropy(*inputs(rows=10), max_logits=35)
    assert seen == [33, 33, 33, 11]


def test_frozen_inputs_get_no_gradient() -> None:
    hidden, weight, bias, label = inputs()
    loss, _ = linear_cross_entropy(hidden.requires_grad_(), weight, bias.requires_grad_(), label)
    loss.backward()
    assert hidden.grad is not None
    assert weight.grad is None
    assert bias.grad is not None


def test_without_gradients_none_are_computed() -> None:
    hidden, weight, bias, label = inputs()
    with torch.no_grad():
        loss, _ = linear_cross_entropy(hidden, weight.requires_grad_(), bias, label)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, linear_cross_entropy_reference(hidden, weight, bias, label)[0].detach())
