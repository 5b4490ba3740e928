"""What the ranks of a run last said about themselves, and how those ended that have ended.

RUN/status/rank_N.json, exit_rank_N.json ──> RankNow, one per rank ──> a line for each group that says the same
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cclm.files.text import duration, spans
from cclm.run.causes import GOOD_ENDS
from cclm.run.rank_ends import read_ends
from cclm.run.status import STATUS_FOLDER, read_status


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
    """How it ended in this attempt, in words; "" if it has not, or ended well."""


def read_ranks(run_folder: Path, *, now: float, attempt: int = 0, since: float = 0.0) -> list[RankNow]:
    """Read the ranks of an attempt, by number; what they said before `since` (seconds since 1970) is another's."""
    ends = {end.rank: str(end) for end in read_ends(run_folder, attempt) if end.cause not in GOOD_ENDS}
    records = (read_status(path) for path in (run_folder / STATUS_FOLDER).glob("rank_*.json"))
    said = [record for record in records if record is not None and record.time >= since]
    found = []
    for record in said:
        own = (
            f"{record.cause.replace('_', ' ')}: {record.reason}"
            if record.cause and record.cause not in GOOD_ENDS
            else ""
        )
        found.append(
            RankNow(
                rank=record.rank,
                host=record.host,
                phase=record.phase,
                step=record.step,
                silent_s=round(now - record.time, 1),
                end=ends.get(record.rank, own),
            )
        )
    return sorted(found, key=lambda rank: rank.rank)


def in_groups(ranks: Sequence[RankNow], *, silent_after_s: float) -> list[str]:
    """Return one line for all ranks that say the same; ranks that are silent or ended badly have their own."""
    groups: dict[tuple[str, int, str, str], list[RankNow]] = {}
    for rank in ranks:
        silence = f", silent for {duration(rank.silent_s)}" if rank.silent_s > silent_after_s and not rank.end else ""
        groups.setdefault((rank.phase, rank.step, silence, rank.end), []).append(rank)
    lines = []
    for (phase, step, silence, end), members in groups.items():
        hosts = sorted({rank.host for rank in members})
        where = ", ".join(hosts[:4]) + (f" and {len(hosts) - 4} more" if len(hosts) > 4 else "")
        how = end or f"{phase} at step {step}{silence}"
        lines.append(f"{spans(rank.rank for rank in members)} on {where}: {how}")
    return lines
