r"""Lines of files, compressed or not: they end at \n (or \r\n) only, are UTF-8, and no longer than LINE_BYTES."""

from __future__ import annotations

import io
import itertools
import lzma
import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, Final, cast

import pyarrow as pa

from cclm.errors import ConfigError, DataError
from shards.guard import MEND, data_error, data_errors

COMPRESSIONS: Final = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4", ".xz": "xz"}
"""Suffix -> name of the compression; such files are read without being unpacked to disk."""
LINE_BYTES: Final = 16 << 20
"""Longer lines are refused: no table has them, and a zip bomb has nothing else."""
_LONGEST_SKIPPED: Final = 64
"""So many times LINE_BYTES are read in search of the end of a line that is too long."""

_BEGINNINGS: Final = {
    b"\xff\xfe\0\0": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd", b"PAR1": "Parquet",
}  # fmt: skip
"""First bytes of files that are no UTF-8 text, whatever their name says."""


def open_plain(path: Path) -> BinaryIO:
    """Open a file for reading, decompressed as it is read."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression is None:
        return path.open("rb")
    if compression == "xz":
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, lzma.open(path))))
    return io.BufferedReader(pa.input_stream(str(path), compression=compression))


def raw_lines(file: BinaryIO) -> Iterator[bytes | DataError]:
    """Yield the lines of a text with their ends; without a byte-order mark.

    Raises:
        DataError: reason file_encoding, when the first bytes are those of another kind of file.
    """
    begun = cast(io.BufferedReader, file).peek(8)[:8]
    for beginning, kind in _BEGINNINGS.items():
        if begun.startswith(beginning):
            raise _bad("file_encoding", "a text in UTF-8", f"{kind} by its first bytes", "Convert it, or rename it.")
    if begun.startswith(b"\xef\xbb\xbf"):
        file.read(3)
    for line in iter(partial(file.readline, LINE_BYTES), b""):
        if len(line) < LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        for _ in range(_LONGEST_SKIPPED):
            rest = file.readline(LINE_BYTES)
            if not rest or rest.endswith(b"\n"):
                break
        else:
            raise _bad("file_broken", f"lines of at most {LINE_BYTES >> 20} MiB", "one that does not end")
        yield _bad("line_broken", f"a line of at most {LINE_BYTES >> 20} MiB", "a longer one")


def decoded(line: bytes) -> str | DataError:
    """Return a line without its end, or why it is none."""
    if b"\0" in line:
        return _bad("line_broken", "a line in UTF-8", f"a NUL at {line.index(0)}, as UTF-16 has them")
    try:
        return line.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        return _bad("line_broken", "a line in UTF-8", f"the byte 0x{byte:02x} at {error.start} ({error.reason})")


def read_lines(file: BinaryIO) -> Iterator[str | DataError]:
    """Yield the lines of a text without their ends."""
    for line in raw_lines(file):
        yield decoded(line) if isinstance(line, bytes) else line


def numbered_lines(path: Path) -> Iterator[tuple[int, str | DataError]]:
    """Yield (number from 1, line)."""
    with open_plain(path) as file:
        yield from enumerate(read_lines(file), 1)


def aligned_lines(files: Sequence[BinaryIO], names: Sequence[str]) -> Iterator[tuple[int, list[str] | DataError]]:
    """Yield (number from 1, line n of every file); lines that only some have are errors (reason line_unmatched)."""
    for number, lines in enumerate(itertools.zip_longest(*map(read_lines, files)), 1):
        if None in lines:
            got = f"none in {names[lines.index(None)]}"
            yield number, _bad("line_unmatched", f"as many lines in {' as in '.join(names)}", got)
        else:
            bad = next((line for line in lines if isinstance(line, DataError)), None)
            yield number, bad or list(cast(Sequence[str], lines))


def sound_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file that a recipe needs whole: a list of words, a benchmark's sentences.

    Raises:
        ConfigError: a line is not UTF-8, or the file cannot be read.
    """
    try:
        with data_errors(str(path)):
            for number, line in numbered_lines(path):
                if isinstance(line, DataError):
                    raise data_error(line, f"{path}:{number}")
                yield line
    except DataError as error:
        do = "Correct the file, or leave it out of the recipe."
        raise ConfigError(expected=error.expected, got=error.got, do=do, where=error.where) from error


def open_member(archive: zipfile.ZipFile, name: str) -> BinaryIO:
    """Open a file in a zip.

    Raises:
        DataError: reason file_broken, for a compression that Python does not have (Deflate64), or a password.
    """
    try:
        return cast(BinaryIO, io.BufferedReader(archive.open(name)))
    except (NotImplementedError, RuntimeError) as error:
        kind = zipfile.compressor_names.get(archive.getinfo(name).compress_type, "an unknown compression")  # type: ignore[attr-defined]
        got = "one with a password" if isinstance(error, RuntimeError) and "password" in str(error) else kind
        raise _bad("file_broken", "a zip by deflate, bzip2 or LZMA", got, "Pack it again with `zip`.") from error


def _bad(reason: str, expected: str, got: str, do: str = MEND) -> DataError:
    return DataError(reason=reason, expected=expected, got=got, do=do)


def line_ranges(path: Path, part_bytes: int) -> list[tuple[int, int]]:
    """Return (start, stop) of pieces of a file that is not compressed; a piece holds the lines that begin in it."""
    size = path.stat().st_size
    return [(start, min(start + part_bytes, size)) for start in range(0, max(size, 1), part_bytes)]


def lines_in(path: Path, start: int, stop: int) -> Iterator[tuple[int, bytes, int]]:
    """Yield (offset, beginning, bytes) of the lines that begin in a piece of a file; images in them are not held."""
    with path.open("rb") as file:
        file.seek(max(start - 1, 0))
        offset = start if start == 0 else start - 1 + _skip_line(file)
        file.seek(offset)
        while offset < stop and (beginning := file.readline(_BEGINNING_BYTES)):
            size = len(beginning) + (0 if beginning.endswith(b"\n") else _skip_line(file))
            yield offset, beginning, size
            offset += size


_BEGINNING_BYTES: Final = 1 << 16


def _skip_line(file: IO[bytes]) -> int:
    """Read to the end of a line; return how many bytes that were."""
    size = 0
    while piece := file.readline(LINE_BYTES):
        size += len(piece)
        if piece.endswith(b"\n"):
            break
    return size
