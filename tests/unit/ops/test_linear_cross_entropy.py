from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cclm.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference


def inputs(rows: int = 6, classes: int = 11) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.randn(rows, 4), torch.randn(classes, 4), torch.randn(classes), torch.randint(0, classes, (rows,))


def test_it_is_the_cross_entropy_of_the_rows() -> None:
    hidden, weight, bias, label = inputs()
    found = linear_cross_entropy(hidden, weight, bias, label, torch.full((6,), 1 / 6))
    logits = hidden @ weight.T + bias
    torch.testing.assert_close(found.total, functional.cross_entropy(logits, label))
    torch.testing.assert_close(found.loss_T, functional.cross_entropy(logits, label, reduction="none"))
    assert torch.equal(found.correct_T, logits.argmax(1) == label)


def test_no_row_is_a_loss_of_zero() -> None:
    hidden, weight, bias, label = inputs(rows=0)
    found = linear_cross_entropy(hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), label)
    found.total.backward()  # type: ignore[no-untyped-call]
    assert found.total.item() == 0.0
    assert found.loss_T.shape == found.correct_T.shape == (0,)
    assert hidden.grad is not None and hidden.grad.shape == (0, 4)
    assert weight.grad is not None and not weight.grad.any()
    assert bias.grad is not None and not bias.grad.any()


def test_the_gradients_are_those_of_the_definition() -> None:
    hidden, weight, bias, label = (tensor.double() for tensor in inputs())
    factor = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 3.0])
    function = lambda *tensors: linear_cross_entropy(*tensors, label.long(), factor, max_logits=25).total  # noqa: E731
    arguments = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    assert torch.autograd.gradcheck(function, arguments)


def test_equal_logits_cost_log_of_the_classes() -> None:
    found = linear_cross_entropy(torch.zeros(3, 4), torch.randn(7, 4), torch.zeros(7), torch.tensor([0, 3, 6]))
    assert found.total.item() == pytest.approx(3 * math.log(7))


def test_an_answer_is_right_if_the_highest_logit_is_the_labels() -> None:
    weight, bias = torch.eye(4, requires_grad=True), torch.zeros(4)
    found = linear_cross_entropy(5 * torch.eye(4), weight, bias, torch.tensor([0, 1, 3, 3]), max_logits=4)
    assert found.correct_T.tolist() == [True, True, False, True]
    assert found.total.requires_grad
    assert not found.correct_T.requires_grad and not found.loss_T.requires_grad


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, bias, label = inputs()
    found = linear_cross_entropy(hidden * 1e4, weight, bias, label)
    assert found.loss_T.max() > 1e3, "the label's probability is zero in float32"
    torch.testing.assert_close(found.loss_T, linear_cross_entropy_reference(hidden * 1e4, weight, bias, label).loss_T)


def test_logits_are_never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    plain = torch.addmm

    def watched(*arguments: Tensor, out: Tensor) -> Tensor:
        seen.append((out.numel(), out.data_ptr()))
        return plain(*arguments, out=out)

    monkeypatch.setattr(torch, "addmm", watched)
    linear_cross_entropy(*inputs(rows=10), max_logits=35)
    assert [size for size, _ in seen] == [33, 33, 33, 11]
    assert len({place for _, place in seen}) == 1, "one buffer for all blocks"


def test_a_gradient_is_deferred_where_the_logits_are_no_more_than_it_and_a_block() -> None:
    seen = list[tuple[int, ...]]()

    def defer(total: Tensor, residual: Tensor, scaled: Tensor) -> Tensor:
        seen.append((*residual.shape, *scaled.shape))
        return total

    for rows in (6, 7):  # two rows are a block, four the gradient
        hidden, weight, bias, label = inputs(rows)
        given = hidden.requires_grad_(), weight.requires_grad_(), bias, label
        linear_cross_entropy(*given, max_logits=22, defer=defer).total.backward()  # type: ignore[no-untyped-call]
        assert hidden.grad is not None and (weight.grad is None) == (rows == 6)
    assert seen == [(6, 11, 6, 4)]


def test_frozen_inputs_get_no_gradient() -> None:
    hidden, weight, bias, label = inputs()
    linear_cross_entropy(hidden.requires_grad_(), weight, bias.requires_grad_(), label).total.backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert weight.grad is None
    assert bias.grad is not None


def test_without_gradients_none_are_computed() -> None:
    hidden, weight, bias, label = inputs()
    with torch.no_grad():
        total = linear_cross_entropy(hidden, weight.requires_grad_(), bias, label).total
    assert not total.requires_grad
    torch.testing.assert_close(total, linear_cross_entropy_reference(hidden, weight, bias, label).total.detach())


def test_a_second_backward_is_refused_where_the_first_has_scaled_in_place() -> None:
    hidden, weight, bias, label = inputs()
    total = 2 * linear_cross_entropy(hidden.requires_grad_(), weight, bias, label).total
    total.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="inplace"):
        total.backward()  # type: ignore[no-untyped-call]
