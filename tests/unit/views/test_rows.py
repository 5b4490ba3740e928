"""Rows for the fusion encoder."""

from __future__ import annotations

import torch

from cclm.views.rows import FusionRows, memories_of, select, stop_gradient


def rows(count: int, length: int, memory: int | None) -> FusionRows:
    return FusionRows(
        query=(torch.ones(count, length, 4), torch.ones(count, length, dtype=torch.bool)),
        memory=None if memory is None else (torch.full((count, memory, 4), 2.0), torch.ones(count, memory).bool()),
    )


def test_rows_without_a_memory_are_marked() -> None:
    assert memories_of([rows(2, 3, None)]) is None
    found = memories_of([rows(2, 3, 5), rows(1, 3, None)])
    assert found is not None
    memories, has_memory = found
    assert has_memory.tolist() == [True, True, False]
    assert [tuple(states.shape) for states, _ in memories] == [(2, 5, 4), (1, 1, 4)]
    assert not memories[1][0].any()


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
