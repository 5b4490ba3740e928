"""`status`, `logs` and `doctor`: how runs are doing, what they write, and what is installed here."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from cclm.errors import ConfigError
from cclm.files.command_line import Commands, is_lost
from cclm.files.describe import add_fields
from cclm.files.lines import Tail
from launch.commands.parsers import RUN, add_command, say
from launch.plan.request import SlurmRequest

INTERRUPTED_CODE = 128 + signal.SIGINT


def add_to(commands: Commands) -> None:
    """Add `status`, `logs` and `doctor`."""
    text = "how runs are doing: job, step, loss, speed, checkpoint, last word"
    status = add_command(commands, "status", show_status, help=text)
    status.add_argument("runs", nargs="*", metavar="RUN", help=f"{RUN}; default: all of them")
    status.add_argument("--root", type=Path, default=Path("runs"), help="where runs are looked for")
    status.add_argument("--json", action="store_true", help="print JSON")
    logs = add_command(commands, "logs", show_logs, help="show what a run writes, and follow it")
    logs.add_argument("run", metavar="RUN", help=RUN)
    logs.add_argument("--rank", type=int, default=None, help="a rank's own log; default: the batch script's")
    logs.add_argument("--task", type=int, default=None, metavar="N", help="a task of an array")
    logs.add_argument("--lines", type=int, default=40, help="lines from the end")
    logs.add_argument("--follow", action="store_true", help="go on, over the run's attempts, until it is over")
    doctor = add_command(commands, "doctor", diagnose, help="say what is installed, and what looks wrong")
    doctor.add_argument("--folder", type=Path, default=Path(), help="where data and runs will go")
    doctor.add_argument("--profile", default=None, help="name in launch/profiles/ or path; default: $CCLM_PROFILE")
    add_fields(doctor, SlurmRequest, ["save_s"])


def show_status(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Print a table, the block of the only run that was named, or JSON."""
    from launch.slurm.jobs import details_of
    from launch.watch.runs import find_runs, find_runs_of
    from launch.watch.status import look_at
    from launch.watch.status_text import as_block, as_json, as_table

    named = [path for name in options.runs for path in find_runs_of(name)]
    paths = named or [path.absolute() for path in find_runs(options.root)]
    runs, unreadable, jobs = look_at(paths)
    if options.json:
        text = as_json(runs, unreadable, jobs)
    elif len(named) == 1 and runs:
        is_known = bool(jobs.of(runs[0].job)) and runs[0].array_tasks is None
        text = as_block(runs[0], details_of(runs[0].job) if is_known else {})
    elif paths:
        text = as_table(runs, unreadable, options.root)
    else:
        text = f"no runs in {options.root.absolute()}"
    sys.stdout.write(text + "\n")
    if jobs.silence and not options.json:
        say(jobs.silence)
    return 0


def show_logs(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Print the last lines; 1 if there is no file yet."""
    from launch.watch.logs import EndOfRun, follow, log_of
    from launch.watch.runs import find_run
    from launch.watch.status import look_at_one

    if options.lines < 0:
        raise ConfigError(where="--lines", expected="0 or more", got=str(options.lines), do="Leave it out for 40.")
    run_folder = find_run(options.run)
    path = log_of(look_at_one(run_folder), rank=options.rank, task=options.task, say=say)
    tail = Tail(path, options.lines)
    if not options.follow:
        news = tail.news()
        if news is None:
            say(f"{path} is not there yet")
            return 1
        _write(news)
        return 0
    try:
        for news in follow(tail, is_over=EndOfRun(run_folder, options.task), say=say):
            _write(news)
            if is_lost():
                break  # `| head` has seen enough
    except KeyboardInterrupt:  # the user has seen enough
        return INTERRUPTED_CODE
    return 0


def _write(text: bytes) -> None:
    sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()


def diagnose(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Print a report on this machine and Slurm; 1 if something fails."""
    from launch.local.diagnose import diagnose_machine
    from launch.plan.profile import read_profile
    from launch.slurm.diagnose import diagnose_slurm

    profile = read_profile(options.profile)
    found = [*diagnose_machine(options.folder), *diagnose_slurm(options.folder, profile, options.save_s)]
    for item in found:
        sys.stdout.write(f"{item.level:5} {item.subject:22} {item.text}\n")
    return 1 if any(item.level == "fail" for item in found) else 0
