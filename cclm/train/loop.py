"""The training loop, in the order of life: steps, and inside a step its updates. It knows no precision."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
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
from cclm.errors import CclmError, DataError
from cclm.run.status import DoneMarker, RankStatus
from cclm.run.stop import StopRequest, note_stopped
from cclm.track.metrics import MetricsLog
from cclm.track.progress import Progress
from cclm.track.throughput import Throughput
from cclm.train.updates import mean_metrics, merge_metrics, samples_read, updates_of


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a training loop needs, wired by `pretrain.build`."""

    config: RunConfig
    folder: Path
    device: torch.device
    engine: Engine[Batch]
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
    witness: Callable[[Engine[Batch], Path], None]
    """Puts what the engine computes on a fixed probe into a checkpoint: exports are measured against it."""


def train(run: Run) -> bool:
    """Train from `run.start_step` to the configured number of steps, then write the done marker.

    Returns False if it was asked to stop before: then it has saved, and the same command goes on from there.

    Raises:
        CclmError: the loss is not finite, or too many samples were bad; on every rank alike.
        DataError: a whole neighbourhood of samples is broken; on the rank that reads it (the launcher ends the others).
    """
    config, engine = run.config, run.engine
    batches = iter(run.batches)
    began = time.monotonic()
    sums: list[dict[str, int]] = []
    num_skipped = 0  # updates left out since the last log line: their gradients were not finite
    run.status.write(step=run.start_step, phase="training")
    for step in range(run.start_step, config.steps):
        with run.throughput.data_wait():
            batch, on_device = next(batches)
        assert batch.step == step, f"the loader gave step {batch.step} at step {step}"
        metrics, statistics, skipped = do_updates(run, step, on_device)
        num_skipped += skipped

        sums.append(ledger_sums(batch))
        run.quarantine.add(step, batch.bad_samples)
        run.exposure.add(batch.exposure)
        run.throughput.step(global_counts(batch, config.data))

        is_last = step + 1 == config.steps
        stop_reason = "" if is_last else agree_to_stop(run)
        is_saving = is_last or bool(stop_reason) or (step + 1) % config.checkpoint.every_steps == 0
        if is_saving or (step + 1) % config.track.every_steps == 0:
            read = samples_read(config.data, run.schedule, step + 1)
            bad_share = torch.tensor(run.quarantine.total * engine.world_size / read)
            values = engine.reduce_mean({**metrics, "bad_share": bad_share})
            write_ledger(run, step + 1 - len(sums), sums)
            sums.clear()
            speed = run.throughput.summary()
            rates = {f"learning_rate/{name}": rate for name, rate in statistics.learning_rates.items()}
            counts = {"skipped_updates": float(num_skipped), **seen_so_far(run)}
            run.log.write(step, {**values, "grad_norm": statistics.grad_norm, **counts, **rates, **speed})
            num_skipped = 0
            refuse_bad_values(step, values, run)
            run.progress.update(step, loss=values["loss"], samples_per_s=speed.get("speed/samples_per_s"))
            run.status.write(step=step + 1, phase="training")
        if is_saving:
            run.status.write(step=step + 1, phase="saving")
            sync_lines(run)
            seconds = run.seconds_before + time.monotonic() - began
            state = {"seconds": seconds, "exposure": dict(run.exposure.totals)}
            save_checkpoint(
                engine, run.folder, step + 1, state, keep=config.checkpoint.keep, reference_outputs=run.witness
            )
            run.throughput.restart()
        if stop_reason:
            run.status.write(step=step + 1, phase="stopped")
            if run.collectives.rank == 0:
                note_stopped(run.folder, step + 1, stop_reason)
            return False
    run.status.write(step=config.steps, phase="done")
    run.done.write(step=config.steps, seconds=run.seconds_before + time.monotonic() - began)
    return True


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


def do_updates(run: Run, step: int, batch: Batch) -> tuple[dict[str, Tensor], StepStatistics, int]:
    """Forward and backward of every micro-batch, then the update, for each of the step's updates.

    Returns:
        The step's metrics; the statistics of its last update with the largest gradient norm of all; how many updates
        were left out, because their gradients were not finite.
    """
    engine, metrics, largest_norm, num_skipped = run.engine, [], 0.0, 0
    for update in zip(*(updates_of(part, run.config.data.schedule) for part in batch.parts), strict=True):
        parts = []
        for part in update:
            losses = engine.forward(part)
            engine.backward(losses)
            parts.append(losses.metrics)
        statistics = engine.update(step)
        metrics.append(mean_metrics(parts))
        largest_norm = max(largest_norm, statistics.grad_norm)
        num_skipped += not math.isfinite(statistics.grad_norm)
    return merge_metrics(metrics), replace(statistics, grad_norm=largest_norm), num_skipped


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


def refuse_bad_values(step: int, values: Mapping[str, float], run: Run) -> None:
    """Stop the run, on every rank alike, when the loss is not finite or too many samples are bad."""
    limit = run.config.data.bad_sample_limit
    if not math.isfinite(values["loss"]):
        names = sorted(name for name, value in values.items() if not math.isfinite(value))
        raise CclmError(
            where=f"step {step}",
            expected="a finite loss",
            got=", ".join(names) + " not finite",
            do="Lower the learning rate or look at the batches since the last log line; the last checkpoint is intact.",
        )
    if values["bad_share"] > limit:
        raise DataError(
            reason="too_many_bad_samples",
            where=f"step {step}",
            expected=f"at most {limit:.2%} bad samples",
            got=f"{values['bad_share']:.2%} ({run.quarantine.summary()} on this rank)",
            do="Read quarantine/rank_*.jsonl in the run folder, repair the shards or raise data.bad_sample_limit.",
        )
