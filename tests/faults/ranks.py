"""One rank that is late, that hangs, that has another configuration, or that raises: the others never wait for ever."""

from __future__ import annotations

import signal
import time
from functools import partial

from cclm.run.causes import EXIT_CODES, Cause
from tests.faults import troubles
from tests.faults.attempts import Attempt
from tests.faults.campaign import Campaign, Disturbed
from tests.faults.kills import sending

MOST_S = 2.0
"""By which a rank is late."""
PATIENCE_S = 4.0
"""Of the other ranks, for one that hangs; training has half an hour."""
OTHERS = {
    "learning rate": ["--optimizer.learning_rate", "0.001"],
    "micro-batches": ["--data.micro_batches", "2"],
    "length": ["--optimizer.total_steps", "1000"],
    "views": ["--views.text_pair.pairs_per_sample", "1"],
}
"""What one rank has otherwise."""


def late(campaign: Campaign, number: int) -> None:
    """A rank is late at some step, or stands still for a while: nothing ends, and nothing changes."""
    chance, runs = campaign.random("late"), Disturbed(campaign=campaign, kind="late")
    for event in range(number):
        rank, seconds, step = event % 2, chance.uniform(0.5, MOST_S), chance.randrange(campaign.steps)
        place = (*troubles.PLACES, "stopped")[event % 4]
        if place == "stopped":
            runs.happens(
                f"rank {rank}, SIGSTOP for {seconds:.1f} s", codes=frozenset(), disturb=partial(Pause, rank, seconds)
            )
            continue
        fault = partial(troubles.at, place, step, partial(troubles.sleeps, seconds), rank)
        runs.happens(
            f"rank {rank} by {seconds:.1f} s in {place}, step {step}",
            codes=frozenset(),
            faults=lambda run, fault=fault: [fault],
        )
    runs.finish()


def hung(campaign: Campaign, number: int) -> None:
    """A rank hangs for ever: the collective of the others gives up, or who watches ends them."""
    chance, runs = campaign.random("hung"), Disturbed(campaign=campaign, kind="hung")
    codes = frozenset(EXIT_CODES.values())  # which of them is the business of who watches
    patience = partial(troubles.little_patience, PATIENCE_S)
    for event in range(number):
        rank, step, place = event % 2, chance.randrange(campaign.steps // 2), troubles.PLACES[event % 3]
        fault = partial(troubles.at, place, step, partial(troubles.sleeps, 10_000.0), rank)
        runs.happens(
            f"rank {rank} in {place}, step {step}", codes=codes, faults=lambda run, fault=fault: [patience, fault]
        )
    runs.finish()


def other_configuration(campaign: Campaign, number: int) -> None:
    """A rank was started with other settings: all say so, before anything is done."""
    runs = Disturbed(campaign=campaign, kind="other settings")
    codes = frozenset({EXIT_CODES[Cause.USER_ERROR]})
    runs.happens("none; TERM to all ranks", codes=frozenset(), disturb=partial(sending, signal.SIGTERM, 0.5, True))
    for event in range(number):
        name = list(OTHERS)[event % len(OTHERS)]
        runs.happens(f"{name} of rank {event % 2}", codes=codes, of_rank={event % 2: OTHERS[name]}, is_certain=True)
    runs.finish()


def raising(campaign: Campaign, number: int) -> None:
    """A rank meets an error that nobody foresaw."""
    chance, runs = campaign.random("raises"), Disturbed(campaign=campaign, kind="raises")
    codes = frozenset(EXIT_CODES.values())
    for event in range(number):
        rank, step, place = event % 2, chance.randrange(campaign.steps), troubles.PLACES[event % 3]
        workers = chance.randint(0, 1) if place == "loader" else 0
        fault = partial(troubles.at, place, step, troubles.raises, rank)
        what = f"rank {rank} in {place}{f' ({workers} workers)' * (place == 'loader')}, step {step}"
        runs.happens(
            what, codes=codes, faults=lambda run, fault=fault: [fault], more=["--data.num_workers", str(workers)]
        )
    runs.finish()


class Pause:
    """SIGSTOP to a rank once it trains, and SIGCONT."""

    def __init__(self, rank: int, seconds: float) -> None:
        self.rank, self.seconds = rank, seconds
        self.until: float | None = None

    def __call__(self, attempt: Attempt) -> None:
        if self.until is None and attempt.trains:
            attempt.send(signal.SIGSTOP, self.rank)
            self.until = time.monotonic() + self.seconds
        elif self.until is not None and time.monotonic() >= self.until:
            attempt.send(signal.SIGCONT, self.rank)
            self.until = float("inf")
