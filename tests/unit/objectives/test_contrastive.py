from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cclm.objectives.contrastive import contrastive
from cclm.objectives.term import Term

TEMPERATURE = 0.2


def features(rows: int, seed: int) -> Tensor:
    """Unit vectors in float64, so that comparisons are exact to rounding."""
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(rows, 6, generator=generator, dtype=torch.float64), dim=1).requires_grad_()


def published(first: Tensor, second: Tensor) -> Tensor:
    """½ (CE of rows + CE of columns) with the diagonal as target."""
    logits, target = first @ second.T / TEMPERATURE, torch.arange(first.shape[0])
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def mean(term: Term) -> Tensor:
    return term.sum / term.count


def test_distinct_identities_give_the_published_loss() -> None:
    first, second, identity = features(5, 0), features(5, 1), torch.tensor([7, -3, 1, 2, 9])
    term = contrastive(first, second, identity, identity, torch.tensor([TEMPERATURE]))
    assert term.count.item() == 5
    torch.testing.assert_close(mean(term), published(first, second).float())


def test_equal_identities_share_the_target() -> None:
    first, second = features(3, 0), features(4, 1)
    identity_first, identity_second = torch.tensor([1, 2, 1]), torch.tensor([1, 1, 2, 1])
    logits = first @ second.T / TEMPERATURE
    same = (identity_first[:, None] == identity_second).double()
    forth = -(same / same.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    back = -(same / same.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    found = mean(contrastive(first, second, identity_first, identity_second, TEMPERATURE))
    torch.testing.assert_close(found, (0.5 * (forth + back)).float())


def test_duplicates_are_not_negatives() -> None:
    first = functional.one_hot(torch.tensor([0, 0, 1]), 6).double()
    identity = torch.tensor([5, 5, 6])
    # the twins share their target evenly and cost log 2 each; the third row is certain
    found = mean(contrastive(first, first, identity, identity, 0.02))
    assert found.item() == pytest.approx(2 / 3 * math.log(2), rel=1e-5)


def test_label_smoothing_spreads_over_all_columns() -> None:
    first, second, identity = features(4, 0), features(4, 1), torch.arange(4)
    logits = first @ second.T / TEMPERATURE
    expected = sum(functional.cross_entropy(each, identity, label_smoothing=0.1) for each in (logits, logits.T))
    found = mean(contrastive(first, second, identity, identity, TEMPERATURE, label_smoothing=0.1))
    torch.testing.assert_close(found, (expected / 2).float())


def test_grad_scale_touches_features_only() -> None:
    results = []
    for scale in (1.0, 0.125):
        first, second, identity = features(4, 0), features(4, 1), torch.arange(4)
        temperature = torch.tensor([TEMPERATURE], dtype=torch.float64, requires_grad=True)
        loss = mean(contrastive(first, second, identity, identity, temperature, grad_scale=scale))
        loss.backward()
        results.append((loss.detach(), temperature.grad, first.grad, second.grad))
    (loss, temperature, *whole), (same_loss, same_temperature, *scaled) = results
    assert torch.equal(loss, same_loss)
    assert torch.equal(temperature, same_temperature)
    for full, part in zip(whole, scaled, strict=True):
        torch.testing.assert_close(part, full * 0.125)


@pytest.mark.parametrize(("num_first", "num_second"), [(6, 6), (4, 12)])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_two_halves_with_a_gather_equal_the_whole(num_first: int, num_second: int, scale: float) -> None:
    identity_first, identity_second = torch.arange(num_first) % 3, torch.arange(num_second) % 3
    first, second = features(num_first, 0), features(num_second, 1)
    options = {"label_smoothing": 0.1, "grad_scale": scale}
    whole = contrastive(first, second, identity_first, identity_second, TEMPERATURE, **options)
    expected = torch.autograd.grad(mean(whole), (first, second))

    total, count = torch.zeros(()), 0.0
    for half in range(2):
        local = [tensor.chunk(2)[half] for tensor in (first, second, identity_first, identity_second)]
        term = contrastive(
            *local,
            TEMPERATURE,
            gather=fake_gather(first, second, identity_first, identity_second, factor=scale),
            **options,
        )
        total, count = total + term.sum, count + term.count.item()
    assert count == num_first
    torch.testing.assert_close(total / count, mean(whole))
    for found, want in zip(torch.autograd.grad(total / count, (first, second)), expected, strict=True):
        torch.testing.assert_close(found, want)


def fake_gather(*wholes: Tensor, factor: float) -> Callable[[Tensor], Tensor]:
    """Find the whole of which a half is given; autograd's path through the whole is what a true gather has.

    A half has passed a gradient scale of `factor`, which scales once more on the way back, so the whole passes one too.
    """

    def gather(local: Tensor) -> Tensor:
        for whole in wholes:
            for half in whole.chunk(2):
                if half.shape == local.shape and torch.equal(half, local):
                    is_scaled = whole.is_floating_point() and factor != 1.0
                    return whole * factor + (whole * (1 - factor)).detach() if is_scaled else whole
        raise AssertionError("not a half of anything")

    return gather


@pytest.mark.parametrize("is_autocast", [False, True])
def test_bfloat16_features_are_compared_in_float32(is_autocast: bool) -> None:
    results = []
    for widen in (torch.Tensor.float, torch.Tensor.bfloat16):
        rounded = [features(8, seed).detach().bfloat16() for seed in (0, 1)]
        first, second = (widen(tensor).requires_grad_() for tensor in rounded)
        temperature = torch.tensor([0.01], requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast and widen is torch.Tensor.bfloat16):
            term = contrastive(first, second, torch.arange(8), torch.arange(8), temperature)
        term.sum.backward()  # type: ignore[no-untyped-call]
        results.append((term.sum.detach(), temperature.grad, first.grad, second.grad))
    (loss, for_temperature, *wide), (same_loss, same_for_temperature, *narrow) = results
    assert torch.equal(loss, same_loss)
    assert torch.equal(for_temperature, same_for_temperature)
    assert all(torch.equal(rough, fine.bfloat16()) for rough, fine in zip(narrow, wide, strict=True))
