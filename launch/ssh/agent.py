"""One host's end of `python -m launch ssh`: answers whether the host can take part, starts its ranks, and sees to it
that none outlives the connection. Standard library only; started through ssh as `python -S -m launch.ssh.agent`.

    stdin  ── Question, Order, signal, end, alive ──► agent ──┬── rank …  (launch/ranks.py: shim, logs, grace time)
    stdout ◄── Answer, output of rank 0, exits ──────         └── guard, which acts if the agent is killed

End of file on stdin, or silence for `lost_s`, means that the launcher is gone: the ranks get TERM, then KILL.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from cclm.errors import CclmError
from cclm.files.folders import make_folder
from launch.machine import this_machine
from launch.outcome import NUM_LAST_LINES, RankExit
from launch.plan import JobPlan
from launch.ranks import WATCHED, Ranks, blocked, guarded, last_lines
from launch.ssh.fitness import address_of, complaints, find_port
from launch.ssh.wire import Answer, Message, Order, Question, Reader, encode, message_of, question_of

POLL_S = 0.1
"""How late a signal, the end of a rank or a line of rank 0 may be noticed."""
CHUNK_BYTES = 2**16
MOST_WAITING_BYTES = 2**20
"""So much may wait for a slow connection; rank 0's further output stays in its log until there is room."""


class Link:
    """Both directions of the connection. Writing never waits: a connection that hangs must not hang the agent."""

    def __init__(self, source: int, target: int) -> None:
        self.source, self.target = source, target
        self.is_open = True
        self.heard = time.monotonic()
        self._reader, self._waiting = Reader(), bytearray()
        os.set_blocking(target, False)

    @property
    def has_room(self) -> bool:
        """Whether more may be said now."""
        return len(self._waiting) < MOST_WAITING_BYTES

    @property
    def is_done(self) -> bool:
        """Whether everything has been said, or nobody listens."""
        return not self._waiting or not self.is_open

    def say(self, message: Message) -> None:
        """Send a message, now or later."""
        self._waiting += encode(message)
        self._write()

    def hear(self, timeout_s: float | None) -> list[Message]:
        """Wait for messages; none after the time, or when the connection has ended."""
        sources = [self.source] if self.is_open else []
        ready, _, _ = select.select(sources, [self.target] if self._waiting and self.is_open else [], [], timeout_s)
        if self._waiting:
            self._write()
        if not ready:
            return []
        data = os.read(self.source, CHUNK_BYTES)
        self.is_open, self.heard = bool(data), time.monotonic()
        return list(self._reader.feed(data))

    def _write(self) -> None:
        try:
            while self._waiting and self.is_open:
                del self._waiting[: os.write(self.target, self._waiting[:CHUNK_BYTES])]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.is_open = False


class Tail:
    """Follows rank 0's log from here on; the log's own header is left out."""

    def __init__(self, path: Path) -> None:
        self.path, self.is_behind_header = path, False
        self.position = path.stat().st_size if path.exists() else 0

    def read(self) -> bytes:
        """Return what is new."""
        with self.path.open("rb") as file:
            file.seek(self.position)
            data = file.read(CHUNK_BYTES)
        self.position += len(data)
        if not self.is_behind_header:
            _, newline, data = data.partition(b"\n")
            self.is_behind_header = bool(newline)
        return data


def answer(question: Question) -> Answer:
    """Look at this host."""
    machine = replace(this_machine({**os.environ, **question.environment}), free_port=find_port(question.port))
    address = address_of(question.interface) if question.interface else None
    return Answer(complaints=tuple(complaints(question, address)), machine=machine, address=address)


class Job:
    """The ranks of this host while they run."""

    def __init__(self, order: Order, link: Link, ranks: Ranks) -> None:
        self.order, self.link, self.ranks = order, link, ranks
        self.logs = {rank.rank: rank.log for rank in ranks.plan.ranks}
        first = self.logs.get(0)
        self.tail = Tail(first) if first else None
        self.has_relayed = self.tail is None
        self.told: set[int] = set()

    @property
    def is_over(self) -> bool:
        """Whether all ranks have ended, and the launcher knows."""
        return not self.ranks.alive and self.link.is_done and (not self.link.is_open or self._has_told_all)

    def turn(self) -> None:
        """One round: what the launcher says, what this process receives, what the ranks do."""
        for message in self.link.hear(self.ranks.seconds_to_wait(POLL_S)):
            if "signal" in message:
                self.ranks.receive(message["signal"])
            elif "end" in message:
                self.ranks.end()
        while (received := signal.sigtimedwait(WATCHED, 0)) is not None:
            if received.si_signo != signal.SIGCHLD:
                self.ranks.receive(received.si_signo)
        if self.link.is_open and time.monotonic() - self.link.heard > self.order.lost_s:
            # It may be there after all, and only have been suspended.
            self.link.say({"trouble": f"ended, as launch was not heard for {self.order.lost_s:g} s"})
            self.link.is_open = False
        if not self.link.is_open:
            self.ranks.end()
        self.ranks.collect()
        self.ranks.enforce()
        self._relay()
        for end in self.ranks.exits:
            # What rank 0 wrote comes before the word that it has ended.
            if end.rank not in self.told and (end.rank != 0 or self.has_relayed):
                self.told.add(end.rank)
                self._tell(end)

    @property
    def _has_told_all(self) -> bool:
        return len(self.told) == len(self.ranks.exits)

    def _relay(self) -> None:
        is_last = 0 not in self.ranks.alive
        while self.tail and self.link.is_open and self.link.has_room:
            data = self.tail.read()
            if not data:
                self.has_relayed = is_last
                return
            self.link.say({"output": data.decode("latin-1")})  # any bytes, one character each

    def _tell(self, end: RankExit) -> None:
        log = self.logs[end.rank]
        last = last_lines(log, NUM_LAST_LINES) if end.code and log else []
        self.link.say({"exit": {"rank": end.rank, "code": end.code, "seconds": end.seconds, "last": last}})


def carry_out(order: Order, link: Link) -> None:
    """Start the ranks, and stay until the last one has ended."""
    plan = JobPlan.from_json(order.plan)
    make_folder(plan.run_folder / "logs")
    with blocked(WATCHED), guarded() as tell_guard:
        ranks = Ranks(plan=plan, grace_s=order.grace_s, tell_guard=tell_guard, host=order.host)
        job = Job(order, link, ranks)
        try:
            for rank in plan.ranks:
                ranks.start(rank)
            while not job.is_over:
                job.turn()
        finally:
            ranks.kill_at = time.monotonic()
            ranks.enforce()


def main() -> None:
    """Answer the question, then carry out the order, if one comes."""
    link = Link(sys.stdin.fileno(), sys.stdout.fileno())
    while link.is_open:
        for message in link.hear(None):
            if "question" in message:
                link.say(message_of(answer(question_of(message))))
            elif "order" in message:
                try:
                    carry_out(Order(**message["order"]), link)
                except (CclmError, OSError) as error:
                    link.say({"trouble": str(error)})
                return


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
