"""One run, one disaster after the other on a real Slurm; at its end it equals a run that nobody disturbed, bit by bit.

Two nodes with one rank each, as a plain user where that user can read this checkout. A table is printed at the end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import sh
from tests.slurm.conftest import TABLE
from tests.slurm.jobs import (
    AS_USER,
    ROOT,
    ended,
    exact_values,
    launch,
    losses,
    read_done,
    said,
    slurm,
    start_now,
    state,
    steps_saved,
    submit,
    tiny,
    wait,
)
from tests.tiny_run import write_corpus

STEPS = 160
EVERY = 5
HANG_S = 40
SIZE = ("--nodes", "2", "--preflight", "quick", "--hang-s", str(HANG_S))


@dataclass
class Row:
    """One line of the table."""

    event: str
    at: int
    """Steps done when it struck."""
    saved: int
    """Newest complete checkpoint when it struck: saves in the background may be behind by more than one."""
    resumed: int
    """Step that the next attempt began at."""
    seconds: float
    """From the event to the end of the attempt."""
    how: str
    """What the launcher wrote about the end of the attempt; "" if it was cut off from outside."""
    cause: str
    """The same as a field."""


@dataclass
class Campaign:
    """The run, and what has happened to it so far."""

    run: Path
    undisturbed: Path
    """A run of the same recipe, which trains beside it for a while."""
    prefix: tuple[str, ...]
    """What makes a command run as a plain user."""
    job: str
    reference_job: str
    rows: list[Row] = field(default_factory=list)

    def wait_for_progress(self) -> None:
        """Wait until the present attempt trains and has saved."""
        begun = wait(lambda: (found := attempts_ever(self.run)) and found[-1], "an attempt", self.run)
        wait(lambda: max(steps_saved(self.run), default=0) > begun["step"], "a newer checkpoint", self.run)
        assert read_done(self.run) is None, "the run was over before the campaign: raise STEPS"

    def suffer(self, event: str, strike: Callable[[], object], go_on: Callable[[], None] | None = None) -> Row:
        """Let the attempt begin, strike, wait for its end, and let the run go on; returns the table's new line."""
        self.wait_for_progress()
        number, at, began = len(attempts_ever(self.run)), steps_done(self.run), time.monotonic()
        saved = steps_saved(self.run)[-1]
        strike()
        wait(lambda: state(self.job) in ("PENDING", "CANCELLED"), f"the end of the attempt after: {event}", self.run)
        seconds = time.monotonic() - began
        at = max(at, steps_done(self.run))
        (go_on or (lambda: start_now(self.job)))()
        wait(lambda: len(attempts_ever(self.run)) > number, f"the next attempt after: {event}", self.run)
        resumed = int(attempts_ever(self.run)[number]["step"])
        end = end_of(self.run, number - 1)
        self.rows.append(Row(event, at, saved, resumed, seconds, end["reason"], end["cause"]))
        return self.rows[-1]

    def nodes(self) -> list[str]:
        """Nodes of the present attempt, the one with rank 0 first."""
        return slurm("scontrol", "show", "hostnames", attempts_ever(self.run)[-1]["nodes"]).split()

    def kill(self, rank: int, number: signal.Signals) -> None:
        os.kill(int(json.loads((self.run / f"status/rank_{rank}.json").read_text())["pid"]), number)


def events_of(run: Path) -> list[dict[str, Any]]:
    path = run / "slurm/history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def attempts_ever(run: Path) -> list[dict[str, Any]]:
    """The beginnings of all attempts, over all submissions."""
    return [event for event in events_of(run) if event["event"] == "begin"]


def end_of(run: Path, attempt: int) -> dict[str, Any]:
    """The end of an attempt; empty words if it was cut off."""
    ends = (event for event in events_of(run) if event["event"] == "end" and event["attempt"] == attempt)
    return next(ends, {"cause": "", "reason": ""})


def steps_done(run: Path) -> int:
    """What rank 0 last said."""
    return int(json.loads((run / "status/rank_0.json").read_text())["step"])


