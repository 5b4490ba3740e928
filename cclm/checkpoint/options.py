"""When a run saves, and which checkpoints stay. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from cclm.shardfile.options import is_remote
from cclm.types import Bounds, Count, PathText, Positive

Minutes = Annotated[float, Bounds(above=0)]


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, and what stays. A save at once is asked for by `touch RUN/save_now`."""

    every_steps: Positive = 1000
    """Save after every so many steps, and always after the last."""
    every_minutes: Minutes | None = None
    """Save when the last checkpoint is so old, too."""
    keep: Positive = 2
    """How many of the newest complete checkpoints stay."""
    keep_every: Positive | None = None
    """Let checkpoints stay for good whose step is a multiple of this."""
    keep_best: Count = 1
    """How many of the best stay, too, where a run is evaluated: then each evaluation makes a checkpoint. 0: none."""
    copy_to: PathText | None = None
    """A URL (s3://bucket/prefix, gs://, file:///mnt/store, …) where complete checkpoints are copied to while it trains.
    A run whose run_folder has no checkpoint goes on from the newest copy there."""
    background: bool = True
    """Copy the state to memory and write it while training goes on, if a copy has room in memory; false: training waits
    until it is written."""
    stop_after_minutes: Minutes | None = None
    """Save and end (exit code 75) so many minutes after the program began: before a limit that nobody tells."""

    def validation_errors(self) -> Iterator[str]:
        """Yield a place for copies that is none."""
        if self.copy_to is not None and not is_remote(self.copy_to):
            yield f"copy_to: expected a URL, such as s3://bucket/prefix or file:///mnt/store, got {self.copy_to}"
