"""`drill`: a fake preemption."""

from __future__ import annotations

import argparse
import sys

from launch.commands.parsers import Commands, say
from launch.watch.runs import find_run

PATIENCE_S = 900.0


def add_to(commands: Commands) -> None:
    """Add `drill`."""
    parser = commands.add_parser("drill", help="fake a preemption: does the job save, come back and go on?")
    parser.add_argument("run", metavar="RUN", help="name in runs/ or path")
    parser.add_argument("--kill", action="store_true", help="kill the attempt (scontrol requeue) instead of asking it")
    parser.add_argument("--wait", type=float, default=PATIENCE_S, metavar="S", help="patience at each station")
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Do the drill; print a table; 1 if a station was not reached as it should be."""
    from cclm.files.text import table
    from launch.control.drill import Drill, drillable, price

    run = drillable(find_run(options.run))
    say(price(kill=options.kill))
    stations = []
    for station in Drill(run.run_folder, kill=options.kill, patience_s=options.wait).stations():
        say(f"{station.name}: {station.found}")
        stations.append(station)
    is_good = stations[-1].is_good
    rows = [(item.name, f"{item.seconds:.1f}", "good" if item.is_good else "BAD", item.found) for item in stations]
    total = ("all", f"{sum(item.seconds for item in stations):.1f}", "good" if is_good else "BAD", _verdict(is_good))
    sys.stdout.write(table(("station", "seconds", "", "found"), [*rows, total], right=("seconds",)) + "\n")
    return 0 if is_good else 1


def _verdict(is_good: bool) -> str:
    return "it survives a preemption" if is_good else "it does not survive this: the last line says where it ended"
