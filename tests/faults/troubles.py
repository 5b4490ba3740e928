"""What happens inside a rank that trains, at a step: set up before the program begins, in the rank's own process.

Each function is a fault (`tests.faults.attempts.Fault`) once all but the rank's number is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.faults.disk import note

PLACES = ("loader", "forward", "save")


class UnforeseenError(Exception):
    """Raised where nobody expects it."""


def at(place: str, step: int, what: Callable[[], None], who: int, rank: int) -> None:
    """Do something in rank `who` at a step: before its batch is read, before its forward pass, or in the save after it.

    The save is the first one after `step` steps.
    """
    if rank != who:
        return
    from cclm.data.loader import StepDataset
    from cclm.engine.deepspeed.engine import DeepSpeedEngine

    if place == "loader":
        _before(StepDataset, "__getitem__", lambda _, number: number == step, what)
    elif place == "forward":
        _before(DeepSpeedEngine, "forward", lambda _, batch: batch.step == step, what)
    else:
        _before(DeepSpeedEngine, "share", lambda _, state: state["step"] >= step, what)


def raises() -> None:
    """Fail as nobody foresaw."""
    raise UnforeseenError("it was made to")


def sleeps(seconds: float) -> None:
    """Let the others wait."""
    time.sleep(seconds)


def little_patience(timeout_s: float, rank: int) -> None:
    """Let collectives wait less long for a rank that does not come."""
    from cclm.distributed.topology import process_group
    from cclm.train import build

    build.process_group = partial(process_group, timeout_s=timeout_s)  # type: ignore[assignment]


def not_finite(kinds: dict[int, str], who: int, rank: int) -> None:
    """NaN in rank `who` at some steps: in the "loss", the "gradient", the "input" or a "parameter"."""
    from cclm.engine.deepspeed.engine import DeepSpeedEngine
    from tests.fault import bad_at

    forward: Any = DeepSpeedEngine.forward
    for step, kind in kinds.items():
        forward = bad_at(forward, lambda number, step=step: number == step, kind, (who,))  # type: ignore[misc]
    DeepSpeedEngine.forward = forward  # type: ignore[method-assign]  # in this process, for good


def _before(owner: type, name: str, is_time: Callable[..., bool], what: Callable[[], None]) -> None:
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if is_time(*arguments, **options):
            note()
            what()
        return original(*arguments, **options)

    setattr(owner, name, wrapped)
