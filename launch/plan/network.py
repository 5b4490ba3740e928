"""Which interface and which NCCL, libfabric and gloo settings a fabric wants: one line a variable, with its reason.

    /sys, /proc/net/route, the address of rank 0 ── look ──> Fabric ── settings_of ──> variables ──> a rank

Looked at on the machine where the ranks run (`launch/slurm/task.py`, `launch run`), since a login node has other cards.
What the environment sets already stays, also by a profile of the site.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

AUTO, NONE = "auto", "none"
LOOPBACK = "lo"
FAST_GBITS = 40.0
"""Ethernet from here on needs more than one TCP stream."""
SIOCGIFADDR = 0x8915


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A variable of a profile; it is left out where what its value names was not found."""

    name: str
    value: str
    """May name {interface}, {devices} and {gid}."""
    why: str
    is_strict: bool = False
    """Set only if the profile was asked for by name: turns a silent way out into an error."""
    is_for_fast: bool = False
    """Set only on links of `FAST_GBITS` and more."""


def _verbs(network: str) -> Setting:
    why = "without its library (a container) NCCL would fall back to TCP"
    return Setting(name="NCCL_NET", value=network, why=why, is_strict=True)


SOCKETS = (
    Setting(name="GLOO_SOCKET_IFNAME", value="{interface}", why="gloo else takes where the host's own name leads to"),
    Setting(name="NCCL_SOCKET_IFNAME", value="={interface}", why="NCCL's meeting; else perhaps a container's bridge"),
)
HCA = Setting(name="NCCL_IB_HCA", value="={devices}", why="cards with such a link; not those of storage or management")
GID = Setting(name="NCCL_IB_GID_INDEX", value="{gid}", why="the RoCE v2 address; NCCL before 2.21 takes the first")
PROFILES: dict[str, tuple[Setting, ...]] = {
    "infiniband": (*SOCKETS, HCA, _verbs("IB")),
    "roce": (*SOCKETS, HCA, GID, _verbs("IB")),
    "efa": (
        *SOCKETS,
        Setting(name="FI_PROVIDER", value="efa", why="libfabric may else take its TCP provider"),
        Setting(name="FI_EFA_USE_DEVICE_RDMA", value="1", why="GPUDirect for libfabric before 1.18; no harm after"),
        Setting(name="FI_EFA_FORK_SAFE", value="1", why="loader workers are forked; for kernels before 5.15"),
        _verbs("AWS Libfabric"),
    ),
    "ethernet": (
        SOCKETS[0],
        replace(SOCKETS[1], is_strict=True),  # NCCL by itself uses all cards
        Setting(name="NCCL_IB_DISABLE", value="1", why="no verbs, also if there is a card without a link"),
        Setting(name="NCCL_SOCKET_NTHREADS", value="4", why="one TCP stream fills no fast link", is_for_fast=True),
        Setting(name="NCCL_NSOCKS_PERTHREAD", value="4", why="the same; 64 streams at most", is_for_fast=True),
    ),
}
"""By fabric. Traffic classes, service levels and adaptive routing are a site's own: its profile sets them."""
NETWORKS = (AUTO, *PROFILES, NONE)
"""What can be asked for."""


@dataclass(frozen=True, kw_only=True)
class Fabric:
    """What a machine has to reach others."""

    kind: str
    interface: str | None
    """Where IP goes; None: not known."""
    devices: tuple[str, ...] = ()
    """RDMA devices of that kind with a link."""
    gid: int | None = None
    """Index of the RoCE v2 address, if it is the same on all of them."""
    gbits: float | None = None
    """Speed of a device, or of the interface."""
    site: frozenset[str] = frozenset()
    """Variables that a file of NCCL's sets on this machine: the environment would overrule it."""

    def __str__(self) -> str:
        speed = "" if self.gbits is None else f", {self.gbits:g} Gb/s"
        return f"{self.kind} ({', '.join(self.devices) or self.interface or 'no interface'}{speed})"


def look(root: Path = Path("/"), towards: str | None = None, kind: str = AUTO) -> Fabric:
    """Look at this machine. `towards`: where rank 0 is; `kind`: of this fabric alone, whatever else there is."""
    interface = (interface_towards(towards) if towards else None) or default_interface(root)
    ports = list(_ports(root / "sys/class/infiniband"))
    found = next(
        (name for name in ("efa", "infiniband", "roce") if any(port.kind == name for port in ports)), "ethernet"
    )
    kind = found if kind == AUTO else kind
    own = [port for port in ports if port.kind == kind]
    speed = own[0].gbits if own else _number(root / "sys/class/net" / (interface or "") / "speed", 1000)
    gids = {port.gid for port in own}
    gid = gids.pop() if len(gids) == 1 else None
    devices = tuple(device for port in own for device in port.devices)
    return Fabric(kind=kind, interface=interface, devices=devices, gid=gid, gbits=speed, site=_site_variables(root))


