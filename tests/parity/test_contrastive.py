"""The contrastive loss without its matrix against its reference in plain torch: shapes, types, targets, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cclm.objectives.contrastive import contrastive
from cclm.ops.contrastive import AllRows, ContrastiveLoss, contrastive_loss, contrastive_reference
from cclm.ops.contrastive_blocks import ROWS_PER_BLOCK
from cclm.ops.contrastive_operator import log_sums
from tests.operators import call

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

FORMS: list[dict[str, float]] = [
    {},
    {"label_smoothing": 0.1},
    {"hardness": 0.3},
    {"hardness": 1.5, "label_smoothing": 0.1},
    {"bias": -10.0},
    {"bias": 1.0},
]
"""Options of the loss."""


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
    if "bias" in options:
        bias = options["bias"] = torch.tensor([options["bias"]], dtype=first.dtype, requires_grad=True)
    divisor = torch.tensor([temperature], dtype=first.dtype, requires_grad=True)
    value = loss(first, second, *given[2:], divisor, **options)
    (-2.5 * value).backward()  # type: ignore[no-untyped-call]
    assert first.grad is not None and second.grad is not None and divisor.grad is not None
    found = {"loss": value.detach(), "first": first.grad, "second": second.grad, "temperature": divisor.grad}
    return found | ({"bias": bias.grad} if "bias" in options else {})


def expect_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Every value is off by at most `tolerance` of the largest entry."""
    for name, want in expected.items():
        got = found[name]
        assert got.dtype == want.dtype and got.shape == want.shape, name
        worst = (got - want).abs().max().item() if want.numel() else 0.0
        allowed = tolerance * max(1.0, want.abs().max().item() if want.numel() else 0.0)
        assert worst <= allowed, f"{name}: off by {worst:.1e}, allowed {allowed:.1e}"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_exact_in_float64(shape: tuple[int, int, int, int], temperature: float, form: dict[str, float]) -> None:
    given = inputs(*shape, torch.float64)
    found = run(contrastive_loss, given, temperature, **form)
    expect_close(found, run(contrastive_reference, given, temperature, **form), 1e-10)


@pytest.mark.parametrize("form", [{}, {"hardness": 0.5}, {"bias": -10.0}])
@pytest.mark.parametrize(("temperature", "tolerance"), [(0.5, 1e-6), (0.05, 2e-6), (0.001, 5e-5)])
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_is_off_by_rounding(
    shape: tuple[int, int, int, int], temperature: float, tolerance: float, form: dict[str, float]
) -> None:
    """Against float64 on the same numbers. Gradients are 1 / temperature times a difference of means of unit vectors,
    each of them rounded: the reference is off by as much (1e-6 at 0.05, 2e-5 at 0.001). The other forms take more:
    exponents with hardness are larger, and sigmoid(s + bias) - 1 has the rounding of 1."""
    given = inputs(*shape, torch.float32)
    wide = (given[0].double(), given[1].double(), *given[2:])
    exact = {name: value.float() for name, value in run(contrastive_reference, wide, temperature, **form).items()}
    expect_close(run(contrastive_loss, given, temperature, **form), exact, tolerance * (16 if form else 1))


@pytest.mark.parametrize("form", [{"hardness": 0.5}, {"bias": -1.0}, {}])
@pytest.mark.parametrize("others", [(1, 5), (4, 3)])
def test_rows_of_several_ranks(others: tuple[int, int], form: dict[str, float]) -> None:
    """Each rank has the whole gradient of its rows; values, and gradients of temperature and bias, add up."""
    given = inputs(5, 8, 3, 4, torch.float64)
    whole, ends = run(contrastive_loss, given, 0.1, **form), (others[0], 5, others[1], 8)
    cuts = (slice(0, ends[0]), slice(0, ends[2])), (slice(ends[0], 5), slice(ends[2], 8))
    logs, scale = (), torch.tensor(10.0, dtype=torch.float64)
    if "bias" not in form:
        forth = log_sums(*given[:2], scale, *given[2:], **form)
        logs = forth, log_sums(given[1], given[0], scale, given[3], given[2], **form)
    parts = []
    for first, second in cuts:
        own_logs = ((logs[0][first], logs[0]), (logs[1][second], logs[1])) if logs else ()
        own = given[0][first], given[1][second], given[2][first], given[3][second]
        parts.append(run(contrastive_loss, own, 0.1, everything=AllRows(*given, *own_logs), **form))
    for name, value in whole.items():
        joined = [part[name] for part in parts]
        torch.testing.assert_close(torch.cat(joined) if name in ("first", "second") else sum(joined), value)


def test_the_loss_of_the_papers() -> None:
    """Distinct identities: every other column of a row is its negative."""
    first, second, identity, _ = (value[:6] for value in inputs(6, 6, 4, 6, torch.float64))
    identity, similarity, own = torch.arange(6), first @ second.T / 0.2, torch.eye(6, dtype=torch.bool)
    beta, negatives = 0.7, similarity[~own].view(6, 5)
    weights = 5 * (beta * negatives).exp() / (beta * negatives).exp().sum(1, keepdim=True)
    positive = similarity.diagonal().exp()
    forth = -(positive / (positive + (weights * negatives.exp()).sum(1))).log().sum()
    negatives = similarity.T[~own].view(6, 5)
    weights = 5 * (beta * negatives).exp() / (beta * negatives).exp().sum(1, keepdim=True)
    back = -(positive / (positive + (weights * negatives.exp()).sum(1))).log().sum()
    divisor = torch.tensor([0.2], dtype=torch.float64)
    found = contrastive_loss(first, second, identity, identity, divisor, hardness=beta)
    torch.testing.assert_close(found, (forth + back) / 2)
    bias = torch.tensor([-2.0], dtype=torch.float64)
    expected = (1 + (-(2 * own.double() - 1) * (similarity - 2)).exp()).log().sum()
    found = contrastive_loss(first, second, identity, identity, divisor, bias=bias)
    torch.testing.assert_close(found, expected)


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
    for form in FORMS:
        expected = run(contrastive_reference, given, 0.5, **form)
        expect_close(run(contrastive_loss, given, 0.5, **form), expected, 1e-5 if "hardness" not in form else 5e-4)


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
    monkeypatch.setattr("cclm.ops.contrastive_blocks.ROWS_PER_BLOCK", 8)
    given, largest = inputs(64, 64, 4, 64, torch.float32), 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = call(self, function, args, kwargs)
            for value in result if isinstance(result, tuple | list) else [result]:
                largest = max(largest, value.numel() if isinstance(value, Tensor) else 0)
            return result

    for form in FORMS:
        with Watch():
            run(contrastive_loss, given, 0.02, **form)
        assert largest == 8 * 64
