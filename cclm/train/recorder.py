"""What a run writes down about its steps: metrics, ledger, quarantine, samples seen, status, progress."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from cclm.data.batch import Batch
from cclm.data.config import Views
from cclm.data.counts import Quarantine, SamplesSeen
from cclm.data.ledger import LedgerFile, step_sum
from cclm.data.schedule import ViewSchedule
from cclm.distributed.collectives import Collectives
from cclm.engine.protocol import Engine
from cclm.errors import Cause, DataError
from cclm.run.status import RankStatus
from cclm.track.metrics import MetricsLog, Throughput
from cclm.track.progress import Progress
from cclm.train.health import Health
from cclm.train.updates import StepResult, samples_read


@dataclass(kw_only=True)
class Recorder:
    """Collects what the steps did, and writes it when it is due. Its methods are called on every rank alike."""

    engine: Engine[Batch]
    collectives: Collectives
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
    throughput: Throughput
    progress: Progress
    status: RankStatus
    health: Health
    _last: StepResult | None = None
    """Of the step before now."""
    _sums: list[dict[str, int]] = field(default_factory=list)
    """Of the steps since the last line: sums of this rank's sample hashes, by view."""
    _num_skipped: int = 0
    """Updates left out since the last line: their gradients were not finite."""

    @contextmanager
    def data_wait(self) -> Iterator[None]:
        """Time the fetching of a batch."""
        with self.throughput.data_wait():
            yield

    def phase(self, step: int, name: str, cause: Cause | None = None, reason: str = "") -> None:
        """Say in this rank's status file what it does: "training", "saving", "stopped" or "done"; and why it ends."""
        self.status.write(step=step, phase=name, cause=cause, reason=reason)

    def add(self, batch: Batch, result: StepResult) -> None:
        """Count a step. No collective."""
        self._last = result
        self.health.add(result.skipped)
        self._num_skipped += sum(result.skipped)
        self._sums.append(ledger_sums(batch))
        self.quarantine.add(batch.step, batch.bad_samples)
        self.samples_seen.add(batch.samples_seen)
        self.throughput.step({name: self.views[name].pairs_per_step for name in batch.views})

    def is_due(self, step: int) -> bool:
        """Return whether a line is due after `step` steps."""
        return step % self.every_steps == 0 or self.health.is_lost

    def write(self, step: int) -> None:
        """Write the lines of the steps up to `step`, if there are any that are not written. Three collectives.

        Raises:
            CclmError: the run has diverged; on every rank alike.
            DataError: too many samples were bad; likewise.
        """
        if not self._sums:
            return
        result = self._last
        assert result is not None, "a line needs a step"
        read = samples_read(self.views, self.schedule, step + 1)
        bad_share = torch.tensor(self.quarantine.total * self.engine.world_size / read)
        values = self.engine.reduce_mean({**result.metrics, "bad_share": bad_share})
        self._write_ledger(step + 1 - len(self._sums))
        speed = self.throughput.summary()
        seen = self.samples_seen.gather(self.collectives.sum)
        numbers = {
            **values,
            "grad_norm": result.statistics.grad_norm,
            "skipped_updates": float(self._num_skipped),
            **{f"seen/{key}": float(count) for key, count in seen.items()},
            **{f"learning_rate/{name}": rate for name, rate in result.statistics.learning_rates.items()},
            **speed,
        }
        self.log.write(step, numbers)
        self._num_skipped = 0
        self._check_values(step, values)
        self.progress.update(step, loss=values["loss"], samples_per_s=speed.get("speed/samples_per_s"))
        self.phase(step + 1, "training")

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
        total = self.collectives.sum(local)
        if self.ledger is not None:
            for index, row in enumerate(total.tolist()):
                found = {view: value for view, value in zip(views, row, strict=True) if view in self._sums[index]}
                self.ledger.append(first_step + index, found)
        self._sums.clear()

    def _check_values(self, step: int, values: Mapping[str, float]) -> None:
        """Stop the run, on every rank alike, when it has diverged or too many samples are bad."""
        self.health.check_values(step, values)
        if values["bad_share"] > self.bad_sample_limit:
            raise DataError(
                reason="too_many_bad_samples",
                where=f"step {step}",
                expected=f"at most {self.bad_sample_limit:.2%} bad samples",
                got=f"{values['bad_share']:.2%} ({self.quarantine.summary()} on this rank)",
                do="Read quarantine/rank_*.jsonl in the run folder; repair the shards (`python -m shards verify SET`), "
                "or give the same command with a higher --data.bad_sample_limit.",
            )


def ledger_sums(batch: Batch) -> dict[str, int]:
    """Wrapping sums of this rank's sample hashes by view, over all micro-batches."""
    return {
        name: step_sum(torch.cat([part.views[name].ledger_S for part in batch.parts]).numpy()) for name in batch.views
    }
