"""The state of runs: what their folders say, joined with what Slurm says. Nothing is asked twice, nothing is written.

run folder ── read_folder ──> RunFolder ─┐
all their jobs ── one squeue ──> JobsNow ┴─ run_now ──> RunNow ──> a row, a block or JSON (status_text.py)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cclm.files.text import duration, spans
from cclm.run.progress import Progress
from launch.slurm.history import Attempt, all_attempts, is_stopped_by_user, jobs_of
from launch.slurm.jobs import ENDED, JobNow, JobsNow, ask_jobs
from launch.slurm.task import START_S
from launch.watch.run_folder import AT_WORK, RankNow, RunFolder, read_folder

SILENT_S = 120.0
"""A rank is silent if it has said nothing for longer than this, and for five times as long as it usually takes."""
MANY_TIMES = 5
RUNNING, WAITING, NOT_SUBMITTED = "running", "waiting", "not submitted"
FORGOTTEN, UNKNOWN = "forgotten", "unknown"
"""States of a job that Slurm no longer knows, and of one while Slurm does not answer."""


@dataclass(frozen=True, kw_only=True)
class ArrayTasks:
    """Every task of an array, by its number, in one of five places."""

    done: tuple[int, ...]
    running: tuple[int, ...]
    failed: tuple[int, ...]
    """Ended with another code, and nothing is queued that would repeat it."""
    waiting: tuple[int, ...]
    silent: tuple[int, ...]
    """Neither queued nor ever ended: cancelled before it began, or cut off."""

    def numbers(self) -> list[int]:
        """Return all of them."""
        return sorted(number for numbers in asdict(self).values() for number in numbers)

    def __str__(self) -> str:
        counts = {name: len(numbers) for name, numbers in asdict(self).items()}
        silent = counts.pop("silent")
        words = [f"{count} {name}" for name, count in counts.items()]
        return ", ".join([*words, *([f"{silent} without a word"] if silent else [])])

    def failed_in_words(self) -> str:
        """Name what must be run again; "" if there is nothing."""
        parts = {"failed": self.failed, "without a word": self.silent}
        return "; ".join(f"{name}: {spans(numbers)}" for name, numbers in parts.items() if numbers)


def count_tasks(count: int, codes: Mapping[int, int], jobs: Sequence[JobNow]) -> ArrayTasks:
    """Sort tasks. `codes`: exit codes by task, of those that ever ended; `jobs`: what Slurm knows of them."""
    live = {job.array_task: job.state for job in jobs if not job.is_over and job.array_task is not None}
    waiting = {number for number, state in live.items() if state in ("PENDING", "REQUEUED")}
    idle = [number for number in range(count) if number not in live]
    return ArrayTasks(
        done=tuple(number for number in idle if codes.get(number) == 0),
        running=tuple(sorted(set(live) - waiting)),
        failed=tuple(number for number in idle if codes.get(number, 0) != 0),
        waiting=tuple(sorted(waiting)),
        silent=tuple(number for number in idle if number not in codes),
    )


@dataclass(frozen=True, kw_only=True)
class RunNow:
    """The state of a run."""

    run_folder: Path
    kind: str
    """"training", "command" or "array" (under Slurm), or "local"."""
    job: str = ""
    """Slurm's id; "" for a local run."""
    state: str
    """Slurm's word; of a local run, and where Slurm does not know the job, our own in small letters."""
    reason: str = ""
    """Why it waits, or why its state is not known."""
    nodes: str
    phase: str
    progress: Progress
    silence: str
    """A sentence, if it runs and rank 0 has been silent for longer than usual."""
    last_word: str
    """How the last attempt ended, in a sentence."""
    array_tasks: ArrayTasks | None = None
    attempts: Sequence[Attempt] = field(default_factory=tuple)
    ranks: Sequence[RankNow]

    @property
    def may_go_on(self) -> bool:
        """Whether it runs or waits. Of a run that nothing is known about this is not denied."""
        if self.state == UNKNOWN:
            return True
        if self.array_tasks is not None:
            return bool(self.array_tasks.running or self.array_tasks.waiting)
        return self.state == RUNNING if self.kind == "local" else self.state not in (FORGOTTEN, *ENDED)

    def task_may_go_on(self, number: int) -> bool:
        """Return the same of one task of an array."""
        assert self.array_tasks is not None, "only an array has tasks"
        return self.state == UNKNOWN or number in (*self.array_tasks.running, *self.array_tasks.waiting)

    @property
    def is_local(self) -> bool:
        """Whether it runs, or ran, without Slurm."""
        return self.kind == "local" and self.state != NOT_SUBMITTED


def look_at(paths: Sequence[Path]) -> tuple[list[RunNow], dict[Path, str], JobsNow]:
    """Look at runs, with one call to Slurm for all of them. Return the runs; sentences for folders that cannot be
    read; what Slurm answered."""
    folders, unreadable = [], {}
    for path in paths:
        try:
            folders.append(read_folder(path))
        except (OSError, ValueError) as error:  # CclmError is one; broken JSON; somebody else's files
            unreadable[path] = str(error)
    jobs = ask_jobs([job for folder in folders for job in jobs_of(folder.history)])
    return [run_now(folder, jobs) for folder in folders], unreadable, jobs


def look_at_one(path: Path) -> RunNow:
    """Look at one run. Raise CclmError if its folder cannot be read."""
    folder = read_folder(path)
    return run_now(folder, ask_jobs(jobs_of(folder.history)))


