"""What the local backend does with real processes. Each job lasts a fraction of a second."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cclm.errors import CclmError
from cclm.files.lock import run_lock
from cclm.run.causes import Cause
from cclm.run.stop import StopKind, ask_to_stop, note_stopped, read_request
from launch.local import run as local_run
from launch.local.run import JobExit, own_folder, run_plan
from launch.plan.job import JobPlan

PlanMaker = Callable[..., JobPlan]
ROOT = Path(__file__).resolve().parents[4]
SLEEP = "time.sleep(60)\n"
CHILD = (
    "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
    "(folder / f'child_{rank}').write_text(str(child.pid))\n"
)
ONE_AFTER_THE_OTHER = """
def leave(code):
    (folder / f'left_{os.getpid()}').touch()
    sys.exit(code)
def wait_for_the_other():
    late = time.monotonic() + 300
    while not (left := list(folder.glob('left_*'))): assert time.monotonic() < late; time.sleep(0.01)
    while Path('/proc', left[0].name[5:]).exists(): assert time.monotonic() < late; time.sleep(0.01)  # not reaped yet
"""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that stop do not have to do so within seconds of each other."""
    monkeypatch.setattr(local_run, "ALONE_S", 60.0)


def run(plan: JobPlan, grace_s: float = 60.0) -> tuple[JobExit, list[str]]:
    said: list[str] = []
    return run_plan(plan, say=said.append, grace_s=grace_s), said


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # gone between opening and reading
        return False
    return state != "Z"


def wait_for(condition: Callable[[], bool], timeout_s: float = 120.0) -> bool:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.slow
def test_what_runs_is_what_was_planned(plan_python: PlanMaker, tmp_path: Path) -> None:
    plan = plan_python(
        "import json\n"
        "facts = {'argv': [sys.executable, *sys.orig_argv[1:]], 'environment': dict(os.environ), 'folder': os.getcwd(),"
        " 'cores': sorted(os.sched_getaffinity(0)), 'blocked': len(signal.pthread_sigmask(signal.SIG_BLOCK, []))}\n"
        "(folder / f'facts_{rank}').write_text(json.dumps(facts))\n"
    )
    job, said = run(plan)
    assert (job.code, said) == (0, [])
    for rank in plan.ranks:
        facts = json.loads((tmp_path / f"facts_{rank.rank}").read_text())
        assert tuple(facts["argv"]) == rank.command
        assert facts["environment"] == {**os.environ, **rank.environment, "CCLM_CLEARED": str(plan.run_folder)}
        assert facts["folder"] == str(plan.folder)
        assert tuple(facts["cores"]) == (rank.cores or tuple(sorted(os.sched_getaffinity(0))))
        assert facts["blocked"] == 0
    assert (tmp_path / "run/logs/plan.json").read_text() == plan.to_json() + "\n"


