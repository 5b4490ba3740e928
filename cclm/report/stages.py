"""The stages of a demonstration: public commands that are called one after another, printed, timed and gone on with.

plan of a demonstration ─ run_stages ─▶ `python -m COMMAND`, and RUN/stages.json: what ran, and how long it took
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cclm.errors import CclmError
from cclm.files.atomic import make_folder, replace_text
from cclm.files.reading import read_json
from cclm.report.facts import RESULTS_NAME, STAGES_NAME
from cclm.track.progress import spell_duration, stage

STOPPED_CODE = 130
SECONDS_BETWEEN_NOTES = 10.0
"""So much of a stage's time is forgotten at most when a demonstration is killed."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a demonstration: what a person reads, and the commands that do it."""

    name: str
    """Key of its seconds in stages.json and results.json."""
    explanation: str
    commands: tuple[str, ...]
    """As a person types them, after `python -m`."""
    home: Path
    """Folder whose stages.json remembers its time: the data's, or the run's."""
    is_done: Callable[[], bool] = lambda: False
    """Whether an earlier attempt has done it; asked when its turn comes."""
    is_always_called: bool = False
    """Call the commands even then: they look closer, refuse what contradicts, and are quick."""
    outdates: Path | None = None
    """A file that says something about this stage's product, and goes when that is made anew."""

    @property
    def command(self) -> str:
        """Its commands, one a line."""
        return "\n".join(f"python -m {command}" for command in self.commands)


def run_stages(stages: Sequence[Stage], run: Path, page: Path, finish: Callable[[], str]) -> int:
    """Run stages into the folder `run`; at the end say what `finish` returns, the time, and which page to open. Return
    0, or the code of the first one that fails."""
    began = time.monotonic()
    try:
        for item in stages:
            code = run_stage(item, run)
            if code:
                sys.stderr.write(f"error: stage {item.name} ended with code {code}; see above\n")
                return code
        sys.stdout.write(f"\n{finish()}\n")
        sys.stdout.write(f"\nDone in {spell_duration(time.monotonic() - began)}. Open {page}\n")
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the same command goes on\n")
        return STOPPED_CODE
    except CclmError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def run_stage(item: Stage, run: Path) -> int:
    """Print, run and time one stage; return its code. KeyboardInterrupt: somebody stopped it, and its child has
    ended."""
    stage("Pre-train" if item.name == "train" else item.name.title(), item.explanation)
    before = read_rows(item.home).get(item.name, {})
    is_same = before.get("command", item.command) == item.command
    before = before if is_same else {}
    is_done = item.is_done()
    if is_done and is_same and not item.is_always_called:
        sys.stdout.write("  done before\n")
        note_stage(run, item, seconds=before.get("seconds"), is_finished=True)
        return 0
    if item.outdates is not None:
        item.outdates.unlink(missing_ok=True)
    # Time adds up over the attempts of a stage; another look at what is done costs seconds that nobody wants to know.
    is_repeated = is_done and item.is_always_called and before.get("finished", True)
    earlier = 0.0 if before.get("finished", True) else before.get("seconds") or 0.0
    began = time.monotonic()

    def note(*, is_finished: bool = False) -> None:
        if is_repeated and not is_finished:
            return  # what is done stays so, even if this command line contradicts it and is refused
        spent = before.get("seconds") if is_repeated else earlier + time.monotonic() - began
        note_stage(run, item, seconds=spent, is_finished=is_finished)

    note()
    for command in item.commands:
        sys.stdout.write(f"  $ python -m {command}\n")
        sys.stdout.flush()
        code = run_command(command, note)
        if code:
            note()
            return code
    note(is_finished=True)
    return 0


def run_command(command: str, on_wait: Callable[[], None]) -> int:
    """Run `python -m command` with this interpreter to its end; return its exit code. Raise KeyboardInterrupt if the
    keyboard interrupted it, once the child, which got the same signal, has ended."""
    words = shlex.split(command)
    if "--" in words:  # the "python" behind it means this interpreter too, and nothing that PATH knows
        program = words.index("--") + 1
        words[program] = sys.executable if words[program] == "python" else words[program]
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen([sys.executable, "-m", *words], env={**os.environ, **quiet})
    is_stopped = False
    while True:
        try:
            process.wait(timeout=SECONDS_BETWEEN_NOTES)
            break
        except subprocess.TimeoutExpired:
            on_wait()
        except KeyboardInterrupt:  # it may be saving: a second one hurries it, and it ends in any case
            is_stopped = True
    if is_stopped:
        on_wait()
        raise KeyboardInterrupt
    return process.returncode


def read_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of a folder's stages.json by name."""
    return {row["name"]: row for row in read_json(folder / STAGES_NAME, [])}


def note_stage(run: Path, item: Stage, *, seconds: float | None, is_finished: bool) -> None:
    """Remember what a stage ran and how long it took: stages.json for the report, and `seconds` in results.json."""
    spent = None if seconds is None else round(seconds, 1)
    row = {"name": item.name, "command": item.command, "seconds": spent, "finished": is_finished}
    for folder in {item.home, run}:  # the data's stages stand in the run's list as well
        rows = {**read_rows(folder), item.name: row}
        make_folder(folder)
        replace_text(folder / STAGES_NAME, json.dumps(list(rows.values()), indent=1) + "\n")
    path = run / RESULTS_NAME
    results = read_json(path, None)
    if is_finished and results is not None:
        known = {name: row["seconds"] for name, row in read_rows(run).items() if row["seconds"] is not None}
        results["seconds"] = {**results.get("seconds", {}), **known}
        replace_text(path, json.dumps(results, ensure_ascii=False, indent=1) + "\n")
