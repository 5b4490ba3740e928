"""The agent by itself: it is spoken to through pipes, as ssh would."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from launch.plan import JobPlan
from launch.ssh.agent import Tail
from launch.ssh.wire import Answer, Message, Order, Question, Reader, answer_of, encode, message_of
from tests.unit.launch.conftest import PlanMaker
from tests.unit.launch.ssh.conftest import ROOT
from tests.unit.launch.test_local import CHILD, SLEEP, is_running, wait_for

READY = "(folder / f'ready_{rank}').write_text(str(os.getpid()))\n"
IGNORE_TERM = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
PIPE_BYTES = 2**16  # pipe(7)


@pytest.fixture
def agent() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-S", "-m", "launch.ssh.agent"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    yield process
    process.kill()
    process.communicate()


def say(agent: subprocess.Popen[bytes], message: Message) -> None:
    assert agent.stdin is not None
    agent.stdin.write(encode(message))
    agent.stdin.flush()


def hang_up(agent: subprocess.Popen[bytes]) -> None:
    assert agent.stdin is not None
    agent.stdin.close()
    agent.stdin = None  # `communicate` would flush it


def num_bytes_waiting(agent: subprocess.Popen[bytes]) -> int:
    """What the agent has said and nobody has read."""
    assert agent.stdout is not None
    return int.from_bytes(fcntl.ioctl(agent.stdout, termios.FIONREAD, bytes(4)), sys.byteorder)


def messages(agent: subprocess.Popen[bytes]) -> list[Message]:
    """Everything that the agent says until it ends."""
    assert agent.stdout is not None
    return list(Reader().feed(agent.stdout.read()))


def order(plan: JobPlan, grace_s: float = 0.3, lost_s: float = 60.0) -> Message:
    with_logs = tuple(replace(rank, log=plan.run_folder / "logs" / f"rank_{rank.rank}.log") for rank in plan.ranks)
    text = replace(plan, ranks=with_logs).to_json()
    return message_of(Order(host="n1", plan=text, grace_s=grace_s, lost_s=lost_s))


def test_it_answers_and_goes_when_nothing_more_comes(agent: subprocess.Popen[bytes], tmp_path: Path) -> None:
    question = Question(
        folder=str(tmp_path / "gone"),
        run_folder=str(tmp_path / "run"),
        interface="lo",
        master=None,
        port=None,
        is_alone=False,
        environment={"CUDA_VISIBLE_DEVICES": ""},
    )
    say(agent, message_of(question))
    hang_up(agent)
    (message,) = messages(agent)
    answer = answer_of(message)
    assert answer == Answer(
        complaints=(f"the working folder {tmp_path}/gone is not there: all hosts must share it",),
        machine=answer.machine,
        address="127.0.0.1",
    )
    assert answer.machine.cores == tuple(sorted(os.sched_getaffinity(0)))
    assert answer.machine.num_gpus == 0
    assert agent.wait(timeout=10) == 0
    assert not (tmp_path / "run").exists()


def test_output_and_ends_are_told_in_order(agent: subprocess.Popen[bytes], plan_python: PlanMaker) -> None:
    say(agent, order(plan_python("print('words', flush=True)\nsys.exit(0)\n", num_ranks=1)))
    told = messages(agent)
    assert [next(iter(message)) for message in told] == ["output", "exit"]
    assert told[0]["output"] == "words\n"
    assert {**told[1]["exit"], "seconds": 0} == {"rank": 0, "code": 0, "seconds": 0, "last": []}


def test_an_order_to_end_ends_them(agent: subprocess.Popen[bytes], plan_python: PlanMaker, tmp_path: Path) -> None:
    say(agent, order(plan_python(READY + SLEEP)))
    assert wait_for(lambda: (tmp_path / "ready_0").exists() and (tmp_path / "ready_1").exists())
    say(agent, {"end": True})
    codes = [message["exit"]["code"] for message in messages(agent) if "exit" in message]
    assert codes == [-15, -15]


@pytest.mark.parametrize("how", ["end of file", "silence"])
def test_it_ends_its_ranks_when_the_launcher_is_gone(
    agent: subprocess.Popen[bytes], plan_python: PlanMaker, tmp_path: Path, how: str
) -> None:
    plan = plan_python(IGNORE_TERM + CHILD + READY + SLEEP)
    say(agent, order(plan, lost_s=1.0 if how == "silence" else 60.0))
    assert wait_for(lambda: (tmp_path / "ready_0").exists() and (tmp_path / "ready_1").exists())
    if how == "end of file":
        hang_up(agent)
    assert agent.wait(timeout=20) == 0
    everybody = [int((tmp_path / f"{kind}_{rank}").read_text()) for kind in ("ready", "child") for rank in (0, 1)]
    assert wait_for(lambda: not any(is_running(pid) for pid in everybody))


def test_signs_of_life_keep_the_ranks(agent: subprocess.Popen[bytes], plan_python: PlanMaker, tmp_path: Path) -> None:
    say(agent, order(plan_python("time.sleep(1.2)\n(folder / 'end').touch()\n", num_ranks=1), lost_s=0.8))
    while not wait_for(lambda: (tmp_path / "end").exists(), timeout_s=0.2):
        assert agent.poll() is None
        say(agent, {"alive": True})
    assert agent.wait(timeout=20) == 0


def test_nobody_reading_does_not_keep_it_from_ending_its_ranks(
    agent: subprocess.Popen[bytes], plan_python: PlanMaker, tmp_path: Path
) -> None:
    say(agent, order(plan_python("sys.stdout.write('x' * 8_000_000)\nsys.stdout.flush()\n" + READY + SLEEP, 1)))
    assert wait_for(lambda: (tmp_path / "ready_0").exists())
    assert wait_for(lambda: num_bytes_waiting(agent) > PIPE_BYTES / 2)  # it is full before its last page is
    hang_up(agent)
    assert agent.wait(timeout=20) == 0
    assert not is_running(int((tmp_path / "ready_0").read_text()))


def test_a_log_that_cannot_be_written_is_trouble(
    agent: subprocess.Popen[bytes], plan_python: PlanMaker, tmp_path: Path
) -> None:
    (tmp_path / "run").write_text("in the way")
    say(agent, order(plan_python(READY)))
    (message,) = messages(agent)
    assert "expected a folder that can be made and written in" in message["trouble"]
    assert not (tmp_path / "ready_0").exists()


def test_the_tail_begins_behind_the_header_of_this_life(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"=== an earlier life\nold\n")
    tail = Tail(log)
    with log.open("ab") as file:
        file.write(b"=== this")
        file.flush()
        assert tail.read() == b""
        file.write(b" life\nnew\n=== no header\n")
        file.flush()
        assert tail.read() == b"new\n=== no header\n"
        assert tail.read() == b""