def _site_variables(root: Path) -> frozenset[str]:
    """Names that NCCL reads from files; one that cannot be read is none."""
    own = os.environ.get("NCCL_CONF_FILE") or "~/.nccl.conf"
    found = set[str]()
    for path in (root / "etc/nccl.conf", Path(own).expanduser()):
        with contextlib.suppress(OSError, UnicodeDecodeError, RuntimeError):
            lines = path.read_text(encoding="utf-8").splitlines()
            found |= {line.partition("=")[0].strip() for line in lines if "=" in line and not line.startswith("#")}
    return frozenset(found)


def settings_of(fabric: Fabric, asked: str, inherited: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return variables for a rank with their reasons, without those that are set; nothing for "none"."""
    if asked == NONE:
        return {}
    values = {"interface": fabric.interface, "devices": ",".join(fabric.devices) or None, "gid": fabric.gid}
    found, is_fast = {}, (fabric.gbits or 0.0) >= FAST_GBITS
    for one in PROFILES[fabric.kind]:
        is_known = all(value is not None for name, value in values.items() if f"{{{name}}}" in one.value)
        is_wanted = (asked != AUTO or not one.is_strict) and (is_fast or not one.is_for_fast)
        if is_known and is_wanted and one.name not in inherited and one.name not in fabric.site:
            found[one.name] = (one.value.format(**values), one.why)
    return found


def network_lines(asked: str) -> Iterator[str]:
    """Yield what a job on other machines will set, for people."""
    if asked == NONE:
        yield "none: nothing is set"
    elif asked == AUTO:
        yield f"auto: each node looks at its own: {', '.join(PROFILES)} (docs/launch.md)"
    else:
        yield f"{asked}: names of devices are those of each node"
        yield from (f"  {one.name}={one.value}  ({one.why})" for one in PROFILES[asked])


def interface_towards(host: str) -> str | None:
    """Return the interface that packets to a host leave by; None if it is not known, or this machine itself."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # no packet is sent
            own = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                try:
                    request = struct.pack("256s", name.encode()[:15])
                    address = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)[20:24]
                except OSError:  # it has no IPv4 address
                    continue
                if socket.inet_ntoa(address) == own and name != LOOPBACK:
                    return name
    except OSError:
        return None
    return None


def default_interface(root: Path = Path("/")) -> str | None:
    """Return the interface of the default route; None without one: then none is set."""
    routes = [line.split() for line in _text(root / "proc/net/route").splitlines()]
    return next((route[0] for route in routes if route[1:2] == ["00000000"]), None)


def _ports(folder: Path) -> Iterator[Fabric]:
    """Each port of an RDMA device that has a link, as a fabric."""
    kinds = {"InfiniBand": "infiniband", "Ethernet": "roce"}
    for port in sorted(folder.glob("*/ports/*")):
        device = port.parents[1]
        driver = device / "device/driver"
        is_efa = driver.exists() and Path(os.path.realpath(driver)).name == "efa"
        kind = "efa" if is_efa else kinds.get(_text(port / "link_layer"))
        if kind is not None and _text(port / "state").endswith("ACTIVE"):
            devices, gbits = (device.name,), _number(port / "rate", 1)
            yield Fabric(kind=kind, interface=None, devices=devices, gbits=gbits, gid=_gid_of(port))


def _gid_of(port: Path) -> int | None:
    """Index of the first RoCE v2 address that is an IPv4 one."""
    for path in sorted(port.glob("gid_attrs/types/*"), key=lambda path: int(path.name)):
        is_ipv4 = _text(port / "gids" / path.name).startswith("0000:0000:0000:0000:0000:ffff:")
        if _text(path) == "RoCE v2" and is_ipv4:
            return int(path.name)
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # not there, or, of an empty address, EINVAL
        return ""


def _number(path: Path, divisor: float) -> float | None:
    """The number that a file begins with ("200 Gb/sec (4X HDR)"); None without one, and for -1 (no link)."""
    word = _text(path).partition(" ")[0]
    return float(word) / divisor if word.replace(".", "", 1).isdigit() else None
