"""Checkpoints that are no longer as they were written: bits flipped, files cut short, missing, or not readable."""

from __future__ import annotations

import random
import signal
from functools import partial
from pathlib import Path

from cclm.run.checkpoints import MARKER, complete_checkpoints, damage_of, list_files
from tests.faults.attempts import Attempt
from tests.faults.campaign import BIT_EQUAL, Campaign, Disturbed, Event
from tests.faults.kills import KILLS, sending


def flips(campaign: Campaign, number: int) -> None:
    """Bits of any file of a checkpoint, the marker too, one at a time: each is found, and its file named."""
    chance = campaign.random("flipped bit")
    checkpoint = complete_checkpoints(campaign.unbroken(BIT_EQUAL))[-1]
    for _ in range(number):
        path = checkpoint / chance.choice([MARKER, *list_files(checkpoint)])
        whole = path.read_bytes()
        place, bit = chance.randrange(len(whole)), chance.randrange(8)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        flaws = damage_of(checkpoint)
        path.write_bytes(whole)
        name = "marker" if path.name == MARKER else path.relative_to(checkpoint).as_posix()
        is_found = any(flaw.startswith(name) for flaw in flaws)
        lost = "" if is_found else f"found: {flaws}"
        campaign.add(
            Event(kind="flipped bit", what=f"{name}, bit {bit} of byte {place}", lost=lost), is_told=bool(lost)
        )


HOW = ("flipped", "cut", "missing", "empty")


def newest(campaign: Campaign, number: int) -> None:
    """The newest checkpoint of a run that was killed is damaged: the run goes on from the one before, and says so."""
    chance, runs = campaign.random("damaged newest"), Disturbed(campaign=campaign, kind="damaged newest")
    for event in range(number):
        while len(found := complete_checkpoints(runs.present)) < 2:
            runs.happens("kill, once there are two", codes=KILLS, disturb=partial(KillOfTwo, event % 2))
        how = HOW[event % len(HOW)]
        name = spoil(found[-1], how, chance)
        kill = partial(sending, signal.SIGKILL, chance.uniform(1.0, 2.0), True, event % 2)
        runs.happens(f"{how} {name}, kill", codes=KILLS, disturb=kill, damaged=found[-1], is_certain=True)
    runs.finish()


class KillOfTwo:
    """kill -9 of a rank, once its run has two checkpoints."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __call__(self, attempt: Attempt) -> None:
        if len(complete_checkpoints(attempt.run)) >= 2:
            attempt.send(signal.SIGKILL, self.rank)


def spoil(checkpoint: Path, how: str, chance: random.Random) -> str:
    """Damage a file of a checkpoint; return its name."""
    name = chance.choice([MARKER, *list_files(checkpoint)])
    path, content = checkpoint / name, bytearray((checkpoint / name).read_bytes())
    place = chance.randrange(len(content))
    if how == "missing":
        path.unlink()
        return name
    if how == "flipped":
        content[place] ^= 1 << chance.randrange(8)
    path.write_bytes(content if how == "flipped" else content[:place] if how == "cut" else b"")
    return name
