"""Names, columns and versions of the shard format. The prose is in docs/shard-format.md; this file is its alphabet."""

from __future__ import annotations

import re
from typing import Final

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

JSON_EXTENSION: Final = "json"
BLOCK_EXTENSION: Final = "arrow"
IMAGE_FORMATS: Final = ("jpg", "png", "webp")
"""The extensions an image member may have; they say how it is encoded."""

KEY_PATTERN: Final = re.compile(r"[\w-]{1,200}")
"""Letters, digits, `_`, `-`. A dot would end a WebDataset key, a slash would make a folder."""

FIELD_CAPTIONS: Final = "captions"
FIELD_SOURCE: Final = "source"
FIELD_LICENCE: Final = "licence"
FIELD_IDENTITY: Final = "identity"
FIELD_IDS: Final = "ids"
FIELD_REGIONS: Final = "regions"
FIELD_ATTRIBUTES: Final = "attributes"
FIELD_BOX: Final = "box"

PAIR_SCHEMA: Final = pa.schema(
    [
        pa.field("text_a", pa.string(), nullable=False),
        pa.field("lang_a", pa.string(), nullable=False),
        pa.field("text_b", pa.string(), nullable=False),
        pa.field("lang_b", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=True),
        pa.field("source", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
    ]
)
"""One row of a text block: a sentence and its translation."""

IMAGE_INDEX_SCHEMA: Final = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("image_format", pa.string(), nullable=False),
        pa.field("image_offset", pa.int64(), nullable=False),
        pa.field("image_size", pa.int64(), nullable=False),
        pa.field("image_crc32", pa.uint32(), nullable=False),
        pa.field("json_offset", pa.int64(), nullable=False),
        pa.field("json_size", pa.int64(), nullable=False),
        pa.field("json_crc32", pa.uint32(), nullable=False),
    ]
)
"""One row a sample. `offset` is that of the first member's header, the others are those of the members' data."""

TEXT_INDEX_SCHEMA: Final = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("block_offset", pa.int64(), nullable=False),
        pa.field("block_size", pa.int64(), nullable=False),
        pa.field("block_crc32", pa.uint32(), nullable=False),
        pa.field("row_start", pa.int64(), nullable=False),
        pa.field("num_rows", pa.int64(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
    ]
)
"""One row a group (a text sample): the block that holds it, and its rows inside the block. `key` is the block's."""
