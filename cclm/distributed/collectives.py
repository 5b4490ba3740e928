"""The few collectives that a run needs.

    rank 0: x_BE ─┐
    rank 1: x_BE ─┼─ gather → x_NE on every rank (N = world size · B, rank order)
    rank 2: x_BE ─┘            backward: sum of every rank's gradient, own slice of it

One process holds all N rows already: there each of them is the identity (`SINGLE`), the slow twin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as torch_dist
from torch import Tensor

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Collectives:
    """What a process may ask of the other ranks. Every rank must make the same calls in the same order."""

    rank: int = 0
    world_size: int = 1
    equal_rows: bool = True
    """Whether every rank always gathers as many rows as the others; if not, each gather first asks for the numbers,
    which is one more (small) collective."""

    def gather(self, x_BE: Tensor) -> Tensor:
        """Rows of all ranks in rank order, [N, ...]; ranks may have different numbers of rows. Differentiable.

        The gradient is the true one: when the loss is the *sum* over ranks of what each rank computes from the
        gathered rows, each rank receives the derivative of that sum with respect to its own rows.
        """
        if self.world_size == 1:
            return x_BE
        rows = [x_BE.shape[0]] * self.world_size
        if not self.equal_rows:
            counts = torch.zeros(self.world_size, dtype=torch.int64, device=x_BE.device)
            counts[self.rank] = x_BE.shape[0]
            rows = self.sum(counts).tolist()
        gathered: Tensor = _Gather.apply(x_BE, rows)  # type: ignore[no-untyped-call]
        return gathered

    def sum(self, x: Tensor) -> Tensor:
        """Elementwise sum over the ranks, as a new tensor without gradient."""
        total = x.detach().clone(memory_format=torch.contiguous_format)
        if self.world_size > 1:
            torch_dist.all_reduce(total)
        return total

    def exchange(self, value: Value) -> list[Value]:
        """Return every rank's value, by rank; anything small that pickles."""
        values = [value] * self.world_size
        if self.world_size > 1:
            torch_dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        if self.world_size > 1:
            torch_dist.barrier()


SINGLE = Collectives()
"""The collectives of one process."""


def collectives(equal_rows: bool = True) -> Collectives:
    """The collectives that fit this process: over torch's process group if it spans several ranks, else `SINGLE`."""
    if not torch_dist.is_initialized() or torch_dist.get_world_size() == 1:
        return SINGLE
    return Collectives(rank=torch_dist.get_rank(), world_size=torch_dist.get_world_size(), equal_rows=equal_rows)


class _Gather(torch.autograd.Function):
    """All-gather whose backward is a reduce-scatter with sum (written as all-reduce, which gloo has)."""

    @staticmethod
    def forward(ctx: Any, x_BE: Tensor, rows: list[int]) -> Tensor:
        ctx.rows, longest = rows, max(rows)
        padding = x_BE.new_zeros(longest - x_BE.shape[0], *x_BE.shape[1:])  # gloo and NCCL want equal shapes
        pieces = [x_BE.new_empty(longest, *x_BE.shape[1:]) for _ in rows]
        torch_dist.all_gather(pieces, torch.cat([x_BE, padding]))
        return torch.cat([piece[:own] for piece, own in zip(pieces, rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient_NE: Tensor) -> tuple[Tensor, None]:
        total_NE = gradient_NE.clone(memory_format=torch.contiguous_format)
        torch_dist.all_reduce(total_NE)
        return torch.split(total_NE, ctx.rows)[torch_dist.get_rank()], None
