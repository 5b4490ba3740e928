"""The few collectives that the training step needs.

    rank 0: x_BE ─┐
    rank 1: x_BE ─┼─ gather → x_NE on every rank (N = world size · B, rank order)
    rank 2: x_BE ─┘            backward: sum of every rank's gradient, own slice of it

The slow twin of `gather` is concatenation in one process: there `gather` is the identity, because one process holds
all N rows already (`SINGLE`).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as torch_dist
from torch import Tensor


class Collectives(Protocol):
    """What a step may ask of the other ranks. Every rank must make the same calls in the same order."""

    @property
    def rank(self) -> int:
        """This process's rank."""
        ...

    @property
    def world_size(self) -> int:
        """Number of processes."""
        ...

    @property
    def equal_rows(self) -> bool:
        """Whether every rank always gathers as many rows as the others."""
        ...

    def gather(self, x_BE: Tensor) -> Tensor:
        """Rows of all ranks in rank order, [N, ...]; ranks may have different numbers of rows. Differentiable.

        The gradient is the true one: when the loss is the *sum* over ranks of what each rank computes from the
        gathered rows, each rank receives the derivative of that sum with respect to its own rows.
        """
        ...

    def sum(self, x: Tensor) -> Tensor:
        """Elementwise sum over the ranks, as a new tensor without gradient."""
        ...

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        ...


class SingleProcess:
    """The twin for one process that holds the whole global batch: everything is the identity."""

    rank = 0
    world_size = 1
    equal_rows = True

    def gather(self, x_BE: Tensor) -> Tensor:
        """Return `x_BE` itself."""
        return x_BE

    def sum(self, x: Tensor) -> Tensor:
        """Return `x` without gradient."""
        return x.detach().clone()

    def barrier(self) -> None:
        """Return at once."""


SINGLE: Collectives = SingleProcess()
"""The collectives of one process."""


class ProcessGroupCollectives:
    """Collectives over torch.distributed's default process group (see `topology.process_group`).

    Args:
        equal_rows: every rank always gathers as many rows as the others; if not, each gather first asks for the
            numbers, which is one more (small) collective.
    """

    def __init__(self, equal_rows: bool = True) -> None:
        self.equal_rows = equal_rows
        self.rank = torch_dist.get_rank()
        self.world_size = torch_dist.get_world_size()

    def gather(self, x_BE: Tensor) -> Tensor:
        """Concatenate the rows of all ranks; see `Collectives.gather`."""
        own = x_BE.shape[0]
        rows = [own] * self.world_size if self.equal_rows else self._rows_of_all(x_BE)
        gathered: Tensor = _Gather.apply(x_BE, tuple(rows))  # type: ignore[no-untyped-call]
        return gathered

    def _rows_of_all(self, x_BE: Tensor) -> list[int]:
        counts = torch.zeros(self.world_size, dtype=torch.int64, device=x_BE.device)
        counts[self.rank] = x_BE.shape[0]
        torch_dist.all_reduce(counts)
        rows: list[int] = counts.tolist()
        return rows

    def sum(self, x: Tensor) -> Tensor:
        """All-reduce with sum."""
        total = x.detach().clone(memory_format=torch.contiguous_format)
        torch_dist.all_reduce(total)
        return total

    def barrier(self) -> None:
        """Wait for all ranks."""
        torch_dist.barrier()


def collectives(equal_rows: bool = True) -> Collectives:
    """The collectives that fit this process: over the process group if it spans several ranks, else `SINGLE`."""
    if torch_dist.is_available() and torch_dist.is_initialized() and torch_dist.get_world_size() > 1:
        return ProcessGroupCollectives(equal_rows)
    return SINGLE


class _Gather(torch.autograd.Function):
    """All-gather whose backward is a reduce-scatter with sum (written as all-reduce, which gloo has)."""

    @staticmethod
    def forward(ctx: Any, x_BE: Tensor, rows: tuple[int, ...]) -> Tensor:
        ctx.rows, longest = rows, max(rows)
        padding = x_BE.new_zeros(longest - x_BE.shape[0], *x_BE.shape[1:])  # gloo and NCCL want equal shapes
        pieces = [x_BE.new_empty(longest, *x_BE.shape[1:]) for _ in rows]
        torch_dist.all_gather(pieces, torch.cat([x_BE, padding]))
        return torch.cat([piece[:own] for piece, own in zip(pieces, rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient_NE: Tensor) -> tuple[Tensor, None]:
        total_NE = gradient_NE.clone(memory_format=torch.contiguous_format)
        torch_dist.all_reduce(total_NE)
        rank = torch_dist.get_rank()
        start = sum(ctx.rows[:rank])
        return total_NE[start : start + ctx.rows[rank]], None
