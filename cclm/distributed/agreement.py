"""Do all ranks do the same, and do all succeed? A disagreement would hang in a later collective.

Ranks that run different modules, or gather other numbers of rows than the others expect, wait for each other for
ever. So each rank sends hashes of what must be equal (its configuration; the step and the structure of the batch); only
when they differ are the full texts exchanged, and every rank raises the same sentence. In the same way all ranks fail
when one of them does (`on_every_rank`): what saving and loading need.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import IntFlag
from functools import reduce
from operator import or_
from typing import TypeVar

from torch import Tensor

from cclm.distributed.collectives import Collectives
from cclm.errors import Cause, CclmError, CheckpointError, ConfigError
from cclm.run.causes import cause_of

Value = TypeVar("Value")

GO_ON = "the same command goes on from the newest complete checkpoint"
ADVICE = {Cause.DISK_FULL: f"Free space; {GO_ON}.", Cause.TRANSIENT: f"Once the storage answers, {GO_ON}."}


def check_same_values(ranks: Collectives, values: Mapping[str, str]) -> None:
    """Raise ConfigError on every rank if a value differs; call it with the same names on every rank. One collective of
    as many integers as values (CPU tensors, so no GPU waits); nothing with one process."""
    found = ranks.numbers([hash63(text) for text in values.values()])
    if any(numbers != found[0] for numbers in found):
        raise _disagreement(ranks, values)


def first_difference(ranks: Collectives, what: str, own: Sequence[str]) -> str:
    """Say where the ranks' lists differ first, and what stands there on which of them; "" if they are equal. A
    collective."""
    everyone = ranks.exchange(list(own))
    for number in range(max(map(len, everyone))):
        found = [{f"{what} {number + 1}": of[number] if number < len(of) else "none"} for of in everyone]
        if lines := _differences(found):
            return lines[0]
    return ""


def _disagreement(ranks: Collectives, values: Mapping[str, str], explain: Callable[[], str] = str) -> ConfigError:
    got = [*_differences(ranks.exchange(dict(values))), explain()]
    return ConfigError(
        expected=f"the same {', '.join(values)} on every rank",
        got="; ".join(filter(None, got)),
        do="Start all ranks with the same command, files and environment, and let all resume from the same checkpoint.",
        where="agreement of ranks",
    )


class Request(IntFlag):
    """What a rank is asked for between two steps, and what it says of itself; any rank's counts for all."""

    NOTHING = 0
    SAVE = 1
    STOP = 2
    """And save."""
    WRITING = 4
    """Its share of a checkpoint is not on disk yet."""


def agree_on_step(
    ranks: Collectives,
    step: int,
    batch: object,
    request: Request,
    known: Mapping[str, str] | None = None,
    *,
    figures: Sequence[int] = (),
    hear: Callable[[list[list[int]]], object] = lambda ranks: None,
    explain: Callable[[], str] = lambda: "",
) -> Request:
    """Return what any rank is asked for or says before this step; unless it is to stop, raise ConfigError on every rank
    if they differ in step, structure of the batch (its views, too), or something `known` (by what it is called);
    `explain`, a collective, says more then. `figures` travel along, as many on each rank; `hear` is given those of all.
    One small collective."""
    if ranks.world_size == 1:
        return request
    values = {"step": str(step), "batch structure": batch_structure(batch), **(known or {})}
    found = ranks.numbers([request, *figures, *map(hash63, values.values())])
    asked, behind = reduce(or_, (Request(number) for number, *_ in found)), 1 + len(figures)
    hear([row[1:behind] for row in found])
    if Request.STOP not in asked and any(row[behind:] != found[0][behind:] for row in found):
        raise _disagreement(ranks, values, explain)
    return asked  # a rank that is asked to stop while it waits for its batch has none


def made_by_first(ranks: Collectives, make: Callable[[], Value]) -> Value:
    """Let rank 0 make a value for all ranks: only one of them asks the network, and all have the same answer. What
    CclmError `make` raises, is raised on every rank."""
    made: Value | CclmError | None = None
    if ranks.rank == 0:
        try:
            made = make()
        except CclmError as error:
            made = error
    found = ranks.exchange(made)[0]
    if isinstance(found, CclmError):
        raise found
    assert found is not None, "rank 0 makes a value or an error"
    return found


def on_every_rank(ranks: Collectives, action: Callable[[], Value], what: str) -> list[Value]:
    """Run `action` on every rank and return all results by rank. A barrier, too: no rank returns before all have
    finished. If one fails, raise CheckpointError on every rank, with the cause of the first that failed; a rank whose
    error is a bug, neither the storage's nor one of ours, raises that itself, so that its traceback is seen."""
    result: Value | None = None
    error: Exception | None = None
    try:
        result = action()
    except Exception as caught:  # noqa: BLE001 - it is raised below, on every rank
        error = caught
    told = ranks.exchange((result, "" if error is None else f"{type(error).__name__}: {error}", _cause_of(error)))
    failures = [(f"rank {rank}: {text}", cause) for rank, (_, text, cause) in enumerate(told) if text]
    if not failures:
        return [value for value, _, _ in told]  # type: ignore[misc]
    if error is not None and not isinstance(error, OSError | CclmError):
        raise error
    cause = failures[0][1]
    raise CheckpointError(
        expected=f"every rank to {what}",
        got="; ".join(text for text, _ in failures),
        do=ADVICE.get(cause, f"Mend what the first rank named met; {GO_ON}."),
        cause=cause,
    ) from error


def _cause_of(error: Exception | None) -> Cause:
    """Why a rank that fails like this ends: what storage refuses for good, a missing permission say, users mend."""
    found = Cause.DONE if error is None else cause_of(error)
    return Cause.USER_ERROR if found is Cause.EXIT and isinstance(error, OSError) else found


def batch_structure(value: object) -> str:
    """A text that is equal for two batches exactly if ranks may run them side by side; numbers of rows may differ."""
    if isinstance(value, Tensor):
        return f"{value.dtype}:{value.ndim}d".removeprefix("torch.")
    if is_dataclass(value) and not isinstance(value, type):
        items = ((item.name, getattr(value, item.name)) for item in fields(value))
        parts = [f"{name}={batch_structure(item)}" for name, item in items if _is_structure(item)]
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}={batch_structure(item)}" for key, item in value.items()) + "}"
    return type(value).__name__


def _is_structure(value: object) -> bool:
    return value is None or isinstance(value, Tensor | Mapping) or is_dataclass(value)


def hash63(text: str) -> int:
    """Return a number for a text that torch's int64 and its generators take."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _differences(everyone: Sequence[Mapping[str, str]]) -> list[str]:
    lines = []
    for what in everyone[0]:
        ranks_by_value: dict[str, list[int]] = {}
        for rank, values in enumerate(everyone):
            ranks_by_value.setdefault(values[what], []).append(rank)
        if len(ranks_by_value) > 1:
            told = ", ".join(f"{value} on {_name_ranks(ranks)}" for value, ranks in ranks_by_value.items())
            lines.append(f"{what} {told}")
    return lines


def _name_ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f", … ({len(ranks)} ranks)" if len(ranks) > 8 else "")
    return ("rank " if len(ranks) == 1 else "ranks ") + shown
