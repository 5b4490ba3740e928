"""Twin: gather over W ranks against concatenation in one process, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cclm.distributed.collectives import SINGLE, collectives
from tests.gathering import gather_of
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
    talk = collectives()
    first = talk.rank * (talk.rank + 1) // 2
    rows = _rows()[first : first + talk.rank + 1].requires_grad_()
    everything = talk.gather_block(rows, range(3), [1, 2, 3])
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
    everything = gather_of(talk)(rows)
    loss = _loss(rows, everything, talk.rank * size)
    loss.backward()
    assert rows.grad is not None
    return everything.detach(), loss.item(), rows.grad


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3, 0])
def test_gather_equals_concatenation_with_gradients(world_size: int) -> None:
    twin = _rows().requires_grad_()
    loss = _loss(twin, gather_of(SINGLE)(twin), 0)
    loss.backward()
    results = on_ranks(_on_rank, world_size, world_size == 2) if world_size else on_ranks(_on_uneven_rank, 3)
    for everything, _, _ in results:
        assert torch.equal(everything, twin.detach())
    assert sum(value for _, value, _ in results) == pytest.approx(loss.item(), rel=1e-5)
    assert twin.grad is not None
    torch.testing.assert_close(torch.cat([gradient for _, _, gradient in results]), twin.grad, rtol=1e-5, atol=1e-6)


def _in_blocks() -> tuple[list[float], list[float]]:
    """Ranks 0 and 1 share, rank 2 is alone: what it holds reaches nobody."""
    talk = collectives()
    talk.prepare([range(2), range(2, 3)])
    rows = torch.full((talk.rank + 1, 1), float(talk.rank), requires_grad=True)
    block, counts = (range(2), [1, 2]) if talk.rank < 2 else (range(2, 3), [3])
    everything = talk.gather_block(rows, block, counts)
    (everything * (1 + talk.rank)).sum().backward()
    assert rows.grad is not None
    return everything.flatten().tolist(), rows.grad.flatten().tolist()


def test_neighbours_share_their_rows() -> None:
    first, second, third = on_ranks(_in_blocks, 3)
    assert first == ([0.0, 1.0, 1.0], [3.0]) and second == ([0.0, 1.0, 1.0], [3.0, 3.0]), "of the sum over both"
    assert third == ([2.0] * 3, [3.0] * 3)


def _packed() -> tuple[list[list[int]], list[Tensor], Tensor, Tensor]:
    talk = collectives()
    mine = torch.tensor([talk.rank + 1.0], requires_grad=True)
    tensors = [torch.full((talk.rank, 2), 7 + talk.rank), mine.bfloat16(), torch.tensor([[talk.rank == 1]])]
    found = talk.gather_packed(tensors, [[0, 1, 2], [1, 1, 1], [1, 1, 1]])
    talk.barrier()
    return talk.numbers([talk.rank, -5]), found, talk.sum(mine), mine.detach()


def test_packed_tensors_of_any_type_numbers_and_sums() -> None:
    for rank, (numbers, found, total, mine) in enumerate(on_ranks(_packed, 3)):
        assert numbers == [[0, -5], [1, -5], [2, -5]]
        assert [values.tolist() for values in found] == [
            [[8, 8], [9, 9], [9, 9]],
            [1, 2, 3],
            [[False], [True], [False]],
        ]
        assert [values.dtype for values in found] == [torch.int64, torch.bfloat16, torch.bool]
        assert not any(values.requires_grad for values in found)
        assert total.tolist() == [6.0] and not total.requires_grad
        assert mine.tolist() == [rank + 1.0]  # sum does not write into its argument


def test_single_is_the_identity() -> None:
    rows = _rows().requires_grad_()
    assert SINGLE.gather_block(rows, range(1), [ROWS]) is rows
    assert torch.equal(SINGLE.gather_packed([rows], [[ROWS]])[0], rows) and SINGLE.numbers([3]) == [[3]]
    total = SINGLE.sum(rows)
    assert torch.equal(total, rows)
    assert not total.requires_grad
    assert (SINGLE.rank, SINGLE.world_size) == (0, 1)
    SINGLE.barrier()
    assert collectives() is SINGLE
