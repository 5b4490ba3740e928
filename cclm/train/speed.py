"""How fast a run is, of what its hardware could do, how much memory it takes, and where its time goes."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from cclm.config import RunConfig
from cclm.costs.step import StepCosts, peak_tflops
from cclm.data.batch import Batch, ViewBatch
from cclm.data.config import Views
from cclm.engine.protocol import Engine
from cclm.run.machine import process_memory_bytes
from cclm.track.metrics import Throughput
from cclm.track.sections import SectionClock

SECTION_OF = {"text": "text", "vision": "vision", "fusion": "fusion", "heads": "losses"}
"""Part of the network, as `cclm.costs` counts → section in which it is computed."""


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
    """How many texts these are."""
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
                self._tokens[name] += sum(_num_tokens(view))
                self._texts[name] += sum(text.ids_BL.shape[0] for text in view.texts)

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


def _num_tokens(view: ViewBatch) -> list[int]:
    known = (text.num_tokens for text in view.texts)
    return [
        int(text.mask_BL.sum()) if number is None else number for text, number in zip(view.texts, known, strict=True)
    ]


def _memory(device: torch.device) -> tuple[int, int]:
    """Bytes now, and at the peak since the last call (of a CPU's process: since it began)."""
    if device.type != "cuda":
        return process_memory_bytes()
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device), peak
