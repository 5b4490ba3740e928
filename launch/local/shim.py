"""What a rank is for its first milliseconds: it ties its life to the launcher's, binds itself to its cores, and becomes
the rank's command. Run by path with `python -I -S`, without our checkout on its path: it must start at once.

    python shim.py LAUNCHER_PID CORES COMMAND…    CORES: "0,1", or "" for no binding

Children of the rank do not inherit what ties it to the launcher; for them there is `launch/local/guard.py`.
"""

from __future__ import annotations

import os
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # noqa: PTH100, PTH120

from cclm.run.signals import die_with_parent


def main(arguments: list[str]) -> None:
    """Become the command; does not return."""
    parent, cores, *command = arguments
    die_with_parent(int(parent))
    if cores:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    # The launcher receives its signals with sigtimedwait, so they are blocked there, and a blocked set is inherited.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"launch: cannot start {command[0]}: {error.strerror}\n")
        os._exit(127)


if __name__ == "__main__":
    main(sys.argv[1:])
