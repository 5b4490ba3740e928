"""The launcher's will: a process that outlives it and then ends what the ranks had started.

The kernel ends the ranks themselves when the launcher dies (`launch/local/shim.py`), but not their children (data
workers, compilers). The guard reads from a pipe that only the launcher holds open: "+PGID" when a rank's process group
begins, "-PGID" when it has been cleaned up. End of file means that the launcher is gone, and every group still on the
list is killed. Run by path with `python -I -S`; Linux only.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Wait for the launcher's end, then kill what is left."""
    # Ctrl-C in a terminal and a TERM to the whole session must not end the guard before the launcher.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        if line.startswith("+"):
            groups.add(int(line[1:]))
        else:
            groups.discard(int(line[1:]))
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    main()
