"""A joint training step of the medium configuration (`benchmarks/step_case.py`) against the published one.

    python -m benchmarks.step [--threads 2] [--rounds 3] [--steps 3] [--only SIDE] [--lengths real|full] [--json PATH]

Sides: `ours` (plain engine), `lean` (the same with `kernels.freed_memory: returned` and `cclm.ops.heap.NO_LISTS` in
GLIBC_TUNABLES), `checkpointed` (lean, and every block computed twice), `published` (`benchmarks/published_step.py`,
the C library's heap as it is), `deepspeed` (ZeRO-3 on one rank). Each round runs each side once, in a fresh process: a
step to warm up, then `--steps` timed ones. Printed are medians over all timed steps with the lowest and highest, wall
and CPU seconds, and peak memory (ru_maxrss). Ratios are of CPU seconds, which other jobs on the machine disturb less;
those of wall seconds stand beside them (`…_wall`). `benchmarks/ops.py` adds the ratios of the two fused losses.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import ops
from benchmarks.figures import add_json_option, write_figures
from benchmarks.published_step import PublishedStep
from benchmarks.step_case import MASKS, OPTIMIZER, StepCase
from cclm.data.batch import Batch
from cclm.distributed.collectives import SINGLE, Collectives
from cclm.engine.plain import PlainEngine
from cclm.engine.protocol import Engine, seed_initialisation
from cclm.model.blocks import checkpoint_activations
from cclm.objectives.options import ObjectiveConfig
from cclm.ops.choice import choose_model_kernels
from cclm.ops.heap import NO_LISTS, treat_freed_memory
from cclm.ops.options import KernelConfig
from cclm.train.step import CrossViewTraining

SIDES = ("ours", "lean", "checkpointed", "published", "deepspeed")
LEAN = ("lean", "checkpointed")
LENGTHS = ("real", "full")
DS_CONFIG = "ds_configs/zero3_cpu.json"
PHASES = ("forward", "backward", "update")
Step = Callable[[int], dict[str, float]]
"""Runs a step; returns CPU seconds by phase, as far as a side has phases."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one process measured."""

    wall_s: tuple[float, ...]
    """Of each step."""
    cpu_s: tuple[float, ...]
    phases: tuple[dict[str, float], ...]
    """CPU seconds of each step by phase."""
    peak_mib: float


def joint_module(case: StepCase, collectives: Collectives, checkpointing: str = "elementwise") -> CrossViewTraining:
    """Return the training module with default objectives, and what a run chooses on a CPU."""
    kernels = choose_model_kernels(KernelConfig(), torch.device("cpu"))
    model = case.build_model()
    for encoder in (model.vision_encoder, model.text_encoder, model.fusion_encoder):
        checkpoint_activations(encoder, checkpointing)
    return CrossViewTraining(model, case.views(), ObjectiveConfig(), collectives, **kernels.arguments)


def engine_step(engine: Engine[Batch], case: StepCase) -> Step:
    """Return one step of an engine."""

    def step(number: int) -> dict[str, float]:
        batch, times = case.batch(number), [time.process_time()]
        losses = engine.forward(batch)
        times.append(time.process_time())
        engine.backward(losses)
        times.append(time.process_time())
        engine.update(number)
        times.append(time.process_time())
        return {name: after - before for name, before, after in zip(PHASES, times, times[1:], strict=False)}

    return step


def make_step(side: str, case: StepCase, stack: ExitStack) -> Step:
    """Build a side; `stack` closes what it opens."""
    seed_initialisation(0)
    if side in ("ours", "lean", "checkpointed"):
        module = joint_module(case, SINGLE, "full" if side == "checkpointed" else "elementwise")
        return engine_step(PlainEngine(module, OPTIMIZER), case)
    if side == "deepspeed":
        return engine_step(deepspeed_engine(case, stack), case)
    published = PublishedStep(case.build_model("padded"), OPTIMIZER, MASKS)

    def step(number: int) -> dict[str, float]:
        published.step(case.batch(number, case.longest))
        return {}

    return step


def deepspeed_engine(case: StepCase, stack: ExitStack) -> Engine[Batch]:
    """Return the engine with the settings that the repository ships for CPUs, in a group of one process."""
    from cclm.distributed.topology import Topology, process_group
    from cclm.engine.deepspeed.construction import sharded_construction
    from cclm.engine.deepspeed.engine import DeepSpeedEngine
    from cclm.engine.ds_config import EngineFacts, resolve_ds_file

    topology = Topology.from_environment({}, device="cpu")
    stack.enter_context(process_group(topology))
    ds_config = resolve_ds_file(DS_CONFIG, EngineFacts(micro_batch_size=2 * case.rows, world_size=1))
    with sharded_construction(ds_config, topology):
        module = joint_module(case, SINGLE)
    return DeepSpeedEngine(module, OPTIMIZER, ds_config=ds_config, topology=topology)


