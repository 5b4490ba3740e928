"""A real Slurm with several nodes on one machine, for the length of one command. Root on Debian or Ubuntu; no daemon,
no network device, no mount and no file of it is visible outside, or stays, but the packages that it needs.

    python -m tests.slurm.cluster -- bash        look around: sinfo, sbatch, scontrol …

    this process ── unshare: own processes, network, mounts, host name ── process 1 of the new namespace ("login node")
                        ├── munged, slurmctld                             bridge 10.77.0.254
                        ├── node n1: network + host name + mounts of its own, slurmd      10.77.0.1
                        ├── node n2: …                                                    10.77.0.2
                        └── COMMAND, with SLURM_CONF and CCLM_SLURM_CLUSTER set

When process 1 ends, the kernel ends everything in the namespace, however the end came.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

from tests.slurm.slurm_conf import GRES_CONF, SLURM_CONF

BASE = Path("/run/cluster")
"""Where the cluster's files are: /run is a disk of the namespace's own, so they go with it."""
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare", "nsenter", "setpriv")
NETWORK = "10.77.0"
CONTROLLER = "login"
USER, USER_ID = "trainer", 5000
NUM_NODES, NUM_CPUS, NUM_GPUS = 3, 8, 2
NULL_DEVICE = (1, 3)
"""A second /dev/null passes for a GPU: Slurm wants a character device and opens it at most."""
UP_S = 240.0


class ClusterError(RuntimeError):
    """The cluster did not come up."""


def reason_not_to() -> str | None:
    """Why no cluster can be started here, or None."""
    if os.geteuid() != 0:
        return "needs root: namespaces and daemons"
    if not missing_programs() or shutil.which("apt-get"):
        return None
    return f"needs {', '.join(missing_programs())}, and there is no apt-get to install them with"


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


def install() -> None:
    """Install Debian's Slurm if it is not there."""
    if not missing_programs():
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    packages = [*PACKAGES, "iproute2", "util-linux"]
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
        subprocess.run(["apt-get", *command], env=environment, stdout=sys.stderr, check=True, timeout=600)


