"""Evaluations that ranks share, while a run trains: their turns, their lines, and which checkpoints they make the best.

Rows are cut into the same batches whatever the ranks, which take them in turn; so every number is the same on any
number of ranks. A rank without a batch computes another's (under ZeRO-3 all run the same modules) and forgets it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cclm.config import RunConfig
from cclm.data.batch import Batch
from cclm.distributed.agreement import made_by_first
from cclm.engine.protocol import Engine
from cclm.files.lines import StepLines
from cclm.run.checkpoints import Pins, pin
from cclm.run.status import RankStatus
from cclm.train.health import BAD_STEPS_FILE

Given = TypeVar("Given")
Made = TypeVar("Made")
EVALUATIONS_FILE = "evaluations.jsonl"
"""In the run folder: a line for each evaluation that may choose a checkpoint."""
ROUNDS_AT_ONCE = 8
"""Batches of each rank until they exchange what they made, and hear a request to stop."""
SIGN_OF_LIFE_S = 10.0
"""Between two words of a rank that evaluates."""


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


@dataclass(kw_only=True)
class SharedEvaluation(Evaluation):
    """What an evaluation of a run needs besides its numbers."""

    config: RunConfig
    engine: Engine[Batch]
    start_step: int

    def __post_init__(self) -> None:
        """Forget what a killed attempt wrote too much."""
        self._folder = Path(self.config.run_folder)
        self._status, self._step, self._said = RankStatus(self._folder, self.engine.rank), self.start_step, 0.0
        self._lines = StepLines(self._folder / EVALUATIONS_FILE)
        self.rewind(self.start_step)

    def rewind(self, step: int) -> None:
        """Forget what was measured after `step` updates."""
        self._step = step
        if self.engine.rank == 0:
            self._lines.truncate(step)
            self._pin_best()
        self.engine.collectives.barrier()

    def resume(self, step: int) -> None:
        """Measure at `step`, if it is due and an earlier attempt was asked to stop before it had."""
        ranks = self.engine.collectives
        if step and step not in made_by_first(ranks, lambda: [int(line["updates"]) for line in self._lines.read()]):
            self.after(step)

    def note(self, step: int, values: Mapping[str, Any]) -> None:
        """Write what was measured after `step` updates: its "value" says how good the weights are."""
        if self.engine.rank == 0:
            self._lines.append(step - 1, {"updates": step, **values})
            self._lines.sync()
            self._pin_best()

    def is_comparable(self, line: Mapping[str, Any]) -> bool:
        """Return whether the value of a line is of the same kind as those of now."""
        return True

    def _pin_best(self) -> None:
        """Let the best ones stay. One that bad steps follow is not healthy, whatever was measured."""
        suspect_steps = self.config.health.suspect_steps
        bad = [int(line["step"]) for line in StepLines(self._folder / BAD_STEPS_FILE).read()]
        lines = [line for line in self._lines.read() if self.is_comparable(line)]
        healthy = [
            line for line in lines if not any(0 <= one - int(line["updates"]) < suspect_steps for one in bad)
        ]  # of equal ones the one with the better features, then the first
        best = sorted(healthy, key=lambda line: (line["value"], line.get("features_alone", 0.0)), reverse=True)
        if lines:
            steps, proven = [int(line["updates"]) for line in best], self._step - suspect_steps
            pin(self._folder, Pins(steps=steps, keep=self.config.checkpoint.keep_best, proven=proven))

    def in_turns(self, batches: Sequence[Given], compute: Callable[[Given], Made]) -> list[Made]:
        """As `turns`, in a list."""
        return list(self.turns(batches, compute))

    def turns(self, batches: Sequence[Given], compute: Callable[[Given], Made]) -> Iterator[Made]:
        """As the function, and say now and then that this rank is alive: who watches it takes silence for a hang.

        Every rank takes them to the end, or all raise EvaluationStopped: one was asked to stop.
        """
        return turns(self.engine, batches, partial(self._alive, compute), self._obey)

    def own_turns(self, batches: Sequence[Given], compute: Callable[[Given], Made]) -> list[Made]:
        """Return what this rank makes of its batches, which it keeps for itself: `compute` is no collective."""
        ranks, made = self.engine.collectives, list[Made]()
        at_once = ROUNDS_AT_ONCE * ranks.world_size
        for begin in range(0, len(batches), at_once):
            self._obey()
            made += [
                self._alive(compute, one) for one in batches[begin : begin + at_once][ranks.rank :: ranks.world_size]
            ]
        return made

    def _alive(self, compute: Callable[[Given], Made], batch: Given) -> Made:
        self.beat()
        if time.monotonic() - self._said > SIGN_OF_LIFE_S:
            self._status.write(self._step, "evaluating")
            self._said = time.monotonic()
        return compute(batch)

    def _obey(self) -> None:
        if self.is_asked():
            raise EvaluationStopped(self._step)


def turns(
    engine: Engine[Batch],
    batches: Sequence[Given],
    compute: Callable[[Given], Made],
    between: Callable[[], None] = lambda: None,
) -> Iterator[Made]:
    """Yield what `compute` makes of each batch, in their order, on every rank. A collective, as `compute` may be.

    Ranks take the batches in turn; one without a batch in the last turn computes another's and forgets it. Now and then
    they exchange what they made, and `between` is called on all of them.
    """
    ranks = engine.collectives
    for begin in range(0, len(batches), ROUNDS_AT_ONCE * ranks.world_size):
        between()
        block = batches[begin : begin + ROUNDS_AT_ONCE * ranks.world_size]
        own = dict[int, Made]()
        for first in range(0, len(block), ranks.world_size):
            number = first + ranks.rank
            one = compute(block[number if number < len(block) else first])
            if number < len(block):
                own[number] = one
        everyone = {number: one for of_rank in ranks.exchange(own) for number, one in of_rank.items()}
        yield from (everyone[number] for number in range(len(block)))
