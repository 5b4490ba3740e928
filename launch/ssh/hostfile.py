"""Which hosts, and how many ranks each may take: a hostfile as DeepSpeed and MPI know it, or a list.

# comment
gpu1 slots=8            --hosts gpu1:8,me@gpu2:8
me@gpu2 slots=8
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cclm.errors import ConfigError

NAME = re.compile(r"(?:[A-Za-z0-9_][\w.-]*@)?[A-Za-z0-9_][\w.-]*")
"""A host as ssh takes it; never with a dash in front, which ssh would take for an option."""
SLOTS = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True, kw_only=True)
class HostSlots:
    """One host."""

    host: str
    """Name or IPv4 address, as ssh takes it: perhaps USER@NAME."""
    slots: int | None = None
    """Ranks that it may take; None: nobody said."""

    @property
    def name(self) -> str:
        """The host without the user: what others may know it by."""
        return self.host.rpartition("@")[2]


def read_hostfile(path: Path) -> tuple[HostSlots, ...]:
    """Read a hostfile. Raises ConfigError with all complaints at once."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            where=str(path), expected="a hostfile", got=str(error), do='A line for each host, "name slots=8".'
        ) from error
    return parse_hostfile(text, str(path))


def parse_hostfile(text: str, where: str) -> tuple[HostSlots, ...]:
    """Parse the text of a hostfile. Raises ConfigError with all complaints at once."""
    lines = ((f"line {number}", line.partition("#")[0].split()) for number, line in enumerate(text.splitlines(), 1))
    return _checked(((place, words) for place, words in lines if words), where, 'Write "name slots=8", a line a host.')


def parse_hosts(text: str) -> tuple[HostSlots, ...]:
    """Parse "a,b:4" of the command line. Raises ConfigError with all complaints at once."""
    entries = []
    for number, entry in enumerate(text.split(","), 1):
        name, colon, slots = entry.strip().partition(":")
        entries.append((f"host {number}", [name, f"slots={slots}"] if colon else [name]))
    return _checked(entries, "--hosts", "Write name:8,name:8, or names alone.")


def _checked(entries: Iterable[tuple[str, list[str]]], where: str, do: str) -> tuple[HostSlots, ...]:
    hosts: list[HostSlots] = []
    complaints: list[str] = []
    first: dict[str, str] = {}
    for place, (host, *words) in entries:
        found = [f"{place}: {complaint}" for complaint in _complaints(host, words)]
        name = host.rpartition("@")[2].lower()
        if name in first:
            found.append(f"{place}: {name} is on {first[name]} already (give it more slots there)")
        first.setdefault(name, place)
        complaints += found
        if not found:
            hosts.append(HostSlots(host=host, slots=int(words[0].partition("=")[2]) if words else None))
    if complaints or not hosts:
        raise ConfigError(
            where=where, expected="different hosts with their slots", got="; ".join(complaints) or "no host", do=do
        )
    return tuple(hosts)


def _complaints(host: str, words: list[str]) -> Iterator[str]:
    if not NAME.fullmatch(host):
        yield f"{host!r} is no name of a host"
    if len(words) > 1:
        yield f"{' '.join(words[1:])!r} is not understood"
    for word in words[:1]:
        name, _, count = word.partition("=")
        if name != "slots":
            yield f"{word!r} is not understood"
        elif not SLOTS.fullmatch(count) or int(count) < 1:
            yield f"slots={count} is no number of at least 1"
