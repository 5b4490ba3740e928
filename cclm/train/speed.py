"""How fast a run is, of what its hardware could do, its memory, where its time goes, and whom the others wait for."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from cclm.config import RunConfig
from cclm.costs.step import StepCosts, peak_tflops
from cclm.data.batch import Batch
from cclm.data.config import Views
from cclm.engine.protocol import Engine
from cclm.run.machine import process_memory_bytes
from cclm.track.metrics import Throughput
from cclm.track.sections import SectionClock

SECTION_OF = {"text": "text", "vision": "vision", "fusion": "fusion", "heads": "losses"}
"""Part of the network, as `cclm.costs` counts → section in which it is computed."""
MICRO = 1e-6


@dataclass(kw_only=True)
class Speedometer:
    """Counts what the steps of a window did, and turns it into numbers of the log, all of them `speed/…`.

        step_s, samples_per_s, VIEW_samples_per_s, tokens_per_s, VIEW_tokens_per_s      of the whole job
        time/SECTION                          share of rank 0's time since the line before, checkpoints included
        tflops, tflops/SECTION                of a rank: matrix products, texts at their real lengths
        mfu, mfu/SECTION                      the same as a share of the GPU's peak, where that is known
        memory_gb, memory_peak_gb             of the rank that has most: of its GPU, or resident

    A section's rate is that of its own time, the whole's that of the steps; what is computed again counts as time only.
    """

    engine: Engine[Any]
    views: Views
    clock: SectionClock
    costs: StepCosts | None = None
    """None: not known."""
    throughput: Throughput = field(default_factory=Throughput)
    _tokens: Counter[str] = field(default_factory=Counter)
    """Real tokens of this rank's clean texts, by view."""
    _texts: Counter[str] = field(default_factory=Counter)
    _steps: Counter[str] = field(default_factory=Counter)
    """With the view."""

    @classmethod
    def of(cls, config: RunConfig, engine: Engine[Any], clock: SectionClock) -> Speedometer:
        """Make that of a run."""
        costs = StepCosts(config) if StepCosts.are_known(config) and engine.rank == 0 else None
        return cls(engine=engine, views=config.views, clock=clock, costs=costs)

    def step(self, batch: Batch) -> None:
        """Count a step by this rank's batch, as it was read."""
        self.throughput.step({name: self.views[name].pairs_per_step for name in batch.views})
        self._steps.update(batch.views.keys())
        for part in batch.parts:
            for name, view in part.views.items():
                for text in view.texts:
                    self._tokens[name] += int(text.mask_BL.sum()) if text.num_tokens is None else text.num_tokens
                    self._texts[name] += text.ids_BL.shape[0]

    def begin(self) -> None:
        """Begin to count: what was before (a start, a way back) is no training."""
        self.restart()
        self.clock.seconds()

    def restart(self) -> None:
        """Forget the window: what happened since it opened (a checkpoint, an evaluation) is no training."""
        self.throughput.restart()
        for counts in (self._tokens, self._texts, self._steps):
            counts.clear()

    def summary(self) -> dict[str, float]:
        """Return the window's numbers and open a new one; empty if no step was done. One collective."""
        num_steps = dict(self._steps)
        window_s = self.throughput.elapsed_s
        numbers = self.throughput.summary()
        seconds = self.clock.seconds()
        views = sorted(self.views)
        own = [*_memory(self.engine.device), *(count[view] for view in views for count in (self._tokens, self._texts))]
        everyone = self.engine.collectives.numbers(own)
        if not numbers:
            self.restart()
            return {}
        totals = [sum(column) for column in zip(*everyone, strict=True)]
        tokens = dict(zip(views, totals[2::2], strict=True))
        texts = dict(zip(views, totals[3::2], strict=True))
        numbers["speed/tokens_per_s"] = sum(tokens.values()) / window_s
        numbers |= {f"speed/{view}_tokens_per_s": tokens[view] / window_s for view in views if num_steps.get(view)}
        numbers["speed/memory_gb"] = max(ranks[0] for ranks in everyone) / 1e9
        numbers["speed/memory_peak_gb"] = max(ranks[1] for ranks in everyone) / 1e9
        if whole := sum(seconds.values()):
            numbers |= {f"speed/time/{section}": value / whole for section, value in sorted(seconds.items())}
        fills = {view: tokens[view] / (texts[view] * self.views[view].longest_text) for view in views if texts[view]}
        numbers |= self._rates(fills, num_steps, window_s, seconds)
        self.restart()
        self.clock.seconds()  # to count costs for the first time takes a second, which is no part of a step
        return numbers

    def _rates(
        self, fills: Mapping[str, float], num_steps: Mapping[str, int], window_s: float, seconds: Mapping[str, float]
    ) -> dict[str, float]:
        """FLOP/s of a rank, in all and by section."""
        if self.costs is None:
            return {}
        try:
            counted = self.costs.flops(fills)
        except Exception as error:  # noqa: BLE001 - a tower that cannot be counted is no reason to end a run; it is said
            sys.stderr.write(f"note: FLOP/s are not known of this network ({type(error).__name__}: {error})\n")
            self.costs = None
            return {}
        flops = Counter[str]()
        for view, parts in counted.items():
            for part, of_step in parts.items():
                flops[SECTION_OF[part]] += of_step * num_steps[view] / self.engine.world_size  # type: ignore[assignment]
        peak = peak_tflops(self.engine.device, self.engine.precision)
        rates = {"": flops.total() / window_s}
        rates |= {f"/{section}": flops[section] / seconds[section] for section in flops if seconds.get(section)}
        found = {f"speed/tflops{name}": rate / 1e12 for name, rate in rates.items()}
        if peak is not None:
            found |= {f"speed/mfu{name}": rate / 1e12 / peak for name, rate in rates.items()}
        return found


