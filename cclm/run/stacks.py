"""Where the threads of a process stand: their tracebacks in a file, and what these say about who waits for whom."""

from __future__ import annotations

import faulthandler
import re
import tempfile
import time
from pathlib import Path

from cclm.errors import Cause

STACKS_FOLDER = "stacks"
"""In the run folder: what ranks that were ended as hung left behind."""
COLLECTIVE = re.compile(r"torch/distributed|cclm/distributed/|deepspeed/(comm|utils/nvtx|runtime/zero/)")
NUM_INNERMOST = 3
"""A rank waits for others if one of so many innermost frames is a collective, or ZeRO's own wait for one."""
FRAME = re.compile(r'File "(.*)", line (\d+) in (.*)')
BEGIN = "(most recent call first)"
BACKWARD = "torch/autograd/graph.py"
"""The main thread waits in here for the threads that compute a backward pass on a GPU."""
WATCH = "cclm/run/watch.py"


def where_it_stands(said: str) -> tuple[Cause, str]:
    """Return what a traceback of all threads says: of the main one, which stands last."""
    threads = [FRAME.findall(text) for text in said.split(BEGIN)[1:]]
    if not threads or not threads[-1]:
        return Cause.HUNG, "it does not even print a traceback"
    place, line, function = threads[-1][0]
    judged = [frames for frames in threads if not any(frame[0].endswith(WATCH) for frame in frames)]
    judged = judged if place.endswith(BACKWARD) else threads[-1:]
    is_waiting = any(COLLECTIVE.search(frame[0]) for frames in judged for frame in frames[:NUM_INNERMOST])
    how = "waits for other ranks" if is_waiting else "stands"
    return Cause.WAITING if is_waiting else Cause.HUNG, f"{how} in {function} ({place}:{line})"


def write_stacks(path: Path, heading: str) -> str:
    """Append every thread's traceback to a file, below a line; return it, also if the file cannot be written."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        text = file.read().decode(errors="replace")
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            log.write(f"=== {when} {heading}\n{text}\n")
    except OSError as error:
        return f"{text}\n{path}: {error}\n"
    return text
