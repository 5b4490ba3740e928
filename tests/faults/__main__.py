"""`python -m tests.faults`: a campaign of faults on tiny ZeRO-3 runs; one table; exit code 1 if anything was lost.

Without --kinds all of them. A kind's events depend on its name and the seed only, so that

    python -m tests.faults --seed 5 --kinds kill

repeats what a campaign with that seed did to its runs (moments in seconds fall where the machine lets them).
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.faults import damage, disks, kills, mixed, numbers, ranks, requests, worlds
from tests.faults.campaign import Campaign

Kind = Callable[[Campaign, int], None]
KINDS: Mapping[str, tuple[Kind, int]] = {
    "kill": (kills.at_any_moment, 36),
    "kill in a save": (kills.in_a_save, 36),
    "kill in a write": (kills.behind_a_step, 36),
    "signal": (requests.to_stop, 30),
    "disk full": (disks.full, 14),
    "EIO": (disks.answers_eio, 20),
    "slow disk": (disks.slow, 6),
    "writer killed": (disks.writer_killed, 10),
    "flipped bit": (damage.flips, 1000),
    "damaged newest": (damage.newest, 12),
    "NaN": (numbers.not_finite, 12),
    "late": (ranks.late, 8),
    "hung": (ranks.hung, 6),
    "other settings": (ranks.other_configuration, 4),
    "raises": (ranks.raising, 12),
    "world size": (worlds.other_worlds, 12),
    "ZeRO stage": (worlds.other_stages, 8),
    "mixed steps": (mixed.mixed_steps, 1000),
}
"""What happens, and how often."""


def run(campaign: Campaign, kinds: Sequence[str], *, quick: bool = False) -> None:
    """Do the kinds, one after the other; quick: a tenth of each."""
    for name in kinds:
        do, number = KINDS[name]
        began = time.monotonic()
        do(campaign, max(1, number // 10) if quick else number)
        campaign.tell(f"{name}: {time.monotonic() - began:.0f} s")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description="Faults, and whether runs survive them."
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--seed", type=int, help="default: a random one, which is printed")
    parser.add_argument("--quick", action="store_true", help="a tenth of the events")
    parser.add_argument(
        "--folder", type=Path, help="where runs lie; default: a temporary folder, gone if nothing is lost"
    )
    given = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    folder = given.folder or Path(tempfile.mkdtemp(prefix="faults_"))
    print(f"seed {seed}; runs in {folder}", flush=True)
    campaign = Campaign(folder=folder, seed=seed, tell=lambda line: print(line, flush=True))
    is_whole = False
    try:
        run(campaign, given.kinds, quick=given.quick)
        is_whole = True
    except KeyboardInterrupt:
        print("interrupted; so far:")
    print(*campaign.table(), sep="\n", flush=True)
    return int(not is_whole or any(event.lost for event in campaign.events))


if __name__ == "__main__":
    sys.exit(main())
