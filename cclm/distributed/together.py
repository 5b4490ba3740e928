"""Run something on every rank, exchange small results, and fail together: what saving and loading need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch.distributed as torch_dist

from cclm.errors import Cause, CclmError, CheckpointError
from cclm.run.causes import cause_of

ResultType = TypeVar("ResultType")
ADVICE = {
    Cause.DISK_FULL: "Free space; the same command goes on from the newest complete checkpoint.",
    Cause.TRANSIENT: "The same command goes on from the newest complete checkpoint, once the storage answers.",
}


class Ranks(Protocol):
    """Anything that knows its place among the ranks: an engine, collectives."""

    @property
    def rank(self) -> int:
        """This process's rank."""
        ...

    @property
    def world_size(self) -> int:
        """Number of processes."""
        ...


def on_every_rank(ranks: Ranks, action: Callable[[], ResultType], what: str) -> list[ResultType]:
    """Run `action` on every rank and return all results by rank; if one rank fails, every rank raises.

    Also a barrier: no rank returns before all have finished.

    Raises:
        CheckpointError: with the cause of the first rank that failed. A rank whose error is neither the storage's nor
            one of ours, but a bug, raises that itself, so that its traceback is seen.
    """
    result: ResultType | None = None
    error: Exception | None = None
    try:
        result = action()
    except Exception as caught:  # noqa: BLE001 - it is raised below, on every rank
        error = caught
    mine = (result, "" if error is None else f"{type(error).__name__}: {error}", _cause_of(error))
    told = [mine] * ranks.world_size
    if ranks.world_size > 1:
        torch_dist.all_gather_object(told, mine)
    failures = [(f"rank {rank}: {text}", cause) for rank, (_, text, cause) in enumerate(told) if text]
    if not failures:
        return [value for value, _, _ in told]  # type: ignore[misc]
    if error is not None and not isinstance(error, OSError | CclmError):
        raise error
    cause = failures[0][1]
    raise CheckpointError(
        expected=f"every rank to {what}",
        got="; ".join(text for text, _ in failures),
        do=ADVICE.get(
            cause, "Mend what the first rank named met; the same command goes on from the newest complete checkpoint."
        ),
        cause=cause,
    ) from error


def _cause_of(error: Exception | None) -> Cause:
    """Why a rank that fails like this ends: what storage refuses for good, a missing permission say, users mend."""
    found = Cause.DONE if error is None else cause_of(error)
    return Cause.USER_ERROR if found is Cause.EXIT and isinstance(error, OSError) else found
