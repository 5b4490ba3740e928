"""What srun starts for each rank: it gives the rank its place, its log and a watch, and writes down how it ended.
Run by path, standard library only: it must start at once, also inside a container.

    python launch/slurm/task.py RUN KIND -- COMMAND…        KIND: "rank", or the name of another step

    SLURM_PROCID, SLURM_LOCALID, … ──► RANK, LOCAL_RANK, … ──► COMMAND ──► RUN/logs/KIND_N.log
                                                                 └───────► RUN/status/exit_KIND_N.json

srun's own code is useless here: the highest of all, 143 as soon as one rank is ended because of another.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

STOPPED_CODE = 75  # cclm/run/stop.py: asked to stop, and saved; for srun that is a good end
NO_PROGRAM_CODE = 127
"""As a shell says it."""
TRACEBACK_S = 2.0
"""Time for a hung rank to print where it stands."""
START_S = 600.0
"""At least so long may a rank take to its first sign of life: imports, meeting the others, reading a checkpoint."""
WAITING_S = 10.0
"""How much longer a rank lives that only waits for another: the other's record is the one that counts."""
ELEMENT = "task"
"""Kind of the tasks of an array job: one per element."""
MOST_WORDS = 500
FULL_BYTES = 2**20
FULL = "the disk of the run folder is full"
"""What is said of a rank that died while that was so."""
RECORD_BYTES = 4096
"""Room for the record of the end, taken at the beginning: a full disk must not swallow why the rank died of it."""
FILLED_IN = {
    "NODE_RANK": "SLURM_NODEID",
    "MASTER_ADDR": "MASTER_ADDR",
    "MASTER_PORT": "MASTER_PORT",
    "TASK": "SLURM_ARRAY_TASK_ID",
}
COLLECTIVE = re.compile(r"torch/distributed|cclm/distributed/|deepspeed/(comm|utils/nvtx|runtime/zero/)")
NUM_INNERMOST = 3
"""A rank waits for others if one of so many innermost frames is a collective, or ZeRO's own wait for one."""
FRAME = re.compile(r'File "(.*)", line (\d+) in (.*)')


def place_of(environment: Mapping[str, str]) -> dict[str, str]:
    """Translate Slurm's variables for one task per rank; what a user set already stays."""
    if "RANK" in environment:
        return {}
    node = int(environment["SLURM_NODEID"])
    sizes = tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": environment["SLURM_NTASKS"],
        "LOCAL_WORLD_SIZE": str(sizes[node]),
    }


def tasks_per_node(text: str) -> list[int]:
    """Expand Slurm's short form: "2(x3),1" is [2, 2, 2, 1]."""
    sizes = []
    for part in text.split(","):
        size, _, times = part.partition("(x")
        sizes += [int(size)] * int(times.rstrip(")") or 1)
    return sizes


def fill_in(command: list[str], environment: Mapping[str, str]) -> list[str]:
    """Put what only a task knows into a command line: torchrun's, or that of an array's element."""
    filled = []
    for word in command:
        for name, source in FILLED_IN.items():
            word = word.replace(f"@{name}@", environment.get(source, ""))
        filled.append(word)
    return filled


class Watch:
    """Has the rank said something about itself lately? Compared by this machine's clock alone."""

    def __init__(self, path: Path, limit_s: float) -> None:
        self.path, self.limit_s = path, limit_s
        self.seen = self._changed()
        self.since = time.monotonic()
        self.has_begun = False

    def silent_s(self) -> float:
        """Seconds since the rank's status last changed, or since the start."""
        now_seen = self._changed()
        if now_seen != self.seen:
            self.seen, self.since, self.has_begun = now_seen, time.monotonic(), True
        return time.monotonic() - self.since

    @property
    def is_over(self) -> bool:
        """Whether the rank counts as hung."""
        silent_s = self.silent_s()
        return self.limit_s > 0 and silent_s > (self.limit_s if self.has_begun else max(self.limit_s, START_S))

    def _changed(self) -> float | None:
        try:
            return self.path.stat().st_mtime
        except OSError:
            return None


def where_it_stands(said: str) -> str:
    """Judge the traceback that a hung rank printed."""
    frames = FRAME.findall(said.rpartition("(most recent call first)")[2])
    if not frames:
        return "it does not even print a traceback"
    place, line, function = frames[0]
    how = "waits for other ranks" if any(COLLECTIVE.search(frame[0]) for frame in frames[:NUM_INNERMOST]) else "stands"
    return f"{how} in {function} ({place}:{line})"


