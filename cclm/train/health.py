"""Whether a run still learns: what must not be saved over a healthy checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cclm.errors import Cause, CclmError
from cclm.run.checkpoints import newest_complete

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
