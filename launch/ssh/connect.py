"""One ssh connection to each host, with an agent at its other end, and the first round: can you take part?

Nothing is started before every host has said yes; otherwise each host that cannot is named, with what it lacks.
"""

from __future__ import annotations

import os
import selectors
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import launch
from cclm.errors import CclmError
from launch.ssh.wire import Answer, Message, Question, Reader, answer_of, encode, message_of

CODE_FOLDER = Path(launch.__file__).parents[1]
"""The checkout, where the agent is found on every host."""
NO_FOLDER_CODE, NO_PYTHON_CODE = 71, 72
"""Exit codes of our own words on a host."""
CHUNK_BYTES = 2**16
ANSWER_S = 30.0
"""Time for an agent's answer, once the connection is there: a shared file system may be slow at first."""
END_S = 10.0
"""Time for ssh to end when there is nothing left to do."""


@dataclass(frozen=True, kw_only=True)
class Ssh:
    """How hosts are reached."""

    program: str = "ssh"
    options: tuple[str, ...] = ()
    """Each as after `ssh -o`; they win over ours."""
    connect_timeout_s: int = 10
    alive_s: int = 15
    """A connection that gives no sign of life for three times so long is lost."""
    python: str
    """Interpreter of the agent."""

    def command(self, host: str) -> tuple[str, ...]:
        """The whole command line that starts an agent on a host."""
        ours = (
            "BatchMode=yes",
            f"ConnectTimeout={self.connect_timeout_s}",
            f"ServerAliveInterval={self.alive_s}",
            "ServerAliveCountMax=3",
            "ClearAllForwardings=yes",
        )
        options = [word for option in (*self.options, *ours) for word in ("-o", option)]
        return (self.program, "-T", *options, "--", host, agent_command(CODE_FOLDER, self.python))


def agent_command(code_folder: Path, python: str) -> str:
    """What the host's shell, whichever it is, has to run."""
    folder, program = shlex.quote(str(code_folder)), shlex.quote(python)
    script = (
        f"cd {folder} 2>/dev/null || exit {NO_FOLDER_CODE}; "
        f"command -v {program} >/dev/null || exit {NO_PYTHON_CODE}; "
        f"exec {program} -S -m launch.ssh.agent"
    )
    return f"exec sh -c {shlex.quote(script)}"


class Connection:
    """The launcher's end of one connection."""

    def __init__(self, host: str, command: Sequence[str]) -> None:
        self.host, self.is_open, self.has_spoken = host, True, False
        self._errors, self._reader = tempfile.TemporaryFile(), Reader()  # noqa: SIM115 (`close` closes it)
        # In a session of its own: Ctrl-C is for the launcher, which passes it on.
        self.process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, start_new_session=True
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._input, self.output = self.process.stdin, self.process.stdout

    def say(self, message: Message) -> None:
        """Send a message; a connection that has ended is noticed when it is read."""
        with suppress(BrokenPipeError):
            self._input.write(encode(message))
            self._input.flush()

    def hear(self) -> list[Message]:
        """Read what has come; at the end of the stream `is_open` becomes false."""
        data = os.read(self.output.fileno(), CHUNK_BYTES)
        self.is_open = bool(data)
        messages = list(self._reader.feed(data))
        self.has_spoken = self.has_spoken or bool(messages)
        return messages

    def why_it_ended(self, python: str) -> str:
        """Say in a few words why there is no connection (any more)."""
        try:
            code = self.process.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            return "ssh has closed it, and does not end"
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), self._reader.chatter)
        if code == NO_FOLDER_CODE:
            return f"the folder {CODE_FOLDER} is not there: all hosts must share this checkout"
        if code == NO_PYTHON_CODE:
            return f"there is no program {python}: give --python"
        return f"ssh ended with code {code}" + (f": {last.rstrip('.')}" if last else "")

    def hang_up(self) -> None:
        """Tell the agent that there is nothing more to come: it ends what it has started."""
        with suppress(BrokenPipeError):
            self._input.close()
        if not self.has_spoken:  # an ssh that still waits for its host does not notice
            self.process.kill()

    def close(self, timeout_s: float) -> None:
        """Wait for the end of ssh; kill it if it does not come."""
        try:
            self.process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.output.close()
        self._errors.close()


@contextmanager
def connected(hosts: Sequence[str], ssh: Ssh) -> Iterator[tuple[Connection, ...]]:
    """Reach for all hosts at once; all connections are closed at the end."""
    connections: list[Connection] = []
    try:
        for host in hosts:
            try:
                connections.append(Connection(host, ssh.command(host)))
            except OSError as error:
                raise CclmError(
                    where="ssh", expected=f"the program {ssh.program}", got=error.strerror or str(error),
                    do="Install it (Debian: openssh-client), or name another: --ssh-program.",
                ) from error  # fmt: skip
        yield tuple(connections)
    finally:
        for connection in connections:
            connection.hang_up()
        end = time.monotonic() + END_S
        for connection in connections:
            connection.close(max(end - time.monotonic(), 0.0))


def ask_all(connections: Sequence[Connection], questions: Sequence[Question], ssh: Ssh) -> tuple[Answer, ...]:
    """Ask every host whether it can take part.

    Raises:
        CclmError: some cannot; it names each of them.
    """
    for connection, question in zip(connections, questions, strict=True):
        connection.say(message_of(question))
    answers = _collect(connections, time.monotonic() + ssh.connect_timeout_s + ANSWER_S)
    complaints = []
    for connection in connections:
        answer = answers.get(connection.host)
        if answer is not None:
            complaints += [f"{connection.host}: {complaint}" for complaint in answer.complaints]
        elif connection.is_open:
            complaints.append(f"{connection.host}: no answer in {ssh.connect_timeout_s + ANSWER_S:.0f} s")
        else:
            complaints.append(f"{connection.host}: {connection.why_it_ended(ssh.python)}")
    if complaints:
        raise CclmError(
            where="ssh", expected=f"{len(connections)} host(s) that can take part", got="; ".join(complaints),
            do="Nothing was started. Try `ssh -o BatchMode=yes HOST true` by hand.",
        )  # fmt: skip
    return tuple(answers[connection.host] for connection in connections)


def _collect(connections: Sequence[Connection], end: float) -> Mapping[str, Answer]:
    answers: dict[str, Answer] = {}
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.output, selectors.EVENT_READ, connection)
        while selector.get_map() and time.monotonic() < end:
            for key, _ in selector.select(max(end - time.monotonic(), 0.0)):
                connection = key.data
                for message in connection.hear():
                    answers[connection.host] = answer_of(message)
                if not connection.is_open or connection.host in answers:
                    selector.unregister(connection.output)
    return answers
