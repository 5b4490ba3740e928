"""Several hosts without Slurm: torchrun on each, as docs/launch.md says. The hosts are network namespaces."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cclm.run.launcher import ADDRESS, NUMBERS
from tests.tiny_run import recipe, write_corpus, write_recipe

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
STEPS = 4
ISOLATED = (
    *("unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--propagation", "private"),
    *("--net", "--uts"),
)
"""Whatever the script makes ends with it."""
TWO_HOSTS = """
set -eu
mount -t tmpfs run /run && mkdir /run/netns
printf '10.78.0.1 h1\n10.78.0.2 h2\n127.0.0.1 localhost\n' > /run/hosts && mount --bind /run/hosts /etc/hosts
ip netns add h1 && ip netns add h2
ip link add eth0 netns h1 type veth peer name eth0 netns h2
for n in 1 2; do
  ip -n h$n addr add 10.78.0.$n/24 dev eth0 && ip -n h$n link set eth0 up && ip -n h$n link set lo up
done
for n in 2 1; do
  ip netns exec h$n unshare --uts sh -c 'hostname "$0" && exec "$@"' h$n "$@" > "$OUT/h$n.log" 2>&1 &
  pids="$! ${pids:-}"
done
code=0
for pid in $pids; do wait $pid || code=$?; done
exit $code
"""


def why_not() -> str:
    """Why there can be no namespaces here; "" if there can."""
    missing = [name for name in ("unshare", "ip", "mount") if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        return f"network namespaces need root, iproute2 and util-linux; {', '.join(missing) or 'root'} is missing"
    told = subprocess.run([*ISOLATED, "ip", "netns"], capture_output=True, text=True, check=False)
    return "" if told.returncode == 0 else f"no namespaces here: {told.stderr.strip()}"


def test_torchrun_trains_on_two_hosts(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    run = tmp_path / "run"
    changes = {"optimizer": {"total_steps": STEPS, "learning_rate": 0.002}, "track": {"every_steps": 1}}
    path = write_recipe(tmp_path / "recipe.yaml", recipe(write_corpus(tmp_path), run, **changes))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "h1:29400", "--rdzv-id", "tiny"]
    environment = {name: value for name, value in os.environ.items() if name not in (*NUMBERS, *ADDRESS)}
    told = subprocess.run(
        [*ISOLATED, "bash", "-c", TWO_HOSTS, "hosts", *torchrun, *meet, "-m", "pretrain", "--recipe", str(path)],
        cwd=ROOT, env={**environment, "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}, timeout=600, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    said = [(tmp_path / f"h{number}.log").read_text() for number in (1, 2)]
    assert told.returncode == 0, "\n".join([told.stderr, *said])
    statuses = [json.loads((run / f"status/rank_{rank}.json").read_text()) for rank in (0, 1)]
    assert {status["host"] for status in statuses} == {"h1", "h2"}
    assert json.loads((run / "done.json").read_text())["step"] == STEPS