def sh(command: str, timeout_s: float = 120) -> str:
    """Run a line of shell; returns what it prints."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode != 0:
        raise ClusterError(f"{command!r} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def enter(num_nodes: int, command: list[str]) -> None:
    """Become this file as process 1 of new namespaces; does not return."""
    kinds = ["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--propagation", "private", "--net", "--uts"]
    inside = [sys.executable, "-m", "tests.slurm.cluster", "--inside", "--nodes", str(num_nodes)]
    os.execvp("unshare", ["unshare", *kinds, *inside, "--", *command])


def up(base: Path, num_nodes: int) -> None:
    """Start everything; called inside the namespaces."""
    sh("mount -t tmpfs -o mode=755 run /run")
    for name in ("etc", "run", "log", "state", "dev", "local", "small", "home"):
        (base / name).mkdir(parents=True)
    # A small disk that every node sees, to be filled; a home; private copies of what names hosts and users.
    sh(f"mount -t tmpfs -o size=48m,mode=1777 small {base}/small && chown {USER_ID}:{USER_ID} {base}/home")
    names = {f"{NETWORK}.{node}": f"n{node}" for node in nodes(num_nodes)} | {f"{NETWORK}.254": CONTROLLER}
    private("/etc/hosts", base, "".join(f"{address} {name}\n" for address, name in names.items()))
    users = f"{USER}:x:{USER_ID}:{USER_ID}:{USER}:{base}/home:/bin/sh\n"
    private("/etc/passwd", base, users)
    private("/etc/group", base, f"{USER}:x:{USER_ID}:\n")
    show_to_users(base / "covered", [Path(sys.base_prefix), Path(sys.prefix), Path.cwd()])
    sh(f"hostname {CONTROLLER} && ip link set lo up && mkdir /run/netns")
    for gpu in range(NUM_GPUS):
        os.mknod(base / "dev" / f"gpu{gpu}", 0o666 | stat.S_IFCHR, os.makedev(*NULL_DEVICE))
    write_configuration(base, num_nodes)
    start_munge(base)
    sh(f"ip link add slbr0 type bridge && ip addr add {NETWORK}.254/24 dev slbr0 && ip link set slbr0 up")
    for node in nodes(num_nodes):
        add_node(node)
    sh("slurmctld")
    for node in nodes(num_nodes):
        (base / "spool" / f"n{node}").mkdir(parents=True)
        start_node(base, node)
    wait_for_idle(base, num_nodes)


def show_to_users(kept: Path, paths: list[Path]) -> None:
    """Let plain users reach these folders, which may lie in somebody's closed home: in this namespace only, lay an open
    folder over the closed one, and put the wanted folders back into it."""
    closed: dict[Path, list[Path]] = {}
    for path in (path.resolve() for path in paths):
        shut = [folder for folder in reversed(path.parents) if not folder.stat().st_mode & stat.S_IXOTH]
        closed.setdefault(shut[0], []).append(path) if shut else None
    for number, (cover, wanted) in enumerate(closed.items()):
        place = kept / str(number)
        place.mkdir(parents=True)
        sh(f"mount --rbind {cover} {place} && mount -t tmpfs -o mode=755 open {cover}")
        for path in wanted:
            path.mkdir(parents=True, exist_ok=True)
            sh(f"mount --rbind {place / path.relative_to(cover)} {path}")


def nodes(num_nodes: int) -> range:
    return range(1, num_nodes + 1)


def private(path: str, base: Path, more: str) -> None:
    """Lay a longer copy over a file of /etc, for this namespace only."""
    copy = base / "etc" / Path(path).name
    before = Path(path).read_text()
    copy.write_text(before + ("" if before.endswith("\n") else "\n") + more)
    sh(f"mount --bind {copy} {path}")


def write_configuration(base: Path, num_nodes: int) -> None:
    values = {"base": base, "num_nodes": num_nodes, "network": NETWORK, "controller": CONTROLLER}
    values |= {"num_cpus": NUM_CPUS, "num_gpus": NUM_GPUS, "last_gpu": NUM_GPUS - 1}
    (base / "etc/slurm.conf").write_text(SLURM_CONF.format(**values))
    (base / "etc/gres.conf").write_text(GRES_CONF.format(**values))
    (base / "etc/cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")


def start_munge(base: Path) -> None:
    """The clients know one socket only, /run/munge/munge.socket.2; /run is ours here."""
    key = base / "etc/munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    sh("mkdir -m 755 /run/munge")
    sh(f"munged --force --key-file={key} --pid-file={base}/run/munged.pid --log-file={base}/log/munged.log "
       f"--seed-file={base}/run/munge.seed")  # fmt: skip


def add_node(node: int) -> None:
    """A network of its own, with a cable to the bridge."""
    sh(f"ip netns add n{node} && ip link add v{node} type veth peer name eth0 netns n{node}")
    sh(f"ip link set v{node} master slbr0 up && ip -n n{node} addr add {NETWORK}.{node}/24 dev eth0")
    sh(f"ip -n n{node} link set eth0 up && ip -n n{node} link set lo up")


def start_node(base: Path, node: int) -> None:
    """A slurmd with its own host name and a disk of its own at `base`/local."""
    own = f"hostname n{node} && mount -t tmpfs -o size=1g,mode=1777 local {base}/local && exec slurmd -N n{node}"
    sh(f"ip netns exec n{node} unshare --uts --mount sh -c '{own}'")


def wait_for_idle(base: Path, num_nodes: int) -> None:
    began = time.monotonic()
    while time.monotonic() - began < UP_S:
        asked = subprocess.run(
            ["timeout", "30", "sinfo", "-h", "-p", "train", "-t", "idle", "-o", "%D"], capture_output=True, check=False
        )
        if asked.stdout.decode().strip() == str(num_nodes):
            return
        time.sleep(0.1)
    raise ClusterError("the nodes did not come up\n" + sh(f"tail -n 20 {base}/log/*.log"))


def run_as_first_process(base: Path, num_nodes: int, command: list[str]) -> int:
    """Start the cluster, run the command, and reap orphans meanwhile, as process 1 must."""
    os.environ["SLURM_CONF"] = str(base / "etc/slurm.conf")
    up(base, num_nodes)
    os.environ["CCLM_SLURM_CLUSTER"] = str(base)
    process = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
    while True:
        ended, status = os.wait()
        if ended == process.pid:
            return os.waitstatus_to_exitcode(status)


def main(arguments: list[str]) -> int:
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.cluster", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--nodes", type=int, default=NUM_NODES)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options, command = parser.parse_args(arguments[:split]), arguments[split + 1 :]
    if options.inside:
        return run_as_first_process(BASE, options.nodes, command)
    reason = reason_not_to()
    if reason is not None:
        print(f"skipped, no Slurm here: {reason}")
        return 0
    install()
    enter(options.nodes, command)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
