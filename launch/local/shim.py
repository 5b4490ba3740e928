"""What a rank is for its first milliseconds: it ties its life to the launcher's, binds itself to its cores, and becomes
the rank's command. Run by path with `python -I -S` and nothing but the standard library: it must start at once.

    python shim.py LAUNCHER_PID CORES COMMAND…        CORES: "0,1", or "" for no binding

Linux only: PR_SET_PDEATHSIG makes the kernel kill this process when the launcher dies, however it dies. The setting
survives exec, but children of the rank do not inherit it; for them there is `launch/guard.py`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int) -> None:
    """Have the kernel send SIGKILL to this process when `parent` dies; end at once if it is dead already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def main(arguments: list[str]) -> None:
    """Become the command; does not return."""
    parent, cores, *command = arguments
    die_with_parent(int(parent))
    if cores:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    # The launcher receives its signals with sigtimedwait, so they are blocked there, and a blocked set is inherited.
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"launch: cannot start {command[0]}: {error.strerror}\n")
        os._exit(127)


if __name__ == "__main__":
    main(sys.argv[1:])
