"""The rows of all ranks in tests: one whole tensor out of each rank's, with autograd's own gradient."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from cclm.distributed.collectives import Collectives
from cclm.ops.contrastive import AllRows

Gather = Callable[[Tensor], Tensor]


def gather_of(ranks: Collectives) -> Gather:
    """Concatenate in rank order, where all hold equally many rows."""
    return lambda own: ranks.gather_block(own, range(ranks.world_size), [len(own)] * ranks.world_size)


def all_rows(gather: Gather, first: Tensor, second: Tensor, identity_first: Tensor, identity_second: Tensor) -> AllRows:
    """What a contrastive loss needs of the other ranks."""
    tensors = first, second, identity_first, identity_second
    return AllRows(*map(gather, tensors), exchange=lambda row, column: (gather(row), gather(column)))
