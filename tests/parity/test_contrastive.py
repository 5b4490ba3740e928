"""The contrastive loss without its matrix against its reference in plain torch: shapes, types, targets, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cclm.objectives.contrastive import contrastive
from cclm.ops.contrastive import ROWS_PER_BLOCK, ContrastiveLoss, contrastive_loss, contrastive_reference

SHAPES = [
    # rows, columns, width, identities
    (1, 1, 1, 1),
    (1, 5, 3, 1),
    (7, 7, 5, 7),
    (13, 61, 17, 5),
    (61, 13, 17, 13),
    (5, 5, 4, 1),
    (ROWS_PER_BLOCK + 3, 37, 9, 31),
]
TEMPERATURES = [0.5, 0.05, 0.001]
"""The upper bound of the clamp; one exponential for both directions (scale 20); the lower bound (scale 1,000)."""


def inputs(
    rows: int, columns: int, width: int, identities: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit vectors of two sides, and what they show: each of `identities` on both sides, in any order."""
    generator = torch.Generator().manual_seed(rows)
    first, second = (
        functional.normalize(torch.randn(size, width, generator=generator, dtype=torch.float64), dim=1).to(dtype)
        for size in (rows, columns)
    )
    shown = [torch.arange(size) % min(rows, columns, identities) * 7 - 3 for size in (rows, columns)]
    order = [torch.randperm(size, generator=generator) for size in (rows, columns)]
    return first, second, shown[0][order[0]], shown[1][order[1]]


def run(loss: ContrastiveLoss, given: tuple[Tensor, ...], temperature: float, **options: Any) -> dict[str, Tensor]:
    """The loss, and the gradients of -2.5 · loss."""
    first, second = (side.clone().requires_grad_() for side in given[:2])
    divisor = torch.tensor([temperature], dtype=first.dtype, requires_grad=True)
    value = loss(first, second, *given[2:], divisor, **options)
    (-2.5 * value).backward()  # type: ignore[no-untyped-call]
    assert first.grad is not None and second.grad is not None and divisor.grad is not None
    return {"loss": value.detach(), "first": first.grad, "second": second.grad, "temperature": divisor.grad}


def expect_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Every value is off by at most `tolerance` of the largest entry."""
    for name, want in expected.items():
        got = found[name]
        assert got.dtype == want.dtype and got.shape == want.shape, name
        worst = (got - want).abs().max().item() if want.numel() else 0.0
        allowed = tolerance * max(1.0, want.abs().max().item() if want.numel() else 0.0)
        assert worst <= allowed, f"{name}: off by {worst:.1e}, allowed {allowed:.1e}"


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_exact_in_float64(shape: tuple[int, int, int, int], temperature: float, label_smoothing: float) -> None:
    given = inputs(*shape, torch.float64)
    options = {"label_smoothing": label_smoothing}
    found = run(contrastive_loss, given, temperature, **options)
    expect_close(found, run(contrastive_reference, given, temperature, **options), 1e-10)


@pytest.mark.parametrize(("temperature", "tolerance"), [(0.5, 1e-6), (0.05, 2e-6), (0.001, 5e-5)])
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_is_off_by_rounding(shape: tuple[int, int, int, int], temperature: float, tolerance: float) -> None:
    """Against float64 on the same numbers. Gradients are 1 / temperature times a difference of means of unit vectors,
    each of them rounded: the reference is off by as much (1e-6 at 0.05, 2e-5 at 0.001)."""
    given = inputs(*shape, torch.float32)
    wide = (given[0].double(), given[1].double(), *given[2:])
    exact = {name: value.float() for name, value in run(contrastive_reference, wide, temperature).items()}
    expect_close(run(contrastive_loss, given, temperature), exact, tolerance)


def test_bfloat16_features_cost_their_own_rounding_only() -> None:
    """They are widened; gradients are rounded to 8 bits once, when they leave."""
    given = inputs(13, 61, 17, 5, torch.bfloat16)
    found, expected = (
        run(lambda *rest, loss=loss, **_: contrastive(*rest, loss=loss), given, 0.05)
        for loss in (contrastive_loss, contrastive_reference)
    )
    assert found["first"].dtype == torch.bfloat16
    torch.testing.assert_close(found["loss"], expected["loss"], rtol=1e-6, atol=0.0)
    for name in ("first", "second"):
        torch.testing.assert_close(found[name], expected[name], rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 0.02])
def test_gradients_are_those_of_the_definition(temperature: float) -> None:
    """With one exponential and with two. On unit vectors or not: the bound on similarities is looked at."""
    given = inputs(5, 7, 3, 3, torch.float64)
    arguments = [2 * given[0], given[1], torch.tensor([temperature], dtype=torch.float64)]
    assert torch.autograd.gradcheck(
        lambda first, second, divisor: contrastive_loss(first, second, *given[2:], divisor, label_smoothing=0.1),
        [argument.requires_grad_() for argument in arguments],
    )


def test_long_vectors_do_not_overflow() -> None:
    given = inputs(5, 7, 3, 3, torch.float32)
    given = (30 * given[0], 30 * given[1], *given[2:])
    expect_close(run(contrastive_loss, given, 0.5), run(contrastive_reference, given, 0.5), 1e-5)


def test_no_rows_are_a_loss_of_zero() -> None:
    given = torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    assert all(value.abs().sum() == 0 for value in run(contrastive_loss, given, 0.05).values())


@pytest.mark.parametrize("sides", [([1, 2, 9], [1, 2]), ([1, 2], [2, 1, 9])])
def test_a_row_without_a_positive_is_nan_as_in_the_reference(sides: tuple[list[int], list[int]]) -> None:
    identities = [torch.tensor(side) for side in sides]
    features = [torch.randn(len(side), 4) for side in sides]
    for loss in (contrastive_loss, contrastive_reference):
        assert loss(*features, *identities, torch.tensor([0.1])).isnan()


def test_similarities_are_never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor of forward and backward is a block."""
    monkeypatch.setattr("cclm.ops.contrastive.ROWS_PER_BLOCK", 8)
    given, largest = inputs(64, 64, 4, 64, torch.float32), 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for value in result if isinstance(result, tuple | list) else [result]:
                largest = max(largest, value.numel() if isinstance(value, Tensor) else 0)
            return result

    with Watch():
        run(contrastive_loss, given, 0.02)
    assert largest == 8 * 64
