"""A thousand hard steps on two ranks, beside the plain engine: `tests.ranks.mixed_steps`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from tests.faults.campaign import Campaign, Event
from tests.ranks.mixed_steps import difference
from tests.ranks.spawn import RanksFailedError

TOLERANCE = 1e-5


def mixed_steps(campaign: Campaign, number: int) -> None:
    """All of them are one event: nobody hangs, and no value differs by more than rounding."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=campaign.folder) as folder:
        try:
            lost = difference(Path(folder), number, TOLERANCE)
        except RanksFailedError as error:
            lost = str(error)
    campaign.add(Event(kind="mixed steps", what=f"{number} steps on 2 ranks and on none", lost=lost))
