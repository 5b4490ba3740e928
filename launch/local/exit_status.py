"""How a job ended, as values, and what is said about it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

NUM_LAST_LINES = 20
"""So much of the first failing rank's log is shown."""


@dataclass(frozen=True, kw_only=True)
class RankExit:
    """How a rank ended."""

    rank: int
    code: int
    """Exit code; -N if signal N killed it."""
    seconds: float
    """Since the start of the job."""

    @property
    def shell_code(self) -> int:
        """The code as a shell would give it: 128 + N for signal N."""
        return 128 - self.code if self.code < 0 else self.code

    def __str__(self) -> str:
        how = f"killed by {signal.Signals(-self.code).name}" if self.code < 0 else f"exit code {self.code}"
        return f"rank {self.rank}: {how} after {self.seconds:.1f} s"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended."""

    exits: tuple[RankExit, ...]
    """Every rank, in the order in which they ended."""
    first_failure: RankExit | None
    """The first that did not end with code 0."""

    @property
    def code(self) -> int:
        """The launcher's own exit code."""
        return self.first_failure.shell_code if self.first_failure else 0


def explain(
    outcome: Outcome, *, stop_asked: bool, log: Path | None, last: Sequence[str], say: Callable[[str], None]
) -> None:
    """Say which rank failed first, and show the end of its log; ranks that were asked to stop have not failed.

    `log`, `last`: that rank's log and the end of it; None if its output went to the terminal.
    """
    failure = outcome.first_failure
    if failure is None:
        return
    if stop_asked:
        say(f"stopped. First of {len(outcome.exits)} rank(s): {failure}.")
        return
    say(f"failed. First of {len(outcome.exits)} rank(s): {failure}.")
    if log is None:
        say("its output is above.")
    else:
        say(f"the end of {log}:")
        for line in last:
            say(f"  | {line}")
    for other in outcome.exits:
        if other is not failure and other.code not in (0, -signal.SIGTERM):
            say(f"then {other}.")
