r"""Lines of files, compressed or not: they end at \n (or \r\n) only, are UTF-8, and no longer than LINE_BYTES."""

from __future__ import annotations

import io
import itertools
import lzma
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, Final, TypeVar, cast

import pyarrow as pa

from cclm.errors import DataError
from cclm.rows.guard import bad, guarded, mistaken

Entry = TypeVar("Entry")

COMPRESSIONS: Final = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4", ".xz": "xz"}
"""Suffix -> name of the compression; such files are read without being unpacked to disk."""
LINE_BYTES: Final = 16 << 20
"""Longer lines are refused: no table has them, and a zip bomb has nothing else."""
_LONGEST_SKIPPED: Final = 64
"""So many times LINE_BYTES are read in search of the end of a line that is too long."""

_BEGINNING_BYTES: Final = 1 << 16
"""Of a line that may hold an image."""
_BEGINNINGS: Final = {
    b"\xff\xfe\0\0": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd", b"PAR1": "Parquet",
}  # fmt: skip
"""First bytes of files that are no UTF-8 text, whatever their name says."""


def unpacked(path: Path) -> Path:
    """Return a file's name without the suffix of its compression: "a.en-de.TSV" for "a.en-de.TSV.gz"."""
    return Path(path.stem if path.suffix.lower() in COMPRESSIONS else path.name)


def plain_suffix(path: Path) -> str:
    """Return a file's suffix without that of its compression: ".tsv" for "a.en-de.TSV.gz"."""
    return unpacked(path).suffix.lower()


def plain_stem(path: Path) -> str:
    """Return a file's name without its suffixes of compression and format: "a.en-de" for "a.en-de.TSV.gz"."""
    return unpacked(path).stem


def open_plain(path: Path, member: str = "") -> BinaryIO:
    """Open a file, or a member of a zip, for reading, decompressed as it is read (reason file_broken: it cannot be)."""
    if member:
        return _open_member(path, member)
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression is None:
        return path.open("rb")
    if compression == "xz":
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, lzma.open(path))))
    return io.BufferedReader(pa.input_stream(str(path), compression=compression))


def _open_member(path: Path, member: str) -> BinaryIO:
    """Open a file in a zip, unless it has a password or a compression that Python has not (Deflate64)."""
    with zipfile.ZipFile(path) as archive:  # its file stays open until the member is closed
        try:
            return cast(BinaryIO, io.BufferedReader(archive.open(member)))
        except (NotImplementedError, RuntimeError) as error:
            names: Mapping[int, str] = zipfile.compressor_names  # type: ignore[attr-defined]
            kind = names.get(archive.getinfo(member).compress_type, "an unknown compression")
            got = "one with a password" if isinstance(error, RuntimeError) and "password" in str(error) else kind
            raise bad("file_broken", "a zip by deflate, bzip2 or LZMA", got, do="Pack it again with `zip`.") from error


def members_of(path: Path) -> list[str]:
    """Return the names of the files in a zip; [""] for another file."""
    if path.suffix.lower() != ".zip":
        return [""]
    with zipfile.ZipFile(path) as archive:
        return [info.filename for info in archive.infolist() if not info.is_dir()]


def raw_lines(file: BinaryIO) -> Iterator[bytes | DataError]:
    """Yield the lines of a text with their ends, without a byte-order mark (reason file_encoding: another kind)."""
    begun = cast(io.BufferedReader, file).peek(8)[:8]
    for beginning, kind in _BEGINNINGS.items():
        if begun.startswith(beginning):
            got, do = f"{kind} by its first bytes", "Convert it, or rename it."
            raise bad("file_encoding", "a text in UTF-8", got, do=do)
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
            raise bad("file_broken", f"lines of at most {LINE_BYTES >> 20} MiB", "one that does not end")
        yield bad("line_broken", f"a line of at most {LINE_BYTES >> 20} MiB", "a longer one")


def read_lines(file: BinaryIO) -> Iterator[str | DataError]:
    """Yield the lines of a text without their ends."""
    for line in raw_lines(file):
        yield line if isinstance(line, DataError) else _decoded(line)


def _decoded(line: bytes) -> str | DataError:
    if b"\0" in line:
        return bad("line_broken", "a line in UTF-8", f"a NUL at {line.index(0)}, as UTF-16 has them")
    try:
        return line.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        return bad("line_broken", "a line in UTF-8", f"the byte 0x{byte:02x} at {error.start} ({error.reason})")


def numbered_lines(path: Path) -> Iterator[tuple[int, str | DataError]]:
    """Yield (number from 1, line)."""
    with open_plain(path) as file:
        yield from enumerate(read_lines(file), 1)


def parsed_lines(
    path: Path, parse: Callable[[str], Entry | DataError], first: int = 1
) -> Iterator[tuple[int, Entry | DataError]]:
    """Yield (number, `parse(line)`) of the lines from the `first` on that are not blank; broken ones are errors."""
    for number, line in numbered_lines(path):
        if isinstance(line, DataError):
            yield number, line
        elif number >= first and line.strip():
            yield number, parse(line)


def aligned_lines(files: Sequence[tuple[str, Path, str]]) -> Iterator[tuple[int, list[str] | DataError]]:
    """Yield (number from 1, line n of every file); lines that only some have are errors (reason line_unmatched).

    Args:
        files: (name for messages, file, member if it is a zip).
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(open_plain(path, member)) for _, path, member in files]
        for number, lines in enumerate(itertools.zip_longest(*map(read_lines, opened)), 1):
            if None in lines:
                expected = f"as many lines in {' as in '.join(name for name, *_ in files)}"
                yield number, bad("line_unmatched", expected, f"none in {files[lines.index(None)][0]}")
            else:
                broken = next((line for line in lines if isinstance(line, DataError)), None)
                yield number, broken or list(cast(Sequence[str], lines))


def sound_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file that a recipe needs whole (ConfigError: one is not UTF-8, or it cannot be read)."""
    for place, line in guarded(str(path), numbered_lines(path)):
        if isinstance(line, DataError):
            mistaken(line.expected, line.got, "Correct the file, or leave it out of the recipe.", line.where or place)
        yield line


def lines_in(path: Path, start: int = 0, stop: int = sys.maxsize) -> Iterator[tuple[int, bytes, int]]:
    """Yield (offset, beginning, bytes) of the lines that begin in a piece of a file; images in them are not held."""
    with path.open("rb") as file:
        if start:
            file.seek(start - 1)
            _skip_line(file)
        while (offset := file.tell()) < stop and (beginning := file.readline(_BEGINNING_BYTES)):
            if not beginning.endswith(b"\n"):
                _skip_line(file)
            yield offset, beginning, file.tell() - offset


def _skip_line(file: IO[bytes]) -> None:
    while (piece := file.readline(LINE_BYTES)) and not piece.endswith(b"\n"):
        pass
