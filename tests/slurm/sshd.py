"""An sshd on nodes of the test cluster, with keys of its own.

The machine's own sshd is used if it has one. Otherwise Debian's package is unpacked into `UNPACKED` and not installed:
installing it would open a door into the machine, and here it is needed inside the cluster's namespaces only.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

UNPACKED = Path("/var/cache/cclm-test-sshd")
PACKAGES = ("openssh-server", "libwrap0")
LIBRARIES = "usr/lib/*/"
PORT = 2222
SERVER_CONF = """\
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
"""
UP_S = 10.0


def fetch_sshd() -> None:
    """Fetch an sshd if there is none; without a network the tests that need it are skipped."""
    if find_sshd() is not None or shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        got = subprocess.run(["apt-get", "download", "-qq", *PACKAGES], cwd=folder, stdout=sys.stderr, check=False)
        if got.returncode != 0:
            print("no sshd: the packages could not be fetched", file=sys.stderr)
            return
        new = Path(folder) / "unpacked"
        for package in Path(folder).glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), str(new)], check=True)
        shutil.copytree(new, UNPACKED, symlinks=True, dirs_exist_ok=True)


def find_sshd() -> str | None:
    """The whole path of an sshd (it insists on one), or None."""
    own = UNPACKED / "usr/sbin/sshd"
    return shutil.which("sshd") or (str(own) if own.exists() else None)


def environment() -> dict[str, str]:
    """What an unpacked sshd needs to find its libraries."""
    libraries = [str(path) for path in UNPACKED.glob(LIBRARIES)]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)} if libraries else dict(os.environ)


class Sshd:
    """Servers on some nodes; they end with the cluster, or when they are told to."""

    def __init__(self, folder: Path, nodes: tuple[str, ...]) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("host_key", "user_key", "wrong_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        (folder / "sshd_config").write_text(SERVER_CONF.format(port=PORT, folder=folder))
        host_key = (folder / "host_key.pub").read_text()
        (folder / "known_hosts").write_text("".join(f"[{node}]:{PORT} {host_key}" for node in nodes))
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's own rule; /run is the cluster's here
        self.servers = [self._start(node) for node in nodes]
        for node in nodes:
            self._wait(node)

    def options(self, key: str = "user_key") -> list[str]:
        """Options of `launch ssh` that lead to these servers."""
        values = (
            f"Port={PORT}", f"IdentityFile={self.folder / key}", "IdentitiesOnly=yes", "User=root",
            f"UserKnownHostsFile={self.folder / 'known_hosts'}", "StrictHostKeyChecking=yes",
        )  # fmt: skip
        return [word for value in values for word in ("--ssh-option", value)]

    def stop(self) -> None:
        """End the servers; what runs in their sessions is not ended."""
        for server in self.servers:
            server.terminate()
            server.wait(timeout=UP_S)

    def _start(self, node: str) -> subprocess.Popen[bytes]:
        server = [str(find_sshd()), "-D", "-e", "-f", str(self.folder / "sshd_config")]
        inside = f"hostname {node} && exec {shlex.join(server)}"
        with (self.folder / f"{node}.log").open("wb") as log:
            command = ["ip", "netns", "exec", node, "unshare", "--uts", "sh", "-c", inside]
            return subprocess.Popen(command, env=environment(), stdin=subprocess.DEVNULL, stderr=log)

    def _wait(self, node: str) -> None:
        began = time.monotonic()
        command = ["ssh-keyscan", "-T", "1", "-p", str(PORT), node]
        while not subprocess.run(command, capture_output=True, check=False).stdout:
            if time.monotonic() - began > UP_S:
                raise RuntimeError(f"no sshd on {node}: {(self.folder / f'{node}.log').read_text()}")
            time.sleep(0.05)
