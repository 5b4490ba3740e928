"""kill -9 of each rank in turn: at any moment, in the middle of a save, and while its share is written behind a step."""

from __future__ import annotations

import signal
import time
from functools import partial

from tests.faults import disk
from tests.faults.attempts import Attempt, Disturb
from tests.faults.campaign import KILLED, Campaign, Disturbed
from tests.faults.disk import KILL, Trouble

WHOLE_S = 3.0
"""Of an attempt, in which the moment lies: a start takes one second of it."""
MOST_OPERATIONS = 40
"""Of an attempt on the disk of its checkpoints, in which the moment lies; a checkpoint has some five."""
KILLS = frozenset({KILLED})


def at_any_moment(campaign: Campaign, number: int) -> None:
    """A moment between the start of a process and, mostly, the middle of its run."""
    chance, runs = campaign.random("kill"), Disturbed(campaign=campaign, kind="kill")
    for event in range(number):
        rank, after_s = event % 2, chance.uniform(0.0, WHOLE_S)
        runs.happens(f"rank {rank} after {after_s:.2f} s", codes=KILLS, disturb=sending(signal.SIGKILL, after_s, rank))
    runs.finish()


def in_a_save(campaign: Campaign, number: int) -> None:
    """At an operation of the rank on the disk, while it writes its checkpoints in the step."""
    chance, runs = campaign.random("kill in a save"), Disturbed(campaign=campaign, kind="kill in a save")
    for event in range(number):
        rank, first = event % 2, chance.randint(1, MOST_OPERATIONS)
        trouble = Trouble(folder=str(runs.present / "checkpoints"), first=first, errno=KILL)
        fault = partial(disk.in_rank, trouble, rank)
        what, in_the_step = f"rank {rank} at its operation {first}", ["--checkpoint.background", "false"]
        runs.happens(what, codes=KILLS, faults=[fault], more=in_the_step)
    runs.finish()


def behind_a_step(campaign: Campaign, number: int) -> None:
    """At an operation of the process that writes the rank's share."""
    chance, runs = campaign.random("kill in a write"), Disturbed(campaign=campaign, kind="kill in a write")
    for event in range(number):
        rank, first = event % 2, chance.randint(1, MOST_OPERATIONS)
        trouble = Trouble(folder=str(runs.present / "checkpoints"), first=first, errno=KILL)
        fault = partial(disk.in_writer, trouble, rank, kills_rank=True)
        runs.happens(f"rank {rank} at operation {first} of its writer", codes=KILLS, faults=[fault])
    runs.finish()


def sending(number: int, after_s: float, rank: int | None = None) -> Disturb:
    """Send a signal to one rank, or all, so long after the start."""
    sent = list[float]()

    def send(attempt: Attempt) -> None:
        if not sent and time.monotonic() - attempt.began >= after_s:
            sent.append(after_s)
            attempt.send(number, rank)

    return send
