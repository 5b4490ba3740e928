"""The rows of all ranks in tests: one whole tensor out of each rank's, with autograd's own gradient."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from cclm.distributed.collectives import Collectives
from cclm.objectives.contrastive import widen
from cclm.ops.contrastive import AllRows, log_sums

Gather = Callable[[Tensor], Tensor]


def gather_of(ranks: Collectives) -> Gather:
    """Concatenate in rank order, where all hold equally many rows."""
    return lambda own: ranks.gather_block(own, range(ranks.world_size), [len(own)] * ranks.world_size)


def all_rows(
    gather: Gather, first: Tensor, second: Tensor, identity_first: Tensor, identity_second: Tensor, temperature: Tensor
) -> AllRows:
    """What a contrastive loss needs of the other ranks."""
    rows = [gather(own) for own in (first, second, identity_first, identity_second)]
    own = [
        log_sums(*(widen(side.detach()) for side in sides), 1 / temperature.detach()[0])
        for sides in ((first, rows[1]), (second, rows[0]))
    ]
    return AllRows(*rows, *((logs, gather(logs)) for logs in own))  # type: ignore[arg-type]
