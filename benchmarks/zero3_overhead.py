"""What ZeRO-3 costs per step on two CPU ranks, against the plain engine on half the batch.

    python -m benchmarks.zero3_overhead [--steps 40] [--only NAME] [--json PATH]

A two-view toy of 2.6 million parameters in 59 modules with parameters; one torch thread per rank. Wall time is the
tenth percentile over steps (other processes disturb), CPU time the mean per rank.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from torch import nn

from benchmarks.figures import add_json_option, write_figures
from cclm.distributed.collectives import Collectives
from tests.ranks.harness import Case, make_deepspeed, make_plain, on_ranks, replace
from tests.ranks.toy import ToyTraining, joint_batch

FAST = {"reduce_bucket_size": 4_000_000, "stage3_prefetch_bucket_size": 4_000_000}
LEAF = {"leaf_module": {"classes": ["TransformerLayer"]}}
NATIVE = {"memory_efficient_linear": False}
SMALL = {"reduce_bucket_size": 500_000}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stage 1": {"stage": 1},
    "stage 2": {"stage": 2},
    "threshold 0": {},
    "threshold 1e4": {"persistence_threshold": 10_000},
    "threshold 1e5": {"persistence_threshold": 100_000},
    "threshold 1e6": {"persistence_threshold": 1_000_000},
    "0, native linear": {"zero_options": NATIVE},
    "0, native, leaf layers": {"zero_options": NATIVE | LEAF},
    "0, native, leaf, reduce bucket 5e5": {"zero_options": NATIVE | LEAF | SMALL},
    "0, native, leaf, prefetch 0": {"zero_options": NATIVE | LEAF | {"stage3_prefetch_bucket_size": 0}},
    "0, native, leaf, overlap_comm": {"zero_options": NATIVE | LEAF | {"overlap_comm": True}},
    "0, native, leaf, not contiguous": {"zero_options": NATIVE | LEAF | {"contiguous_gradients": False}},
}
"""Name → fields of a test case."""


def make_module(collectives: Collectives) -> nn.Module:
    """The demo's size."""
    return ToyTraining(collectives, width=160, depth=2, ffn=640, vocab=4000)


def measure(name: str, num_steps: int) -> tuple[list[float], float]:
    """Milliseconds of wall time per step, and mean CPU milliseconds, on this rank."""
    case = replace(Case(make_module=make_module, make_batch=joint_batch, num_steps=0), **VARIANTS[name])
    engine = make_plain(case) if name == "plain" else make_deepspeed(case)
    walls = []
    cpu_start = 0.0
    for step in range(num_steps + 5):
        if step == 5:  # warm: trace recorded, buffers made
            cpu_start = time.process_time()
        batch = joint_batch(step, 0, 2)
        start = time.perf_counter()
        losses = engine.forward(batch)
        engine.backward(losses)
        engine.update(step)
        walls.append(1e3 * (time.perf_counter() - start))
    return walls[5:], 1e3 * (time.process_time() - cpu_start) / num_steps


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", action="append", choices=list(VARIANTS))
    add_json_option(parser)
    arguments = parser.parse_args()
    print(f"{'variant':36} {'wall p10':>9} {'median':>8} {'CPU':>7}  ms per step")
    figures: dict[str, dict[str, float]] = {}
    for name in arguments.only or VARIANTS:
        results = on_ranks(measure, 2, name, arguments.steps, timeout_s=300.0)
        walls = sorted(results[0][0])
        cpu = statistics.mean(result[1] for result in results)
        tenth, median = walls[len(walls) // 10], statistics.median(walls)
        print(f"{name:36} {tenth:9.1f} {median:8.1f} {cpu:7.1f}", flush=True)
        figures[name] = {"wall_p10_ms": tenth, "wall_median_ms": median, "cpu_ms": cpu}
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
