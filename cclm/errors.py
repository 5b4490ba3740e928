"""Errors for users: what was expected, what came, what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from typing import Any, TypeVar

One = TypeVar("One", bound="CclmError")


class Cause(str, Enum):
    """Why a process of ours ended. Programs decide by it, never by the words of a message (`cclm/run/causes.py`)."""

    DONE = "done"
    """It has done what it was started for."""
    STOPPED = "stopped"
    """It was asked to end (time limit, preemption, a signal), and saved: the next attempt goes on."""
    STOPPED_BY_USER = "stopped_by_user"
    """A person asked it to end, and it saved: it goes on when a person starts it again."""
    USER_ERROR = "user_error"
    """A wrong setting or broken input: only the user can mend it."""
    DIVERGED = "diverged"
    """The loss is not finite any more: only the user can mend it."""
    DISK_FULL = "disk_full"
    """No room, or no quota, for what it writes: only the user can mend it."""
    FOLDER_LOCKED = "folder_locked"
    """Another process uses the run folder. A lost node's lock lives on for a while, so another attempt may work."""
    TRANSIENT = "transient"
    """A fault of disk, network or object store, or a lost connection to other ranks: another attempt may work."""
    NOT_STARTED = "not_started"
    """Its program could not be started."""
    HUNG = "hung"
    """It did not go on for too long, and ended itself, or was killed."""
    WAITING = "waiting"
    """The same, but it stood in a collective: it waited for another rank, which is to blame."""
    ENDED = "ended"
    """The launcher or the scheduler ended it with TERM, probably because of another rank; or it ended because that told
    why it ends."""
    SIGNAL = "signal"
    """Another signal killed it."""
    EXIT = "exit"
    """It ended with an error that nobody foresaw: the traceback is in its log."""


class CclmError(ValueError):
    """A user's mistake or a broken input, told in one sentence each: expected, got, do."""

    def __init__(self, *, expected: str, got: str, do: str, where: str = "", cause: Cause | None = None) -> None:
        self.expected, self.got, self.do, self.where = expected, got, do, where
        self.cause = cause
        """None: what it was raised from decides (`cclm.run.causes.cause_of`); that, or a user's error."""
        place = f"{where}: " if where else ""
        end = "" if got.endswith("\n") else " " if got.endswith((".", "?")) else ". "
        super().__init__(f"{place}expected {expected}, got {got}{end}{do}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross process borders whole: pickle would hand the message to an __init__ that wants keywords."""
        return partial(type(self), **{name: value for name, value in vars(self).items() if name[0] != "_"}), ()

    def at(self: One, where: str) -> One:
        """Return the same error of a place that is better known now."""
        make: Callable[..., One] = self.__reduce__()[0]
        return make(where=where)


class Problem(str):
    """One thing that is wrong with what a user wrote: a sentence that also knows its kind and its place."""

    kind: str
    """"unreadable", "duplicate_key", "unknown_key", "missing_key", "wrong_value", "rule", or "" where nobody says."""
    key: str
    """Dotted key; "" for the whole file."""
    place: str
    """"recipe.yaml:12" or "command line"; "" if it is not known."""

    def __new__(cls, text: str, *, kind: str = "", key: str = "", place: str = "") -> Problem:
        """Make a text with three attributes."""
        problem = super().__new__(cls, text)
        problem.kind, problem.key, problem.place = kind, key, place
        return problem


class ConfigError(CclmError):
    """A configuration that is wrong or contradicts itself; `problems` are all that were found, at least one."""

    def __init__(
        self,
        *,
        expected: str,
        got: str = "",
        do: str,
        where: str = "",
        cause: Cause | None = None,
        problems: Sequence[str] = (),
    ) -> None:
        """Take one problem as `got`, or several as `problems`."""
        self.problems = tuple(
            problem if isinstance(problem, Problem) else Problem(problem) for problem in (problems or [got])
        )
        super().__init__(expected=expected, got=got or _listed(self.problems), do=do, where=where, cause=cause)


class DataError(CclmError):
    """A record or shard that cannot be used; `reason` is the short word it is counted by."""

    def __init__(
        self, *, reason: str, expected: str, got: str, do: str, where: str = "", cause: Cause | None = None
    ) -> None:
        self.reason = reason
        super().__init__(expected=expected, got=got, do=do, where=where, cause=cause)


def _listed(problems: Sequence[str]) -> str:
    """One problem goes on in the sentence, several stand below each other."""
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems:\n" + "".join(f"  - {problem}\n" for problem in problems)


class CheckpointError(CclmError):
    """A checkpoint that is missing, incomplete, or does not fit."""


class MissingDependencyError(CclmError):
    """An optional library that is not installed; `do` holds the exact install command."""
