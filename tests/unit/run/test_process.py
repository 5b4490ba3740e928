from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cclm.run.machine import LOOPBACK, free_port, why_port_is_taken

ROOT = Path(__file__).resolve().parents[3]


def run(code: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Python as a shell starts it, after a line of that shell."""
    line = f'{before} exec "$0" -c "$CODE"'
    environment = {**os.environ, "CODE": code, "PYTHONPATH": str(ROOT)}
    words = ["bash", "-c", line, sys.executable]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)


CHILD = """
import subprocess, sys
from cclm.run.signals import expect_children
expect_children()
print(subprocess.run([sys.executable, "-S", "-c", "import sys; sys.exit(7)"]).returncode)
"""


def test_exit_codes_of_children_survive_a_parent_that_ignored_them() -> None:
    assert run(CHILD, "trap '' CHLD;").stdout == "7\n"


def test_ctrl_c_while_importing_prints_no_traceback() -> None:
    code = """
import os, signal
from cclm.run.signals import quiet_interrupt
with quiet_interrupt():
    os.kill(os.getpid(), signal.SIGINT)
"""
    ended = run(code)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")
    assert run(code, "trap '' INT;").returncode == 0, "what the parent ignores stays ignored"


def test_the_old_handler_comes_back() -> None:
    code = """
import signal
from cclm.run.signals import quiet_interrupt
before = signal.getsignal(signal.SIGINT)
with quiet_interrupt():
    pass
print(signal.getsignal(signal.SIGINT) is before)
"""
    assert run(code).stdout == "True\n"


def test_a_child_dies_with_its_parent() -> None:
    code = """
import os, time
from cclm.run.signals import die_with_parent
parent = os.getpid()
reader, writer = os.pipe()
if os.fork() == 0:
    die_with_parent(parent)
    os.write(writer, b".")
    time.sleep(60)
os.read(reader, 1)
print("ready", flush=True)
os.kill(parent, 9)
"""
    ended = run(code)  # which waits until the child's end of stdout is closed, too
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, "ready\n")


def test_a_free_port_can_be_bound() -> None:
    port = free_port()
    assert why_port_is_taken(port) == ""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, port))
        listener.listen()
        assert why_port_is_taken(port) == "Address already in use"


@pytest.mark.parametrize("port", [-1, 70000])
def test_a_number_that_is_no_port(port: int) -> None:
    assert "0-65535" in why_port_is_taken(port)
