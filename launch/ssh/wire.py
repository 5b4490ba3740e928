"""What the launcher and an agent say to each other through ssh: one marked line of JSON per message.

    launcher ── Question ─► agent        before anything is started anywhere
             ◄─── Answer ──
             ── Order ────►              or end of file, if some host cannot take part
             ◄─ output, exit             what rank 0 writes; how a rank ended, with the end of its log
             ── signal, end, alive ─►    pass this on; a rank elsewhere has failed; I am still here

Whatever has no mark is chatter: login scripts like to greet.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from launch.machine import Machine

MARK = b"launch-agent "
Message = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Question:
    """Can you take part?"""

    folder: str
    """Working folder of the ranks."""
    run_folder: str
    interface: str | None
    """Network interface that the ranks will use; None: whatever the host's own name leads to."""
    master: str | None
    """Name of the first host, which this one must be able to look up; None: the ranks meet at an address."""
    port: int | None
    """Port that must be free here; None: propose one."""
    is_alone: bool
    """No other host takes part."""
    environment: Mapping[str, str]
    """What the ranks will get besides."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an agent has found on its host."""

    complaints: tuple[str, ...]
    """Why the host cannot take part; empty: it can."""
    machine: Machine
    address: str | None
    """IPv4 address of the interface that was asked for."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """Start these ranks."""

    host: str
    """How the launcher calls this host."""
    plan: str
    """This host's part of the job, as `JobPlan.to_json` writes it."""
    grace_s: float
    """Time between TERM and KILL."""
    lost_s: float
    """A launcher that has said nothing for so long is gone."""


def question_of(message: Message) -> Question:
    """Read a question."""
    return Question(**message["question"])


def answer_of(message: Message) -> Answer:
    """Read an answer."""
    values = message["answer"]
    machine = Machine(**{**values["machine"], "cores": tuple(values["machine"]["cores"])})
    return Answer(complaints=tuple(values["complaints"]), machine=machine, address=values["address"])


def message_of(item: Question | Answer | Order) -> Message:
    """Wrap one of the three."""
    return {type(item).__name__.lower(): asdict(item)}


def encode(message: Message) -> bytes:
    """Return one line, in ASCII."""
    return MARK + json.dumps(message).encode() + b"\n"


class Reader:
    """Cuts a stream of bytes into messages, and keeps the last of what is none."""

    def __init__(self) -> None:
        self.chatter = ""
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Message]:
        """Take more of the stream; yields every message that it completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            _, mark, content = line.partition(MARK)
            if mark:
                yield json.loads(content)
            elif line.strip():
                self.chatter = line.decode("utf-8", "replace").strip()