def read_or_gone(path: Path) -> str:
    """What a process of /proc says, which may end at any moment."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def user_or_root() -> tuple[str, ...]:
    code = f"'{sys.executable}' -c 'import launch.plan.job, torch'"
    reads = subprocess.run([*AS_USER, "bash", "-c", f"{code} || exit 1"], cwd=ROOT, capture_output=True, check=False)
    return AS_USER if reads.returncode == 0 else ()


@pytest.fixture(scope="module")
def campaign(cluster: Path, request: pytest.FixtureRequest) -> Iterator[Campaign]:
    home, prefix = cluster / "home", user_or_root()
    (home / "corpus").mkdir()
    corpus = write_corpus(home / "corpus", broken={11, 40, 71})
    for name in ("run", "undisturbed"):
        tiny(corpus, home / name, STEPS, checkpoint={"every_steps": EVERY, "keep": 2})
    sh(f"chown -R trainer:trainer {home}")
    profile = home / "site.yaml"
    profile.write_text("environment: {OMP_NUM_THREADS: 1}\n")
    mine = ("--profile", str(profile), "--cpus-per-task", "4", "--partition", "preempt")
    job = submit(home / "run.yaml", *SIZE, *mine, prefix=prefix, HOME=str(home))
    reference = submit(
        home / "undisturbed.yaml", *SIZE, "--profile", str(profile), "--exclude", "n3", prefix=prefix, HOME=str(home)
    )
    found = Campaign(home / "run", home / "undisturbed", prefix, job, reference)
    yield found
    request.config.stash[TABLE] = table_of(found.rows)
    subprocess.run(["timeout", "10", "scancel", found.job, found.reference_job], check=False)


def table_of(rows: list[Row]) -> list[str]:
    lines = [f"{'event':24} {'at step':>7} {'resumed':>7} {'seconds':>7}  what the launcher wrote"]
    for row in rows:
        how = row.how or "(cut off from outside)"
        lines.append(f"{row.event:24} {row.at:7} {row.resumed:7} {row.seconds:7.1f}  {how[:110]}")
    return lines


def resume(run: Path, *options: str, prefix: tuple[str, ...]) -> str:
    """Submit a run again from its own folder; returns the job's id."""
    told = launch("resume", str(run), *options, prefix=prefix, HOME=str(run.parent))
    assert told.returncode == 0, told.stderr
    return told.stdout.strip()


def test_a_plain_user_may_train(campaign: Campaign) -> None:
    if not campaign.prefix:
        pytest.skip("a plain user cannot read this checkout or its .venv: the campaign runs as root")
    campaign.wait_for_progress()
    assert {path.owner() for path in campaign.run.glob("status/rank_*.json")} == {"trainer"}


def test_usr1_before_the_time_limit(campaign: Campaign) -> None:
    """Played by `launch drill`, which looks at it, too."""
    campaign.wait_for_progress()
    number = len(attempts_ever(campaign.run))
    told = launch("drill", str(campaign.run), prefix=campaign.prefix, HOME=str(campaign.run.parent))
    assert told.returncode == 0, told.stdout + told.stderr
    lines = told.stdout.splitlines()
    assert lines[-1].endswith("good  it survives a preemption")
    end, resumed = end_of(campaign.run, number - 1), int(attempts_ever(campaign.run)[number]["step"])
    assert (end["exit_status"], end["cause"]) == ("stopped", "stopped")
    assert end["step"] == resumed, "not a step is done again"
    (seconds,) = (float(line.split()[2]) for line in lines if line.startswith("attempt ends"))
    campaign.rows.append(Row("USR1 (launch drill)", resumed, resumed, resumed, seconds, end["reason"], end["cause"]))


def test_two_jobs_on_the_same_nodes(campaign: Campaign) -> None:
    """The run without disasters trains beside this one: had they met at one port, neither would train."""
    wait(lambda: attempts_ever(campaign.undisturbed), "the second job", campaign.undisturbed)
    assert attempts_ever(campaign.run)[0]["nodes"] == attempts_ever(campaign.undisturbed)[0]["nodes"] == "n[1-2]"


def test_scontrol_requeue(campaign: Campaign) -> None:
    row = campaign.suffer("scontrol requeue", lambda: slurm("scontrol", "requeue", campaign.job))
    assert row.cause in ("", "stopped")
    assert 0 < row.resumed <= row.at


def test_preemption(campaign: Campaign) -> None:
    """A job of a higher tier wants cores that this one has."""
    # Of a node's eight cores this run has four, and the other run one as long as it lasts.
    wanted = ("--nodes=2", "--nodelist=n1,n2", "--ntasks-per-node=5", "--output=/dev/null", "--wrap=sleep 600")
    other: list[str] = []

    def go_on() -> None:
        wait(lambda: state(other[0]) == "RUNNING", "the other job")
        slurm("scancel", other[0])
        assert ended(other[0], campaign.run) == "CANCELLED"
        start_now(campaign.job)

    def strike() -> None:
        other.append(slurm("sbatch", "--parsable", "--partition=train", *wanted).strip())

    row = campaign.suffer("preemption", strike, go_on)
    assert row.cause == "stopped"
    assert row.resumed == row.at


