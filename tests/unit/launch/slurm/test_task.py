from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cclm.run import status
from cclm.run.causes import EXIT_CODES, Cause
from cclm.run.status import note_end, read_ends
from launch.slurm import task
from tests.unit.launch.slurm.run_folders import make_run, write_plan

SLURM = {
    "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_NTASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "MASTER_ADDR": "n1", "MASTER_PORT": "29000", "CCLM_ATTEMPT": "0",
}  # fmt: skip

ROOT = Path(__file__).resolve().parents[4]
TASK = [sys.executable, "-m", "launch.slurm.task"]


def run_task(run: Path, code: str, **environment: str) -> subprocess.Popen[bytes]:
    command = [*TASK, str(run), "rank", "--", sys.executable, "-S", "-c", code]
    clean = {name: value for name, value in os.environ.items() if name != "RANK"}
    return subprocess.Popen(command, env={**clean, **SLURM, **environment}, cwd=ROOT)


def test_a_rank_gets_its_place() -> None:
    assert task.place_of(SLURM) == {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "5", "LOCAL_WORLD_SIZE": "2"}
    assert task.place_of({**SLURM, "RANK": "0"}) == {}
    left_in_the_shell = {"WORLD_SIZE": "8", "LOCAL_RANK": "0", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4"}
    assert task.place_of(SLURM | left_in_the_shell) == task.place_of(SLURM)


def test_torchrun_is_told_what_only_the_task_knows() -> None:
    words = ["--node-rank", "@NODE_RANK@", "@MASTER_ADDR@", "@MASTER_PORT@", "me@example.org"]
    assert task.fill_in(words, SLURM) == ["--node-rank", "1", "n1", "29000", "me@example.org"]


def test_a_task_of_an_array_knows_its_number(tmp_path: Path) -> None:
    assert task.fill_in(["--task", "@TASK@/8"], {"SLURM_ARRAY_TASK_ID": "5"}) == ["--task", "5/8"]
    run = make_run(tmp_path)
    command = [*TASK, str(run), "task", "--", "false"]
    assert (
        subprocess.run(command, env=SLURM | {"SLURM_ARRAY_TASK_ID": "5"}, cwd=ROOT, check=False, timeout=30).returncode
        == 1
    )
    assert not (run / "status/exit_task_3.json").exists()
    assert json.loads((run / "status/exit_task_5.json").read_text())["code"] == 1


def test_output_code_and_reason_are_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    code = "import os, sys\nprint(os.environ['RANK'], os.environ['WORLD_SIZE'])\nraise ValueError('a reason')"
    assert run_task(run, code).wait(30) == 1
    lines = (run / "logs/rank_3.log").read_text().splitlines()
    assert lines[0].startswith("=== ")
    assert lines[1] == "3 5"
    (end,) = read_ends(run, 0)
    assert (end.rank, end.code, end.cause, end.reason) == (3, 1, Cause.EXIT, "ValueError: a reason")


def test_the_nodes_network_reaches_the_rank_and_its_log(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    code = "import os\nprint(os.environ.get('NCCL_SOCKET_IFNAME'), os.environ['GLOO_SOCKET_IFNAME'])"
    given = {"NCCL_SOCKET_IFNAME": "bond7", "GLOO_SOCKET_IFNAME": "bond7", "MASTER_ADDR": "127.0.0.1"}
    assert run_task(run, code, **given).wait(30) == 0
    header, line = (run / "logs/rank_3.log").read_text().splitlines()
    assert ", attempt 0, " in header and "bond7" not in header
    assert line == "bond7 bond7"
    write_plan(run, network="none")
    assert run_task(run, "pass").wait(30) == 0
    assert (run / "logs/rank_3.log").read_text().endswith(", attempt 0\n")


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    command = [*TASK, str(run), "rank", "--", "no-such-program", "-x"]
    assert subprocess.run(command, env={**os.environ, **SLURM}, cwd=ROOT, check=False, timeout=30).returncode == 127
    (end,) = read_ends(run, 0)
    assert str(end).endswith(": not started: no-such-program: No such file or directory")


def test_a_second_attempt_appends(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for number in (0, 1):
        assert run_task(run, f"print('attempt {number}')", CCLM_ATTEMPT=str(number)).wait(30) == 0
    text = (run / "logs/rank_3.log").read_text()
    assert text.count("=== ") == 2
    assert text.index("attempt 0\n") < text.index("attempt 1\n")
    assert [len(read_ends(run, number)) for number in (0, 1)] == [0, 1]


def test_stopped_is_a_good_end_for_srun_and_told_to_the_record(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert run_task(run, "import sys; sys.exit(75)").wait(30) == 0
    assert (read_ends(run, 0)[0].code, read_ends(run, 0)[0].cause) == (75, Cause.STOPPED)


SAYS = """
import sys
from pathlib import Path
from cclm.run.causes import EXIT_CODES, Cause
from cclm.run.status import note_end
cause = Cause(sys.argv[1])
note_end(Path(sys.argv[2]), 3, cause, "what it says itself")
sys.stderr.write("error: words of the log\\n")
sys.exit(EXIT_CODES[cause])
"""


@pytest.mark.parametrize("cause", [Cause.USER_ERROR, Cause.TRANSIENT, Cause.DISK_FULL, Cause.DIVERGED])
def test_what_a_rank_says_of_its_end_counts(tmp_path: Path, cause: Cause) -> None:
    run = make_run(tmp_path)
    command = [*TASK, str(run), "rank", "--", sys.executable, "-c", SAYS, cause.value, str(run)]
    environment = {**os.environ, **SLURM, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, env=environment, cwd=ROOT, check=False, timeout=60).returncode == EXIT_CODES[cause]
    (end,) = read_ends(run, 0)
    assert (end.cause, end.reason) == (cause, "what it says itself")


def test_a_rank_that_stopped_by_request_is_a_good_end_whatever_its_code(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    code = SAYS.replace("sys.exit(EXIT_CODES[cause])", "sys.exit(1)")
    command = [*TASK, str(run), "rank", "--", sys.executable, "-c", code, "stopped", str(run)]
    environment = {**os.environ, **SLURM, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, env=environment, cwd=ROOT, check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(("code", "cause"), [(1, Cause.DISK_FULL), (-9, Cause.DISK_FULL), (2, Cause.USER_ERROR)])
def test_a_rank_that_dies_while_its_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, cause: Cause
) -> None:
    monkeypatch.setattr(status, "FULL_BYTES", 2**80)
    assert status.cause_of_end(tmp_path, 3, code)[0] is cause


def make_task(run: Path, monkeypatch: pytest.MonkeyPatch, *command: str) -> task.Task:
    monkeypatch.delenv("RANK", raising=False)
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    return task.Task(run, "rank", command or ("true",))


def test_a_full_disk_is_told_in_the_room_taken_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    found = make_task(run, monkeypatch)
    found.take_room()
    size_bytes = found.partial.stat().st_size
    found.write_end(1, Cause.DISK_FULL, "…" * 1000)
    assert (run / "status/exit_rank_3.json").stat().st_size == size_bytes
    assert read_ends(run, 0)[0].cause is Cause.DISK_FULL


def test_torchruns_ranks_are_those_of_its_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, launcher="torchrun", tasks_per_node=2)
    found = make_task(run, monkeypatch, "torchrun", "--node-rank", "@NODE_RANK@")
    assert list(found.ranks) == [6, 7]
    assert found.command == ["torchrun", "--node-rank", "1"]
    note_end(run, 6, Cause.TRANSIENT, "a lost connection")
    note_end(run, 7, Cause.USER_ERROR, "a wrong setting")
    assert found.why(1) == (Cause.USER_ERROR, "a wrong setting")


def test_a_killed_rank(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert run_task(run, "import os; os.kill(os.getpid(), 9)").wait(30) == 137
    assert str(read_ends(run, 0)[0]).endswith("killed by signal 9")


def test_a_code_above_all_signals_is_a_code(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert run_task(run, "import os; os._exit(255)").wait(30) == 255
    assert "exit code 255" in str(read_ends(run, 0)[0])


def test_usr1_does_not_end_a_rank_that_has_not_asked_for_it(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    code = (
        "import os, signal\nos.kill(os.getpid(), signal.SIGUSR1)\nos.kill(os.getppid(), signal.SIGUSR1)\nprint('alive')"
    )
    assert run_task(run, code).wait(30) == 0
    assert "alive" in (run / "logs/rank_3.log").read_text()


@pytest.mark.slow
def test_a_hung_rank_says_where_it_stands_and_is_killed(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_plan(run, hang_s=0.5)
    (run / "status").mkdir()
    code = "import faulthandler, signal, time\nfaulthandler.register(signal.SIGUSR2)\n"
    code += f"def hang():\n    open({str(run / 'status/rank_3.json')!r}, 'w').close()\n    time.sleep(60)\nhang()"
    assert run_task(run, code).wait(30) == 128 + signal.SIGKILL
    (end,) = read_ends(run, 0)
    assert end.cause is Cause.HUNG
    assert end.reason.startswith("no sign of life for ")
    assert "stands in hang (" in end.reason


def test_a_status_that_changes_is_a_sign_of_life(tmp_path: Path) -> None:
    watch = task.Watch([tmp_path / "rank_0.json"], 0.0)
    assert not watch.is_over, "0 means never"
    watch = task.Watch([tmp_path / "rank_0.json"], 0.001)
    watch.since -= 10
    assert not watch.is_over, "it may still be starting"
    (tmp_path / "rank_0.json").write_text("{}")
    assert watch.silent_s() < 5
    watch.since -= 10
    assert watch.is_over
    watch = task.Watch([tmp_path / "rank_0.json"], 0.001)
    watch.since -= 10
    assert not watch.is_over, "the file is of an earlier attempt"
    watch.since -= task.START_S
    assert watch.is_over


def test_last_words() -> None:
    assert (
        task.last_words("a\nerror: expected x, got\n  - y\n. Correct it.\n\n")
        == "error: expected x, got - y . Correct it."
    )
    assert task.last_words("a\nValueError: b\n") == "ValueError: b"
    assert task.last_words("") == ""


def test_it_needs_nothing_but_the_standard_library(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    command = [sys.executable, "-S", "-m", "launch.slurm.task", str(run), "other", "--", "true"]
    subprocess.run(command, env=SLURM | {"PATH": os.environ["PATH"]}, cwd=ROOT, check=True, timeout=30)
    assert json.loads((run / "status/exit_other_3.json").read_text())["code"] == 0
