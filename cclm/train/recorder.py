"""What a run writes down about its steps: metrics, ledger, quarantine, bad steps, samples seen, status, progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cclm.data.batch import Batch
from cclm.data.config import Views
from cclm.data.counts import Quarantine, SamplesSeen
from cclm.data.ledger import LedgerFile, step_sum
from cclm.data.schedule import ViewSchedule
from cclm.engine.protocol import Engine
from cclm.errors import Cause, DataError
from cclm.run.status import RankStatus
from cclm.track.metrics import MetricsLog
from cclm.track.progress import Progress
from cclm.train.health import BadSteps, Health
from cclm.train.speed import Pace, Speedometer
from cclm.train.updates import OnTheWay, StepResult, samples_read


class WindowMeans:
    """Means over the steps since the last regular line; the same whether or not a run was stopped in between.

    Lines at `track.every_steps` and at regular checkpoints close a window. One that is written because somebody asked
    for a checkpoint, or to stop, tells what the window holds so far and leaves it open: the checkpoint has its sums.
    They are float64, in which sums of some float32 values are exact, in whatever order. Bad steps are left out, unless
    there was no other.
    """

    def __init__(self) -> None:
        self.skipped = 0
        """Updates that were skipped."""
        self._local: dict[tuple[str, ...], tuple[Tensor, int]] = {}
        """By the names of a step's values: their sums on this rank, on the device; and of how many steps."""
        self._sums: dict[str, float] = {}
        """As means over the ranks, up to the newest line."""
        self._counts: dict[str, int] = {}
        self._bad: Mapping[str, Tensor] | None = None
        """Values of the newest bad step."""

    def add(self, metrics: Mapping[str, Tensor], *, is_good: bool) -> None:
        """Add a step's scalars of this rank; the host does not wait for them."""
        if not is_good:
            self._bad = metrics
            return
        names = tuple(metrics)
        values = torch.stack([metrics[name].detach().to(torch.float64).reshape(()) for name in names])
        total, count = self._local.get(names, (None, 0))
        self._local[names] = (values if total is None else total + values, count + 1)

    def add_value(self, name: str, value: float) -> None:
        """Add a step's number that is the same on every rank."""
        self._sums[name] = self._sums.get(name, 0.0) + value
        self._counts[name] = self._counts.get(name, 0) + 1

    def means(self, engine: Engine[Any], beside: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the means so far, and the means over the ranks of other scalars `beside` them. One collective."""
        local = dict[str, Tensor]()
        for names, (total, count) in self._local.items():
            for name, value in zip(names, total, strict=True):
                local[name] = local[name] + value if name in local else value
                self._counts[name] = self._counts.get(name, 0) + count
        self._local.clear()
        if not local and not self._counts and self._bad is not None:
            return engine.reduce_mean({**self._bad, **beside})
        found = engine.reduce_mean({**local, **beside})
        for name in local:
            self._sums[name] = self._sums.get(name, 0.0) + found[name]
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        return means | {name: found[name] for name in beside}

    def close(self) -> None:
        """Begin a new window."""
        self.skipped, self._bad = 0, None
        for of_window in (self._local, self._sums, self._counts):
            of_window.clear()

    def state(self) -> dict[str, Any]:
        """Return what belongs into a checkpoint, as of the last call of `means`."""
        return {"skipped": self.skipped, "sums": dict(self._sums), "counts": dict(self._counts)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the window of a checkpoint (of an older version: with a new one)."""
        self.close()
        self.skipped = int(state.get("skipped", 0))
        self._sums |= {name: float(value) for name, value in state.get("sums", {}).items()}
        self._counts |= {name: int(value) for name, value in state.get("counts", {}).items()}


@dataclass(kw_only=True)
class Recorder:
    """Collects what the steps did, and writes it when it is due. Its methods are called on every rank alike."""

    engine: Engine[Batch]
    views: Views
    schedule: ViewSchedule
    every_steps: int
    """Write after every so many steps."""
    bad_sample_limit: float
    """Share of broken samples above which the run fails."""
    log: MetricsLog
    ledger: LedgerFile | None
    """On rank 0."""
    quarantine: Quarantine
    samples_seen: SamplesSeen
    speed: Speedometer
    progress: Progress
    status: RankStatus
    health: Health
    bad_steps: BadSteps
    pace: Pace = field(default_factory=Pace)
    window: WindowMeans = field(default_factory=WindowMeans)
    _last: StepResult | None = None
    """Of the newest step that was computed."""
    _norms: tuple[int, OnTheWay, bool] | None = None
    """A step, its gradient norms until they are looked at, and whether it was a good one."""
    _largest_norm: float = 0.0
    """Of the updates of the newest step that was looked at."""
    _sums: list[dict[str, int]] = field(default_factory=list)
    """Of the steps since the last line: sums of this rank's sample hashes, by view."""
    _notes: dict[str, float] = field(default_factory=dict)
    """For the next line."""

    def phase(self, step: int, name: str, cause: Cause | None = None, reason: str = "") -> None:
        """Say in this rank's status file what it does: "training", "saving", "stopped" or "done"; and why it ends."""
        self.status.write(step=step, phase=name, cause=cause, reason=reason)

    def add(self, batch: Batch, result: StepResult) -> None:
        """Count a step, and look at the gradient norms of the one before: this one may not be computed yet."""
        self.look()
        is_good = all(result.applied)
        self._last, self._norms = result, (batch.step, result.grad_norms, is_good)
        self._sums.append(ledger_sums(batch))
        self.quarantine.add(batch.step, batch.bad_samples)
        self.samples_seen.add(batch.samples_seen)
        self.speed.step(batch)
        self.window.add(result.metrics, is_good=is_good)
        self.window.skipped += len(result.skipped)
        self.health.add(batch.step, result.applied)
        if not is_good:
            self.bad_steps.note(batch.step, result)

    def leave_out(self, step: int) -> None:
        """Count a step that is passed over: it shows nothing, and changes nothing."""
        self._sums.append({})
        self.health.add(step, ())

    def look(self) -> None:
        """Look at the newest step's gradient norms, if that was not done yet; waits for them. No collective."""
        if self._norms is None:
            return
        step, on_the_way, is_good = self._norms
        norms = on_the_way.read()
        self._norms, self._largest_norm = None, max(norms)
        self.health.add_norms(step, norms)
        if is_good:
            self.window.add_value("grad_norm", self._largest_norm)

    def is_due(self, step: int) -> bool:
        """Return whether a line is due after `step` steps."""
        return step % self.every_steps == 0 or self.health.is_lost

    def write(self, step: int, *, is_regular: bool = True) -> None:
        """Write the lines of the steps up to `step`, if there are any that are not written. Four collectives.

        One that is not regular leaves the window of the means open: `WindowMeans`.

        Raises:
            DataError: too many samples were bad; on every rank alike.
        """
        if not self._sums:
            return
        self.look()
        read = samples_read(self.views, self.schedule, step + 1)
        bad_share = torch.tensor(self.quarantine.total * self.engine.world_size / read)
        values = self.window.means(self.engine, {"bad_share": bad_share})
        self._write_ledger(step + 1 - len(self._sums))
        speed = self.speed.summary()
        seen = self.samples_seen.gather(self.engine.collectives.sum)
        if len(values) > 1 and self._last is not None:  # else all steps were left out
            rates = self._last.statistics.learning_rates
            numbers = {
                "grad_norm": self._largest_norm,
                **values,
                "skipped_updates": float(self.window.skipped),
                **{f"seen/{key}": float(count) for key, count in seen.items()},
                **{f"learning_rate/{name}": rate for name, rate in rates.items()},
                **speed,
                **self.pace.numbers(),
                **self._notes,
            }
            self.log.write(step, numbers)
            self._notes.clear()
        if is_regular:
            self.window.close()
        if values["bad_share"] > self.bad_sample_limit:
            self.health.before_end()
            raise DataError(
                reason="too_many_bad_samples",
                where=f"step {step}",
                expected=f"at most {self.bad_sample_limit:.2%} bad samples",
                got=f"{values['bad_share']:.2%} ({self.quarantine.summary()} on this rank)",
                do="Read quarantine/rank_*.jsonl in the run folder; repair what it names (shards: `python -m shards "
                "verify SET`), or give the same command with a higher --data.bad_sample_limit.",
            )
        self.progress.update(step, loss=values.get("loss"), samples_per_s=speed.get("speed/samples_per_s"))
        self.phase(step + 1, "training")

    def write_evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line of what was measured after a step; the time that it took is not training."""
        self.log.write(step, values)
        self.speed.restart()

    def note(self, name: str, value: float) -> None:
        """Let a number stand in the next line, too."""
        self._notes[name] = value

    def state(self) -> dict[str, Any]:
        """Return what belongs into a checkpoint, as of the last line."""
        window = self.window.state()
        return {"samples_seen": dict(self.samples_seen.totals), "health": self.health.state(), "window": window}

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint of `step` updates: what was written of later steps is cut off."""
        self._last = self._norms = None
        self._sums.clear()
        self._notes.clear()
        self.log.rewind(step)
        if self.ledger is not None:
            self.ledger.rewind(step)
        self.quarantine.rewind(step)
        self.restore_state(state)
        self.speed.restart()

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Go on with what a checkpoint holds of this."""
        self.samples_seen.restore(state.get("samples_seen"))
        self.health.restore(state.get("health", {}))
        self.window.restore(state.get("window", {}))

    def sync(self) -> None:
        """Put what was written about the steps so far on the disk, before a checkpoint says that they are done."""
        self.log.sync()
        self.quarantine.sync()
        if self.ledger is not None:
            self.ledger.sync()

    def _write_ledger(self, first_step: int) -> None:
        """Add up the ranks' sums of the last steps, in one collective, and write them on rank 0."""
        views = sorted({view for of_step in self._sums for view in of_step})  # alike on all ranks: the schedule is
        local = torch.tensor([[of_step.get(view, 0) for view in views] for of_step in self._sums])
        total = self.engine.collectives.sum(local)
        if self.ledger is not None:
            for index, row in enumerate(total.tolist()):
                found = {view: value for view, value in zip(views, row, strict=True) if view in self._sums[index]}
                self.ledger.append(first_step + index, found)
        self._sums.clear()


def ledger_sums(batch: Batch) -> dict[str, int]:
    """Wrapping sums of this rank's sample hashes by view, over all micro-batches."""
    return {
        name: step_sum(torch.cat([part.views[name].ledger_S for part in batch.parts]).numpy()) for name in batch.views
    }
