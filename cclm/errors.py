"""Errors for users: what was expected, what came, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

LINE_END = "\n"
"""Several problems end with it: what to do then stands below them."""


class CclmError(ValueError):
    """A user's mistake or a broken input, told in one sentence each: expected, got, do."""

    def __init__(self, *, expected: str, got: str, do: str, where: str = "") -> None:
        self.expected, self.got, self.do, self.where = expected, got, do, where
        place = f"{where}: " if where else ""
        super().__init__(f"{place}expected {expected}, got {got}{'' if got.endswith(LINE_END) else '. '}{do}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross process borders whole: pickle would hand the message to an __init__ that wants keywords."""
        return partial(type(self), **{name: value for name, value in vars(self).items() if name[0] != "_"}), ()


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

    def __init__(self, *, expected: str, got: str = "", do: str, where: str = "", problems: Sequence[str] = ()) -> None:
        """Take one problem as `got`, or several as `problems`."""
        self.problems = tuple(
            problem if isinstance(problem, Problem) else Problem(problem) for problem in (problems or [got])
        )
        super().__init__(expected=expected, got=got or _listed(self.problems), do=do, where=where)


class DataError(CclmError):
    """A record or shard that cannot be used; `reason` is the short word it is counted by."""

    def __init__(self, *, reason: str, expected: str, got: str, do: str, where: str = "") -> None:
        self.reason = reason
        super().__init__(expected=expected, got=got, do=do, where=where)


def _listed(problems: Sequence[str]) -> str:
    """One problem goes on in the sentence, several stand below each other."""
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems:\n" + "".join(f"  - {problem}{LINE_END}" for problem in problems)


class CheckpointError(CclmError):
    """A checkpoint that is missing, incomplete, or does not fit."""


class MissingDependencyError(CclmError):
    """An optional library that is not installed; `do` holds the exact install command."""
