"""`stop`, `cancel`, `resume` and `drill`: what a person does to runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from cclm.files.command_line import Commands
from cclm.files.describe import add_fields, read_fields
from launch.commands.parsers import RUN, add_command, say
from launch.commands.submit import SIZE
from launch.plan.request import SlurmRequest

MAY_CHANGE = ("nodes", *SIZE, "concurrent", "max_tries", "save_s")
"""Fields of a request that may differ from one submission of a run to the next."""
PATIENCE_S = 900.0


def add_to(commands: Commands) -> None:
    """Add `stop`, `cancel`, `resume` and `drill`."""
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


def stop_runs(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Ask the runs to stop; 1 if they have not within the time given."""
    from launch.control.stop import stop, wait_until_stopped
    from launch.watch.runs import find_runs_of

    runs = find_runs_of(options.run)
    asked = stop(runs, say=_say_of(runs))
    if len(runs) > 1 and not asked:
        say(f"none of {len(runs)} runs is asked to save")
    return 0 if not options.wait or wait_until_stopped(asked, options.wait, say=_say_of(runs)) else 1


def cancel_runs(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Cancel the runs' jobs; 1 if one has not ended after all."""
    from launch.control.stop import cancel
    from launch.watch.runs import find_runs_of

    runs = find_runs_of(options.run)
    return 0 if cancel(runs, say=_say_of(runs)) else 1


def _say_of(runs: list[Path]) -> Callable[[Path, str], None]:
    """Return how to speak of a run: by its name, if there are several."""
    return lambda run, line: say(f"{run.name}: {line}" if len(runs) > 1 else line)


def resume_run(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Submit the run again, and print the job's id."""
    from launch.control.resume import resume
    from launch.watch.runs import find_run

    changes = read_fields(options, MAY_CHANGE)
    job, log = resume(find_run(options.run), changes, say=say, new_code=options.new_code)
    say(f"log: {log}")
    sys.stdout.write(f"{job}\n")
    return 0


def drill_run(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Do the drill; print a table; 1 if a station was not reached as it should be."""
    from cclm.files.text import table
    from launch.control.drill import Drill, drillable, price
    from launch.watch.runs import find_run

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
