"""Jobs on two "hosts" through a stand-in for ssh: how they end, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.plan import JobPlan
from launch.ssh import connect
from tests.unit.launch.ssh.conftest import ROOT, Starter, call
from tests.unit.launch.test_local import CHILD, is_running, wait_for
from tests.unit.launch.test_signals import READY, SLEEP, is_written

IGNORE_TERM = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"


def wait_until_ready(tmp_path: Path, num_ranks: int = 2) -> None:
    assert wait_for(lambda: all(is_written(tmp_path / f"ready_{rank}") for rank in range(num_ranks)))


def pids(tmp_path: Path, kind: str, num_ranks: int = 2) -> list[int]:
    return [int((tmp_path / f"{kind}_{rank}").read_text()) for rank in range(num_ranks)]


def test_what_runs_on_the_hosts_is_what_was_planned(start: Starter, tmp_path: Path) -> None:
    code = (
        "facts = {'environment': dict(os.environ), 'argv': [sys.executable, *sys.orig_argv[1:]],"
        " 'cores': sorted(os.sched_getaffinity(0)), 'folder': os.getcwd()}\n"
        "(folder / f'facts_{rank}').write_text(json.dumps(facts))\n"
    )
    process = start(code, "--env", "WORDS=a 'b' $HOME\n;", hosts="one:2,chatty:1")
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    plan = JobPlan.from_json((tmp_path / "run/logs/plan.json").read_text())
    assert [(rank.rank, rank.local_rank, rank.host) for rank in plan.ranks] == [
        (0, 0, "one"),
        (1, 1, "one"),
        (2, 0, "chatty"),
    ]
    for rank in plan.ranks:
        facts = json.loads((tmp_path / f"facts_{rank.rank}").read_text())
        assert rank.environment.items() <= facts["environment"].items()
        assert facts["environment"]["WORDS"] == "a 'b' $HOME\n;"
        assert (tuple(facts["argv"]), facts["folder"]) == (rank.command, str(ROOT))
        assert tuple(facts["cores"]) == (rank.cores or tuple(sorted(os.sched_getaffinity(0))))


def test_rank_0_is_heard_here_and_all_have_logs(start: Starter, tmp_path: Path) -> None:
    process = start("print('out é', rank)\nprint('err', rank, file=sys.stderr, flush=True)\n")
    output, _ = process.communicate(timeout=60)
    assert output.splitlines() == ["out é 0", "err 0"]
    for rank in (0, 1):
        log = (tmp_path / f"run/logs/rank_{rank}.log").read_text().splitlines()
        assert log[0].startswith("=== ") and log[0].endswith(f"rank {rank} on {('one', 'two')[rank]}")
        assert log[1:] == [f"out é {rank}", f"err {rank}"]


def test_much_output_comes_whole(start: Starter) -> None:
    process = start("if rank == 0: sys.stdout.write(('x' * 99 + '\\n') * 40_000)\n")
    output, _ = process.communicate(timeout=60)
    assert output == ("x" * 99 + "\n") * 40_000


def test_ssh_is_called_so_that_it_never_asks(start: Starter, tmp_path: Path) -> None:
    process = start("", "--connect-timeout-s", "7", "--ssh-option", "Port=2222", hosts="me@one:1")
    process.communicate(timeout=60)
    _, words = call(tmp_path, "me@one")
    options = words[: words.index("--")]
    assert options[:3] == ["-T", "-o", "Port=2222"]
    assert {"BatchMode=yes", "ConnectTimeout=7", "ServerAliveInterval=15"} <= set(options)
    assert not any("SendEnv" in word for word in words)


def test_the_first_rank_that_fails_is_named_and_ends_the_others(start: Starter, tmp_path: Path) -> None:
    everybody = "all((folder / f'ready_{number}').exists() for number in range(3))"
    fail = f"if rank == 1:\n    while not {everybody}: time.sleep(0.01)\n"
    fail += "    print('the reason', flush=True)\n    sys.exit(3)\n"
    process = start(CHILD + READY + fail + SLEEP, hosts="one:1,two:2")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    lines = errors.splitlines()
    assert lines[0].startswith("launch: failed. First of 3 rank(s): rank 1 on two: exit code 3 after ")
    assert lines[1] == f"launch: the end of {tmp_path}/run/logs/rank_1.log:"
    assert lines[-1] == "launch:   | the reason"
    assert not any(is_running(pid) for kind in ("ready", "child") for pid in pids(tmp_path, kind, 3))


def test_a_rank_that_ignores_term_is_killed_after_the_grace_time(start: Starter, tmp_path: Path) -> None:
    wait = "while not (folder / 'ready_0').exists(): time.sleep(0.01)\nsys.exit(5)\n"
    code = IGNORE_TERM + "if rank == 0:\n    " + READY + "    time.sleep(60)\n" + wait
    process = start(code, "--grace-s", "0.3")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 5
    assert errors.splitlines()[-1].startswith("launch: then rank 0 on one: killed by SIGKILL after ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_every_rank_which_may_end_well(start: Starter, tmp_path: Path, number: signal.Signals) -> None:
    save = "def save(number, frame):\n    (folder / f'saved_{rank}').write_text(str(number))\n    sys.exit(0)\n"
    process = start(save + f"signal.signal({int(number)}, save)\n" + READY + SLEEP)
    wait_until_ready(tmp_path)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert pids(tmp_path, "saved") == [number, number]


def test_a_second_request_to_stop_kills(start: Starter, tmp_path: Path) -> None:
    process = start("signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + READY + SLEEP)
    wait_until_ready(tmp_path)
    process.send_signal(signal.SIGINT)
    time.sleep(0.4)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGKILL
    assert "launch: SIGINT passed on to 2 rank(s) on 2 host(s); once more kills them." in errors
    assert "launch: stopped. First of 2 rank(s): rank " in errors


def test_a_launcher_that_is_there_keeps_the_ranks_of_a_quiet_job(start: Starter) -> None:
    process = start("time.sleep(1.8)\n", "--lost-s", "1")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors


def test_a_launcher_that_was_suspended_for_too_long_says_so(start: Starter, tmp_path: Path) -> None:
    process = start(READY + SLEEP, "--lost-s", "1")
    wait_until_ready(tmp_path)
    process.send_signal(signal.SIGSTOP)
    assert wait_for(lambda: not any(is_running(pid) for pid in pids(tmp_path, "ready")))
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 255
    assert ": ended, as launch was not heard for 1 s after " in errors.splitlines()[0]


def test_a_connection_that_is_cut_leaves_no_process_on_either_side(start: Starter, tmp_path: Path) -> None:
    process = start(IGNORE_TERM + CHILD + "print('working', flush=True)\n" + READY + SLEEP, "--grace-s", "0.5")
    wait_until_ready(tmp_path)
    os.kill(call(tmp_path, "two")[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 255, errors
    assert "rank 1 on two: connection lost (ssh ended with code -9) after " in errors
    assert "launch:   | working" in errors
    everybody = pids(tmp_path, "ready") + pids(tmp_path, "child")
    assert wait_for(lambda: not any(is_running(pid) for pid in everybody))


def test_a_killed_launcher_leaves_no_orphan_on_any_host(start: Starter, tmp_path: Path) -> None:
    process = start(IGNORE_TERM + CHILD + READY + SLEEP, "--grace-s", "0.5")
    wait_until_ready(tmp_path)
    everybody = pids(tmp_path, "ready") + pids(tmp_path, "child")
    assert all(is_running(pid) for pid in everybody)
    os.kill(process.pid, signal.SIGKILL)
    assert wait_for(lambda: not any(is_running(pid) for pid in everybody))


def test_a_killed_agent_leaves_no_orphan(start: Starter, tmp_path: Path) -> None:
    process = start(CHILD + "(folder / f'agent_{rank}').write_text(str(os.getppid()))\n" + READY + SLEEP)
    wait_until_ready(tmp_path)
    os.kill(pids(tmp_path, "agent")[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 255
    assert "rank 1 on two: connection lost (ssh ended with code 255) after " in errors
    everybody = pids(tmp_path, "ready") + pids(tmp_path, "child")
    assert wait_for(lambda: not any(is_running(pid) for pid in everybody))


def test_hosts_that_cannot_take_part_are_all_named_and_nothing_starts(start: Starter, tmp_path: Path) -> None:
    process = start("(folder / 'started').touch()\n", hosts="one,dead-a,locked-b")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert errors == (
        "launch: ssh: expected 3 host(s) that can take part, got "
        "dead-a: ssh ended with code 255: ssh: connect to host dead-a port 22: No route to host; "
        "locked-b: ssh ended with code 255: me@locked-b: Permission denied (publickey). "
        "Nothing was started. Try `ssh -o BatchMode=yes HOST true` by hand.\n"
    )
    assert not (tmp_path / "started").exists()
    assert not (tmp_path / "run").exists()


def test_an_interrupt_while_hosts_are_reached_for(start: Starter, tmp_path: Path) -> None:
    process = start("(folder / 'started').touch()\n", hosts="one,slow-b")
    assert wait_for((tmp_path / "ssh_calls/slow-b.json").exists)
    pid = call(tmp_path, "slow-b")[0]
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert (process.returncode, errors) == (128 + signal.SIGINT, "launch: interrupted\n")
    assert not is_running(pid)
    assert not (tmp_path / "started").exists()


def test_a_host_that_does_not_answer_in_time(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(connect, "ANSWER_S", 0.5)
    options = ["--ssh-program", str(stand_in), "--interface", "lo", "--connect-timeout-s", "1"]
    assert main(["plan", "--hosts", "one,slow-b", *options, "--", "true"]) == 2
    assert "got slow-b: no answer in 2 s. Nothing was started." in capsys.readouterr().err
    assert not is_running(call(tmp_path, "slow-b")[0])


def test_a_host_without_the_interpreter(start: Starter) -> None:
    process = start("", "--python", "/no/such/python", hosts="one")
    _, errors = process.communicate(timeout=30)
    assert "one: there is no program /no/such/python: give --python. Nothing was started." in errors


def test_ssh_itself_may_be_missing(start: Starter) -> None:
    process = start("", "--ssh-program", "/no/such/ssh")
    _, errors = process.communicate(timeout=30)
    assert errors.startswith("launch: ssh: expected the program /no/such/ssh, got No such file or directory. Install")
