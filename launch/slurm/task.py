"""What srun starts for each rank: it gives the rank its place, its log and a watch, and writes down how it ended.
Standard library and our own files only: it must start at once, also inside a container.

    python -m launch.slurm.task RUN KIND -- COMMAND…        KIND: "rank", or the name of another step

    SLURM_PROCID, SLURM_LOCALID, … ──► RANK, LOCAL_RANK, … ──► COMMAND ──► RUN/logs/KIND_N.log
                                                                 └───────► RUN/status/exit_KIND_N.json

srun's own code is useless here: the highest of all, 143 as soon as one rank is ended because of another.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from cclm.files.atomic import temporary_path
from cclm.files.lines import read_since
from cclm.run import launcher
from cclm.run.causes import EXIT_CODES, GOOD_ENDS, Cause, consequence
from cclm.run.status import MOST_REASON, STATUS_FOLDER, RankEnd, cause_of_end, read_status
from cclm.run.stop import CLEARED_VARIABLE
from cclm.run.watch import where_it_stands
from launch.plan.network import NONE, look, settings_of
from launch.plan.slurm_job import read_plan

TRACEBACK_S = 2.0
"""Time for a hung rank to print where it stands."""
START_S = 600.0
"""At least so long may a rank take to its first sign of life: imports, meeting the others, reading a checkpoint."""
WAITING_S = 10.0
"""How much longer a rank lives that only waits for another: the other's record is the one that counts."""
ARRAY_TASK = "task"
"""Kind of the tasks of an array job."""
RECORD_BYTES = 4096
"""Room for the record of the end, taken at the beginning: a full disk must not swallow why the rank died of it."""
FILLED_IN = re.compile("@(NODE_RANK|MASTER_ADDR|MASTER_PORT|TASK)@")


def place_of(environment: Mapping[str, str]) -> dict[str, str]:
    """Translate Slurm's variables for one task per rank; what a user set already stays."""
    if "RANK" in environment:
        return {}
    # What the submitter's shell had left from another launcher came along with sbatch: here only Slurm counts.
    told = {name: value for name, value in environment.items() if name.startswith("SLURM_") or name in launcher.ADDRESS}
    place = launcher.place_of(told)
    return {name: str(getattr(place, name.lower())) for name in launcher.NUMBERS}