def end_hung_rank(process: subprocess.Popen[bytes], log: Path, silent_s: float) -> str:
    """Have a hung rank print its traceback, then kill it; returns what to say about it."""
    before = log.stat().st_size
    process.send_signal(signal.SIGUSR2)
    time.sleep(TRACEBACK_S)
    place = where_it_stands(tail(log, before))
    if place.startswith("waits"):
        time.sleep(WAITING_S)
    process.kill()
    return f"hung: no sign of life for {silent_s:.0f} s; {place}"


def last_words(said: str) -> str:
    """The sentence of our programs' errors ("error: …", which may have several lines), or the last line."""
    lines = [line for line in said.splitlines() if line.strip()]
    sentences = [index for index, line in enumerate(lines) if line.startswith("error: ")]
    return " ".join(" ".join(lines[sentences[-1] if sentences else -1 :]).split())[:MOST_WORDS]


def tail(log: Path, start: int) -> str:
    """What was written into a log since `start`, at most 64 KiB of it."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 65536))
        return file.read().decode("utf-8", "replace")


def run(run_folder: Path, kind: str, command: list[str]) -> int:
    """Run the rank to its end; returns the code for srun."""
    # Ignored signals stay ignored in the rank until it asks for them: Slurm sends USR1 to every process of a step. TERM
    # is for the rank, which may save; a handler, unlike "ignore", is not inherited.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _nothing)
    number = int(os.environ["SLURM_ARRAY_TASK_ID"] if kind == ELEMENT else os.environ.get("SLURM_PROCID", "0"))
    life = int(os.environ["CCLM_LIFE"])
    log = run_folder / "logs" / f"{kind}_{number}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    plan = json.loads((run_folder / "slurm" / "plan.json").read_text(encoding="utf-8"))
    watch = Watch(run_folder / "status" / f"rank_{number}.json", plan["hang_s"] if kind == "rank" else 0.0)
    take_room(run_folder, kind, number)
    with log.open("ab", buffering=0) as output:
        header = f"=== {time.strftime('%Y-%m-%d %H:%M:%S')} {kind} {number} on {socket.gethostname()}, life {life}\n"
        output.write(header.encode())
        start, why = output.tell(), ""
        is_torchrun = "@NODE_RANK@" in command
        environment = {**os.environ, **({} if is_torchrun else place_of(os.environ))}
        words = fill_in(command, environment)
        try:
            process = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        except OSError as error:
            output.write(f"{words[0]}: {error.strerror}\n".encode())
            write_end(run_folder, kind, number, life, NO_PROGRAM_CODE, "", last_words(tail(log, start)))
            return NO_PROGRAM_CODE
        while process.poll() is None:
            if watch.is_over:
                why = end_hung_rank(process, log, watch.silent_s())
            try:
                process.wait(timeout=2.0)
            except subprocess.TimeoutExpired:
                continue
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    if code not in (0, STOPPED_CODE) and shutil.disk_usage(run_folder).free < FULL_BYTES:
        why = why or FULL
    write_end(run_folder, kind, number, life, code, why, last_words(tail(log, start)) if code else "")
    return 0 if code == STOPPED_CODE else code


def take_room(run_folder: Path, kind: str, rank: int) -> None:
    """Make the hidden file that will become the record, with all the bytes it may need."""
    path = run_folder / "status" / f".exit_{kind}_{rank}.json.partial"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b" " * RECORD_BYTES)


def write_end(run_folder: Path, kind: str, rank: int, life: int, code: int, why: str, words: str) -> None:
    """Write the record (`launch.slurm.restart.RankEnd`) into the room taken for it, then give it its name."""
    record = {"rank": rank, "host": socket.gethostname(), "life": life, "code": code, "time": time.time()}
    text = json.dumps({**record, "why": why, "last_words": words})
    partial = run_folder / "status" / f".exit_{kind}_{rank}.json.partial"
    with partial.open("r+b") as file:
        file.write(text.encode().ljust(RECORD_BYTES - 1) + b"\n")
    partial.replace(partial.with_name(partial.name.removeprefix(".").removesuffix(".partial")))


def _nothing(number: int, frame: FrameType | None) -> None:
    return


def main(arguments: list[str]) -> int:
    """Run one task."""
    run_folder, kind, dashes, *command = arguments
    assert dashes == "--" and command, "task.py RUN KIND -- COMMAND"
    return run(Path(run_folder), kind, command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
