"""When a run saves, and what it saves beside the engine's state."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cclm.checkpoint.collective import save_checkpoint
from cclm.engine.protocol import Engine
from cclm.train.recorder import Recorder


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """Where a run goes on."""

    step: int = 0
    """The first step to do."""
    seconds: float = 0.0
    """That the run took, up to the checkpoint."""
    samples_seen: dict[str, int] = field(default_factory=dict)
    """Counts, up to the checkpoint."""


def resume(engine: Engine[Any], checkpoint: Path) -> Resumed:
    """Load a checkpoint into the engine. A collective."""
    loaded = engine.load(checkpoint)
    state: dict[str, Any] = loaded["state"]
    seen = state.get("samples_seen", state.get("exposure", {}))  # "exposure": before this had a better name
    return Resumed(step=int(loaded["step"]), seconds=float(state["seconds"]), samples_seen=dict(seen))


@dataclass(kw_only=True)
class Checkpointer:
    """Saves every so many steps, and when it is told to."""

    engine: Engine[Any]
    run_folder: Path
    every_steps: int
    keep: int
    """How many complete checkpoints stay."""
    seconds_before: float
    """That earlier attempts of the run took, up to the checkpoint."""
    reference_outputs: Callable[[Engine[Any], Path], None]
    """Puts what the engine computes on a fixed probe into a checkpoint: exports are compared with it."""
    _began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken so far."""
        return self.seconds_before + time.monotonic() - self._began

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint is due after `step` steps."""
        return step % self.every_steps == 0

    def save(self, step: int, recorder: Recorder) -> None:
        """Save the state after `step` steps. A collective.

        Raises:
            CclmError: the run has diverged: what is there stays.
        """
        recorder.health.check_updates(step)
        recorder.phase(step, "saving")
        recorder.sync()
        state = {"seconds": self.seconds, "samples_seen": dict(recorder.samples_seen.totals)}
        save_checkpoint(
            self.engine, self.run_folder, step, state, keep=self.keep, reference_outputs=self.reference_outputs
        )
        recorder.health.saved()
        recorder.throughput.restart()