def test_a_rank_dies(campaign: Campaign) -> None:
    node = campaign.nodes()[1]
    row = campaign.suffer("a rank dies", lambda: campaign.kill(1, signal.SIGKILL))
    assert row.cause == "signal" and row.how.startswith(f"rank 1 on {node}")
    assert row.saved <= row.resumed <= row.at


def test_a_rank_hangs(campaign: Campaign) -> None:
    node = campaign.nodes()[1]
    row = campaign.suffer("a rank hangs", lambda: campaign.kill(1, signal.SIGSTOP))
    assert row.cause == "hung" and row.how.startswith(f"rank 1 on {node}")
    assert "it does not even print a traceback" in row.how
    assert "waits for other ranks" in (campaign.run / "logs/rank_0.log").read_text() or row.seconds > HANG_S
    assert row.saved <= row.resumed <= row.at


def test_the_undisturbed_run_ends(campaign: Campaign) -> None:
    assert ended(campaign.reference_job, campaign.undisturbed) == "COMPLETED", said(campaign.undisturbed)
    assert read_done(campaign.undisturbed) == STEPS


def test_a_node_is_set_down(campaign: Campaign) -> None:
    down = ("scontrol", "update", f"nodename={campaign.nodes()[1]}", "state=down", "reason=test")
    row = campaign.suffer("a node is set down", lambda: slurm(*down))
    assert row.saved <= row.resumed <= row.at


def test_a_cable_is_cut(campaign: Campaign) -> None:
    """The node does not come back; the run goes on on another."""
    node = campaign.nodes()[1]  # the one that was set down, or the third if that was not back in time
    try:
        row = campaign.suffer("a cable is cut", lambda: sh(f"ip link set v{node[1:]} down"))
        assert node not in campaign.nodes()
    finally:
        sh(f"ip link set v{node[1:]} up")
    assert row.saved <= row.resumed <= row.at


def test_cancelled_during_a_save(campaign: Campaign) -> None:
    def strike() -> None:
        partial = "checkpoints/.step_*.partial"
        wait(lambda: list(campaign.run.glob(partial)), "a save", campaign.run, every_s=0.0005)
        slurm("scancel", campaign.job)
        assert ended(campaign.job, campaign.run) == "CANCELLED"

    def go_on() -> None:
        campaign.job = resume(campaign.run, prefix=campaign.prefix)

    row = campaign.suffer("cancelled during a save", strike, go_on)
    assert 0 < row.resumed <= row.at


def test_nothing_was_lost(campaign: Campaign) -> None:
    assert ended(campaign.job, campaign.run) == "COMPLETED", said(campaign.run)
    assert read_done(campaign.run) == STEPS
    assert exact_values(campaign.run) == exact_values(campaign.undisturbed)
    for name in ("ledger.jsonl", "quarantine/rank_0.jsonl", "quarantine/rank_1.jsonl"):
        assert (campaign.run / name).read_bytes() == (campaign.undisturbed / name).read_bytes(), name
    assert not list(campaign.run.glob("checkpoints/.step_*"))


def test_resume_on_another_number_of_nodes(campaign: Campaign) -> None:
    """The last steps of the undisturbed run again, with one rank on one node instead of two on two."""
    run, before = campaign.undisturbed, losses(campaign.undisturbed)
    ledger = (run / "ledger.jsonl").read_bytes()
    (run / "done.json").unlink()
    sh(f"rm -r {run}/checkpoints/step_{STEPS:09d}")
    job = resume(run, "--nodes", "1", prefix=campaign.prefix)
    assert ended(job, run) == "COMPLETED", said(run)
    assert (attempts_ever(run)[-1]["step"], attempts_ever(run)[-1]["nodes"]) == (STEPS - EVERY, "n1")
    assert (run / "ledger.jsonl").read_bytes() == ledger
    after = losses(run)
    assert list(after) == list(before) and after != before, "one rank adds up in another order"
    assert list(after.values()) == pytest.approx(list(before.values()), rel=1e-3)


def test_no_process_is_left_on_any_node(campaign: Campaign) -> None:
    def left() -> list[str]:
        pids = sh("for n in n1 n2 n3; do ip netns pids $n; done").split()
        names = [Path(f"/proc/{pid}/cmdline") for pid in pids]
        return [text for path in names if "pretrain" in (text := read_or_gone(path))]

    wait(lambda: not left(), "the end of all ranks")
