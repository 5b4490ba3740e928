"""Whether a run still learns: bad steps, their budget, their evidence.

    loss below max_loss on every rank ───┐  one that is not is multiplied by NaN before the backward, on the device:
    gradient norm finite, no spike ──────┴► so one number, the gradient norm that is global anyway, tells all ranks
                                            ├ good: update
                                            └ bad: skip ─► bad_steps.jsonl ─► over the budget: DIVERGED ─► rollback

The numbers are alike on every rank, so all of them skip, raise and roll back together.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from statistics import median
from typing import Any

from cclm.config import HealthConfig
from cclm.data.loader import StepDataset
from cclm.engine.protocol import Engine
from cclm.errors import Cause, CclmError
from cclm.files.lines import StepLines
from cclm.run.checkpoints import newest_complete
from cclm.train.updates import SkippedUpdate, StepResult

BAD_STEPS_FILE = "bad_steps.jsonl"
"""In the run folder: a line for each bad step; again for one that is done again, after a kill or a rollback."""
FEW_SKIPPED = 3
"""After so many skipped updates in a row, or if all since the last checkpoint were, the state is not saved."""
NORMS = 100
"""Gradient norms whose median a spike is measured by."""
FEWEST_NORMS = 20
"""Before so many are known, nothing is a spike."""
LAG = 2
"""The last norms are still on their way from the device; to count on none of them is the same on every machine."""
MOST_NAMED = 20
"""Names of gradients that are listed: one NaN soon is in all of them."""


class Why(str, Enum):
    """What was wrong with a bad step."""

    LOSS_NOT_FINITE = "loss_not_finite"
    LOSS_TOO_LARGE = "loss_too_large"
    GRADIENT_NOT_FINITE = "gradient_not_finite"
    GRADIENT_TOO_LARGE = "gradient_too_large"


@dataclass(kw_only=True)
class Health:
    """Follows the updates. Its state belongs to a checkpoint."""

    run_folder: Path
    config: HealthConfig = field(default_factory=HealthConfig)
    before_end: Callable[[], None] = lambda: None
    """Is called on every rank before an error ends the run: a checkpoint may still be on its way. The loop sets it."""
    num_bad: int = 0
    """Bad steps of this attempt; the ranks compare it."""
    bad_steps: list[int] = field(default_factory=list)
    """Of the last `window` steps."""
    _norms: dict[int, deque[tuple[int, float]]] = field(default_factory=dict)
    """By number of the update in its step: step and norm of those that were made. Kept where spikes are looked for."""
    _skipped_in_a_row: int = 0
    """The last updates, up to now."""
    _num_updates: int = 0
    """Since the last checkpoint."""

    def add(self, step: int, applied: Sequence[bool]) -> None:
        """Add a step's updates: whether each was made; none of a step that is left out."""
        for was_applied in applied:
            self._skipped_in_a_row = 0 if was_applied else self._skipped_in_a_row + 1
        self._num_updates += max(1, len(applied))
        self.num_bad += not all(applied)
        self.bad_steps = [bad for bad in self.bad_steps if bad > step - self.config.window]
        self.bad_steps += [] if all(applied) else [step]

    def add_norms(self, step: int, norms: Iterable[float]) -> None:
        """Add a step's gradient norms, when they have come from the device."""
        if self.config.max_norm_ratio is None:
            return
        for number, norm in enumerate(norms):
            if math.isfinite(norm) and norm <= self.max_norm(step, number):
                self._norms.setdefault(number, deque(maxlen=NORMS + LAG)).append((step, norm))

    def max_norm(self, step: int, number: int) -> float:
        """Return the gradient norm above which an update of a step is skipped."""
        if self.config.max_norm_ratio is None:
            return math.inf
        known = [norm for before, norm in self._norms.get(number, ()) if before <= step - LAG][-NORMS:]
        return self.config.max_norm_ratio * median(known) if len(known) >= FEWEST_NORMS else math.inf

    @property
    def is_lost(self) -> bool:
        """Return whether the budget is used up."""
        return len(self.bad_steps) > self.config.max_skipped

    @property
    def is_doubtful(self) -> bool:
        """Return whether no update has been made lately: what is there now is no checkpoint to count on."""
        return self._skipped_in_a_row >= min(FEW_SKIPPED, max(1, self._num_updates))

    def unhealthy(self, steps: Iterable[int]) -> list[int]:
        """Return the checkpoints, by their steps, that bad steps of the last `window` follow too closely."""
        near = self.config.suspect_steps
        return [step for step in steps if any(0 <= bad - step < near for bad in self.bad_steps)]

    @property
    def has_changed(self) -> bool:
        """Return whether there was an update since the last checkpoint, or since the start."""
        return self._num_updates > 0

    def saved(self) -> None:
        """Begin to count anew: there is a checkpoint."""
        self._num_updates = 0

    def check(self, step: int) -> None:
        """Raise CclmError, cause DIVERGED, when more of the last steps were bad than may be."""
        if self.is_lost:
            most, window = self.config.max_skipped, self.config.window
            expected = f"at most {most} bad steps in {window} (health.max_skipped, health.window)"
            raise self._diverged(step, expected, f"{len(self.bad_steps)}, the first of them step {self.bad_steps[0]}")

    def check_updates(self, step: int) -> None:
        """Raise CclmError, cause DIVERGED, when no update has been made lately; before a checkpoint is written."""
        if self.is_doubtful:
            got = f"none in the last {self._skipped_in_a_row} updates, all skipped"
            raise self._diverged(step, "gradients and losses that are finite", got)

    def state(self) -> dict[str, Any]:
        """Return what belongs into a checkpoint."""
        norms = {str(number): [list(pair) for pair in found] for number, found in self._norms.items()}
        return {"bad_steps": self.bad_steps, "skipped_in_a_row": self._skipped_in_a_row, "norms": norms}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's state (of an older version: from nothing)."""
        self.bad_steps = list(state.get("bad_steps", ()))
        self._skipped_in_a_row, self._num_updates = int(state.get("skipped_in_a_row", 0)), 0
        norms = state.get("norms", {})
        self._norms = {
            int(number): deque(((int(step), float(norm)) for step, norm in found), maxlen=NORMS + LAG)
            for number, found in norms.items()
        }

    def advice(self) -> str:
        """Return what to do about a run that has diverged."""
        checkpoint = newest_complete(self.run_folder)
        do = f"{BAD_STEPS_FILE} in the run folder names samples, losses and gradients. "
        do += "Give the same command with a lower --optimizer.learning_rate"
        if checkpoint is None:
            return f"{do}, or look at these samples. There is no checkpoint: it starts anew."
        do += f": it goes on from {checkpoint}. If that diverges at once, the damage is older: remove this "
        return f"{do}checkpoint first, and it goes on from the one before."

    def _diverged(self, step: int, expected: str, got: str) -> CclmError:
        self.before_end()
        return CclmError(where=f"step {step}", expected=expected, got=got, do=self.advice(), cause=Cause.DIVERGED)


