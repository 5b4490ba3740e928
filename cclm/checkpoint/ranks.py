"""What saving and loading need of the other ranks: exchange small objects, fail together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as torch_dist

from cclm.engine.protocol import Engine
from cclm.errors import CheckpointError

ResultType = TypeVar("ResultType")


def on_every_rank(engine: Engine, action: Callable[[], ResultType], what: str) -> list[ResultType]:
    """Run `action` on every rank and return all results by rank; if one rank fails, every rank raises.

    Also a barrier: no rank returns before all have finished.
    """
    result: ResultType | None = None
    error: Exception | None = None
    try:
        result = action()
    except Exception as caught:  # noqa: BLE001 - it is raised below, on every rank
        error = caught
    if engine.world_size == 1:
        if error is not None:
            raise error
        return [result]  # type: ignore[list-item]
    told: list[tuple[ResultType | None, str]] = [(None, "")] * engine.world_size
    torch_dist.all_gather_object(told, (result, "" if error is None else f"{type(error).__name__}: {error}"))
    failures = [f"rank {rank}: {text}" for rank, (_, text) in enumerate(told) if text]
    if failures:
        raise CheckpointError(
            expected=f"every rank to {what}",
            got="; ".join(failures),
            do="See the message of the first rank named.",
        ) from error
    return [value for value, _ in told]  # type: ignore[misc]
