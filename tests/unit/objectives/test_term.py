from __future__ import annotations

import torch
from torch import Tensor

from cclm.objectives.term import make_term, shares


def test_shares_average_to_the_global_mean() -> None:
    ranks = [
        {"a": (torch.tensor(6.0), 2), "b": (torch.tensor(1.0), 1)},
        {"a": (torch.tensor(3.0), 4), "b": (torch.tensor(0.0), 0)},
    ]
    terms = [{name: make_term(total, count) for name, (total, count) in rank.items()} for rank in ranks]
    counts = torch.stack([torch.stack([term.count for term in rank.values()]) for rank in terms]).sum(0)
    found = [shares(rank, lambda _: counts, world_size=2) for rank in terms]
    assert torch.stack([rank["a"] for rank in found]).mean().item() == 9 / 6
    assert torch.stack([rank["b"] for rank in found]).mean().item() == 1.0


def test_one_process_divides_by_its_own_count() -> None:
    total = torch.tensor(6.0, requires_grad=True)
    share = shares({"a": make_term(total, 4)})["a"]
    share.backward()
    assert share.item() == 1.5
    assert total.grad is not None and total.grad.item() == 0.25


def test_one_collective_carries_all_counts() -> None:
    calls: list[Tensor] = []

    def record(counts: Tensor) -> Tensor:
        calls.append(counts)
        return counts

    shares({"a": make_term(torch.tensor(1.0), 3), "b": make_term(torch.tensor(1.0), 5)}, record)
    assert [call.tolist() for call in calls] == [[3.0, 5.0]]
    assert shares({}, record) == {}
    assert len(calls) == 1


def test_no_sample_anywhere_is_zero_not_nan() -> None:
    assert shares({"a": make_term(torch.tensor(0.0), 0)})["a"].item() == 0.0


def test_the_published_means_are_each_ranks_own() -> None:
    terms = {"a": make_term(torch.tensor(6.0), 4), "b": make_term(torch.tensor(0.0), 0)}
    own = shares(terms, lambda counts: counts * 100, 2, per_rank=True)
    assert {name: value.item() for name, value in own.items()} == {"a": 1.5, "b": 0.0}
