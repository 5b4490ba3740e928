from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cclm.objectives.contrastive import contrastive
from cclm.ops.contrastive import ContrastiveLoss, contrastive_loss, contrastive_reference
from tests.gathering import all_rows

TEMPERATURE = 0.2


def features(rows: int, seed: int) -> Tensor:
    """Unit vectors in float64, so that comparisons are exact to rounding."""
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(rows, 6, generator=generator, dtype=torch.float64), dim=1).requires_grad_()


def published(first: Tensor, second: Tensor) -> Tensor:
    """½ (CE of rows + CE of columns) with the diagonal as target."""
    logits, target = first @ second.T / TEMPERATURE, torch.arange(first.shape[0])
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def test_distinct_identities_give_the_published_loss() -> None:
    first, second, identity = features(5, 0), features(5, 1), torch.tensor([7, -3, 1, 2, 9])
    total = contrastive(first, second, identity, identity, torch.tensor([TEMPERATURE]))
    torch.testing.assert_close(total / 5, published(first, second).float())


def test_equal_identities_share_the_target() -> None:
    first, second = features(3, 0), features(4, 1)
    identity_first, identity_second = torch.tensor([1, 2, 1]), torch.tensor([1, 1, 2, 1])
    logits = first @ second.T / TEMPERATURE
    same = (identity_first[:, None] == identity_second).double()
    forth = -(same / same.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    back = -(same / same.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    found = contrastive(first, second, identity_first, identity_second, TEMPERATURE) / len(first)
    torch.testing.assert_close(found, (0.5 * (forth + back)).float())


def test_duplicates_are_not_negatives() -> None:
    first = functional.one_hot(torch.tensor([0, 0, 1]), 6).double()
    identity = torch.tensor([5, 5, 6])
    # the twins share their target evenly and cost log 2 each; the third row is certain
    found = contrastive(first, first, identity, identity, 0.02) / len(first)
    assert found.item() == pytest.approx(2 / 3 * math.log(2), rel=1e-5)


def test_label_smoothing_spreads_over_all_columns() -> None:
    first, second, identity = features(4, 0), features(4, 1), torch.arange(4)
    logits = first @ second.T / TEMPERATURE
    expected = sum(functional.cross_entropy(each, identity, label_smoothing=0.1) for each in (logits, logits.T))
    found = contrastive(first, second, identity, identity, TEMPERATURE, label_smoothing=0.1) / len(first)
    torch.testing.assert_close(found, (expected / 2).float())


def test_grad_scale_touches_features_only() -> None:
    results = []
    for scale in (1.0, 0.125):
        first, second, identity = features(4, 0), features(4, 1), torch.arange(4)
        temperature = torch.tensor([TEMPERATURE], dtype=torch.float64, requires_grad=True)
        loss = contrastive(first, second, identity, identity, temperature, grad_scale=scale) / len(first)
        loss.backward()
        results.append((loss.detach(), temperature.grad, first.grad, second.grad))
    (loss, temperature, *whole), (same_loss, same_temperature, *scaled) = results
    assert torch.equal(loss, same_loss)
    assert torch.equal(temperature, same_temperature)
    for full, part in zip(whole, scaled, strict=True):
        torch.testing.assert_close(part, full * 0.125)


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("form", [{}, {"hardness": 0.5}, {"bias": torch.tensor([-2.0], dtype=torch.float64)}])
def test_a_width_is_the_loss_of_first_components(form: dict[str, Any], width: int) -> None:
    """By the plain reference, to which features of that width are given; its gradients end in the first components."""
    identity, temperature = torch.tensor([1, 2, 1, 3, 4]), torch.tensor([TEMPERATURE], dtype=torch.float64)
    results = []
    for loss in (contrastive_loss, contrastive_reference):
        first, second = features(5, 0), features(5, 1)
        if loss is contrastive_loss:
            total = contrastive(first, second, identity, identity, temperature, width=width, **form)
        else:
            cut = (rows[:, :width] / rows[:, :width].norm(dim=1, keepdim=True) for rows in (first, second))
            total = contrastive_reference(*cut, identity, identity, temperature, **form).float()
        results.append((total.detach(), *torch.autograd.grad(total, (first, second))))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert not results[0][1][:, width:].any()


class Ranks:
    """Threads that meet at each gather, which has autograd's own gradient."""

    def __init__(self, world_size: int) -> None:
        self.barrier, self.given = threading.Barrier(world_size, timeout=60), [torch.empty(0)] * world_size

    def gather(self, rank: int, local: Tensor) -> Tensor:
        self.given[rank] = local
        self.barrier.wait()
        whole = torch.cat(self.given)
        self.barrier.wait()
        return whole


@pytest.mark.parametrize(("sizes_first", "sizes_second"), [((3, 3), (3, 3)), ((1, 3), (9, 3))])
@pytest.mark.parametrize(
    ("loss", "scale"), [(contrastive_loss, 1.0), (contrastive_loss, 0.25), (contrastive_reference, 1.0)]
)
def test_ranks_with_a_gather_equal_the_whole(
    sizes_first: tuple[int, ...],
    sizes_second: tuple[int, ...],
    scale: float,
    loss: ContrastiveLoss,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where ranks hold different numbers of rows. The temperature's gradient is that of all ranks together."""
    monkeypatch.setattr("cclm.ops.contrastive_blocks.ROWS_PER_BLOCK", 2)
    first, second = features(sum(sizes_first), 0), features(sum(sizes_second), 1)
    identities = torch.arange(len(first)) % 3, torch.arange(len(second)) % 3
    temperature = torch.tensor([TEMPERATURE], dtype=torch.float64, requires_grad=True)
    options: dict[str, Any] = {"label_smoothing": 0.1, "grad_scale": scale, "loss": loss}
    whole = contrastive(first, second, *identities, temperature, **options)
    expected = torch.autograd.grad(whole, (first, second, temperature))
    ranks = Ranks(2)
    parts = [torch.split(each, sizes_first) for each in (first, identities[0])]
    parts += [torch.split(each, sizes_second) for each in (second, identities[1])]
    firsts, first_identities, seconds, second_identities = parts

    def on_rank(rank: int) -> Tensor:
        own = firsts[rank], seconds[rank], first_identities[rank], second_identities[rank]
        everything = all_rows(partial(ranks.gather, rank), *own, temperature)
        return contrastive(*own, temperature, everything=everything, **options)

    with ThreadPoolExecutor(2) as pool:
        total = torch.stack(list(pool.map(on_rank, range(2)))).sum()
    torch.testing.assert_close(total, whole)
    for found, want in zip(torch.autograd.grad(total, (first, second, temperature)), expected, strict=True):
        torch.testing.assert_close(found, want)


@pytest.mark.parametrize("is_autocast", [False, True])
def test_bfloat16_features_are_compared_in_float32(is_autocast: bool) -> None:
    results = []
    for widen in (torch.Tensor.float, torch.Tensor.bfloat16):
        rounded = [features(8, seed).detach().bfloat16() for seed in (0, 1)]
        first, second = (widen(tensor).requires_grad_() for tensor in rounded)
        temperature = torch.tensor([0.01], requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast and widen is torch.Tensor.bfloat16):
            total = contrastive(first, second, torch.arange(8), torch.arange(8), temperature)
        total.backward()  # type: ignore[no-untyped-call]
        results.append((total.detach(), temperature.grad, first.grad, second.grad))
    (loss, for_temperature, *wide), (same_loss, same_for_temperature, *narrow) = results
    assert torch.equal(loss, same_loss)
    assert torch.equal(for_temperature, same_for_temperature)
    assert all(torch.equal(rough, fine.bfloat16()) for rough, fine in zip(narrow, wide, strict=True))
