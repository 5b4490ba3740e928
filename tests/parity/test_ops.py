"""Fused operations against their references in plain torch: odd shapes, each dtype, forward and every gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cclm.ops.linear_cross_entropy import RowLosses, linear_cross_entropy, linear_cross_entropy_reference

TOLERANCE = {
    # float64: the same formula
    torch.float64: {"atol": 1e-10, "rtol": 1e-10},
    # float32: sums over blocks and over up to 1,009 classes in another order
    torch.float32: {"atol": 2e-5, "rtol": 1e-4},
    # bfloat16: products are rounded to 8 bits, about 4e-3 of each summand; gradients are about 1 in size
    torch.bfloat16: {"atol": 5e-2, "rtol": 3e-2},
}
NAMES = ("total", "losses", "correct", "hidden", "weight", "bias")
Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], RowLosses]


def run(
    loss: Loss,
    rows: int,
    width: int,
    classes: int,
    dtype: torch.dtype,
    scale: float,
    weight_dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Losses, right answers, and the gradients of `scale` · total; weight and bias have `dtype` too by default.

    Every third row has a factor of 0: it is there, and counts for nothing.
    """
    generator = torch.Generator().manual_seed(rows)
    draw = [torch.randn(*shape, generator=generator) for shape in ((rows, width), (classes, width), (classes,))]
    dtypes = (dtype, weight_dtype or dtype, weight_dtype or dtype)
    hidden, weight, bias = (tensor.to(kind).requires_grad_() for tensor, kind in zip(draw, dtypes, strict=True))
    label = torch.randint(0, classes, (rows,), generator=generator)
    factor = torch.rand(rows, generator=generator) * (torch.arange(rows) % 3 != 1)
    total, loss_T, correct_T = loss(hidden, weight, bias, label, factor)
    (scale * total).backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None and weight.grad is not None and bias.grad is not None
    return [total.detach(), loss_T, correct_T, hidden.grad, weight.grad, bias.grad]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width", "classes"), [(1, 1, 2), (7, 5, 13), (33, 17, 1009), (64, 8, 31)])
@pytest.mark.parametrize("max_logits", [1, 100, 1 << 23])
def test_linear_cross_entropy(rows: int, width: int, classes: int, max_logits: int, dtype: torch.dtype) -> None:
    def chunked(*arguments: Tensor) -> RowLosses:
        return linear_cross_entropy(*arguments, max_logits=max_logits)

    expected = run(linear_cross_entropy_reference, rows, width, classes, dtype, -2.5)
    found = run(chunked, rows, width, classes, dtype, -2.5)
    for name, got, want in zip(NAMES, found, expected, strict=True):
        assert got.dtype == want.dtype, name
        torch.testing.assert_close(got, want, **TOLERANCE[dtype], msg=lambda text, name=name: f"{name}: {text}")


def test_no_rows_give_zero_and_zero_gradients() -> None:
    for value in run(linear_cross_entropy, 0, 4, 9, torch.float32, 3.0):
        assert value.count_nonzero() == 0


MIXED = [
    # what LayerNorm hands over under autocast on CUDA, with weights that DeepSpeed holds in bfloat16
    (torch.float32, torch.bfloat16),
    # the plain engine: float32 weights, a linear layer's bfloat16 output
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float32),
]


@pytest.mark.parametrize("is_autocast", [False, True])
@pytest.mark.parametrize(("hidden_dtype", "weight_dtype"), MIXED)
@pytest.mark.parametrize("max_logits", [100, 1 << 23])
def test_mixed_types(max_logits: int, hidden_dtype: torch.dtype, weight_dtype: torch.dtype, is_autocast: bool) -> None:
    def results(loss: Loss) -> list[Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
            return run(loss, 33, 17, 101, hidden_dtype, -2.5, weight_dtype)

    found = results(lambda *arguments: linear_cross_entropy(*arguments, max_logits=max_logits))
    expected = results(linear_cross_entropy_reference)
    assert [got.dtype for got in found] == [want.dtype for want in expected]
    assert (found[3].dtype, found[4].dtype) == (hidden_dtype, weight_dtype)
    is_exact = not is_autocast and torch.float32 in (hidden_dtype, weight_dtype) and hidden_dtype == weight_dtype
    for name, got, want in zip(NAMES, found, expected, strict=True):
        tolerance = TOLERANCE[torch.float32 if is_exact else torch.bfloat16]
        torch.testing.assert_close(got, want, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def test_mixed_types_without_autocast_compute_in_the_widest() -> None:
    def in_float32(hidden: Tensor, *rest: Tensor) -> RowLosses:
        return linear_cross_entropy_reference(hidden.float(), *(x.float() for x in rest[:2]), *rest[2:])

    found = run(linear_cross_entropy, 9, 5, 13, torch.float32, 1.0, torch.bfloat16)
    expected = run(in_float32, 9, 5, 13, torch.float32, 1.0, torch.bfloat16)
    torch.testing.assert_close(found[0], expected[0], **TOLERANCE[torch.float32])
