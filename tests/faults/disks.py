"""Disks that are full, that answer EIO once or for ever, or that are slow; a writer that is killed alone."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from cclm.run.causes import EXIT_CODES, Cause
from tests.faults import disk
from tests.faults.attempts import Fault
from tests.faults.campaign import Campaign, Disturbed
from tests.faults.disk import Trouble
from tests.faults.kills import killing

FOR_EVER = 10**9
MOST_OPERATIONS = 300
"""Of an attempt in its run folder, in which the moment lies."""
FULL, TRANSIENT = EXIT_CODES[Cause.DISK_FULL], EXIT_CODES[Cause.TRANSIENT]


def short_waits(rank: int) -> None:
    """Let a rank, and its writer, wait less before it tries again what storage has refused."""
    from cclm.run import causes
    from cclm.run.background import Writer

    causes.WAITS_S = disk.WAITS_S
    submit = Writer.submit
    Writer.submit = lambda writer, call: submit(writer, partial(disk.with_short_waits, call))  # type: ignore[method-assign]


def full(campaign: Campaign, number: int) -> None:
    """No room from some operation on, for a rank or for its writer, until the attempt is over."""
    _events(campaign, "disk full", number, frozenset({FULL}), lambda chance: Trouble(
        folder="", first=1, times=FOR_EVER, errno=chance.choice([errno.ENOSPC, errno.EDQUOT]), reads=False
    ))  # fmt: skip


def answers_eio(campaign: Campaign, number: int) -> None:
    """EIO for one or some operations, or for ever."""
    _events(campaign, "EIO", number, frozenset({TRANSIENT}), lambda chance: Trouble(
        folder="", first=1, times=chance.choice([1, 1, 2, FOR_EVER]), errno=errno.EIO
    ))  # fmt: skip


def slow(campaign: Campaign, number: int) -> None:
    """A pause before each of some operations: nothing ends, and nothing changes."""
    _events(campaign, "slow disk", number, frozenset(), lambda chance: Trouble(
        folder="", first=1, times=chance.randint(5, 15), pause_s=chance.uniform(0.05, 0.3)
    ))  # fmt: skip


def writer_killed(campaign: Campaign, number: int) -> None:
    """kill -9 of the process that writes, not of its rank: another one begins anew; after three the run ends."""
    chance, runs = campaign.random("writer killed"), Disturbed(campaign=campaign, kind="writer killed")
    for event in range(number):
        rank, first = event % 2, chance.randint(1, 12)
        faults = partial(killing, disk.in_writer, first, rank)
        runs.happens(f"rank {rank}'s, at its operation {first}", codes=frozenset(), faults=faults)
    runs.finish()


def _events(
    campaign: Campaign, kind: str, number: int, codes: frozenset[int], draw: Callable[[random.Random], Trouble]
) -> None:
    chance, runs = campaign.random(kind), Disturbed(campaign=campaign, kind=kind)
    for event in range(number):
        rank, is_writer, trouble = event % 2, chance.random() < 0.5, draw(chance)
        below = "checkpoints" if is_writer else chance.choice(["", "checkpoints"])
        first = chance.randint(1, MOST_OPERATIONS if below == "" else 40)
        trouble = replace(trouble, first=first)
        in_the_step = not is_writer and chance.random() < 0.5
        faults = partial(_below, below, trouble, disk.in_writer if is_writer else disk.in_rank, rank)
        what = f"rank {rank}{chr(39) + 's writer' if is_writer else ''}, {told(trouble)}, {below or 'run folder'}"
        more = ["--checkpoint.background", str(not in_the_step).lower()]
        runs.happens(what, codes=codes, faults=faults, more=more)
    runs.finish()


def _below(below: str, trouble: Trouble, place: Callable[..., None], rank: int, run: Path) -> list[Fault]:
    return [short_waits, partial(place, replace(trouble, folder=str(run / below)), rank)]


def told(trouble: Trouble) -> str:
    """Return a trouble in words."""
    what = errno.errorcode.get(trouble.errno, f"{1000 * trouble.pause_s:.0f} ms")
    times = "from" if trouble.times == FOR_EVER else f"{trouble.times} from"
    return f"{what}, {times} operation {trouble.first}"