@dataclass(kw_only=True)
class BadSteps:
    """Writes down what is known of bad steps, each rank of its own samples; rank 0 the file."""

    folder: Path
    engine: Engine[Any]
    dataset: StepDataset
    max_loss: float

    def note(self, step: int, result: StepResult) -> None:
        """Write the line of a bad step. A few collectives, and a batch that is read again."""
        ranks = self.engine.collectives
        norms = result.grad_norms.read()
        values = self.engine.reduce_mean(result.metrics)
        everyone = ranks.exchange(self._of_rank(step, result))
        if ranks.rank:
            return
        wrong = sorted({name for one in everyone for name in one["losses"]})
        views = sorted({name.partition("/")[0] for name in wrong if "/" in name})
        reason = why(wrong, [one["losses"] for one in everyone], norms, result.skipped).value
        line: dict[str, Any] = {
            "time": round(time.time(), 3),
            "why": reason,
            "views": views or sorted({view for update in result.skipped for view in update.views}),
            "losses": wrong,
            "gradients": sorted({name for one in everyone for name in one["gradients"]}),
            "num_gradients": max(one["num_gradients"] for one in everyone),
            "values": {name: finite(value) for name, value in {**values, "grad_norm": max(norms)}.items()},
            "ranks": everyone,
        }
        StepLines(self.folder / BAD_STEPS_FILE).append(step, line)
        sys.stderr.write(f"step {step} was skipped: {reason}, {', '.join(line['views'])} ({BAD_STEPS_FILE})\n")

    def _of_rank(self, step: int, result: StepResult) -> dict[str, Any]:
        """What this rank knows: its share of the losses that are out of range, its gradients, its samples."""
        losses = {name: float(value) for name, value in result.metrics.items()}
        gradients = list(dict.fromkeys(name for update in result.skipped for name in update.bad_gradients))
        return {
            "rank": self.engine.rank,
            "losses": {name: finite(value) for name, value in losses.items() if not abs(value) < self.max_loss},
            "gradients": gradients[:MOST_NAMED],
            "num_gradients": len(gradients),
            "samples": self.samples_of(step),
        }

    def samples_of(self, step: int) -> dict[str, list[dict[str, Any]]]:
        """Return this rank's samples of a step by view, in words; it is read again."""
        samples: dict[str, list[dict[str, Any]]] = {}
        try:
            shown = self.dataset.samples_of(step)
        except CclmError:  # the step is done, and goes on; what cannot be read again is not named
            shown = []
        for sample in shown:
            described = asdict(sample)
            samples.setdefault(described.pop("view"), []).append(described)
        return samples


def why(
    wrong: Sequence[str],
    losses: Sequence[Mapping[str, float | None]],
    norms: Sequence[float],
    skipped: Sequence[SkippedUpdate],
) -> Why:
    """Return what was wrong with a step: of several things the first that is found on the way of a number."""
    if wrong:
        is_finite = all(value is not None for one in losses for value in one.values())
        return Why.LOSS_TOO_LARGE if is_finite else Why.LOSS_NOT_FINITE
    is_finite = all(math.isfinite(norms[update.number]) for update in skipped)
    return Why.GRADIENT_TOO_LARGE if is_finite else Why.GRADIENT_NOT_FINITE


def finite(value: float) -> float | None:
    """Return a number as JSON can hold it: None if it is not finite."""
    return value if math.isfinite(value) else None