def run_now(folder: RunFolder, jobs: JobsNow) -> RunNow:
    """Join what a folder says with what Slurm says. A submitted run may also have been continued without Slurm."""
    known = [found for job in jobs_of(folder.history) for found in jobs.of(job)]
    is_elsewhere = bool(folder.holder) and not jobs.silence and all(found.is_over for found in known)
    return _local(folder) if not folder.history or is_elsewhere else _under_slurm(folder, jobs)


def _local(folder: RunFolder) -> RunNow:
    """A run without Slurm: its lock is held, or its ranks have just spoken."""
    progress, silent_s = folder.progress, folder.progress.silent_s
    is_fresh = silent_s is not None and silent_s <= silent_after_s(progress) and progress.phase in AT_WORK
    state, said = "not running", ""
    if progress.is_done:
        state, said = "done", f"done at step {progress.step}"
    elif folder.stopped is not None and not folder.holder:
        state, said = "stopped", f"saved at step {folder.stopped.step}: {folder.stopped.reason}"
    elif folder.holder or (is_fresh and not folder.is_gone):
        state = RUNNING
    elif folder.plan is not None and silent_s is None:
        state, said = NOT_SUBMITTED, "planned for Slurm, but no job of it has begun: submit it again"
    elif progress.end is not None:
        said = f"{progress.end.cause.replace('_', ' ')}: {progress.end.reason}"
    else:
        last = "it never said anything" if silent_s is None else f"last word {duration(silent_s)} ago"
        said = f"cut off, or ended with an error; {last}"
    return RunNow(
        run_folder=folder.path,
        kind="local",
        state=state,
        nodes=", ".join(sorted({rank.host for rank in folder.ranks})),
        phase=progress.phase if state == RUNNING else state,
        progress=progress,
        silence=_silence(folder, None) if state == RUNNING else "",
        last_word=said,
        ranks=folder.ranks,
    )


def _under_slurm(folder: RunFolder, jobs: JobsNow) -> RunNow:
    assert folder.plan is not None, "read_folder refuses a history without a plan"
    attempts, asked = all_attempts(folder.history), folder.plan.request
    # The newest job that may still run, else the newest.
    names = jobs_of(folder.history)[::-1]
    job = next((name for name in names if not all(found.is_over for found in jobs.of(name))), names[0])
    known = jobs.of(job)
    # Of an array the task that says most about it: one that runs, waits, ended badly, in this order.
    order = {"RUNNING": 0, "COMPLETED": 3}
    leading = min(known, key=lambda found: order.get(found.state, 2 if found.is_over else 1), default=None)
    tasks = count_tasks(asked.array, folder.codes, known) if asked.array else None
    kind = "array" if tasks else ("training" if asked.is_training else "command")
    may_be_silent = leading is not None and leading.state == "RUNNING" and attempts and kind == "training"
    return RunNow(
        run_folder=folder.path,
        kind=kind,
        job=job,
        state=leading.state if leading else (UNKNOWN if jobs.silence else FORGOTTEN),
        reason=leading.reason if leading else jobs.silence,
        nodes=leading.nodes if leading and not leading.is_over else (attempts[-1].nodes if attempts else ""),
        phase=_phase(folder, kind, leading, attempts, tasks),
        progress=folder.progress,
        silence=_silence(folder, attempts[-1]) if may_be_silent else "",
        last_word=_last_word(folder, leading, attempts, tasks),
        array_tasks=tasks,
        attempts=attempts,
        ranks=folder.ranks,
    )


def _phase(
    folder: RunFolder, kind: str, job: JobNow | None, attempts: Sequence[Attempt], tasks: ArrayTasks | None
) -> str:
    if folder.progress.is_done:
        return "done"
    if job is not None and not job.is_over:
        if job.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD"):
            return WAITING
        if kind != "training":
            return RUNNING  # or on its way there, or to its end
        has_begun = bool(attempts) and attempts[-1].exit_status == ""
        return (folder.progress.phase if folder.ranks else "starting") if has_begun else "beginning"
    if tasks is not None:
        return "failed" if tasks.failed_in_words() else "done"
    return (attempts[-1].exit_status or "cut off") if attempts else "never began"


def _last_word(folder: RunFolder, job: JobNow | None, attempts: Sequence[Attempt], tasks: ArrayTasks | None) -> str:
    if tasks is not None:
        return tasks.failed_in_words()
    is_live = job is not None and not job.is_over
    if attempts and not attempts[-1].exit_status and not is_live:
        said = f"attempt {attempts[-1].number} was cut off"
    else:
        said = next((attempt.reason for attempt in reversed(attempts) if attempt.exit_status), "")
    newest = folder.history[-1]
    is_stopped = is_stopped_by_user(folder.history, newest.job) and newest.event != "end"
    return "; ".join(part for part in (said, "stop asked by the user" if is_stopped else "") if part)


def silent_after_s(progress: Progress) -> float:
    """Return the seconds after which a rank counts as silent."""
    return max(SILENT_S, MANY_TIMES * (progress.usual_silence_s or 0.0))


def _silence(folder: RunFolder, attempt: Attempt | None) -> str:
    silent_s = folder.progress.silent_s
    if attempt is not None and not folder.ranks:
        waited_s = folder.now - attempt.began
        words = f"no word from any rank for {duration(waited_s)}, since attempt {attempt.number} began"
        return words if waited_s > START_S else ""
    is_silent = silent_s is not None and silent_s > silent_after_s(folder.progress)
    return f"rank 0 silent for {duration(silent_s or 0.0)}" if is_silent else ""
