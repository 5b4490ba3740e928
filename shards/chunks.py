"""Sorted chunks: what reading a stretch of a corpus leaves on disk, sorted by where each record will stand in the set.

    PART-CHUNK.arrow     one row a unit, sorted by (order, key, position); not compressed, so a range is a slice
    PART-CHUNK.images    the images of the rows, one behind the other (image sets)
    PART-CHUNK.SKETCH    code, row; sorted by code: where duplicates of one another meet (if the recipe asks)

A **unit** is what the counts add up in: an image with its captions, or one sentence pair. A chunk is written once,
whole, by whoever reads that stretch; chunks are read by range, so no step of a build needs the whole set in memory.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cclm.files.atomic import publish, replace_bytes, temporary_path

RECORD, REFUSED, TEXT = 0, 1, 2
"""Kinds of rows: a unit; a unit that was refused; a caption that was taken from a unit that stays."""

UNIT_BITS: Final = 24
CHUNK_BITS: Final = 20
LAST_ORDER: Final = 2**64 - 1

_U64, _TEXT, _BYTES = pa.uint64(), pa.large_string(), pa.large_binary()
_COMMON: Final = [
    ("order", _U64), ("key", _TEXT), ("position", _U64), ("kind", pa.uint8()), ("label", pa.string()),
    ("line", _BYTES), ("exact", pa.binary()), ("near", pa.binary()),
]  # fmt: skip
_IMAGE: Final = [
    ("image_format", pa.string()), ("image_offset", pa.int64()), ("image_size", pa.int64()), ("document", _BYTES),
]  # fmt: skip
_PAIR: Final = [
    ("text_a", _TEXT), ("lang_a", pa.string()), ("text_b", _TEXT), ("lang_b", pa.string()),
    ("score", pa.float32()), ("source", pa.string()),
]  # fmt: skip
IMAGE_CHUNK_SCHEMA: Final = pa.schema([*_COMMON, *_IMAGE])
"""`label`: its languages, which sampling counts. `line`: what quarantine will say of a refused row. `exact`, `near`:
sketches of its content. `document`: the JSON member."""
TEXT_CHUNK_SCHEMA: Final = pa.schema([*_COMMON, *_PAIR])
"""The common columns, and the pair; `key` is its group."""
CODE_SCHEMA: Final = pa.schema([("code", _U64), ("row", pa.uint32())])
ROW_ORDER: Final = [("order", "ascending"), ("key", "ascending"), ("position", "ascending")]
"""In which rows of chunks are sorted."""


def order_of(key: str, seed: bytes) -> int:
    """Return a key's place in its set: the first 64 bits of a keyed hash."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), key=seed[:64]).digest()
    return int.from_bytes(digest[:8], "big")


def position_of(part: int, chunk: int, unit: int) -> int:
    """Return a unit's place in its corpus as one number."""
    assert part < 2 ** (64 - UNIT_BITS - CHUNK_BITS) and chunk < 2**CHUNK_BITS and unit < 2**UNIT_BITS
    return (part << (UNIT_BITS + CHUNK_BITS)) | (chunk << UNIT_BITS) | unit


class ChunkName(NamedTuple):
    """A chunk of a part."""

    part: int
    chunk: int

    def path(self, folder: Path, kind: str = "arrow") -> Path:
        """Where it lies in the folder of chunks; `kind`: "images", or a sketch ("exact", "near") for its codes."""
        return folder / f"{self.part:06d}-{self.chunk:06d}.{kind}"


def chunk_of(position: int) -> ChunkName:
    """Return the chunk that holds a position."""
    return ChunkName(*divmod(position >> UNIT_BITS, 2**CHUNK_BITS))


def list_chunks(folder: Path) -> list[ChunkName]:
    """Return the finished chunks, in the order of the corpus."""
    stems = [entry.name[:-6] for entry in os.scandir(folder) if entry.name.endswith(".arrow") and entry.name[0] != "."]
    return [ChunkName(part=int(stem[:6]), chunk=int(stem[7:])) for stem in sorted(stems)]


