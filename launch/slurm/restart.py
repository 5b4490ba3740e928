"""What comes after a life of a run, decided from files: never from the job's state, hardly from an exit code.

done marker                          → done
asked to stop, and saved             → go on (another life), or rest if a person asked
a mistake that a retry cannot mend   → give up          (a rank ended with code 2: one sentence for the user)
newer checkpoint than at the start   → go on
K lives without one                  → give up, and say why
"""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cclm.run.checkpoints import newest_complete, read_marker
from cclm.run.status import DoneMarker
from cclm.run.stop import STOPPED_CODE, StopKind, read_stopped
from launch.plan.sweep import is_sweep, points_not_done, read_sweep
from launch.slurm.history import Life, read_history
from launch.slurm.task import FULL

STATUS = "status"
USER_ERROR_CODE = 2
"""What our programs end with after a sentence for the user."""
VIOLENT_CODES = frozenset(128 + number for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS))
SAME_MOMENT_S = 3.0
"""Slurm itself kills the others later than that."""
WAITS = "waits for other ranks"
"""What the shim says of a hung rank that stands in a collective."""
REST = "rest: "
"""How a reason to stop begins when the run must not go on by itself (text in RUN/stop)."""


@dataclass(frozen=True, kw_only=True)
class RankEnd:
    """How a rank (or a task) ended; written by `launch/slurm/task.py`."""

    rank: int
    host: str
    life: int
    code: int
    """Exit code; 128 + N for signal N."""
    time: float
    why: str
    """"", or what the shim did: "hung: …"."""
    last_words: str
    """The last line of its log."""

    def __str__(self) -> str:
        how = self.why or (f"killed by signal {self.code - 128}" if self.code > 128 else f"exit code {self.code}")
        words = f": {self.last_words}" if self.last_words else ""
        return f"rank {self.rank} on {self.host}: {how}{words}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What to do now."""

    outcome: str
    """"done", "stopped" or "failed"."""
    goes_on: bool
    """Whether the job should live again."""
    step: int
    why: str


def read_ends(run_folder: Path, life: int) -> list[RankEnd]:
    """Return the ranks of a life that told how they ended, the earliest first."""
    found = []
    for path in (run_folder / STATUS).glob("exit_rank_*.json"):
        end = RankEnd(**json.loads(path.read_text(encoding="utf-8")))
        if end.life == life:
            found.append(end)
    return sorted(found, key=lambda end: end.time)


def newest_step(run_folder: Path) -> int:
    """Step of the newest complete checkpoint; 0 without one."""
    newest = newest_complete(run_folder)
    return 0 if newest is None else read_marker(newest).step


def tries_at(lives: Sequence[Life], step: int) -> int:
    """How many of the last lives began at this step and got no further, without having been asked to stop."""
    count = 0
    for life in reversed(lives):
        if life.first_step != step:
            break
        count += life.outcome not in ("stopped", "bad nodes")
    return count


def judge_training(run_folder: Path, lives: Sequence[Life], max_tries: int) -> Verdict:
    """Judge the last of `lives`, which has just ended, of a run that trains."""
    life, step = lives[-1], newest_step(run_folder)
    done = DoneMarker(run_folder).read()
    if done is not None:
        return Verdict(outcome="done", goes_on=False, step=done.step, why=f"done at step {done.step}")
    stopped = read_stopped(run_folder)
    if stopped is not None:
        rests = stopped.kind is StopKind.USER
        then = "" if rests else "; goes on in another life"
        why = f"saved at step {stopped.step}: {stopped.reason.removeprefix(REST)}{then}"
        return Verdict(outcome="stopped", goes_on=not rests, step=step, why=why)
    failure = first_failure(read_ends(run_folder, life.number))
    told = str(failure) if failure else "the step ended without a word from any rank: see logs/slurm.log"
    # A lost node's lock lives on until the file server forgets it: that passes, other refusals do not.
    is_mistake = failure is not None and failure.code == USER_ERROR_CODE
    if is_mistake or (failure is not None and failure.why == FULL):
        return Verdict(outcome="failed", goes_on=False, step=step, why=f"{told} (a retry would not help)")
    if step > life.first_step:
        return Verdict(outcome="failed", goes_on=True, step=step, why=f"{told}; goes on from step {step}")
    tries = tries_at(lives, step)
    if tries >= max_tries:
        why = f"{tries} lives began at step {step} and none saved a newer checkpoint; the last: {told}"
        return Verdict(outcome="failed", goes_on=False, step=step, why=why)
    return Verdict(outcome="failed", goes_on=True, step=step, why=f"{told}; try {tries} of {max_tries} at step {step}")


def judge_command(run_folder: Path, life: int, num_tasks: int) -> Verdict:
    """Judge a job whose success is that every task ended with code 0."""
    ends = read_ends(run_folder, life)
    failure = first_failure(ends)
    if failure is None and len(ends) == num_tasks:
        return Verdict(outcome="done", goes_on=False, step=0, why=f"all {num_tasks} task(s) ended with code 0")
    silent = f"{num_tasks - len(ends)} of {num_tasks} task(s) ended without a word"
    return Verdict(outcome="failed", goes_on=False, step=0, why=str(failure) if failure else silent)


def element_codes(run_folder: Path) -> dict[int, int]:
    """Exit codes of an array's elements, of those that ever ended."""
    records = (json.loads(path.read_text(encoding="utf-8")) for path in (run_folder / STATUS).glob("exit_task_*.json"))
    return {record["rank"]: record["code"] for record in records}


def elements_left(run_folder: Path, count: int) -> list[int]:
    """Elements of an array job that have not ended with code 0."""
    codes = element_codes(run_folder)
    return [number for number in range(count) if codes.get(number) != 0]


def why_not_done(run_folder: Path) -> str:
    """Why a run submitted to Slurm does not count as done; "" if it does. A sweep is done if all its points are."""
    if is_sweep(run_folder):
        missing = points_not_done(run_folder, len(read_sweep(run_folder).points))
        return f"point(s) {', '.join(map(str, missing))} are not done" if missing else ""
    path = run_folder / "slurm" / "plan.json"
    if not path.exists():  # it was not trained under Slurm
        return "" if DoneMarker(run_folder).read() is not None else "there is no done.json"
    plan = json.loads(path.read_text(encoding="utf-8"))
    if plan["array"]:
        left = elements_left(run_folder, plan["array"])
        return f"element(s) {', '.join(map(str, left))} have not ended with code 0" if left else ""
    if plan["is_training"]:
        return "" if DoneMarker(run_folder).read() is not None else "there is no done.json"
    ends = [event for event in read_history(run_folder) if event.event == "end"]
    return "" if ends and ends[-1].outcome == "done" else "its last life did not end well"


def first_failure(ends: Sequence[RankEnd]) -> RankEnd | None:
    """The rank to blame: a hung or crashed one before those that were ended because of it."""
    failed = [end for end in ends if end.code not in (0, STOPPED_CODE)]
    first = min((end.time for end in failed), default=0.0)
    return min(failed, key=lambda end: _innocence(end, first), default=None)


def _innocence(end: RankEnd, first: float) -> tuple[bool, bool, bool, float]:
    """A rank that was ended (TERM) or waits for others is a consequence; the partners of a killed one fail in the same
    moment, of a lost connection."""
    was_killed = end.code in VIOLENT_CODES and end.time - first < SAME_MOMENT_S
    return WAITS in end.why, end.code == 128 + signal.SIGTERM and not end.why, not was_killed, end.time
