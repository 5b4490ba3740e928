"""What a loop may measure while it trains, beside the losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping


class EvaluationStopped(Exception):  # noqa: N818 - no error: somebody asked
    """Raised by an evaluation on every rank, when one is asked to stop while it measures what `step` updates made."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


class Evaluation:
    """What is measured while a run trains, and when it is done; here nothing. Its methods are called on every rank.

    All may raise `EvaluationStopped`.
    """

    is_asked: Callable[[], bool] = staticmethod(lambda: False)
    """Whether a rank is asked to stop; a collective. The loop sets it."""
    beat: Callable[[], None] = staticmethod(lambda: None)
    """Says that it goes on; called for every batch. The loop sets it."""
    record: Callable[[int, Mapping[str, float]], None] = staticmethod(lambda step, values: None)
    """Writes numbers of a step into the log. The loop sets it."""

    def is_due(self, step: int) -> bool:
        """Return whether something will be measured after `step` updates. No collective."""
        return False

    def resume(self, step: int) -> None:
        """Measure what is due at `step`, where a run goes on, if an earlier attempt was stopped before it had."""

    def after(self, step: int) -> bool:
        """Measure after `step` updates, if it is due; return whether it was: then these weights are saved."""
        return False

    def rewind(self, step: int) -> None:
        """Forget what was measured after `step` updates: the run has gone back to there."""

    def finish(self) -> None:
        """Measure what was trained, before the run counts as done."""
