"""A port at which the ranks of a job meet: jobs that share a node must not choose the same."""

from __future__ import annotations

import socket

from cclm.errors import CclmError

FIRST_PORT, NUM_PORTS = 20000, 20000


def find_port(job: int) -> int:
    """The first port from one that depends on the job's id on, at which nobody on this machine listens."""
    for offset in range(NUM_PORTS):
        port = FIRST_PORT + (job * 16 + offset) % NUM_PORTS
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise CclmError(expected="a free port", got="none", do="Find out what holds them: `ss -ltn`.", where="life")
