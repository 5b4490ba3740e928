"""The few collectives that a run needs.

    numbers     small integers of the host                                       → of every rank
    everything  features and identities of all rows of all views, packed         → contrastive losses, hard negatives
    block       rows of neighbouring ranks that share negative groups, with their gradient

How many rows each rank holds is known before, so that ranks may hold different numbers of them and no device is waited
for. One process holds all rows already: there each of them is the identity (`SINGLE`), the slow twin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as torch_dist
from torch import Tensor
from torch.nn import functional

Value = TypeVar("Value")

TIMEOUT_S = 1800.0
"""How long a collective may wait for the other ranks."""


@dataclass(frozen=True, kw_only=True)
class Collectives:
    """What a process may ask of the other ranks. Every rank must make the same calls in the same order."""

    rank: int = 0
    world_size: int = 1
    _blocks: dict[range, Any] = field(default_factory=dict)
    """Process groups of blocks of ranks; all ranks are a block from the start."""

    def numbers(self, own: Sequence[int]) -> list[list[int]]:
        """Integers of every rank, by rank; as many on each. On the CPU, so that no GPU waits."""
        if self.world_size == 1:
            return [list(own)]
        mine = torch.tensor(own, dtype=torch.int64)
        everyone = [torch.empty_like(mine) for _ in range(self.world_size)]
        torch_dist.all_gather(everyone, mine)
        return [numbers.tolist() for numbers in everyone]

    def gather_packed(self, tensors: Sequence[Tensor], rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """Rows of all ranks in rank order, of several tensors [n, …] of any types, in one collective; without gradient.
        `rows`: for each tensor how many rows every rank holds."""
        if self.world_size == 1:
            return [tensor.detach() for tensor in tensors]
        strides = [math.prod(tensor.shape[1:]) * tensor.element_size() for tensor in tensors]
        sizes = [
            [stride * of[rank] for stride, of in zip(strides, rows, strict=True)] for rank in range(self.world_size)
        ]
        packed = torch.cat([tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in tensors])
        longest = max(map(sum, sizes))
        everyone = [packed.new_empty(longest) for _ in sizes]  # gloo and NCCL want equal shapes
        torch_dist.all_gather(everyone, functional.pad(packed, (0, longest - packed.shape[0])))
        pieces = [torch.split(own[: sum(size)], size) for own, size in zip(everyone, sizes, strict=True)]
        return [
            torch.cat([of_rank[index] for of_rank in pieces]).view(tensor.dtype).view(-1, *tensor.shape[1:])
            for index, tensor in enumerate(tensors)
        ]

    def gather_block(self, x: Tensor, ranks: range, rows: Sequence[int]) -> Tensor:
        """Rows of neighbouring `ranks` (this one among them, the same for all of them, made known by `prepare`) in rank
        order, [Σ rows, …]; `rows`: how many each of them holds. Differentiable, with the true gradient: when the loss
        is the *sum* over ranks of what each computes from the gathered rows, each receives the derivative of that sum
        with respect to its own rows."""
        if len(ranks) == 1:
            return x
        group = None if len(ranks) == self.world_size else self._blocks[ranks]
        gathered: Tensor = _GatherBlock.apply(x, group, ranks.index(self.rank), tuple(rows))  # type: ignore[no-untyped-call]
        return gathered

    def prepare(self, blocks: Sequence[range]) -> None:
        """Make a process group of the block that this rank is in; every rank calls it with the same blocks."""
        for ranks in blocks:
            if self.rank in ranks and 1 < len(ranks) < self.world_size and ranks not in self._blocks:
                self._blocks[ranks] = torch_dist.new_group(
                    list(ranks), timeout=timedelta(seconds=TIMEOUT_S), use_local_synchronization=True
                )

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


def collectives() -> Collectives:
    """The collectives that fit this process: over torch's process group if it spans several ranks, else `SINGLE`."""
    if not torch_dist.is_initialized() or torch_dist.get_world_size() == 1:
        return SINGLE
    return Collectives(rank=torch_dist.get_rank(), world_size=torch_dist.get_world_size())


class _GatherBlock(torch.autograd.Function):
    """All-gather whose backward is a reduce-scatter with sum. Ranks with fewer rows send padding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any, place: int, rows: tuple[int, ...]) -> Tensor:
        ctx.group, ctx.place, ctx.rows = group, place, rows
        own = _padded(x, max(rows))
        everyone = [torch.empty_like(own) for _ in rows]
        torch_dist.all_gather(everyone, own, group=group)
        return torch.cat([part[:count] for part, count in zip(everyone, rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        longest, parts = max(ctx.rows), gradient.contiguous()
        if min(ctx.rows) < longest:
            parts = torch.cat([_padded(part, longest) for part in torch.split(gradient, ctx.rows)])
        own = torch.empty_like(parts[:longest])
        reduce_scatter(own, parts, ctx.group)
        return own[: ctx.rows[ctx.place]], None, None, None


def reduce_scatter(own: Tensor, parts: Tensor, group: Any = None) -> None:
    """Write the sum over ranks of this rank's part to `own`, contiguous, which may lie in `parts`: one for each rank of
    torch's process group (None: all ranks), in a row, each of own's size. On CPUs (gloo) the parts travel to their
    ranks, which add them up: torch would reduce a copy of all on every rank."""
    world_size = torch_dist.get_world_size(group)
    parts = parts.view(world_size, *own.shape)
    if own.device.type != "cpu":
        torch_dist.reduce_scatter(own, list(parts), group=group)
    elif world_size > 1:
        everyones = torch.empty_like(parts)
        torch_dist.all_to_all_single(everyones, parts, group=group)
        torch.sum(everyones, dim=0, out=own)


def _padded(x: Tensor, length: int) -> Tensor:
    """Rows of zeros behind it, up to a length; contiguous."""
    return torch.cat([x, x.new_zeros(length - x.shape[0], *x.shape[1:])]) if x.shape[0] < length else x.contiguous()
