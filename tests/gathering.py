"""The rows of all ranks in tests: one whole tensor out of each rank's, with autograd's own gradient."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from cclm.distributed.collectives import Collectives
from cclm.objectives.contrastive import widen
from cclm.ops.contrastive import AllRows
from cclm.ops.contrastive_operator import log_sums

Gather = Callable[[Tensor], Tensor]


def gather_of(ranks: Collectives) -> Gather:
    """Concatenate in rank order, where all hold equally many rows."""
    return lambda own: ranks.gather_block(own, range(ranks.world_size), [len(own)] * ranks.world_size)


def all_rows(
    gather: Gather,
    first: Tensor,
    second: Tensor,
    identity_first: Tensor,
    identity_second: Tensor,
    temperature: Tensor,
    hardness: float | None = 0.0,
) -> AllRows:
    """What a contrastive loss needs of the other ranks; `hardness`: None for the sigmoid form."""
    rows = [gather(own) for own in (first, second, identity_first, identity_second)]
    if hardness is None:
        return AllRows(*rows)
    scale, own = 1 / temperature.detach()[0], []
    first_shown, second_shown = (identity_first, rows[3]), (identity_second, rows[2])
    for sides, shown in (((first, rows[1]), first_shown), ((second, rows[0]), second_shown)):
        own.append(log_sums(*(widen(side.detach()) for side in sides), scale, *shown, hardness=hardness))
    return AllRows(*rows, *((logs, gather(logs)) for logs in own))
