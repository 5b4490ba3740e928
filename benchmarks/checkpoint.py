"""How long training waits for a checkpoint that is written in the background, and for one that is not.

    python -m benchmarks.checkpoint [--parameters 50] [--rounds 5] [--folder DIR] [--json PATH]

One process, the plain engine, a network of so many million parameters with the moments of AdamW (12 bytes each). A
round saves the same state both ways, one after the other, where DIR is (default: the temporary folder); the columns are
the shortest times of all rounds (other processes disturb). `blocking_share` is the blocking time of a background save
over that of a synchronous one: until training goes on, and what its next update waits for the copy. The first
background save, which finds new memory, stands by itself. Until it is complete the network is multiplied as in
training: what copy and writer take from that is `slowdown`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.figures import add_json_option, write_figures
from cclm.checkpoint.background import BackgroundSaver
from cclm.checkpoint.collective import save_checkpoint
from cclm.data.batch import Batch
from cclm.engine.optimizer import trained_parameters
from cclm.engine.options import OptimizerConfig
from cclm.engine.plain import PlainEngine
from cclm.run.checkpoints import step_folder

WIDTH = 1024
GOAL = 0.05


def make_engine(million_parameters: float) -> PlainEngine[Batch]:
    """An engine after its first update."""
    layers = max(1, round(million_parameters * 1e6 / WIDTH**2))
    network = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
    engine = PlainEngine[Batch](network, OptimizerConfig(total_steps=1, learning_rate=1e-3))
    for parameter in trained_parameters(network):
        parameter.grad = torch.ones_like(parameter)
    engine.optimizer.step()
    engine.optimizer.zero_grad()
    return engine


def seconds(action: Callable[[], object]) -> float:
    """Return how long it takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


class Work:
    """What a training does meanwhile."""

    def __init__(self, network: nn.Module) -> None:
        self._network, self._rows = network, torch.ones(64, WIDTH)

    @torch.no_grad()
    def step(self) -> None:
        """Multiply once through the network."""
        self._network(self._rows)


def measure(folder: Path, million_parameters: float, rounds: int) -> dict[str, float]:
    """Return the figures."""
    engine = make_engine(million_parameters)
    work = Work(engine.module)
    saver = BackgroundSaver(engine, folder, keep=1)
    blocking, synchronous, total, busy = (list[float]() for _ in range(4))
    try:
        for number in range(rounds + 1):
            began, completed = time.perf_counter(), list[float]()
            begun_s = seconds(lambda: saver.begin(2 * number + 1, {}, completed.append))  # noqa: B023
            while saver.is_pending:
                busy.append(seconds(work.step))
                engine.before_update()
                if not saver.is_writing:
                    saver.go_on()
            total.append(time.perf_counter() - began)
            (waited_s,) = completed
            blocking.append(begun_s + waited_s)
            synchronous.append(seconds(lambda: save_checkpoint(engine, folder, 2 * number + 2, {}, 1)))  # noqa: B023
    finally:
        saver.close()
    idle = [seconds(work.step) for _ in range(max(3, len(busy)))]
    waited, usual = min(blocking[1:]), min(synchronous[1:])
    size = sum(one.stat().st_size for one in step_folder(folder, 2 * rounds + 2).rglob("*") if one.is_file())
    return {
        "state_gb": size / 1e9,
        "synchronous_s": usual,
        "blocking_s": waited,
        "first_blocking_s": blocking[0],
        "total_s": min(total[1:]),
        "blocking_share": waited / usual,
        "first_blocking_share": blocking[0] / usual,
        "slowdown": statistics.median(busy) / statistics.median(idle),
        "goal": GOAL,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=50.0, metavar="MILLIONS", help="of the network")
    parser.add_argument("--rounds", type=int, default=5, help="saves both ways, after a first one")
    parser.add_argument("--folder", type=Path, help="where to write (three states); default: temporary")
    add_json_option(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="checkpoint-") as name:
        figures = measure(Path(name), arguments.parameters, arguments.rounds)
    print(
        f"{'state GB':>9} {'synchronous s':>14} {'blocking s':>11} {'first s':>8} {'total s':>8} {'blocking share':>15}"
    )
    print(
        f"{figures['state_gb']:9.2f} {figures['synchronous_s']:14.3f} {figures['blocking_s']:11.3f} "
        f"{figures['first_blocking_s']:8.3f} {figures['total_s']:8.3f} {figures['blocking_share']:15.3f}"
    )
    print(f"steps beside the writer take {figures['slowdown']:.2f} × as long")
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
