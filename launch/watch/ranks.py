"""What the ranks of a run last said about themselves, and how those ended that have ended.

RUN/status/rank_N.json, exit_rank_N.json ──> RankNow, one per rank ──> a line for each group of ranks that say the same
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cclm.files.durations import in_words
from cclm.run.status import STATUS_FOLDER
from cclm.run.stop import STOPPED_CODE
from launch.slurm.restart import read_ends


@dataclass(frozen=True, kw_only=True)
class RankNow:
    """One rank."""

    rank: int
    host: str
    phase: str
    step: int
    silent_s: float
    """Seconds since it last said something."""
    end: str
    """How it ended in this life, in words; "" if it has not, or not without being asked."""


def read_ranks(run_folder: Path, *, now: float, life: int = 0, since: float = 0.0) -> list[RankNow]:
    """Read the ranks of a life, by number; what they said before `since` (seconds since 1970) is another life's."""
    ends = {end.rank: str(end) for end in read_ends(run_folder, life) if end.code not in (0, STOPPED_CODE)}
    found = []
    for path in (run_folder / STATUS_FOLDER).glob("rank_*.json"):
        said = json.loads(path.read_text(encoding="utf-8"))
        if said["time"] < since:
            continue
        found.append(
            RankNow(
                rank=said["rank"],
                host=said["host"],
                phase=said["phase"],
                step=said["step"],
                silent_s=round(now - said["time"], 1),
                end=ends.get(said["rank"], ""),
            )
        )
    return sorted(found, key=lambda rank: rank.rank)


def in_groups(ranks: Sequence[RankNow], *, silent_after_s: float) -> list[str]:
    """One line for all ranks that say the same; ranks that are silent or ended badly have their own."""
    groups: dict[tuple[str, int, str, str], list[RankNow]] = {}
    for rank in ranks:
        silence = f", silent for {in_words(rank.silent_s)}" if rank.silent_s > silent_after_s and not rank.end else ""
        groups.setdefault((rank.phase, rank.step, silence, rank.end), []).append(rank)
    lines = []
    for (phase, step, silence, end), members in groups.items():
        hosts = sorted({rank.host for rank in members})
        where = ", ".join(hosts[:4]) + (f" and {len(hosts) - 4} more" if len(hosts) > 4 else "")
        how = end or f"{phase} at step {step}{silence}"
        lines.append(f"{spans(rank.rank for rank in members)} on {where}: {how}")
    return lines


def spans(numbers: Iterable[int]) -> str:
    """Sorted numbers in short: 0-3,7."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in found)
