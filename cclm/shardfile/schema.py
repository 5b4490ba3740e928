"""Names, columns, versions and tar bytes of the shard format, whose prose is in docs/shard-format.md.

Equal members give equal bytes: a header is ustar; only a name that ustar cannot hold (over 100 bytes, or not ASCII)
gets a pax header before it, and every tar reader, `webdataset` included, understands both.
"""

from __future__ import annotations

import re
import tarfile
from typing import Final, NamedTuple, get_type_hints

import pyarrow as pa

FORMAT: Final = "cclm-shards"
FORMAT_VERSION: Final = 1
"""Raised when a reader of the old version would read wrong data; added fields do not raise it."""

MANIFEST_NAME: Final = "manifest.json"
QUARANTINE_NAME: Final = "quarantine.jsonl"
QUARANTINE_HASH: Final = "quarantine_sha256"
"""Where a manifest's `config` holds the hash of the set's quarantine."""
TAR_SUFFIX: Final = ".tar"
INDEX_SUFFIX: Final = ".index.arrow"

TAR_BLOCK_BYTES: Final = 512
TAR_RECORD_BYTES: Final = 20 * TAR_BLOCK_BYTES
"""A tar's length is a multiple of this; GNU tar and Python write it so, and some readers insist."""

JSON_EXTENSION: Final = "json"
BLOCK_EXTENSION: Final = "arrow"
IMAGE_FORMATS: Final = ("jpg", "png", "webp")
"""The extensions an image member may have; they say how it is encoded."""

KEY_PATTERN: Final = re.compile(r"[\w-]{1,200}")
"""Letters, digits, `_`, `-`. A dot would end a WebDataset key, a slash would make a folder."""


def _table(**columns: pa.DataType) -> pa.Schema:
    """Return columns of which only the score of a pair may be missing."""
    return pa.schema([pa.field(name, kind, nullable=name == "score") for name, kind in columns.items()])


PAIR_SCHEMA: Final = _table(
    text_a=pa.string(),
    lang_a=pa.string(),
    text_b=pa.string(),
    lang_b=pa.string(),
    score=pa.float32(),
    source=pa.string(),
    group=pa.string(),
)
"""One row of a text block: a sentence and its translation."""


class ImageEntry(NamedTuple):
    """One row of an image-text index, a sample: where it lies in the tar, and checksums."""

    key: str
    offset: int
    """Of the first member's header; the other offsets are those of the members' data."""
    image_format: str
    image_offset: int
    image_size: int
    image_crc32: int
    json_offset: int
    json_size: int
    json_crc32: int


class TextEntry(NamedTuple):
    """One row of a text index, a group: the block that holds it, and its rows inside the block."""

    key: str
    """The block's."""
    offset: int
    """Of the block's header; `block_offset` is that of its data."""
    block_offset: int
    block_size: int
    block_crc32: int
    row_start: int
    num_rows: int
    group: str


def _index_schema(entry: type[tuple[str | int, ...]]) -> pa.Schema:
    """Return the columns of an entry: checksums have 32 bits, other numbers 64."""
    kinds = {str: pa.string(), int: pa.int64()}
    hints = get_type_hints(entry).items()
    return _table(**{name: pa.uint32() if name.endswith("crc32") else kinds[kind] for name, kind in hints})


IMAGE_INDEX_SCHEMA: Final = _index_schema(ImageEntry)
TEXT_INDEX_SCHEMA: Final = _index_schema(TextEntry)


def member_header(name: str, size: int) -> bytes:
    """Return the header of a file member with `size` bytes of data: mode 0644, no owner, time 0."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def padding(size: int) -> bytes:
    """Return the zeros that fill a member's data of `size` bytes up to the next block."""
    return bytes(-size % TAR_BLOCK_BYTES)


def trailer(size: int) -> bytes:
    """Return what ends a tar whose members take `size` bytes: two zero blocks, then zeros to a whole record."""
    return bytes(2 * TAR_BLOCK_BYTES + -(size + 2 * TAR_BLOCK_BYTES) % TAR_RECORD_BYTES)
