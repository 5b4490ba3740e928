"""Twin: gather over W ranks against concatenation in one process, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cclm.distributed.collectives import SINGLE, collectives
from tests.ranks.harness import on_ranks

ROWS, WIDTH = 6, 3


def _rows() -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))


def _loss(local: Tensor, everything: Tensor, first_row: int) -> Tensor:
    """Local rows against all rows, weighted so that each row and column matters differently."""
    weights = (torch.arange(ROWS * ROWS, dtype=torch.float32).view(ROWS, ROWS) / 7).sin()
    return ((local @ everything.T).tanh() * weights[first_row : first_row + len(local)]).sum()


def _on_uneven_rank() -> tuple[Tensor, float, Tensor]:
    """1, 2 and 3 rows."""
    talk = collectives(equal_rows=False)
    first = talk.rank * (talk.rank + 1) // 2
    rows = _rows()[first : first + talk.rank + 1].requires_grad_()
    everything = talk.gather(rows)
    loss = _loss(rows, everything, first)
    loss.backward()
    assert rows.grad is not None
    return everything.detach(), loss.item(), rows.grad


def _on_rank(is_transposed: bool) -> tuple[Tensor, float, Tensor]:
    talk = collectives()
    size = ROWS // talk.world_size
    rows = _rows()[talk.rank * size : (talk.rank + 1) * size]
    if is_transposed:  # not contiguous
        rows = rows.T.contiguous().T
    rows.requires_grad_()
    everything = talk.gather(rows)
    loss = _loss(rows, everything, talk.rank * size)
    loss.backward()
    assert rows.grad is not None
    return everything.detach(), loss.item(), rows.grad


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3, 0])
def test_gather_equals_concatenation_with_gradients(world_size: int) -> None:
    twin = _rows().requires_grad_()
    loss = _loss(twin, SINGLE.gather(twin), 0)
    loss.backward()
    results = on_ranks(_on_rank, world_size, world_size == 2) if world_size else on_ranks(_on_uneven_rank, 3)
    for everything, _, _ in results:
        assert torch.equal(everything, twin.detach())
    assert sum(value for _, value, _ in results) == pytest.approx(loss.item(), rel=1e-5)
    assert twin.grad is not None
    torch.testing.assert_close(torch.cat([gradient for _, _, gradient in results]), twin.grad, rtol=1e-5, atol=1e-6)


def _integers_and_sums() -> tuple[Tensor, Tensor, Tensor]:
    talk = collectives()
    mine = torch.tensor([talk.rank + 1.0], requires_grad=True)
    talk.barrier()
    return talk.gather(torch.tensor([10 + talk.rank])), talk.sum(mine), mine.detach()


def test_gather_of_integers_and_sum() -> None:
    for rank, (gathered, total, mine) in enumerate(on_ranks(_integers_and_sums, 2)):
        assert gathered.tolist() == [10, 11]
        assert total.tolist() == [3.0]
        assert not total.requires_grad
        assert mine.tolist() == [rank + 1.0]  # sum does not write into its argument


def test_single_is_the_identity() -> None:
    rows = _rows().requires_grad_()
    assert SINGLE.gather(rows) is rows
    total = SINGLE.sum(rows)
    assert torch.equal(total, rows)
    assert not total.requires_grad
    assert (SINGLE.rank, SINGLE.world_size) == (0, 1)
    SINGLE.barrier()
    assert collectives() is SINGLE