def fill_in(command: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Put what only a task knows into a command line: torchrun's, or that of an array's task."""
    known = {**environment, "NODE_RANK": environment.get("SLURM_NODEID", "")}
    known["TASK"] = environment.get("SLURM_ARRAY_TASK_ID", "")
    return [FILLED_IN.sub(lambda match: known.get(match[1], ""), word) for word in command]


class Watch:
    """Have these ranks said something about themselves lately? Compared by this machine's clock alone."""

    def __init__(self, paths: Sequence[Path], limit_s: float) -> None:
        self.paths, self.limit_s = paths, limit_s
        self.seen = self._changed()
        self.since = time.monotonic()
        self.has_begun = False

    def silent_s(self) -> float:
        """Return the seconds since a status last changed, or since the start."""
        now_seen = self._changed()
        if now_seen != self.seen:
            self.seen, self.since, self.has_begun = now_seen, time.monotonic(), True
        return time.monotonic() - self.since

    @property
    def is_over(self) -> bool:
        """Whether the ranks count as hung."""
        silent_s = self.silent_s()
        return self.limit_s > 0 and silent_s > (self.limit_s if self.has_begun else max(self.limit_s, START_S))

    def _changed(self) -> list[float]:
        found = []
        for path in self.paths:
            with suppress(OSError):
                found.append(path.stat().st_mtime)
        return found


def last_words(said: str) -> str:
    """Return the sentence of our programs' errors ("error: …", which may have several lines), or the last line."""
    lines = [line for line in said.splitlines() if line.strip()]
    sentences = [index for index, line in enumerate(lines) if line.startswith("error: ")]
    return " ".join(" ".join(lines[sentences[-1] if sentences else -1 :]).split())[:MOST_REASON]


class Task:
    """One task of a step, from its start to the record of its end."""

    def __init__(self, run_folder: Path, kind: str, command: Sequence[str]) -> None:
        plan = read_plan(run_folder)
        self.run_folder, self.kind = run_folder, kind
        self.number = int(os.environ["SLURM_ARRAY_TASK_ID" if kind == ARRAY_TASK else "SLURM_PROCID"])
        self.attempt = int(os.environ["CCLM_ATTEMPT"])
        self.is_torchrun = "@NODE_RANK@" in command
        place = {} if self.is_torchrun else place_of(os.environ)
        self.network, settings = self.look_at_network(plan.request.network)
        self.environment = {**os.environ, **place, **settings, CLEARED_VARIABLE: str(run_folder)}
        self.command = fill_in(command, self.environment)
        self.log = run_folder / "logs" / f"{kind}_{self.number}.log"
        self.record = run_folder / STATUS_FOLDER / f"exit_{kind}_{self.number}.json"
        self.partial = temporary_path(self.record)
        self.hang_s = plan.request.hang_s if kind == "rank" else 0.0
        per_task = plan.ranks_per_node if self.is_torchrun else 1
        self.ranks = range(self.number * per_task, (self.number + 1) * per_task) if kind == "rank" else range(0)
        """Ranks whose words are this task's: one, or all that torchrun starts on this node."""

    def look_at_network(self, asked: str) -> tuple[str, dict[str, str]]:
        """Return this node's fabric for the log, and variables for it; an array's tasks talk to nobody."""
        if self.kind == ARRAY_TASK or asked == NONE:
            return "", {}
        fabric = look(towards=os.environ.get("MASTER_ADDR"), kind=asked)
        settings = {name: value for name, (value, _) in settings_of(fabric, asked, os.environ).items()}
        return f", {fabric}: {' '.join(f'{name}={value}' for name, value in settings.items())}", settings

    def run(self) -> int:
        """Run the command to its end; return the code for srun."""
        self.take_room()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab", buffering=0) as output:
            when = time.strftime("%Y-%m-%d %H:%M:%S")
            where = f"{self.kind} {self.number} on {socket.gethostname()}"
            output.write(f"=== {when} {where}, attempt {self.attempt}{self.network}\n".encode())
            start = output.tell()
            statuses = [self.run_folder / STATUS_FOLDER / f"rank_{rank}.json" for rank in self.ranks]
            watch = Watch(statuses, self.hang_s)  # before the ranks begin: their first words count
            try:
                process = subprocess.Popen(
                    self.command, env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
                )
            except OSError as error:
                reason = f"{self.command[0]}: {error.strerror}"
                output.write(f"{reason}\n".encode())
                self.write_end(EXIT_CODES[Cause.NOT_STARTED], Cause.NOT_STARTED, reason)
                return EXIT_CODES[Cause.NOT_STARTED]
            hung = self.end_of(process, watch)
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode
        cause, reason = hung or self.why(code)
        is_good = cause in GOOD_ENDS
        self.write_end(code, cause, reason or ("" if is_good else last_words(read_since(self.log, start))))
        return 0 if is_good else code

    def end_of(self, process: subprocess.Popen[bytes], watch: Watch) -> tuple[Cause, str] | None:
        """Wait for the end; a rank that hangs is killed: then return why, and where it stood."""
        hung = None
        while process.poll() is None:
            if hung is None and watch.is_over:
                hung = self.end_hung(process, watch.silent_s())
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=2.0)
        return hung

    def end_hung(self, process: subprocess.Popen[bytes], silent_s: float) -> tuple[Cause, str]:
        """Have the ranks print their tracebacks, then kill them."""
        before = self.log.stat().st_size
        said = [read_status(self.run_folder / STATUS_FOLDER / f"rank_{rank}.json") for rank in self.ranks]
        # torchrun itself would die of the signal, and say nothing.
        for pid in [item.pid for item in said if item is not None] if self.is_torchrun else [process.pid]:
            os.kill(pid, signal.SIGUSR2)
        time.sleep(TRACEBACK_S)
        cause, place = where_it_stands(read_since(self.log, before))
        if cause is Cause.WAITING:
            time.sleep(WAITING_S)
        process.kill()
        return cause, f"no sign of life for {silent_s:.0f} s; {place}"

    def why(self, code: int) -> tuple[Cause, str]:
        """Return why the task ended: of several ranks, what the one to blame says."""
        found = [cause_of_end(self.run_folder, rank, code) for rank in self.ranks or (-1,)]
        return min(found, key=lambda told: (consequence(told[0]), not told[1]))

    def take_room(self) -> None:
        """Make the hidden file that will become the record, with all the bytes it may need."""
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        self.partial.write_bytes(b" " * RECORD_BYTES)

    def write_end(self, code: int, cause: Cause, reason: str) -> None:
        """Write the record into the room taken for it, then give it its name."""
        host, now = socket.gethostname(), time.time()
        end = RankEnd(
            rank=self.number, host=host, attempt=self.attempt, code=code, time=now, cause=cause,
            reason=reason[:MOST_REASON],
        )  # fmt: skip
        with self.partial.open("r+b") as file:
            file.write(json.dumps(asdict(end)).encode().ljust(RECORD_BYTES - 1) + b"\n")
        self.partial.replace(self.record)


def main(arguments: list[str]) -> int:
    """Run one task."""
    run_folder, kind, dashes, *command = arguments
    assert dashes == "--" and command, "task RUN KIND -- COMMAND"
    # Ignored signals stay ignored in the rank until it asks for them: Slurm sends USR1 to every process of a step. TERM
    # is for the rank, which may save; a handler, unlike "ignore", is not inherited.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    return Task(Path(run_folder), kind, command).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
