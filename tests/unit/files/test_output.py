"""What a program says must not change how it ends, whatever its streams are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import os, sys
from cclm.files.command_line import is_lost, open_output
open_output()
for number in range(3000):
    sys.stdout.write(f"line {number} … 東京 \\udcff\\n")
sys.stdout.flush()
sys.stderr.write("done …\\n")
lowest = os.open(os.devnull, os.O_RDONLY)
sys.stdout.write("late\\n")  # for the flush at the interpreter's own end
os._exit(9) if lowest <= 2 else None
sys.exit(40 + is_lost())
"""


def shell(redirection: str, encoding: str = "utf-8") -> subprocess.CompletedProcess[bytes]:
    """Run the program with streams as a shell makes them."""
    line = f'"$0" -c "$PROGRAM" {redirection}'
    environment = {**os.environ, "PROGRAM": PROGRAM, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    return subprocess.run(["bash", "-c", line, sys.executable], env=environment, capture_output=True, timeout=60)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "utf-8:strict"])
def test_a_character_that_cannot_be_told_is_spelled(encoding: str) -> None:
    done = shell("", encoding)
    assert done.returncode == 40, done.stderr
    lines = done.stdout.decode(encoding.partition(":")[0]).splitlines()
    assert len(lines) == 3001
    assert lines[7] == (r"line 7 … 東京 \udcff" if "utf" in encoding else r"line 7 \u2026 \u6771\u4eac \udcff")


@pytest.mark.parametrize("redirection", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_streams_that_the_parent_closed(redirection: str) -> None:
    done = shell(redirection)
    assert (done.returncode, done.stdout) == (40, b"")
    assert done.stderr.decode() == ("" if "2>" in redirection else "done …\n")


def test_stderr_closed_alone() -> None:
    done = shell("2>&-")
    assert done.returncode == 40
    assert done.stdout.count(b"\n") == 3001


@pytest.mark.parametrize("redirection", ["> >(head -n 1 >&2)", "> /dev/full", "2>&1 > >(exit 0)"])
def test_a_reader_that_goes_and_a_full_disk(redirection: str) -> None:
    done = shell(redirection)
    assert done.returncode == 41, done.stderr
    assert b"Error" not in done.stderr


def test_a_pipe_that_does_not_block_loses_nothing() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, stdout=writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        said = file.read()
    assert process.wait() == 40
    assert said.count(b"\n") == 3001 and said.endswith(b"late\n")
