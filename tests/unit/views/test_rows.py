"""Rows for the fusion encoder."""

from __future__ import annotations

import torch

from cclm.views.view import FusionRows, memories_of, select, stop_gradient


def rows(count: int, length: int, memory: tuple[torch.Tensor, torch.Tensor] | None, *read: int) -> FusionRows:
    return FusionRows(
        query=(torch.ones(count, length, 4), torch.ones(count, length, dtype=torch.bool)),
        memory=memory,
        memory_row_F=None if memory is None else torch.tensor(read),
    )


def test_a_memory_stands_once_however_many_read_it() -> None:
    assert memories_of([rows(2, 3, None)]) is None
    first, second = ((torch.full((size, 5, 4), 2.0), torch.ones(size, 5).bool()) for size in (3, 2))
    found = memories_of([rows(2, 3, first, 0, 2), rows(1, 3, None), rows(2, 3, second, 1, 1), rows(1, 3, first, 1)])
    assert found is not None
    memories, memory_of, reads = found
    assert len(memories) == 2 and memories[0][0] is first[0] and memories[1][0] is second[0]
    assert memory_of.tolist() == [0, 2, 0, 4, 4, 1]
    assert reads is not None and reads.tolist() == [True, True, False, True, True, True]
    alone = memories_of([rows(2, 3, first, 0, 2)])
    assert alone is not None and alone[-1] is None, "all rows read"


def test_rows_are_picked_with_their_masks() -> None:
    states, mask = select((torch.arange(3.0)[:, None, None].expand(3, 2, 1), torch.eye(3, 2) > 0), torch.tensor([2, 0]))
    assert states[:, 0, 0].tolist() == [2, 0] and mask.tolist() == [[False, False], [True, False]]
    assert FusionRows(query=(states, mask)).count == 2


def test_a_stopped_gradient_is_zero_and_not_absent() -> None:
    value = torch.tensor([3.0], requires_grad=True)
    stopped = stop_gradient(value)
    assert stopped.tolist() == [3.0] and stopped.requires_grad
    stopped.sum().backward()
    assert value.grad is not None and value.grad.tolist() == [0.0]
