"""Is every node of the job healthy? Compares what the nodes found (`preflight.py`, `cclm/distributed/bandwidth.py`).

A node is bad if it does not answer, lacks what was asked for, differs from most others, or is much slower than they.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from cclm.files.atomic import replace_text
from cclm.files.reading import read_json
from cclm.run.causes import Cause
from launch.plan.slurm_job import SlurmPlan
from launch.plan.snapshot import HASH_NAME
from launch.slurm.history import BAD_NODES, Event, add_event, attempts_since_submission, read_history
from launch.slurm.jobs import ask_slurm

LOW_DISK_BYTES = 2 * 2**30
"""Less than this in the run folder will not hold a checkpoint of the base model."""
LOW_SCRATCH_BYTES = 2**28
LOW_MEMORY_BYTES = 2**30
SLOW = 0.5
"""A node with less than this share of the median speed is bad."""
MOST_SKEW_S = 60.0
HARDWARE_SLOWDOWN = 0x8 | 0x40 | 0x80
"""NVML's clock throttle reasons for a hardware problem: slowdown, thermal, power brake."""
MOST_REPLACEMENTS = 5
EXCLUDED = Path("slurm") / "excluded.json"
NOBODY = "(no node in particular)"
Faults: TypeAlias = "dict[str, list[str]]"
"""By node."""


def expand(nodes: str) -> list[str]:
    """Expand Slurm's short list of nodes, by asking Slurm."""
    return ask_slurm(["scontrol", "show", "hostnames", nodes]).stdout.split()


def find_faults(plan: SlurmPlan, nodes: Sequence[str], found: Mapping[str, Any], code_hash: str) -> Faults:
    """Return what is wrong with each bad node. `found`: by node, what it told about itself; `code_hash`: of the
    snapshot when it was taken."""
    faults: Faults = {}
    silent = [(node, "does not answer") for node in nodes if node not in found]
    own = [(node, fault) for node, told in found.items() for fault in _own_faults(plan, told, code_hash)]
    for node, fault in (*silent, *own, *_outliers(found)):
        faults.setdefault(node, []).append(fault)
    return faults


def _own_faults(plan: SlurmPlan, told: Mapping[str, Any], code_hash: str) -> Iterator[str]:
    gpus = told["gpus"]
    if isinstance(gpus, str):
        yield gpus
    elif gpus and len(gpus) < plan.request.gpus_per_node:
        yield f"{len(gpus)} of {plan.request.gpus_per_node} GPU(s)"
    for number, gpu in enumerate(gpus if isinstance(gpus, list) else []):
        total, free = _number(gpu["memory.total"]), _number(gpu["memory.free"])
        if total and free is not None and free < 0.9 * total:
            yield f"GPU {number}: {free:.0f} of {total:.0f} MiB free: another process is on it"
        reasons = gpu["clocks_throttle_reasons.active"]
        if re.fullmatch(r"0x[0-9a-fA-F]+", reasons) and int(reasons, 16) & HARDWARE_SLOWDOWN:
            yield f"GPU {number}: slowed down by its hardware (clock {gpu['clocks.sm']} of {gpu['clocks.max.sm']} MHz)"
    if told["memory_free_bytes"] < LOW_MEMORY_BYTES:
        yield f"{told['memory_free_bytes'] / 2**30:.1f} GiB of memory free"
    run_disk, scratch = told["run_disk"], told["scratch_disk"] or {}
    yield from (f"cannot write into {disk['error']}" for disk in (run_disk, scratch) if "error" in disk)
    if abs(run_disk.get("skew_s", 0.0)) > MOST_SKEW_S:
        yield f"its clock is {run_disk['skew_s']:.0f} s away from the file server's"
    if scratch.get("free_bytes", LOW_SCRATCH_BYTES) < LOW_SCRATCH_BYTES:
        yield f"{scratch['free_bytes'] / 2**20:.0f} MiB free in {plan.profile.scratch}"
    yield from (f"cannot read {name}" for name in told["unreadable"])
    if told["code_hash"] != code_hash:
        yield f"code {told['code_hash'][:12]}, submitted was {code_hash[:12]}"


