"""Requests to stop, at any moment: TERM to all ranks, as a launcher passes it on, and USR1 to one of them."""

from __future__ import annotations

import signal
from functools import partial

from tests.faults.campaign import STOPPED, Campaign, Disturbed
from tests.faults.kills import moment, sending

NOT_HEARD = {name: 128 + signal.Signals[f"SIG{name}"] for name in ("TERM", "USR1")}
"""Codes of a process that does not listen yet."""


def to_stop(campaign: Campaign, number: int) -> None:
    """A request is obeyed at once before the first step, and saves after it."""
    chance, runs = campaign.random("signal"), Disturbed(campaign=campaign, kind="signal")
    for event in range(number):
        name, (*when, words) = ("TERM", "USR1")[event % 2], moment(chance)
        rank = None if name == "TERM" else chance.randrange(2)
        what = f"{name} to {'all ranks' if rank is None else f'rank {rank}'} {words}"
        request = partial(sending, signal.Signals[f"SIG{name}"], *when, rank)
        runs.happens(what, codes=frozenset({STOPPED, NOT_HEARD[name]}), disturb=request)
    runs.finish()
