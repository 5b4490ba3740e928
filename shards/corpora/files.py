"""Files of a corpus: which there are, what they are called, and their lines, compressed or not."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Final

import pyarrow as pa

from cclm.errors import ConfigError

COMPRESSIONS: Final = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
"""Suffix -> pyarrow's name of the compression; such files are read without being unpacked to disk."""

BROKEN_STREAM: Final = (OSError, EOFError, pa.ArrowInvalid)
"""What a compressed or columnar file raises where it is cut off or damaged."""


def named_files(paths: Path | Sequence[Path], suffixes: Sequence[str]) -> dict[str, Path]:
    """Return name -> file for files, folders (all files below with such a suffix) and patterns (`part-*.tsv.gz`).

    No suffixes: every file whose name does not begin with "." or "_" (as in "_SUCCESS"). A name is as short as it
    can be while it differs from the others: the same wherever the corpus lies. Sorted by path.

    Raises:
        ConfigError: a path holds no such file.
    """
    listed = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    found: set[Path] = set()
    for path in listed:
        files = {path} if path.is_file() else set(_files_at(path, suffixes))
        if not files:
            got = "a folder without one" if path.is_dir() else "no such file"
            raise ConfigError(
                expected=f"a file that ends in {', '.join(suffixes)}" if suffixes else "a file",
                got=got,
                do="Correct the path.",
                where=str(path),
            )
        found |= files
    return _short_names(sorted(found, key=lambda path: path.parts))


def files_by_language(captions: Mapping[str, Path | Sequence[Path]], suffixes: Sequence[str]) -> list[tuple[str, Path]]:
    """Return (language, file) for every file of every language; see `named_files`."""
    return [(language, path) for language, paths in captions.items() for path in named_files(paths, suffixes).values()]


def _files_at(path: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    candidates = path.rglob("*") if path.is_dir() else path.parent.glob(path.name)
    for candidate in candidates:
        fits = plain_suffix(candidate) in suffixes if suffixes else not candidate.name.startswith("_")
        if fits and candidate.is_file() and not candidate.name.startswith("."):
            yield candidate


def _short_names(paths: Sequence[Path]) -> dict[str, Path]:
    names: dict[Path, str] = {}
    for length in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        endings = Counter(path.parts[-length:] for path in paths)
        names |= {
            path: "/".join(path.parts[-length:])
            for path in paths
            if path not in names and endings[path.parts[-length:]] == 1
        }
    return {names[path]: path for path in paths}


def plain_suffix(path: Path) -> str:
    """Return a file's suffix without that of its compression: ".tsv" for "a.tsv.gz"."""
    return (Path(path.stem) if path.suffix in COMPRESSIONS else path).suffix.lower()


def plain_stem(path: Path) -> str:
    """Return a file's name without its suffixes of compression and format: "a.en-de" for "a.en-de.tsv.gz"."""
    return Path(path.stem).stem if path.suffix in COMPRESSIONS else path.stem


def open_plain(path: Path) -> BinaryIO:
    """Open a file for reading, decompressed as it is read.

    Raises:
        ConfigError: it cannot be opened.
    """
    try:
        if path.suffix not in COMPRESSIONS:
            return path.open("rb")
        return io.BufferedReader(pa.input_stream(str(path), compression=COMPRESSIONS[path.suffix]))
    except OSError as error:
        raise ConfigError(
            expected="a readable file", got=error.strerror or str(error), do="Correct the path.", where=str(path)
        ) from error


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes | OSError | EOFError]]:
    r"""Yield (number from 1, line without its `\n` or `\r\n`); a file that breaks off ends with what it raised.

    Lines end at `\n` only: captions may hold `\r`, U+2028 and other things that `splitlines` would split at.
    """
    number = 0
    with open_plain(path) as file:
        try:
            for number, line in enumerate(file, 1):
                yield number, line.removesuffix(b"\n").removesuffix(b"\r")
        except (OSError, EOFError) as error:
            yield number + 1, error


def line_ranges(path: Path, part_bytes: int) -> list[tuple[int, int]]:
    """Return (start, stop) of pieces of a file that is not compressed; a piece holds the lines that begin in it."""
    size = path.stat().st_size
    return [(start, min(start + part_bytes, size)) for start in range(0, max(size, 1), part_bytes)]


def lines_in(path: Path, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, line with its end) of the lines that begin in a piece of a file."""
    with open_plain(path) as file:
        file.seek(max(start - 1, 0))
        offset = start if start == 0 else start - 1 + len(file.readline())
        while offset < stop and (line := file.readline()):
            yield offset, line
            offset += len(line)