@pytest.mark.slow
def test_rank_0_speaks_to_the_terminal_the_others_to_their_logs(
    plan_python: PlanMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(plan_python("print('out', rank)\nprint('err', rank, file=sys.stderr)\n"))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("out 0\n", "err 0\n")
    log = (tmp_path / "run/logs/rank_1.log").read_text().splitlines()
    assert log[0].startswith("=== ")
    assert log[1:] == ["out 1", "err 1"]


@pytest.mark.slow
def test_a_second_start_appends_to_the_logs(plan_python: PlanMaker, tmp_path: Path) -> None:
    plan = plan_python("print('hello')\n")
    run(plan)
    run(plan)
    assert (tmp_path / "run/logs/rank_1.log").read_text().count("hello") == 2


@pytest.mark.slow
def test_a_failing_rank_ends_the_others_and_is_named(plan_python: PlanMaker) -> None:
    job, said = run(plan_python("if rank == 1:\n    print('the reason')\n    sys.exit(3)\n" + SLEEP, num_ranks=3))
    assert job.code == 3
    assert job.failure is not None
    assert job.failure.rank == 1
    assert sorted(end.rank for end in job.exits) == [0, 1, 2]
    assert {end.code for end in job.exits if end.rank != 1} == {128 + signal.SIGTERM}
    assert said[0].startswith(f"failed. First of 3 rank(s): rank 1 on {job.exits[0].host}: exit code 3")
    assert said[-1] == "  | the reason"


@pytest.mark.slow
def test_a_failing_rank_0_points_to_the_terminal(plan_python: PlanMaker) -> None:
    job, said = run(plan_python("if rank == 0: sys.exit(4)\n" + SLEEP))
    assert job.code == 4
    assert said[1] == "its output is above."


@pytest.mark.slow
def test_a_killed_rank_gives_the_shells_code(plan_python: PlanMaker) -> None:
    job, said = run(plan_python("if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\n" + SLEEP))
    assert job.code == 128 + signal.SIGKILL
    assert said[0].endswith(": killed by signal 9.")


@pytest.mark.slow
def test_of_two_deaths_seen_at_once_the_violent_one_was_first(
    plan_python: PlanMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_when_dead(pid: int) -> os.waitid_result | None:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(local_run, "look", look_when_dead)
    job, _ = run(plan_python("if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\nsys.exit(1)\n"))
    assert [(end.rank, end.code) for end in job.exits] == [(1, 128 + signal.SIGKILL), (0, 1)]
    assert job.code == 128 + signal.SIGKILL


@pytest.mark.slow
def test_a_rank_that_ignores_term_is_killed_with_its_children(plan_python: PlanMaker, tmp_path: Path) -> None:
    stubborn = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + CHILD + "(folder / 'ready').touch()\n" + SLEEP
    wait = "while not (folder / 'ready').exists(): time.sleep(0.01)\nsys.exit(5)\n"
    body = "".join(f"    {line}\n" for line in stubborn.splitlines())
    job, said = run(plan_python(f"if rank == 1:\n{body}{wait}"), grace_s=0.2)
    assert job.code == 5
    assert job.exits[-1].code == 128 + signal.SIGKILL
    assert said[-1].startswith("then rank 1 on ")
    assert wait_for(lambda: not is_running(int((tmp_path / "child_1").read_text())))


@pytest.mark.slow
def test_a_good_end_leaves_no_child_behind(plan_python: PlanMaker, tmp_path: Path) -> None:
    job, _ = run(plan_python(CHILD))
    assert job.code == 0
    for rank in (0, 1):
        assert wait_for(lambda: not is_running(int((tmp_path / f"child_{rank}").read_text())))  # noqa: B023


@pytest.mark.slow
def test_ranks_that_end_early_and_well_do_not_end_the_job(plan_python: PlanMaker, tmp_path: Path) -> None:
    job, _ = run(
        plan_python(f"{ONE_AFTER_THE_OTHER}if rank == 0: leave(0)\nwait_for_the_other()\n(folder / 'late').touch()\n")
    )
    assert job.code == 0
    assert (tmp_path / "late").exists()
    assert [end.rank for end in job.exits] == [0, 1]


@pytest.mark.slow
def test_a_command_that_does_not_exist(plan_python: PlanMaker, capfd: pytest.CaptureFixture[str]) -> None:
    plan = plan_python("", num_ranks=1)
    missing = replace(plan, ranks=(replace(plan.ranks[0], command=("no-such-program",)),))
    job, _ = run(missing)
    assert job.code == 127
    assert "cannot start no-such-program: No such file or directory" in capfd.readouterr().err


@pytest.mark.slow
def test_signals_of_the_caller_are_as_before(plan_python: PlanMaker) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    run(plan_python("", num_ranks=1))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


@pytest.mark.slow
def test_ranks_that_saved_and_stopped_have_not_failed(plan_python: PlanMaker, tmp_path: Path) -> None:
    """As after `launch stop`: they end one after the other, and nobody is told to hurry."""
    plan = plan_python(f"{ONE_AFTER_THE_OTHER}if rank == 0: leave(75)\nwait_for_the_other()\nsys.exit(75)\n")
    job, said = run(plan)
    assert (job.code, job.failure) == (75, None)
    assert [end.cause for end in job.exits] == [Cause.STOPPED] * 2
    assert said == ["stopped; the same command goes on."]


SAVE = """
sys.path.insert(0, {root!r})
from cclm.run.stop import note_stopped
if rank == 0:
    note_stopped(folder / "run", 12, "a person asked")
sys.exit(75)
"""


@pytest.mark.slow
def test_a_rank_that_stops_alone_takes_the_others_with_it(
    plan_python: PlanMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was asked before the ranks had met: the others would wait for it."""
    monkeypatch.setattr(local_run, "ALONE_S", 0.1)
    listens = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n(folder / 'ready').touch()\n"
    alone = "if rank == 1:\n    while not (folder / 'ready').exists(): time.sleep(0.01)\n    sys.exit(75)\n"
    plan = plan_python(alone + listens + SLEEP)
    job, _ = run(plan)
    assert [(end.rank, end.cause) for end in job.exits] == [(1, Cause.STOPPED), (0, Cause.STOPPED)]
    assert job.code == 75


@pytest.mark.slow
def test_where_a_run_stopped_is_said(plan_python: PlanMaker) -> None:
    job, said = run(plan_python(SAVE.format(root=str(ROOT))))
    assert job.code == 75
    assert said == ["stopped, and saved at step 12 (a person asked): the same command goes on from there."]


@pytest.mark.slow
def test_notes_of_an_earlier_start_are_gone_when_the_ranks_begin(plan_python: PlanMaker, tmp_path: Path) -> None:
    plan = plan_python("(folder / f'found_{rank}').write_text(' '.join(os.listdir(folder / 'run')))\n")
    note_stopped(plan.run_folder, 12, "SIGTERM")
    ask_to_stop(plan.run_folder, "an old request", StopKind.USER)
    assert run(plan)[0].code == 0
    assert (tmp_path / "found_0").read_text().split() == ["logs"]


BLAME = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if rank == 1:
    (folder / "ready").touch()
    wait_for_the_other()
    sys.exit(2)
while not (folder / "ready").exists():
    time.sleep(0.01)
leave(74)
"""


@pytest.mark.slow
def test_of_two_ranks_the_one_to_blame_is_named_whoever_ended_first(plan_python: PlanMaker) -> None:
    """Rank 0 notices a lost connection before rank 1 is quite gone."""
    job, _ = run(plan_python(ONE_AFTER_THE_OTHER + BLAME))
    assert [end.cause for end in job.exits] == [Cause.TRANSIENT, Cause.USER_ERROR]
    assert job.code == 2
    assert job.failure is not None and job.failure.cause is Cause.USER_ERROR


@pytest.mark.slow
def test_a_folder_in_use_is_refused_before_anything_is_cleared(plan_python: PlanMaker) -> None:
    plan = plan_python("")
    with own_folder(plan.run_folder):
        ask_to_stop(plan.run_folder, "meant for the run that trains", StopKind.USER)
        with pytest.raises(CclmError) as caught, own_folder(plan.run_folder):
            run_plan(plan, say=print)
        assert caught.value.cause is Cause.FOLDER_LOCKED
        assert read_request(plan.run_folder) is not None
    with run_lock(plan.run_folder), pytest.raises(CclmError), own_folder(plan.run_folder):
        pass  # somebody trains there with another launcher
