"""kill -9 of each rank in turn: at any moment, in the middle of a save, while its share is written behind a step."""

from __future__ import annotations

import math
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.faults import disk
from tests.faults.attempts import Attempt, Disturb, Fault
from tests.faults.campaign import KILLED, Campaign, Disturbed
from tests.faults.disk import KILL, Trouble

WHOLE_S = 2.5
"""In which a moment lies."""
TRAINING = 0.7
"""Share of the moments that are counted from the first step; the others from the start, which takes a second."""
MOST_OPERATIONS = 40
"""Of an attempt on the disk of its checkpoints, in which the moment lies; a checkpoint has some five."""
KILLS = frozenset({KILLED})


def at_any_moment(campaign: Campaign, number: int) -> None:
    """Whatever the rank does then."""
    chance, runs = campaign.random("kill"), Disturbed(campaign=campaign, kind="kill")
    for event in range(number):
        rank, (*when, words) = event % 2, moment(chance)
        runs.happens(f"rank {rank} {words}", codes=KILLS, disturb=partial(sending, signal.SIGKILL, *when, rank))
    runs.finish()


def in_a_save(campaign: Campaign, number: int) -> None:
    """At an operation of the rank on the disk, while it writes its checkpoints in the step."""
    chance, runs = campaign.random("kill in a save"), Disturbed(campaign=campaign, kind="kill in a save")
    for event in range(number):
        rank, first = event % 2, chance.randint(1, MOST_OPERATIONS)
        faults = partial(killing, disk.in_rank, first, rank)
        what, in_the_step = f"rank {rank} at its operation {first}", ["--checkpoint.background", "false"]
        runs.happens(what, codes=KILLS, faults=faults, more=in_the_step)
    runs.finish()


def behind_a_step(campaign: Campaign, number: int) -> None:
    """At an operation of the process that writes the rank's share."""
    chance, runs = campaign.random("kill in a write"), Disturbed(campaign=campaign, kind="kill in a write")
    for event in range(number):
        rank, first = event % 2, chance.randint(1, MOST_OPERATIONS)
        faults = partial(killing, partial(disk.in_writer, kills_rank=True), first, rank)
        runs.happens(f"rank {rank} at operation {first} of its writer", codes=KILLS, faults=faults)
    runs.finish()


def killing(place: Callable[..., None], first: int, rank: int, run: Path) -> list[Fault]:
    """Return the fault: kill -9 at an operation on the disk of a run's checkpoints."""
    return [partial(place, Trouble(folder=str(run / "checkpoints"), first=first, errno=KILL), rank)]


def moment(chance: random.Random) -> tuple[float, bool, str]:
    """Draw a moment: so long after the start, or after all ranks have begun to train; and its words."""
    after_s, is_training = chance.uniform(0.0, WHOLE_S), chance.random() < TRAINING
    return after_s, is_training, f"{after_s:.2f} s after the {'first step' if is_training else 'start'}"


def sending(number: int, after_s: float, is_training: bool, rank: int | None = None) -> Disturb:
    """Send a signal to one rank, or all, at a moment."""
    at = list[float]()

    def send(attempt: Attempt) -> None:
        if not at and (attempt.trains if is_training else True):
            at.append((time.monotonic() if is_training else attempt.began) + after_s)
        if at and time.monotonic() >= at[0]:
            at[0] = math.inf
            attempt.send(number, rank)

    return send
