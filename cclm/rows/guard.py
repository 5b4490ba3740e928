"""The net under every reader: whatever an input raises becomes a reason with its place; no input ends a run.

What the machine lacks (disk, memory, open files) and what a recipe gets wrong is not the input's fault and passes
through: a record that is refused for it would be lost from the set for good.
"""

from __future__ import annotations

import errno
import importlib
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from reprlib import Repr
from types import TracebackType
from typing import Any, Final, NoReturn, TypeVar

import pyarrow as pa

from cclm.errors import CclmError, ConfigError, DataError, MissingDependencyError

Entry = TypeVar("Entry")

MEND: Final = "Correct the data, or leave it out."
_MACHINE: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE}
    | {errno.ENOMEM, errno.EIO, errno.ESTALE}
)
_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")
_FOLDERS: Final = re.compile(r"(?<![\w.])/(?:[\w.+@~-]+/)+")
_MESSAGE_CHARACTERS: Final = 200


def data_error(error: Exception, where: str, reason: str = "unexpected", expected: str = "sound data") -> DataError:
    """Return what an exception says about the data at a place, the same words in each run.

    Raise `error` itself where the data is not to blame.
    """
    if isinstance(error, DataError):
        if error.where:
            return error
        told = {name: getattr(error, name) for name in ("reason", "expected", "got", "do")}
        return type(error)(**told, where=where)
    is_arrow = isinstance(error, pa.ArrowException)  # a damaged length also raises ArrowMemoryError
    if isinstance(error, CclmError) or (isinstance(error, MemoryError) and not is_arrow):
        raise error
    if isinstance(error, OSError) and error.errno in _MACHINE:
        raise error
    return DataError(reason=reason, expected=expected, got=described(error), do=MEND, where=where)


def described(error: BaseException) -> str:
    """Return an exception in words without what differs from run to run: addresses in memory, paths."""
    message = (error.strerror if isinstance(error, OSError) else None) or str(error)
    plain = " ".join(_FOLDERS.sub("", without_addresses(message)).split())[:_MESSAGE_CHARACTERS]
    return f"{type(error).__name__}: {plain}" if plain else type(error).__name__


def without_addresses(message: str) -> str:
    """Return a message without addresses in memory ("<_io.BytesIO object at 0x7f96…>")."""
    return _ADDRESS.sub("", message)


def whole(text: str) -> str:
    """Return a text in which a lone surrogate, as broken corpora have it, is a question mark: it cannot be stored."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def mistaken(expected: str, got: str, do: str, where: object = "") -> NoReturn:
    """Raise the ConfigError of a recipe that does not fit its files: that ends a run before it begins."""
    raise ConfigError(expected=expected, got=got, do=do, where=str(where))


def optional_library(name: str, purpose: str, package: str = "", do: str = "") -> Any:
    """Return a library that not every installation has, or raise a MissingDependencyError (`do`: how to install it)."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = package or name.partition(".")[0]
        do = do or f"pip install {package}"
        raise MissingDependencyError(
            expected=f"the package {package} ({purpose})", got="no such package", do=do
        ) from error


def data_errors(where: str, reason: str = "unexpected", expected: str = "sound data") -> AbstractContextManager[None]:
    """Turn whatever the block raises into a DataError (see `data_error`)."""
    return _Net(where, reason, expected)


class _Net:
    """A class, because every record of a corpus has one: a generator costs three times as much."""

    __slots__ = ("_told",)

    def __init__(self, *told: str) -> None:
        self._told = told

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            raise data_error(error, *self._told) from error


class _Short(Repr):
    """repr() of anything, short, however large, deep or odd the value is."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxtuple = 3, 6, 6, 6
        self.maxstring = self.maxother = 80

    def repr_bytes(self, value: bytes, level: int) -> str:
        return repr(value[:40]) + ("…" if len(value) > 40 else "")

    def repr_int(self, value: int, level: int) -> str:
        return repr(value) if abs(value) < 10**40 else "a whole number of more than 40 digits"


def shown(value: Any, length: int = 80) -> str:
    """Return the beginning of a value, for a message."""
    text = without_addresses(_Short().repr(value))
    return text if len(text) <= length else f"{text[:length]}…"


def bad(reason: str, expected: str, got: str, where: str = "", do: str = MEND) -> DataError:
    """Return the error of an entry; `each` knows its place."""
    return DataError(reason=reason, expected=expected, got=got, do=do, where=where)


def refuse(reason: str, expected: str, got: str, where: str = "", do: str = MEND) -> NoReturn:
    """Raise the error that sends an entry to quarantine."""
    raise bad(reason, expected, got, where, do)


def guarded(name: str, numbered: Iterable[tuple[object, Entry]]) -> Iterator[tuple[str, Entry | DataError]]:
    """Yield ("NAME:NUMBER", entry) of a file; whatever reading it raises ends it with one error (reason file_broken).

    How many records are lost with the rest of the file cannot be known.
    """
    number: Any = 0
    try:
        with data_errors(name):
            for number, entry in numbered:
                yield f"{name}:{number}", entry
    except DataError as error:
        if error.reason == "unexpected":
            expected = f"a whole file; it was read up to entry {number}"
            error = bad("file_broken", expected, error.got, name, "Fetch the file again.")
        yield f"{name}:{number + 1}-end", error
