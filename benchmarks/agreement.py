"""What share of a step the ranks take to agree that they all do the same.

    python -m benchmarks.agreement [--steps 60] [--rounds 3] [--json PATH]

Two gloo ranks, one torch thread each, ZeRO-3, the network of `benchmarks/zero3_overhead.py` (2.6 million parameters: so
small that the share is larger than in any real run). Before each step both ranks meet at a barrier, so that no rank's
lateness counts as agreement. `agreement_share`: the median time of all that happens before a step for the agreement
(hashes of configuration, batch structure and module order, one collective with the ranks' waits) over the median of the
whole step with it, the larger one of both ranks. `order_share`: that of noting the order of modules, which is part of
the step, by the time of one note. A round is a fresh start; the figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time

from benchmarks.figures import add_json_option, write_figures
from benchmarks.zero3_overhead import make_module
from cclm.distributed.agreement import Request, agree_on_step
from cclm.distributed.collectives import collectives
from cclm.engine.module_order import ModuleOrder
from cclm.train.speed import Pace
from tests.ranks.harness import Case, make_deepspeed, on_ranks
from tests.ranks.toy import joint_batch

GOAL = 0.01
WARM = 5
"""Steps before the first that counts: buffers are made, DeepSpeed learns the order of modules."""
NOTES = 100_000


class _Nothing:
    """In place of ZeRO-3's hooks, to time a note alone."""

    def pre_sub_module_forward_function(self, module: object) -> None:
        """Do nothing."""


def measure(num_steps: int) -> dict[str, float]:
    """Return one rank's figures."""
    engine = make_deepspeed(Case(make_module=make_module, make_batch=joint_batch, num_steps=0))
    ranks, pace, agreements, steps = collectives(), Pace(), list[float](), list[float]()
    for step in range(num_steps + WARM):
        batch = joint_batch(step, ranks.rank, ranks.world_size)
        ranks.barrier()
        began = time.perf_counter()
        known = {"configuration": "0" * 600, "bad steps": "0", "steps left out": "none"}
        known["modules of the step before"] = engine.order.text
        with pace.agreeing():
            agree_on_step(ranks, step, {0: batch}, Request.NOTHING, known, figures=pace.own, hear=pace.hear)
        agreed = time.perf_counter()
        engine.order.begin()
        engine.backward(engine.forward(batch))
        engine.update(step)
        engine.order.end()
        if step >= WARM:
            agreements.append(agreed - began)
            steps.append(time.perf_counter() - began)
    agreement_s, step_s = statistics.median(agreements), statistics.median(steps)
    order_s = len(engine.order.names) * seconds_of_a_note(engine.module)
    return {
        "agreement_share": agreement_s / step_s,
        "order_share": order_s / step_s,
        "agreement_s": agreement_s,
        "step_s": step_s,
        "num_modules": len(engine.order.names),
    }


def seconds_of_a_note(module: object) -> float:
    """Return what it takes to note that a module begins, without what ZeRO-3 then does."""
    order, hooks = ModuleOrder(module), _Nothing()  # type: ignore[arg-type]
    times = []
    for is_noting in (False, True):
        if is_noting:
            order.watch(hooks)
        began = time.perf_counter()
        for _ in range(NOTES):
            hooks.pre_sub_module_forward_function(module)
        times.append((time.perf_counter() - began) / NOTES)
    return max(times[1] - times[0], 0.0)


def run(num_steps: int, rounds: int) -> dict[str, float]:
    """Return the medians of all rounds."""
    found = []
    for _ in range(rounds):
        by_rank = on_ranks(measure, 2, num_steps, timeout_s=300.0)
        found.append({name: max(one[name] for one in by_rank) for name in by_rank[0]})
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    add_json_option(parser)
    arguments = parser.parse_args()
    figures = run(arguments.steps, arguments.rounds)
    print(f"a step of {1e3 * figures['step_s']:.1f} ms, {figures['num_modules']:.0f} modules")
    print(
        f"agreement      {1e3 * figures['agreement_s']:6.3f} ms   {figures['agreement_share']:.3%}   goal < {GOAL:.0%}"
    )
    print(f"module order                {figures['order_share']:.3%}")
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
