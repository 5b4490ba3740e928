"""What a run writes down about its steps: metrics, ledger, quarantine, samples seen, status, progress.

And whether it still learns: what must not be saved over a healthy checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cclm.data.batch import Batch
from cclm.data.config import Views
from cclm.data.counts import Quarantine, SamplesSeen
from cclm.data.ledger import LedgerFile, step_sum
from cclm.data.schedule import ViewSchedule
from cclm.engine.protocol import Engine
from cclm.errors import Cause, CclmError, DataError
from cclm.run.checkpoints import newest_complete
from cclm.run.status import RankStatus
from cclm.track.metrics import MetricsLog, Throughput
from cclm.track.progress import Progress
from cclm.train.updates import StepResult, samples_read

LOSS_LIMIT = 1e5
"""A cross-entropy over logits that make any sense is thousands of times smaller."""
MOST_SKIPPED = 10
"""So many updates in a row without finite gradients: the weights are lost, not the batches odd."""
FEW_SKIPPED = 3
"""So many, or all since the last checkpoint, and it is not saved."""


@dataclass(kw_only=True)
class Health:
    """Follows the updates. The numbers are alike on every rank, so all ranks raise together."""

    run_folder: Path
    _skipped_in_a_row: int = 0
    """The last updates, up to now."""
    _num_updates: int = 0
    """Since the last checkpoint."""

    def add(self, skipped: Iterable[bool]) -> None:
        """Add a step's updates."""
        for is_skipped in skipped:
            self._skipped_in_a_row = self._skipped_in_a_row + 1 if is_skipped else 0
            self._num_updates += 1

    @property
    def is_lost(self) -> bool:
        """Return whether it makes no sense to go on."""
        return self._skipped_in_a_row >= MOST_SKIPPED

    @property
    def has_changed(self) -> bool:
        """Return whether there was an update since the last checkpoint, or since the start."""
        return self._num_updates > 0

    def saved(self) -> None:
        """Begin to count anew: there is a checkpoint."""
        self._num_updates = 0

    def check_updates(self, step: int) -> None:
        """Raise CclmError, cause DIVERGED, when no update has been made lately; before a checkpoint is written."""
        if self._skipped_in_a_row >= min(FEW_SKIPPED, max(1, self._num_updates)):
            raise self._diverged(
                step, "gradients that are finite", f"none in the last {self._skipped_in_a_row} updates, all skipped"
            )

    def check_values(self, step: int, values: Mapping[str, float]) -> None:
        """Raise CclmError, cause DIVERGED, when the loss has exploded."""
        if not values["loss"] < LOSS_LIMIT:
            found = [f"{name} {value:.3g}" for name, value in sorted(values.items()) if not abs(value) < LOSS_LIMIT]
            raise self._diverged(step, f"a loss below {LOSS_LIMIT:.0e}", ", ".join(found))

    def _diverged(self, step: int, expected: str, got: str) -> CclmError:
        checkpoint = newest_complete(self.run_folder)
        do = "Give the same command with a lower --optimizer.learning_rate"
        if checkpoint is None:
            do += ", or look at the batches since the last log line. There is no checkpoint: it starts anew."
        else:
            do += f": it goes on from {checkpoint}. If that diverges at once, the damage is older: remove this "
            do += "checkpoint first, and it goes on from the one before."
        return CclmError(where=f"step {step}", expected=expected, got=got, do=do, cause=Cause.DIVERGED)


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
        seen = self.samples_seen.gather(self.engine.collectives.sum)
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
