"""Where a run's time goes, in words, from a line of its log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SHARE: Final = "speed/time/"
"""Before the name of a section: its share of the time, 0 … 1 (`cclm.train.speed`)."""
COMPUTING: Final = ("vision", "text", "fusion", "losses", "optimizer")
SECTIONS: Final = ("data", "communication", *COMPUTING, "checkpoint", "evaluation", "other")
LIMITS: Final = {
    "data": (
        0.1,
        "waiting for data",
        "raise data.num_workers, or build shards with smaller images (images.short_side)",
    ),
    "communication": (0.15, "waiting for other ranks", "one of them is late: `python -m launch status RUN`"),
    "checkpoint": (0.1, "saving", "save less often (checkpoint.every_steps), or in the background"),
    "evaluation": (0.2, "evaluating", "evaluate less often"),
    "other": (0.2, "in none of the sections", "write a trace (track.profile_steps)"),
}
"""Of sections that do not compute: the share that is too much, what it is, and what to do."""


def bottleneck(values: Mapping[str, float | None]) -> str:
    """Return what takes too much of the time, and what to do; or what the run computes; "": not known."""
    shares = {section: values.get(SHARE + section) or 0.0 for section in SECTIONS}
    if not any(shares.values()):
        return ""
    over = {name: shares[name] for name, (limit, *_) in LIMITS.items() if shares[name] > limit}
    if over:
        worst = max(over, key=lambda name: over[name])
        _, what, do = LIMITS[worst]
        return f"{what} {shares[worst]:.0%}: {do}"
    computing = sorted(COMPUTING, key=lambda name: -shares[name])
    told = ", ".join(f"{name} {shares[name]:.0%}" for name in computing if shares[name] >= 0.005)
    return f"computing {sum(shares[name] for name in COMPUTING):.0%}: {told}"