def _outliers(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Nodes that differ from most others in what must be equal."""
    sides: dict[str, Callable[[Any], str]] = {
        "Python": lambda told: str(told["python"]),
        "GPUs": lambda told: ", ".join(gpu["name"] for gpu in told["gpus"]) if isinstance(told["gpus"], list) else "?",
    }
    for what, read in sides.items():
        values = {node: read(told) for node, told in found.items()}
        usual, count = Counter(values.values()).most_common(1)[0] if values else ("", 0)
        strange = {node: value for node, value in values.items() if value != usual and count * 2 > len(values)}
        yield from ((node, f"{what} {value}, others have {usual}") for node, value in strange.items())
    speeds = {node: told["run_disk"].get("bytes_per_s", 0.0) for node, told in found.items()}
    if len(speeds) > 2:
        most = median(speeds.values())
        slow = {node: speed / 1e6 for node, speed in speeds.items() if speed < 0.1 * most}
        words = "writes {:.0f} MB/s into the run folder, others {:.0f}"
        yield from ((node, words.format(speed, most / 1e6)) for node, speed in slow.items())


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def slow_nodes(pairs: Sequence[tuple[str, str, float]]) -> Faults:
    """Name the nodes whose best connection is much slower than most. `pairs`: two nodes, bytes/s between them."""
    best: dict[str, float] = {}
    for first, second, speed in pairs:
        best[first], best[second] = max(best.get(first, 0.0), speed), max(best.get(second, 0.0), speed)
    if len(best) < 3:
        return {}
    usual = median(best.values())
    return {
        node: [f"sends {speed / 1e6:.0f} MB/s to its best neighbour, others {usual / 1e6:.0f}"]
        for node, speed in best.items()
        if speed < SLOW * usual
    }


def check_nodes(
    run_folder: Path, plan: SlurmPlan, job: str, *, say: Callable[[str], None], resubmit: Callable[..., int]
) -> int:
    """Return 0 if all nodes are healthy; else note the bad ones, submit again without them if asked to, return 1."""
    attempt = attempts_since_submission(read_history(run_folder))[-1]
    folder, nodes = run_folder / "slurm" / "preflight" / str(attempt.number), expand(attempt.nodes)
    found = {node: told for node in nodes if (told := read_json(folder / f"{node}.json", None)) is not None}
    submitted = run_folder / HASH_NAME
    faults: Faults = {NOBODY: [f"there is no {HASH_NAME} to compare the nodes' code with: submit with --new-code"]}
    if submitted.exists():
        faults = find_faults(plan, nodes, found, submitted.read_text(encoding="utf-8").strip())
    free_bytes = min((told["run_disk"].get("free_bytes", LOW_DISK_BYTES) for told in found.values()), default=0)
    if free_bytes < LOW_DISK_BYTES:
        say(f"preflight: only {free_bytes / 2**30:.2f} GiB free in the run folder")
    if plan.preflight == "full" and not faults:
        say(f"preflight: the nodes have {'; '.join(networks(found)) or 'not told'}")
        faults = _faults_of_network(folder / "bandwidth.json", say)
    if not faults:
        say(f"preflight: {len(nodes)} node(s) healthy")
        return 0
    why = "; ".join(f"{node}: {', '.join(said)}" for node, said in faults.items())
    say(f"preflight: unhealthy: {why}")
    event = Event(
        event="end", attempt=attempt.number, job=job, step=attempt.first_step, exit_status=BAD_NODES,
        cause=Cause.TRANSIENT.value, reason=why,
    )  # fmt: skip
    add_event(run_folder, event)
    bad = sorted(set(faults) & set(nodes))
    if not plan.request.replace_bad_nodes or not bad:
        say("not submitted again: " + ("--replace-bad-nodes was not given" if bad else "no node can be blamed"))
        return 1
    excluded = exclude(plan, bad)
    if excluded is None:
        say(f"not submitted again: {MOST_REPLACEMENTS} times is enough")
        return 1
    return resubmit(run_folder, f"--exclude={excluded}") or 1


def networks(found: Mapping[str, Any]) -> list[str]:
    """Return each fabric that nodes have, with how many have it, the most frequent first."""
    counts = Counter(told["network"] for told in found.values() if "network" in told)
    return [f"{network} on {count} node(s)" for network, count in counts.most_common()]


def _faults_of_network(path: Path, say: Callable[[str], None]) -> Faults:
    """What the measurement in this file says against nodes."""
    measured = read_json(path, None)
    if measured is None:
        return {NOBODY: ["the ranks could not reach each other: see logs/bandwidth_*.log"]}
    speed = measured["bytes_per_s"] / 1e6
    if measured["world_size"] > 1:
        say(f"preflight: all-reduce over {measured['world_size']} ranks: {speed:.0f} MB/s each")
    return slow_nodes([tuple(pair) for pair in measured["pairs"]])


def exclude(plan: SlurmPlan, bad: Sequence[str]) -> str | None:
    """Remember bad nodes for later submissions; return all of them as a list for sbatch, or None after too many."""
    times = read_json(plan.run_folder / EXCLUDED, [])
    if len(times) >= MOST_REPLACEMENTS:
        return None
    replace_text(plan.run_folder / EXCLUDED, json.dumps([*times, list(bad)]) + "\n")
    return left_out(plan, excluded_nodes(plan.run_folder))


def excluded_nodes(run_folder: Path) -> list[str]:
    """Nodes that were found bad in this run's attempts."""
    return sorted({node for nodes in read_json(run_folder / EXCLUDED, []) for node in nodes})


def left_out(plan: SlurmPlan, bad: Sequence[str]) -> str:
    """Return sbatch's list of nodes to leave out: the user's, and bad ones."""
    return ",".join([*filter(None, [plan.directives.get("exclude")]), *bad])
