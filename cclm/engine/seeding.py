"""Random numbers as functions of (seed, step, rank), so that no generator's state needs saving.

Dropout is the only randomness of a forward call (masks, crops and negatives come with the batch). Both engines seed
torch before every forward call; a resumed run therefore draws what the uninterrupted run drew.
"""

from __future__ import annotations

import hashlib

import torch


def seed_step(seed: int, step: int, rank: int, micro_step: int = 0) -> None:
    """Seed torch's generators (CPU and GPU) for one forward call."""
    torch.manual_seed(_mix("step", seed, step, rank, micro_step))


def seed_initialisation(seed: int) -> None:
    """Seed torch before the module is built: the same weights on every rank and in both engines."""
    torch.manual_seed(_mix("initialisation", seed))


def _mix(purpose: str, *numbers: int) -> int:
    """A 63-bit number that differs for every purpose and every tuple, also for neighbours."""
    text = ":".join([purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
