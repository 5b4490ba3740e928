"""Rows for the fusion encoder, and how wrong partners are drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from cclm.data.batch import MaskedTokens, Tokens, ViewBatch
from cclm.views.rows import FusionRows, draw_matching, memories_of, select, stop_gradient


def batch_of(row_F: Tensor, noise_second_FG: Tensor, noise_first_FG: Tensor) -> ViewBatch:
    none = torch.zeros(0)
    return ViewBatch(
        matching_row_F=row_F,
        noise_second_FG=noise_second_FG,
        noise_first_FG=noise_first_FG,
        masked=MaskedTokens(tokens=Tokens(ids_BL=none, mask_BL=none), slot_T=none, label_T=none),
        ledger_S=none,
    )


def test_negatives_stay_in_their_group_and_differ_in_identity() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(12, 4, generator=generator), torch.randn(12, 4, generator=generator)
    identity_B = torch.tensor([0, 0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9])
    row_F = torch.tensor([0, 1, 6, 7])
    noise: Tensor = torch.zeros(4, 6)
    batch = batch_of(row_F, noise, noise)
    (*right, drawn_second), (own, drawn_first, also_own) = (
        side.split(4) for side in draw_matching(first, second, identity_B, batch, torch.ones(1), 1.0)
    )
    assert all(torch.equal(side, row_F) for side in (*right, own, also_own))
    for drawn, similarity in ((drawn_second, first[row_F] @ second.T), (drawn_first, second[row_F] @ first.T)):
        assert torch.equal(drawn // 6, row_F // 6)
        assert (identity_B[drawn] != identity_B[row_F]).all()
        similarity[:2, 6:] = similarity[2:, :6] = -torch.inf
        similarity[identity_B[row_F][:, None] == identity_B[None]] = -torch.inf
        assert torch.equal(drawn, similarity.argmax(1)), "without noise the hardest candidate is drawn"


def test_the_noise_of_each_side_is_its_own() -> None:
    """Features that are all alike leave the draw to the noise."""
    same, row_F = torch.ones(6, 2), torch.tensor([0, 3])
    chosen = torch.full((2, 3), -torch.inf)
    second, first = chosen.clone(), chosen.clone()
    second[:, 1], first[:, 2] = 0.0, 0.0
    query, memory = draw_matching(same, same, torch.arange(6), batch_of(row_F, second, first), torch.ones(1), 1.0)
    assert query.tolist() == [0, 3, 0, 3, 1, 4] and memory.tolist() == [0, 3, 2, 5, 0, 3]


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
