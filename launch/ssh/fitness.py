"""Can this host take part? One sentence for each thing that is missing; looked at by the agent, on its host."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from launch.ssh.wire import Question

SIOCGIFADDR = 0x8915  # linux/sockios.h: the address of an interface
NAME_BYTES = 15  # linux/if.h: IFNAMSIZ without the final zero
ANY_ADDRESS = ""


def complaints(question: Question, address: str | None) -> Iterator[str]:
    """Yield what is missing here. `address`: of the interface that was asked for, if it has one."""
    if not os.access(question.folder, os.R_OK | os.X_OK):
        yield f"the working folder {question.folder} is not there: all hosts must share it"
    place = Path(question.run_folder)
    while not place.exists():
        place = place.parent
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        yield f"the run folder {question.run_folder} cannot be made or written in: {place} is in the way"
    if question.interface and address is None:
        there = " ".join(name for _, name in socket.if_nameindex())
        yield f"there is no interface {question.interface} with an IPv4 address, only {there}"
    if question.master and look_up(question.master) is None:
        yield f"the name {question.master} of the first host is unknown: give --interface or --master-address"
    if question.port is not None and not is_free(question.port):
        yield f"port {question.port} is taken: give another --port, or none"
    if not (question.is_alone or question.interface or "GLOO_SOCKET_IFNAME" in question.environment):
        own = look_up(socket.gethostname())
        if own is None or own.startswith("127."):
            # gloo tells the others to come to what the own name leads to.
            yield f"its own name {socket.gethostname()} leads to {own or 'nothing'}: give --interface"


def address_of(interface: str) -> str | None:
    """Return an interface's IPv4 address, or None if there is none."""
    request = struct.pack("256s", interface.encode()[:NAME_BYTES])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)[20:24])
        except OSError:
            return None


def look_up(name: str) -> str | None:
    """Return the IPv4 address that a name leads to, or None."""
    try:
        return socket.gethostbyname(name)
    except OSError:
        return None


def is_free(port: int) -> bool:
    """Whether the ranks could meet at this port, at whatever address."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As torch's own server does it: connections of an earlier job that linger do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ANY_ADDRESS, port))
        except OSError:
            return False
        return True


def find_port(wanted: int | None) -> int:
    """The port that is wanted, or one that is free at all addresses."""
    if wanted is not None:
        return wanted
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((ANY_ADDRESS, 0))
        return int(probe.getsockname()[1])