class ChunkWriter:
    """Collects the rows of a chunk, in one of the two schemas; images go to disk as they come, so memory holds one."""

    def __init__(self, folder: Path, name: ChunkName, schema: Any) -> None:
        self._folder, self._name, self._schema = folder, name, schema
        self._rows: list[Mapping[str, Any]] = []
        self._codes: dict[str, tuple[list[int], list[int]]] = {}  # with the number of each one's row
        self._images: Any = None
        if schema is IMAGE_CHUNK_SCHEMA:
            # The process in the name: a task that was started twice must not write into its own other file.
            process = f"{socket.gethostname()}.{os.getpid()}"
            self._temporary = temporary_path(name.path(folder, f"{process}.images"))
            self._images = self._temporary.open("wb")

    def add_image(self, image: bytes) -> int:
        """Append an image; return its offset."""
        offset: int = self._images.tell()
        self._images.write(image)
        return offset

    def add_row(self, row: Mapping[str, Any], codes: Mapping[str, Sequence[int]]) -> None:
        """Append a row (columns that are left out are null), and its codes by sketch."""
        for sketch, of_row in codes.items():
            all_codes, rows = self._codes.setdefault(sketch, ([], []))
            all_codes += of_row
            rows += [len(self._rows)] * len(of_row)
        self._rows.append(row)

    def finish(self, sketches: Sequence[str], facts: Mapping[str, int]) -> None:
        """Make the chunk, its codes by sketch and its counts (`chunk_facts`) durable, then visible; its table last."""
        if self._images is not None:
            self._images.flush()
            os.fsync(self._images.fileno())
            self._images.close()
            publish(self._temporary, self._name.path(self._folder, "images"))
        columns: dict[str, list[Any]] = {name: [row.get(name) for row in self._rows] for name in self._schema.names}
        table = pa.table(columns, schema=self._schema)
        places = pc.sort_indices(table, sort_keys=ROW_ORDER).to_numpy()
        rank = np.empty(len(places), dtype=np.uint32)
        rank[places] = np.arange(len(places), dtype=np.uint32)
        for sketch in sketches:
            write_sorted(self._name.path(self._folder, sketch), self._code_table(sketch, rank))
        described = table.take(pa.array(places)).replace_schema_metadata({k: str(v) for k, v in facts.items()})
        write_sorted(self._name.path(self._folder), described)

    def _code_table(self, sketch: str, rank: Any) -> Any:
        codes, numbers = self._codes.get(sketch, ([], []))
        table = pa.table([codes, rank[np.array(numbers, dtype=np.intp)]], schema=CODE_SCHEMA)
        return table.sort_by([("code", "ascending"), ("row", "ascending")])

    def abandon(self) -> None:
        """Remove what was written."""
        if self._images is not None:
            self._images.close()
            self._temporary.unlink(missing_ok=True)


def write_sorted(path: Path, table: Any) -> None:
    """Write a table as a file that `gather` reads; it must be sorted by its first column."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(use_threads=False)) as writer:
        writer.write_table(table.combine_chunks())
    replace_bytes(path, sink.getvalue(), durable=True)


@contextmanager
def mapped(path: Path) -> Iterator[Any]:
    """Open an Arrow file for reading without reading it; yields its one table. The file is closed afterwards."""
    with pa.memory_map(str(path)) as file:
        yield pa.ipc.open_file(file).read_all()


def chunk_facts(path: Path) -> dict[str, int]:
    """Return a chunk's counts."""
    with mapped(path) as table:
        return {name.decode(): int(value) for name, value in (table.schema.metadata or {}).items()}


def gather(paths: Sequence[Path], first: int, last: int, columns: Sequence[str], schema: Any) -> Any:
    """Return the rows of many sorted files whose first column lies in [`first`, `last`], in one table."""
    tables = [pa.schema([schema.field(column) for column in columns]).empty_table()]
    for path in paths:
        with mapped(path) as table:
            values = table.column(0).to_numpy()
            start = int(np.searchsorted(values, np.uint64(first), side="left"))
            stop = int(np.searchsorted(values, np.uint64(last), side="right"))
            # take() copies: a slice would keep the whole file mapped.
            rows = table.select(columns).take(pa.array(np.arange(start, stop)))
            tables.append(rows.replace_schema_metadata())
    return pa.concat_tables(tables).combine_chunks()
