"""The same run on other numbers of ranks and at other stages of ZeRO, between requests to stop and kills.

With dropout off a run's losses depend on neither, but for the order of sums.
"""

from __future__ import annotations

import signal
from functools import partial

from tests.faults.campaign import Campaign, Disturbed, Flavour
from tests.faults.kills import KILLS, sending

ACROSS = Flavour(name="across", changes={"optimizer": {"learning_rate": 1e-4}}, tolerance=1e-6)
"""No dropout. The rate is low: an update takes a difference of the last bit further, whatever made it."""
RANKS = (1, 2, 4, 1)
STAGES = ("zero3_cpu", "zero1_fp32", "zero3_cpu", "zero2_fp32")


def other_worlds(campaign: Campaign, number: int) -> None:
    """1, 2, 4 and 1 ranks, one after the other."""
    _chain(campaign, "world size", number, [(ranks, STAGES[0]) for ranks in RANKS])


def other_stages(campaign: Campaign, number: int) -> None:
    """ZeRO stages 3, 1, 3 and 2, on two ranks."""
    _chain(campaign, "ZeRO stage", number, [(2, stage) for stage in STAGES])


def _chain(campaign: Campaign, kind: str, number: int, links: list[tuple[int, str]]) -> None:
    chance, runs = campaign.random(kind), Disturbed(campaign=campaign, kind=kind, flavour=ACROSS)
    for event in range(number):
        ranks, stage = links[event % len(links)]
        is_kill, after_s = chance.random() < 0.3, chance.uniform(0.0, 1.0)
        request = partial(sending, signal.SIGKILL if is_kill else signal.SIGTERM, after_s, True)
        what = f"{ranks} ranks, {stage}, {'kill' if is_kill else 'TERM'} {after_s:.2f} s after the first step"
        runs.happens(what, codes=KILLS, disturb=request, world_size=ranks, more=["--deepspeed", stage])
    runs.finish(world_size=1)
