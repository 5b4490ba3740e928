"""Errors for users: what was expected, what came, what to do."""

from __future__ import annotations

from functools import partial
from typing import Any


class CclmError(ValueError):
    """A user's mistake or a broken input, told in one sentence each: expected, got, do."""

    def __init__(self, *, expected: str, got: str, do: str, where: str = "") -> None:
        self.expected, self.got, self.do, self.where = expected, got, do, where
        place = f"{where}: " if where else ""
        super().__init__(f"{place}expected {expected}, got {got}. {do}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross process borders whole: pickle would hand the message to an __init__ that wants keywords."""
        return partial(type(self), **{name: value for name, value in vars(self).items() if name[0] != "_"}), ()


class ConfigError(CclmError):
    """A configuration that is wrong or contradicts itself."""


class DataError(CclmError):
    """A record or shard that cannot be used; `reason` is the short word it is counted by."""

    def __init__(self, *, reason: str, expected: str, got: str, do: str, where: str = "") -> None:
        self.reason = reason
        super().__init__(expected=expected, got=got, do=do, where=where)


class CheckpointError(CclmError):
    """A checkpoint that is missing, incomplete, or does not fit."""


class MissingDependencyError(CclmError):
    """An optional library that is not installed; `do` holds the exact install command."""
