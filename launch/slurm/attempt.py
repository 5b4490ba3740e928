"""The decisions of the batch script, each a short call from bash. Standard library only, apart from our own files.

python -m launch.slurm.attempt port     RUN --job ID                 print a port to meet at
python -m launch.slurm.attempt begin    RUN --job ID --nodes LIST    0: go on, prints the attempt's number;
                                                                     3: nothing to do; 1: give up
python -m launch.slurm.attempt ask      RUN --kind KIND --reason TEXT    ask the ranks to save
python -m launch.slurm.attempt check    RUN --job ID                 after preflight; 0: every node is healthy
python -m launch.slurm.attempt end      RUN --job ID --code N [--ended]  0: done; 75: another attempt; 1: give up
python -m launch.slurm.attempt after    RUN --other RUN2             0: RUN2 is done; 1: it is not, or not yet
python -m launch.slurm.attempt resubmit RUN                          submit the script again
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from cclm.errors import CclmError
from cclm.files.atomic import replace_bytes
from cclm.run import stop
from cclm.run.machine import why_port_is_taken
from cclm.run.status import DoneMarker
from launch.plan.request import SlurmRequest
from launch.plan.slurm_job import FIRST_PORT, NUM_PORTS, SlurmPlan, read_plan
from launch.slurm.history import (
    Event,
    add_event,
    all_attempts,
    attempts_since_submission,
    is_stopped_by_user,
    last_job,
    next_attempt,
    read_history,
    tries_at,
)
from launch.slurm.jobs import jobs_alive, live_jobs, submit_script
from launch.slurm.restart import decide_command, decide_restart, newest_step, why_not_done

GO_ON, GIVE_UP, NOTHING_TO_DO, AGAIN = 0, 1, 3, stop.STOPPED_CODE

RESERVE, RESERVE_BYTES = Path("slurm") / "reserve", 2**16
"""Room that is given back at the end of an attempt: on a full disk, too, it must be possible to say why it ended."""


def begin(run_folder: Path, request: SlurmRequest, job: str, nodes: str) -> int:
    """Note that an attempt begins, or say why it does not."""
    if request.is_training and DoneMarker(run_folder).read() is not None:
        say("already done: nothing to do")
        return NOTHING_TO_DO
    history, step = read_history(run_folder), newest_step(run_folder)
    if is_stopped_by_user(history, job):
        say(f"stopped by the user, so it does not begin; to go on: python -m launch resume {run_folder}")
        return NOTHING_TO_DO
    if (other := _other_job(run_folder, job)) is not None:
        say(f"job {other} runs in this folder: this one ends, and leaves everything as it is")
        return GIVE_UP
    tries = tries_at(attempts_since_submission(history), step)
    if tries >= request.max_tries:
        say(f"{tries} attempts began at step {step} and none saved a newer checkpoint, so there is no further try.")
        say(f"Look at {run_folder}/logs, then give the command of the submission again.")
        return GIVE_UP
    stop.clear(run_folder)
    stop.ask_nothing(run_folder)
    attempt = next_attempt(history)
    replace_bytes(run_folder / RESERVE, bytes(RESERVE_BYTES))
    add_event(run_folder, Event(event="begin", attempt=attempt, job=job, nodes=nodes, step=step))
    sys.stdout.write(f"{attempt}\n")
    say(f"attempt {attempt} of {request.name}: job {job} on {nodes}, from step {step}")
    return GO_ON


def _other_job(run_folder: Path, job: str) -> str | None:
    """Another job that runs in this folder: somebody has submitted the script twice."""
    newest = next(reversed(all_attempts(read_history(run_folder))), None)
    if newest is None or newest.ended is not None or newest.job == job:
        return None
    try:
        running = [found.job for found in live_jobs(run_folder)[run_folder] if found.state == "RUNNING"]
    except CclmError:  # a controller that does not answer: the ranks' own lock still stands
        return None
    return newest.job if newest.job in running else None


def end(run_folder: Path, plan: SlurmPlan, job: str, code: int, *, is_ended_from_outside: bool) -> int:
    """Decide what comes after the attempt that has just ended, and note it."""
    (run_folder / RESERVE).unlink(missing_ok=True)
    attempt = attempts_since_submission(read_history(run_folder))[-1]
    if plan.request.is_training:
        decision = decide_restart(run_folder, plan.request.max_tries, job, is_ended_from_outside=is_ended_from_outside)
    else:
        decision = decide_command(run_folder, attempt, plan.request.nodes * plan.tasks_per_node)
    add_event(run_folder, Event(
        event="end", attempt=attempt.number, job=job, step=decision.step, exit_status=decision.exit_status,
        cause=decision.cause.value, reason=decision.reason,
    ))  # fmt: skip
    say(f"attempt {attempt.number} {decision.exit_status} (srun's code {code}): {decision.reason}")
    if decision.goes_on:
        return AGAIN
    return GIVE_UP if decision.exit_status == "failed" else GO_ON


def after(run_folder: Path, other: Path) -> int:
    """Is the other run done? If a later job of it still waits or runs, submit this one again behind that."""
    why = why_not_done(other)
    if not why:
        return GO_ON
    if jobs := jobs_alive(other):
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
    add_event(run_folder, Event(event="submitted", job=job, reason=f"after job {last_job(read_history(run_folder))}"))
    say(f"goes on as job {job}")
    return GO_ON


def find_port(job: int) -> int:
    """Return the first free port from one that depends on the job's id on: jobs may share a node."""
    for offset in range(NUM_PORTS):
        port = FIRST_PORT + (job * 16 + offset) % NUM_PORTS
        if not why_port_is_taken(port):
            return port
    advice = "Find out what holds them: `ss -ltn`."
    raise CclmError(where="the first node", expected="a free port", got="none", do=advice)


def say(line: str) -> None:
    """Write a line of the batch script's log."""
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


def main(arguments: list[str]) -> int:
    """Run one decision."""
    parser = argparse.ArgumentParser(prog="python -m launch.slurm.attempt")
    parser.add_argument("action", choices=("port", "after", "begin", "ask", "check", "end", "resubmit"))
    parser.add_argument("run_folder", type=Path)
    for name in ("job", "nodes", "reason"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--kind", type=stop.StopKind, default=stop.StopKind.SCHEDULER)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--code", type=int, default=0)
    parser.add_argument("--ended", action="store_true")
    options = parser.parse_args(arguments)
    run_folder: Path = options.run_folder
    if options.action == "port":
        sys.stdout.write(f"{find_port(int(options.job))}\n")
        return 0
    if options.action == "ask":
        say(f"asks the ranks to save: {options.reason}")
        stop.ask_to_stop(run_folder, options.reason, options.kind)
        return 0
    if options.action == "after":
        return after(run_folder, options.other)
    if options.action == "resubmit":
        return resubmit(run_folder)
    plan = read_plan(run_folder)
    if options.action == "begin":
        return begin(run_folder, plan.request, options.job, options.nodes)
    if options.action == "check":
        from launch.slurm.node_health import check_nodes

        return check_nodes(run_folder, plan, options.job, say=say, resubmit=resubmit)
    return end(run_folder, plan, options.job, options.code, is_ended_from_outside=options.ended)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
