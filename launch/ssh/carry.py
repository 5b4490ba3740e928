"""The backend for plain hosts: carry out a plan through the agents, and leave nothing behind on any host.

    launch ──┬── ssh ── agent on host 1 ── ranks        SIGINT, SIGTERM, SIGHUP, SIGUSR1 go to all agents
             ├── ssh ── agent on host 2 ── ranks        the first rank that fails ends the others
             └── …                                      a connection that is lost is a failure of its ranks

The agents do the work of launch/local.py on their hosts; here is decided what concerns several of them.
"""

from __future__ import annotations

import os
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cclm.files.folders import make_folder
from cclm.run import stop
from launch.outcome import NUM_LAST_LINES, Outcome, RankExit, explain
from launch.plan import JobPlan
from launch.ranks import STOP_SIGNALS, WATCHED, blocked, last_lines
from launch.ssh.connect import Connection
from launch.ssh.wire import Message, Order, message_of

POLL_S = 0.1
"""How late a signal may be passed on."""
SIGNS_PER_LOSS = 4
"""So many signs of life are sent in the time after which an agent gives the launcher up."""
LOST_CODE = 255
"""Code of a rank whose connection was lost: ssh's own."""


class _Job:
    """The running job, as the launcher sees it."""

    def __init__(self, plan: JobPlan, connections: Sequence[Connection], python: str) -> None:
        self.plan, self.connections, self.python = plan, connections, python
        self.began = time.monotonic()
        self.alive = {rank.rank: rank.host for rank in plan.ranks}
        self.exits: list[RankExit] = []
        self.last: dict[int, list[str]] = {}
        self.trouble: dict[str, str] = {}
        self.first_failure: RankExit | None = None
        self.stop_asked = False
        self.has_reader = True

    def start(self, grace_s: float, lost_s: float) -> None:
        """Give every agent its order."""
        for connection in self.connections:
            part = self.plan.of_host(connection.host).to_json()
            self._say(connection, message_of(Order(host=connection.host, plan=part, grace_s=grace_s, lost_s=lost_s)))

    def tell_all(self, message: Message) -> None:
        """Say the same to every host."""
        for connection in self.connections:
            self._say(connection, message)

    def hear(self, connections: Sequence[Connection]) -> None:
        """Take what these have to say; of ranks that ended at the same moment, one that was killed was first."""
        ends: list[RankExit] = []
        for connection in connections:
            for message in connection.hear():
                if "output" in message:
                    self._relay(message["output"].encode("latin-1"))
                elif "exit" in message:
                    ends.append(self._read_end(connection.host, message["exit"]))
                elif "trouble" in message:
                    self.trouble[connection.host] = message["trouble"]
        known = {end.rank for end in ends}
        ends.sort(key=lambda end: end.code >= 0)
        for connection in connections:
            if not connection.is_open:
                ends += [end for end in self._lost(connection) if end.rank not in known]
        for end in ends:
            del self.alive[end.rank]
            self.exits.append(end)
            if end.code != 0 and self.first_failure is None:
                self.first_failure = end
                self.tell_all({"end": True})

    def _relay(self, data: bytes) -> None:
        try:
            while data and self.has_reader:
                data = data[os.write(sys.stdout.fileno(), data) :]
        except BrokenPipeError:  # `| head`: the log has it all
            self.has_reader = False

    def _read_end(self, host: str, values: dict[str, Any]) -> RankExit:
        self.last[values["rank"]] = values.pop("last")
        return RankExit(host=host, **values)

    def _lost(self, connection: Connection) -> list[RankExit]:
        """The ranks of a host that has gone without a word about them."""
        ranks = [rank for rank, host in self.alive.items() if host == connection.host]
        if not ranks:
            return []
        why = self.trouble.get(connection.host) or f"connection lost ({connection.why_it_ended(self.python)})"
        seconds = time.monotonic() - self.began
        return [RankExit(rank=rank, code=LOST_CODE, seconds=seconds, host=connection.host, why=why) for rank in ranks]

    def _say(self, connection: Connection, message: Message) -> None:
        if connection.is_open:
            connection.say(message)


def carry_out(
    plan: JobPlan,
    connections: Sequence[Connection],
    *,
    python: str,
    say: Callable[[str], None],
    grace_s: float = 15.0,
    lost_s: float = 60.0,
) -> Outcome:
    """Start every rank of the plan through its host's agent, wait for all of them, and tell how they ended.

    Args:
        plan: made from the answers of these hosts.
        connections: one for each host, whose agent has answered.
        python: the agents' interpreter.
        say: receives the launcher's own lines; what rank 0 writes goes to stdout.
        grace_s: time between TERM and KILL once a rank has failed.
        lost_s: an agent that hears nothing for so long ends its ranks.
    """
    logs = make_folder(plan.run_folder / "logs")
    stop.clear(plan.run_folder)
    (logs / "plan.json").write_text(plan.to_json() + "\n")
    job = _Job(plan, connections, python)
    with blocked(WATCHED), _signs_of_life(job, lost_s / SIGNS_PER_LOSS), selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.output, selectors.EVENT_READ, connection)
        job.start(grace_s, lost_s)
        while job.alive:
            heard: list[Connection] = [key.data for key, _ in selector.select(POLL_S)]
            job.hear(heard)
            for connection in heard:
                if not connection.is_open:
                    selector.unregister(connection.output)
            _pass_on_signals(job, say)
    return _told(job, say)


@contextmanager
def _signs_of_life(job: _Job, every_s: float) -> Iterator[None]:
    """Keep telling the agents that the launcher is there."""
    is_over = threading.Event()

    def tell() -> None:
        while not is_over.wait(every_s):
            job.tell_all({"alive": True})

    # A thread: a terminal whose output is paused stops the launcher's loop, and must not end the job.
    thread = threading.Thread(target=tell, name="signs of life")
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _pass_on_signals(job: _Job, say: Callable[[str], None]) -> None:
    while (received := signal.sigtimedwait(WATCHED, 0)) is not None:
        number = received.si_signo
        if number == signal.SIGCHLD:
            continue
        if number in STOP_SIGNALS:
            if not job.stop_asked:
                hosts = len(set(job.alive.values()))
                where = f"{len(job.alive)} rank(s) on {hosts} host(s)"
                say(f"{signal.Signals(number).name} passed on to {where}; once more kills them.")
            job.stop_asked = True
        job.tell_all({"signal": number})


def _told(job: _Job, say: Callable[[str], None]) -> Outcome:
    outcome = Outcome(exits=tuple(job.exits), first_failure=job.first_failure)
    failure = outcome.first_failure
    log = job.plan.ranks[failure.rank].log if failure else None
    last = job.last.get(failure.rank, []) if failure else []
    if log and not last and log.exists():  # the host cannot tell any more
        last = last_lines(log, NUM_LAST_LINES)
    explain(outcome, stop_asked=job.stop_asked, log=log, last=last, say=say)
    return outcome