def _memory(device: torch.device) -> tuple[int, int]:
    """Bytes now, and at the peak since the last call (of a CPU's process: since it began)."""
    if device.type != "cuda":
        return process_memory_bytes()
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device), peak


class Pace:
    """Says which rank keeps the others waiting: for its batch, or by coming late to a step. No collective of its own.

        rank 3:  ── step k ──┤ waits for its batch ├─ rest ─┤            the agreement of step k + 1 begins
        rank 0:  ── step k ──┤ batch ├─ rest ─┤░░ waits for rank 3 ░░┤   (`cclm.distributed.agreement`)

    Each rank measures the two waits of a step, and sends them with the integers of the next agreement. Who waits less
    in there came later, so no clocks are compared. A GPU that computes slowly is not seen: inside of a step all wait
    for it.
    """

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.own = [0, 0]
        """Of the newest step, in microseconds: this rank's wait for its batch, and in the agreement."""
        self._clock = clock
        self._data_s = 0.0
        self._steps = 0
        self._data: list[float] = []
        self._late: list[float] = []

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """Time a rank's wait for its batch."""
        began = self._clock()
        yield
        self._data_s = self._clock() - began

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Time the agreement behind it."""
        began = self._clock()
        yield
        self.own = [round(self._data_s / MICRO), round((self._clock() - began) / MICRO)]

    def hear(self, ranks: Sequence[Sequence[int]]) -> None:
        """Add what all ranks, in their order, measured of the step before."""
        data = [row[0] * MICRO for row in ranks]
        arrived = [-row[1] * MICRO - wait for row, wait in zip(ranks, data, strict=True)]
        late = [one - min(arrived) for one in arrived]  # without the wait for the batch
        if self._steps == 0:
            self._data, self._late = [0.0] * len(ranks), [0.0] * len(ranks)
        self._data = [total + one for total, one in zip(self._data, data, strict=True)]
        self._late = [total + one for total, one in zip(self._late, late, strict=True)]
        self._steps += 1

    def numbers(self) -> dict[str, float]:
        """Return the window's numbers by metric name, and open a new one; empty without other ranks.

        "speed/data_slowest_rank": who waited longest for its batches; "…_s", "…_ratio": by how much more than the
        median of the ranks, in seconds of a step, and how many times that. "speed/late_rank", "speed/late_s": who
        came latest to the steps for other reasons, and how much later than the median.
        """
        steps, self._steps = self._steps, 0
        if not steps:
            return {}
        (slow, waited_s, usual_s), (late, came_s, others_s) = (_largest(one, steps) for one in (self._data, self._late))
        return {
            "speed/data_slowest_rank": float(slow),
            "speed/data_slowest_s": waited_s - usual_s,
            "speed/data_slowest_ratio": waited_s / max(usual_s, MICRO),
            "speed/late_rank": float(late),
            "speed/late_s": came_s - others_s,
        }


def _largest(totals: Sequence[float], steps: int) -> tuple[int, float, float]:
    """The rank with the largest value, that value and the ranks' median, by step."""
    rank = max(range(len(totals)), key=lambda one: totals[one])
    return rank, totals[rank] / steps, median(totals) / steps