def measure(side: str, case: StepCase, steps: int, threads: int, published_heap: bool = False) -> Timing:
    """Build one side here and time it."""
    torch.set_num_threads(threads)
    if side != "published" or published_heap:
        treat_freed_memory("returned" if side in LEAN else "kept", os.environ)
    walls, cpus, phases = [], [], []
    with ExitStack() as stack:
        step = make_step(side, case, stack)
        for number in range(steps + 1):
            wall, cpu = time.perf_counter(), time.process_time()
            found = step(number)
            if number > 0:
                walls.append(time.perf_counter() - wall)
                cpus.append(time.process_time() - cpu)
                phases.append(found)
    return Timing(
        wall_s=tuple(walls), cpu_s=tuple(cpus), phases=tuple(phases), peak_mib=ops.peak_bytes() / 2**20
    )  # fmt: skip


def joined(timings: Iterable[Timing]) -> dict[str, Any]:
    """Return medians and spread over the rounds of one side."""
    timings = list(timings)
    cpus = [value for timing in timings for value in timing.cpu_s]
    phases = [values for timing in timings for values in timing.phases]
    return {
        "wall_s": statistics.median(value for timing in timings for value in timing.wall_s),
        "cpu_s": statistics.median(cpus),
        "cpu_s_spread": [min(cpus), max(cpus)],
        "peak_mib": statistics.median(timing.peak_mib for timing in timings),
        "phases_cpu_s": {name: statistics.median(step[name] for step in phases) for name in phases[0]},
    }


def ratios(found: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    """Return what the sides of the table give, as far as they were run."""
    figures: dict[str, Any] = {}
    overheads: dict[str, float] = {}
    for length in LENGTHS:
        ours, lean, checkpointed, published, deepspeed = (found.get((side, length)) for side in SIDES)
        suffix = "" if length == "real" else "_full_lengths"
        if ours and published:
            figures[f"speedup_{length}_lengths"] = published["cpu_s"] / ours["cpu_s"]
            figures[f"speedup_{length}_lengths_wall"] = published["wall_s"] / ours["wall_s"]
            figures[f"memory_ratio{suffix}"] = ours["peak_mib"] / published["peak_mib"]
        for name, side in (("lean", lean), ("checkpointed", checkpointed)):
            if side and published:
                figures[f"speedup_{length}_lengths_{name}"] = published["cpu_s"] / side["cpu_s"]
                figures[f"memory_ratio_{name}{suffix}"] = side["peak_mib"] / published["peak_mib"]
        if ours and deepspeed:
            overheads[length] = deepspeed["cpu_s"] / ours["cpu_s"] - 1
            figures[f"engine_overhead_{length}_lengths_wall"] = deepspeed["wall_s"] / ours["wall_s"] - 1
            figures[f"engine_memory_mib_{length}_lengths"] = deepspeed["peak_mib"] - ours["peak_mib"]
    if overheads:
        figures |= {f"engine_overhead_{length}_lengths": value for length, value in overheads.items()}
        figures["engine_overhead"] = max(overheads.values())
    return figures


def fused_losses(threads: int) -> dict[str, float]:
    """Return the ratios of `benchmarks/ops.py` by the names that they have here."""
    found = ops.run(["masked_lm", "contrastive"], repeats=2, threads=threads)
    return {
        f"{short}_{kind}": found[f"{name}_{kind}"]
        for short, name in (("mlm", "masked_lm"), ("contrastive", "contrastive"))
        for kind in ("memory_ratio", "speedup")
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a side in a round")
    parser.add_argument("--only", action="append", choices=[*SIDES, "ops"])
    parser.add_argument("--lengths", action="append", choices=LENGTHS)
    parser.add_argument("--published-heap", action="store_true", help="let the published side keep freed memory, too")
    add_json_option(parser)
    arguments = parser.parse_args()
    wanted = arguments.only or [*SIDES, "ops"]
    pairs = [(side, length) for length in arguments.lengths or LENGTHS for side in SIDES if side in wanted]
    timings: dict[tuple[str, str], list[Timing]] = {pair: [] for pair in pairs}
    for _ in range(arguments.rounds):
        for side, length in pairs:
            case = StepCase(full=length == "full")
            os.environ.pop("GLIBC_TUNABLES", None)
            if side in LEAN:  # read when a process begins
                os.environ["GLIBC_TUNABLES"] = NO_LISTS
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                timings[side, length].append(
                    pool.apply(measure, (side, case, arguments.steps, arguments.threads, arguments.published_heap))
                )
    found = {pair: joined(values) for pair, values in timings.items()}
    print(f"{'side':12} {'lengths':8} {'wall s':>8} {'CPU s':>8} {'lowest':>8} {'highest':>8} {'peak MiB':>9}")
    for (side, length), row in found.items():
        low, high = row["cpu_s_spread"]
        print(
            f"{side:12} {length:8} {row['wall_s']:8.2f} {row['cpu_s']:8.2f} {low:8.2f} {high:8.2f} "
            f"{row['peak_mib']:9.0f}  {' '.join(f'{name} {value:.2f}' for name, value in row['phases_cpu_s'].items())}",
            flush=True,
        )
    figures = ratios(found)
    if "ops" in wanted:
        figures |= fused_losses(arguments.threads)
    for name, value in figures.items():
        print(f"{name:40} {value:8.3f}")
    write_figures(
        arguments.json, figures | {"sides": {f"{side}_{length}": row for (side, length), row in found.items()}}
    )


if __name__ == "__main__":
    main()
