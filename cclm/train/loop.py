"""The training loop, in the order of life: steps, and inside a step its updates. It knows no precision."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from cclm.checkpoint.save import save_checkpoint
from cclm.config import RunConfig
from cclm.data.batch import Batch
from cclm.data.config import DataConfig
from cclm.data.exposure import Exposure
from cclm.data.ledger import LedgerFile, step_sum
from cclm.data.quarantine import Quarantine
from cclm.data.schedule import ViewSchedule
from cclm.distributed.collectives import Collectives
from cclm.engine.protocol import Engine, StepStatistics
from cclm.errors import Cause, DataError
from cclm.run.signals import StopAsked, StopRequest
from cclm.run.status import DoneMarker, RankStatus
from cclm.run.stop import note_stopped
from cclm.track.metrics import MetricsLog
from cclm.track.progress import Progress
from cclm.track.throughput import Throughput
from cclm.train.health import Health
from cclm.train.updates import mean_metrics, merge_metrics, samples_read, updates_of


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a training loop needs, wired by `pretrain.build`."""

    config: RunConfig
    folder: Path
    device: torch.device
    engine: Engine
    collectives: Collectives
    batches: Iterable[tuple[Batch, Batch]]
    """Each batch as it was read, and on the device."""
    schedule: ViewSchedule
    start_step: int
    seconds_before: float
    """Seconds that earlier lives of the run took, up to the checkpoint."""
    log: MetricsLog
    progress: Progress
    throughput: Throughput
    status: RankStatus
    ledger: LedgerFile | None
    quarantine: Quarantine
    exposure: Exposure
    done: DoneMarker
    stop: StopRequest
    witness: Callable[[Engine, Path], None]
    """Puts what the engine computes on a fixed probe into a checkpoint: exports are measured against it."""


@dataclass(kw_only=True)
class Window:
    """What was done since the last log line, and how the updates have gone lately."""

    sums: list[dict[str, int]] = field(default_factory=list)
    """Of the ledger, a step each."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    statistics: StepStatistics | None = None
    """Of the last step."""
    health: Health
    num_skipped: int = 0
    """Updates left out, because their gradients were not finite."""

    def add(self, sums: dict[str, int], metrics: dict[str, Tensor], updates: Sequence[StepStatistics]) -> None:
        """Add a step and its updates."""
        self.sums.append(sums)
        self.metrics = metrics
        self.statistics = replace(updates[-1], grad_norm=max(update.grad_norm for update in updates))
        skipped = [not math.isfinite(update.grad_norm) for update in updates]
        self.num_skipped += sum(skipped)
        self.health.add(skipped)


def train(run: Run) -> bool:
    """Train from `run.start_step` to the configured number of steps, then write the done marker.

    Returns False if it was asked to stop before: then it has saved, and the same command goes on from there.

    Raises:
        CclmError: the run has diverged, or too many samples were bad; on every rank alike.
        DataError: a whole neighbourhood of samples is broken; on the rank that reads it (the launcher ends the others).
    """
    config, window, began = run.config, Window(health=Health(run_folder=run.folder)), time.monotonic()
    batches = iter(run.batches)
    run.status.write(step=run.start_step, phase="training")
    run.stop.begin()
    for step in range(run.start_step, config.steps):
        taken = next_batch(run, batches)
        if (stop_reason := agree_to_stop(run)) or taken is None:
            write_line(run, step - 1, window)
            if window.health.has_changed:
                save(run, step, window, began)
            run.status.write(step=step, phase="stopped", cause=Cause.STOPPED, reason=stop_reason)
            if run.collectives.rank == 0:
                note_stopped(run.folder, step, stop_reason)
            return False
        batch, on_device = taken
        assert batch.step == step, f"the loader gave step {batch.step} at step {step}"
        metrics, updates = do_updates(run, step, on_device)
        window.add(ledger_sums(batch), metrics, updates)
        run.quarantine.add(step, batch.bad_samples)
        run.exposure.add(batch.exposure)
        run.throughput.step(global_counts(batch, config.data))
        is_saving = step + 1 == config.steps or (step + 1) % config.checkpoint.every_steps == 0
        is_lost = window.health.is_lost
        if is_saving or is_lost or (step + 1) % config.track.every_steps == 0:
            write_line(run, step, window)
            run.status.write(step=step + 1, phase="training")
        if is_saving or is_lost:
            save(run, step + 1, window, began)
    run.status.write(step=config.steps, phase="done", cause=Cause.DONE)
    run.done.write(step=config.steps, seconds=run.seconds_before + time.monotonic() - began)
    return True


def next_batch(run: Run, batches: Iterator[tuple[Batch, Batch]]) -> tuple[Batch, Batch] | None:
    """The next batch; None if there is a request to stop, or one comes while this rank waits."""
    try:
        with run.throughput.data_wait(), run.stop.interrupting():
            return next(batches)
    except StopAsked:
        return None


def write_line(run: Run, step: int, window: Window) -> None:
    """Write what was done up to and with `step`, if it is not written, and look at the values. Collectives.

    Raises:
        CclmError: they are bad; the line tells them.
    """
    if not window.sums:
        return
    read = samples_read(run.config.data, run.schedule, step + 1)
    bad_share = torch.tensor(run.quarantine.total * run.engine.world_size / read)
    values = run.engine.reduce_mean({**window.metrics, "bad_share": bad_share})
    write_ledger(run, step + 1 - len(window.sums), window.sums)
    assert window.statistics is not None, "a line needs a step"
    speed = run.throughput.summary()
    rates = {f"learning_rate/{name}": rate for name, rate in window.statistics.learning_rates.items()}
    counts = {"skipped_updates": float(window.num_skipped), **seen_so_far(run)}
    run.log.write(step, {**values, "grad_norm": window.statistics.grad_norm, **counts, **rates, **speed})
    window.sums.clear()
    window.num_skipped = 0
    window.health.check_values(step, values)
    refuse_bad_samples(step, values, run)
    run.progress.update(step, loss=values["loss"], samples_per_s=speed.get("speed/samples_per_s"))


def save(run: Run, step: int, window: Window, began: float) -> None:
    """Write the checkpoint after `step` steps, and before it to disk what was written about them. A collective."""
    window.health.check_updates(step)
    run.status.write(step=step, phase="saving")
    sync_lines(run)
    state = {"seconds": run.seconds_before + time.monotonic() - began, "exposure": dict(run.exposure.totals)}
    save_checkpoint(run.engine, run.folder, step, state, keep=run.config.checkpoint.keep, witness=run.witness)
    window.health.saved()
    run.throughput.restart()


def seen_so_far(run: Run) -> dict[str, float]:
    """Exact counts of the whole run by view, source and language. One collective."""
    return {f"seen/{key}": float(count) for key, count in run.exposure.gather(run.collectives.sum).items()}


def agree_to_stop(run: Run) -> str:
    """Why the run stops after this step, or "". A collective: one rank's request is everybody's."""
    folder = run.folder if run.collectives.rank == 0 else None
    reason = run.stop.reason(folder)
    if int(run.collectives.sum(torch.tensor([bool(reason)]).int())) == 0:
        return ""
    return reason or run.stop.reason(folder) or "another rank was asked"


def do_updates(run: Run, step: int, batch: Batch) -> tuple[dict[str, Tensor], list[StepStatistics]]:
    """Forward and backward of every micro-batch, then the update, for each of the step's updates.

    Returns:
        The step's metrics, and the statistics of its updates.
    """
    engine, metrics, updates = run.engine, [], []
    for update in zip(*(updates_of(part, run.config.data.schedule) for part in batch.parts), strict=True):
        parts = []
        for part in update:
            losses = engine.forward(part)
            engine.backward(losses)
            parts.append(losses.metrics)
        updates.append(engine.update(step))
        metrics.append(mean_metrics(parts))
    return merge_metrics(metrics), updates


def global_counts(batch: Batch, data: DataConfig) -> dict[str, int]:
    """Pictures, sentence pairs and texts of regions of the global batch, by view; ranks' shares may differ."""
    counts = {}
    if batch.image_text is not None and data.image_text is not None:
        counts["image_text"] = data.image_text.batch_size
    if batch.text_pair is not None and data.text_pair is not None:
        counts["text_pair"] = data.text_pair.batch_size * data.text_pair.pairs_per_sample
    if batch.regions is not None and data.regions is not None:
        counts["regions"] = data.regions.batch_size
    return counts


