"""The decisions of the batch script, each a short call from bash. Standard library only, apart from our own files.

python -m launch.slurm.attempt port     RUN --job ID                  print a port to meet at
python -m launch.slurm.attempt begin    RUN --job ID --nodes LIST     0: go on, prints the life's number;
                                                                    3: already done; 1: give up
python -m launch.slurm.attempt ask      RUN --reason TEXT             ask the ranks to save
python -m launch.slurm.attempt judge    RUN --job ID                  after preflight; 0: every node is fit
python -m launch.slurm.attempt end      RUN --job ID --code N [--ended]   0: done; 75: live again; 1: give up
python -m launch.slurm.attempt after    RUN --other RUN2              0: RUN2 is done; 1: it is not, or not yet
python -m launch.slurm.attempt resubmit RUN                           submit the script again
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from cclm.errors import CclmError
from cclm.files.atomic import replace_bytes
from cclm.run import stop
from cclm.run.status import DoneMarker
from launch.slurm.client import submit_script
from launch.slurm.history import Event, add_event, is_to_rest, last_job, lives_of, next_life, read_history
from launch.slurm.live_jobs import jobs_alive
from launch.slurm.port import find_port
from launch.slurm.restart import judge_command, judge_training, newest_step, tries_at, why_not_done

GO_ON, GIVE_UP, NOTHING_TO_DO, LIVE_AGAIN = 0, 1, 3, stop.STOPPED_CODE

RESERVE, RESERVE_BYTES = Path("slurm") / "reserve", 2**16
"""Room that is given back at the end of a life: on a full disk, too, it must be possible to say why it ended."""


def begin(run_folder: Path, plan: dict[str, Any], job: str, nodes: str) -> int:
    """Note that a life begins, or say why it does not."""
    if plan["is_training"] and DoneMarker(run_folder).read() is not None:
        say("already done: nothing to do")
        return NOTHING_TO_DO
    history, step = read_history(run_folder), newest_step(run_folder)
    if is_to_rest(history, job):
        say(f"asked to rest, so it does not begin; to go on: python -m launch resume {run_folder}")
        return NOTHING_TO_DO
    tries = tries_at(lives_of(history), step)
    if tries >= plan["max_tries"]:
        say(f"{tries} lives began at step {step} and none saved a newer checkpoint, so there is no further try.")
        say(f"Look at {run_folder}/logs, then give the command of the submission again.")
        return GIVE_UP
    stop.clear(run_folder)
    stop.ask_nothing(run_folder)
    life = next_life(history)
    replace_bytes(run_folder / RESERVE, bytes(RESERVE_BYTES))
    add_event(run_folder, Event(event="begin", life=life, job=job, nodes=nodes, step=step))
    sys.stdout.write(f"{life}\n")
    say(f"life {life} of {plan['name']}: job {job} on {nodes}, from step {step}")
    return GO_ON


def end(run_folder: Path, plan: dict[str, Any], job: str, code: int, *, from_outside: bool) -> int:
    """Judge the life that has just ended, and note it. `from_outside`: the job got TERM, so it must not requeue itself:
    a cancelled job would come back, and one that is preempted comes back by Slurm's own doing."""
    (run_folder / RESERVE).unlink(missing_ok=True)
    history = read_history(run_folder)
    lives = lives_of(history)
    if plan["is_training"]:
        verdict = judge_training(run_folder, lives, plan["max_tries"])
    else:
        verdict = judge_command(run_folder, lives[-1].number, plan["nodes"] * plan["tasks_per_node"])
    if from_outside and verdict.goes_on:
        why = verdict.why.partition("; goes on")[0] + "; ended from outside (TERM), so it does not requeue itself"
        verdict = replace(verdict, goes_on=False, why=why)
    if verdict.goes_on and is_to_rest(history, job):
        why = verdict.why.partition("; goes on")[0] + "; rests, as a person asked"
        verdict = replace(verdict, goes_on=False, why=why)
    life = lives[-1].number
    add_event(
        run_folder,
        Event(event="end", life=life, job=job, step=verdict.step, outcome=verdict.outcome, why=verdict.why),
    )
    say(f"life {life} {verdict.outcome} (srun's code {code}): {verdict.why}")
    if verdict.goes_on:
        return LIVE_AGAIN
    return GO_ON if verdict.outcome in ("done", "stopped") else GIVE_UP


def after(run_folder: Path, other: Path) -> int:
    """Is the other run done? If a later job of it still waits or runs, submit this one again behind that."""
    why = why_not_done(other)
    if not why:
        return GO_ON
    jobs = jobs_alive(other)
    if jobs:
        say(f"{other} goes on as job {', '.join(jobs)}")
        return resubmit(run_folder, f"--dependency=afterany:{':'.join(jobs)}") or GIVE_UP
    say(f"{other} is not done: {why}. Repair it, then submit this run again.")
    return GIVE_UP


def resubmit(run_folder: Path, *options: str) -> int:
    """Submit the run's script as a new job."""
    try:
        job = submit_script(str(run_folder / "slurm" / "job.sh"), *options)
    except CclmError as error:
        say(f"could not be submitted again: {error}")
        return GIVE_UP
    before = last_job(read_history(run_folder))
    add_event(run_folder, Event(event="submitted", job=job, why=f"after job {before}"))
    say(f"goes on as job {job}")
    return GO_ON


def say(line: str) -> None:
    """Write a line of the batch script's log."""
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


def main(arguments: list[str]) -> int:
    """Run one decision."""
    parser = argparse.ArgumentParser(prog="python -m launch.slurm.attempt")
    parser.add_argument("action", choices=("port", "after", "begin", "ask", "judge", "end", "resubmit"))
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--job", default="")
    parser.add_argument("--other", type=Path)
    parser.add_argument("--nodes", default="")
    parser.add_argument("--reason", default="")
    parser.add_argument("--code", type=int, default=0)
    parser.add_argument("--ended", action="store_true")
    options = parser.parse_args(arguments)
    run_folder: Path = options.run_folder
    if options.action == "port":
        sys.stdout.write(f"{find_port(int(options.job))}\n")
        return 0
    if options.action == "ask":
        say(f"asks the ranks to save: {options.reason}")
        stop.ask_to_stop(run_folder, options.reason, stop.StopKind.SCHEDULER)
        return 0
    if options.action == "after":
        return after(run_folder, options.other)
    if options.action == "resubmit":
        return resubmit(run_folder)
    plan = json.loads((run_folder / "slurm" / "plan.json").read_text(encoding="utf-8"))
    if options.action == "begin":
        return begin(run_folder, plan, options.job, options.nodes)
    if options.action == "judge":
        from launch.slurm.node_health import judge_nodes

        return judge_nodes(run_folder, plan, options.job, say=say, resubmit=resubmit)
    return end(run_folder, plan, options.job, options.code, from_outside=options.ended)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
