"""What people ask of runs (`status`, `logs`, `stop`, `cancel`, `resume`, `drill`) and of this machine (`doctor`)."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from cclm.errors import ConfigError
from cclm.files.command_line import Commands, is_lost
from cclm.files.describe import add_fields, read_fields
from cclm.files.lines import Tail
from cclm.files.text import table
from launch.commands.parsers import RUN, add_command, say
from launch.commands.submit import SIZE
from launch.plan.request import SlurmRequest
from launch.watch.runs import find_run, find_runs, find_runs_of

INTERRUPTED_CODE = 128 + signal.SIGINT
MAY_CHANGE = ("nodes", *SIZE, "concurrent", "max_tries", "save_s")
"""Fields of a request that may differ from one submission of a run to the next."""
PATIENCE_S = 900.0


def add_to(commands: Commands) -> None:
    """Add these commands."""
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

    stop = add_command(commands, "stop", stop_runs, help="let a run save, end, and stay stopped")
    cancel = add_command(commands, "cancel", cancel_runs, help="end all jobs of a run at once")
    resume = add_command(commands, "resume", resume_run, help="submit a run again, from its own folder")
    drill = add_command(commands, "drill", drill_run, help="fake a preemption: does the job save, and go on?")
    for parser, also in ((stop, ", also of a sweep"), (cancel, ", also of a sweep"), (resume, ""), (drill, "")):
        parser.add_argument("run", metavar="RUN", help=RUN + also)
    stop.add_argument("--wait", type=float, default=0.0, metavar="S", help="wait so many seconds until it has stopped")
    resume.add_argument("--new-code", action="store_true", help="copy the checkout's code anew")
    changes = resume.add_argument_group("what may differ from before (the plan is then made anew)")
    add_fields(changes, SlurmRequest, MAY_CHANGE, default=None)
    drill.add_argument("--kill", action="store_true", help="kill the attempt (scontrol requeue) instead of asking it")
    drill.add_argument("--wait", type=float, default=PATIENCE_S, metavar="S", help="patience at each station")


def show_status(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Print a table, the block of the only run that was named, or JSON."""
    from launch.slurm.jobs import details_of
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
    else:
        text = as_table(runs, unreadable, options.root) if paths else f"no runs in {options.root.absolute()}"
    sys.stdout.write(text + "\n")
    if jobs.silence and not options.json:
        say(jobs.silence)
    return 0


def show_logs(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Print the last lines; 1 if there is no file yet."""
    from launch.watch.logs import EndOfRun, follow, log_of
    from launch.watch.status import look_at_one

    if options.lines < 0:
        raise ConfigError(where="--lines", expected="0 or more", got=str(options.lines), do="Leave it out for 40.")
    run_folder = find_run(options.run)
    tail = Tail(log_of(look_at_one(run_folder), rank=options.rank, task=options.task, say=say), options.lines)
    if not options.follow:
        news = tail.news()
        if news is None:
            say(f"{tail.path} is not there yet")
            return 1
        sys.stdout.buffer.write(news)
        return 0
    try:
        for news in follow(tail, is_over=EndOfRun(run_folder, options.task), say=say):
            sys.stdout.buffer.write(news)
            sys.stdout.buffer.flush()
            if is_lost():
                break  # `| head` has seen enough
    except KeyboardInterrupt:  # the user has seen enough
        return INTERRUPTED_CODE
    return 0


def diagnose(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Print a report on this machine and Slurm; 1 if something fails."""
    from launch.plan.request import read_profile
    from launch.watch.doctor import diagnose_machine, diagnose_slurm

    profile = read_profile(options.profile)
    found = [*diagnose_machine(options.folder), *diagnose_slurm(options.folder, profile, options.save_s)]
    for item in found:
        sys.stdout.write(f"{item.level:5} {item.subject:22} {item.text}\n")
    return 1 if any(item.level == "fail" for item in found) else 0


def _say_of(runs: list[Path]) -> Callable[[Path, str], None]:
    return lambda run, line: say(f"{run.name}: {line}" if len(runs) > 1 else line)


def stop_runs(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Ask the runs to stop; 1 if they have not within the time given."""
    from launch.control.stop import stop, wait_until_stopped

    runs = find_runs_of(options.run)
    asked = stop(runs, say=_say_of(runs))
    if len(runs) > 1 and not asked:
        say(f"none of {len(runs)} runs is asked to save")
    return 0 if not options.wait or wait_until_stopped(asked, options.wait, say=_say_of(runs)) else 1


def cancel_runs(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Cancel the runs' jobs; 1 if one has not ended after all."""
    from launch.control.stop import cancel

    runs = find_runs_of(options.run)
    return 0 if cancel(runs, say=_say_of(runs)) else 1


def resume_run(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Submit the run again, and print the job's id."""
    from launch.slurm.submit import resume

    changes = read_fields(options, MAY_CHANGE)
    job, log = resume(find_run(options.run), changes, say=say, new_code=options.new_code)
    say(f"log: {log}")
    sys.stdout.write(f"{job}\n")
    return 0


def drill_run(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Do the drill; print a table; 1 if a station was not reached as it should be."""
    from launch.control.drill import Drill, drillable, price

    run = drillable(find_run(options.run))
    say(price(kill=options.kill))
    stations = []
    for station in Drill(run.run_folder, kill=options.kill, patience_s=options.wait).stations():
        say(f"{station.name}: {station.found}")
        stations.append(station)
    is_good = stations[-1].is_good
    end = "it survives a preemption" if is_good else "it does not survive this: the last line says where it ended"
    rows = [(item.name, f"{item.seconds:.1f}", "good" if item.is_good else "BAD", item.found) for item in stations]
    total = ("all", f"{sum(item.seconds for item in stations):.1f}", "good" if is_good else "BAD", end)
    sys.stdout.write(table(("station", "seconds", "", "found"), [*rows, total], right=("seconds",)) + "\n")
    return 0 if is_good else 1