def ledger_sums(batch: Batch) -> dict[str, int]:
    """Wrapping sums of this rank's sample hashes by view, over all micro-batches."""
    hashes: dict[str, list[Tensor]] = {}
    for part in batch.parts:
        if part.image_text is not None:
            hashes.setdefault("image_text", []).append(part.image_text.ledger_B)
        if part.text_pair is not None:
            hashes.setdefault("text_pair", []).append(part.text_pair.ledger_S)
        if part.regions is not None:
            hashes.setdefault("regions", []).append(part.regions.ledger_B)
    return {view: step_sum(torch.cat(parts).numpy()) for view, parts in hashes.items()}


def write_ledger(run: Run, first_step: int, sums: list[dict[str, int]]) -> None:
    """Add up the ranks' sums of the last steps, in one collective, and write them on rank 0."""
    views = sorted({view for of_step in sums for view in of_step})  # alike on all ranks: the schedule is
    total = run.collectives.sum(torch.tensor([[of_step.get(view, 0) for view in views] for of_step in sums]))
    if run.ledger is not None:
        for index, row in enumerate(total.tolist()):
            found = {view: value for view, value in zip(views, row, strict=True) if view in sums[index]}
            run.ledger.append(first_step + index, found)


def sync_lines(run: Run) -> None:
    """Put what was written about the steps so far on the disk, before a checkpoint says that they are done."""
    run.log.sync()
    run.quarantine.sync()
    if run.ledger is not None:
        run.ledger.sync()


def refuse_bad_samples(step: int, values: Mapping[str, float], run: Run) -> None:
    """Stop the run, on every rank alike, when too many samples are bad."""
    limit = run.config.data.bad_sample_limit
    if values["bad_share"] > limit:
        raise DataError(
            reason="too_many_bad_samples",
            where=f"step {step}",
            expected=f"at most {limit:.2%} bad samples",
            got=f"{values['bad_share']:.2%} ({run.quarantine.summary()} on this rank)",
            do=f"Read {run.folder}/quarantine/rank_*.jsonl; repair the shards (`python -m shards verify SET`), or give "
            "the same command with a higher --data.bad_sample_limit.",
        )
