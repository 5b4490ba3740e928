"""A stand-in for ssh: runs the command on this machine, whatever the host is called, and cuts the connection if it is
killed. Hosts whose names begin with "dead" do not answer, "slow" ones have not answered yet, "locked" ones know no key,
"chatty" ones greet.

    stand_in.py FOLDER [OPTIONS] -- HOST COMMAND        FOLDER/HOST.json: process number and arguments
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path


def pump(source: int, target: int) -> None:
    """Copy until the source ends or nobody reads, then close the target."""
    try:
        while data := os.read(source, 65536):
            os.write(target, data)
    except BrokenPipeError:
        pass
    os.close(target)


def main(arguments: list[str]) -> int:
    folder, *words = arguments
    host, command = words[words.index("--") + 1 :]
    note = Path(folder) / f"{host}.json"
    note.with_suffix(".new").write_text(json.dumps({"pid": os.getpid(), "words": words}))
    note.with_suffix(".new").replace(note)
    if host.startswith("dead"):
        os.write(2, f"ssh: connect to host {host} port 22: No route to host\n".encode())
        return 255
    if host.startswith("slow"):
        time.sleep(60)
    if host.startswith("locked"):
        os.write(2, f"me@{host}: Permission denied (publickey).\n".encode())
        return 255
    if host.startswith("chatty"):
        os.write(1, b"Welcome!\nlaunch is a nice word\n")
    process = subprocess.Popen(
        ["sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None and process.stdout is not None
    # On duplicates that only the threads know, or an object's end would close a number twice.
    to_host = threading.Thread(target=pump, args=(0, os.dup(process.stdin.fileno())), daemon=True)
    from_host = threading.Thread(target=pump, args=(os.dup(process.stdout.fileno()), os.dup(1)), daemon=True)
    to_host.start()
    from_host.start()
    process.stdin.close()
    process.stdout.close()
    code = process.wait()
    from_host.join()
    return 255 if code < 0 else code  # as ssh for a command that was killed


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # the thread that waits for more from the launcher has no end of its own
