"""The losses as operators of torch: what compilers, exporters and counters see of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from cclm.ops.contrastive import AllRows, contrastive_loss
from cclm.ops.contrastive_operator import contrastive_operator, log_sums
from cclm.ops.linear_cross_entropy import linear_cross_entropy
from cclm.ops.linear_cross_entropy_operator import linear_cross_entropy_operator

LABEL, SHOWN = torch.tensor([0, 4, 8, 3, 3]), torch.tensor([0, 1, 2, 0, 1])


def features() -> tuple[Tensor, Tensor, Tensor]:
    """Two sides, and the temperature."""
    sides = [nn.functional.normalize(torch.randn(5, 4), dim=1).requires_grad_() for _ in range(2)]
    return sides[0], sides[1], torch.tensor([0.1], requires_grad=True)


def head() -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(*shape, requires_grad=True) for shape in ((5, 4), (9, 4), (9,)))  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.parametrize(("hardness", "bias", "is_one_of_several"), [
    (0.0, None, False), (0.5, None, False), (0.0, -1.0, False), (0.0, None, True), (0.5, None, True),
])  # fmt: skip
def test_the_contrastive_operator(hardness: float, bias: float | None, is_one_of_several: bool) -> None:
    first, second, temperature = features()
    known = list[Tensor]()
    if is_one_of_several:
        rows = first.detach(), second.detach()
        logs = log_sums(*rows, torch.tensor(10.0), SHOWN, SHOWN, hardness=hardness)
        back = log_sums(*rows[::-1], torch.tensor(10.0), SHOWN, SHOWN, hardness=hardness)
        known = AllRows(*rows, SHOWN, SHOWN, (logs, logs.clone()), (back, back.clone())).tensors
    number = None if bias is None else torch.tensor([bias], requires_grad=True)
    opcheck(
        contrastive_operator,
        (first, second, SHOWN, SHOWN, temperature, number, known, 0.1 * (not number), hardness, True),
    )


@pytest.mark.slow
@pytest.mark.parametrize("needs", [[True, True, True], [True, False, True]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cross_entropy_operator(needs: list[bool], dtype: torch.dtype) -> None:
    given = [value.detach().requires_grad_(is_needed) for value, is_needed in zip(head(), needs, strict=True)]
    opcheck(linear_cross_entropy_operator, (*given, LABEL, torch.rand(5), dtype, 2, False, needs))


class Both(nn.Module):
    """The losses, in a graph."""

    def forward(self, first: Tensor, second: Tensor, temperature: Tensor, *given: Tensor) -> Tensor:
        contrast = contrastive_loss(first, second, SHOWN, SHOWN, temperature, label_smoothing=0.1)
        hard = contrastive_loss(first, second, SHOWN, SHOWN, temperature, hardness=0.5)
        sigmoid = contrastive_loss(first, second, SHOWN, SHOWN, temperature, bias=temperature - 1)
        return 2 * contrast + hard + sigmoid + 3 * linear_cross_entropy(*given, LABEL).total


@pytest.mark.slow
def test_a_compiled_function_is_one_graph() -> None:
    """With the same numbers, bit by bit."""
    given, found = (*features(), *head()), []
    compiled: Any = torch.compile(Both(), fullgraph=True, backend="aot_eager")
    for function in (Both(), compiled):
        total = function(*given)
        found.append([total.detach(), *torch.autograd.grad(total, given)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.slow
def test_an_exported_function_names_the_operators() -> None:
    given = (*features(), *head())
    exported = torch.export.export(Both(), given)
    names = [str(node.target) for node in exported.graph.nodes if str(node.target).startswith("cclm.")]
    assert names.count("cclm.contrastive.default") == 3 and names.count("cclm.linear_cross_entropy.default") == 1
    torch.testing.assert_close(exported.module()(*given), Both()(*given))


def test_products_are_counted() -> None:
    """Logits and two gradients; similarities forward, and three products of their size backward."""
    first, second, temperature = features()
    with FlopCounterMode(display=False) as counter:
        linear_cross_entropy(*head(), LABEL).total.backward()  # type: ignore[no-untyped-call]
    assert counter.get_total_flops() == 3 * 2 * 5 * 4 * 9
    with FlopCounterMode(display=False) as counter:
        contrastive_loss(first, second, SHOWN, SHOWN, temperature).backward()  # type: ignore[no-untyped-call]
    assert counter.get_total_flops() == 4 * 2 * 5 * 4 * 5
