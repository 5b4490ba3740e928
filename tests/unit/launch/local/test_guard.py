from __future__ import annotations

import os
import subprocess
import sys

from launch.local import guard, shim


def test_the_guard_kills_what_the_pipes_end_leaves_on_its_list() -> None:
    sleepers = [subprocess.Popen(["sleep", "60"], start_new_session=True) for _ in range(2)]
    messages = f"+{sleepers[0].pid}\n+{sleepers[1].pid}\n-{sleepers[1].pid}\n+{2**22 + 1}\n-{2**22 + 2}\n"
    subprocess.run([sys.executable, "-I", "-S", guard.__file__], input=messages, text=True, timeout=120, check=True)
    assert sleepers[0].wait(timeout=120) == -9
    assert sleepers[1].poll() is None
    sleepers[1].kill()
    sleepers[1].wait(timeout=120)


def test_a_rank_whose_launcher_is_gone_does_not_start() -> None:
    stranger = os.getppid()
    command = [sys.executable, "-I", "-S", shim.__file__, str(stranger), "", "echo", "started"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (128 + 9, "")
