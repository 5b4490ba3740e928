"""Records <-> bytes of tar members. Every broken input becomes a `DataError` with its own reason.

ImageTextRecord  <->  KEY.png|jpg|webp (unchanged) + KEY.json (canonical)
list[TextPair]   <->  KEY.arrow (Arrow IPC file, zstd, one record batch)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from cclm.errors import DataError
from cclm.shardfile import schema
from cclm.types import ImageTextRecord, Region, TextPair

_REPAIR = "Rebuild the shard from its corpus, or leave the record out."


def _refuse(reason: str, expected: str, got: str, where: str) -> NoReturn:
    raise DataError(reason=reason, expected=expected, got=got, do=_REPAIR, where=where)


def canonical_json(value: object) -> bytes:
    """Return the one UTF-8 form of a JSON value: sorted keys, no spaces, no escapes that are not needed."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return text.encode("utf-8")


def check_key(key: str, where: str = "") -> None:
    """Refuse a key that would not survive a WebDataset reader (reason key_bad)."""
    if not schema.KEY_PATTERN.fullmatch(key):
        _refuse("key_bad", "a key of 1 to 200 letters, digits, `_` or `-`", repr(key), where)


def check_image(image: bytes, image_format: str, where: str = "") -> None:
    """Refuse what does not begin and end as a file of a format (reasons image_empty, image_format, image_truncated)."""
    name = f"{image_format or ' or '.join(schema.IMAGE_FORMATS)} image"
    if not image:
        _refuse("image_empty", f"a {name}", "0 bytes", where)
    if not image_format or format_of(image) != image_format:
        _refuse("image_format", f"a {name}", f"{len(image)} bytes that begin {image[:8]!r}", where)
    if is_cut(image):
        _refuse("image_truncated", f"a whole {name}", f"{len(image)} bytes without its end", where)


def format_of(image: bytes) -> str:
    """Return "jpg", "png" or "webp" by the first bytes, "" for anything else."""
    if image.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else ""


def is_cut(image: bytes) -> bool:
    """Return whether a JPEG, PNG or WebP file ends before its end marker.

    What follows the marker is free: phones append videos, cameras notes, file systems zeros.
    """
    if image.startswith(b"\xff\xd8"):
        return image.rfind(b"\xff\xd9", first_scan(image)) < 0
    if image.startswith(b"\x89PNG"):
        return b"IEND\xaeB`\x82" not in image
    return image[:4] == b"RIFF" and len(image) < 8 + int.from_bytes(image[4:8], "little")


def first_scan(image: bytes) -> int:
    """Return where the pixels of a JPEG file begin: behind the segments of its head, which may hold a whole JPEG."""
    at = 2
    while image[at : at + 1] == b"\xff" and image[at + 1 : at + 2] != b"\xda":
        at += 2 + int.from_bytes(image[at + 2 : at + 4], "big")
    return at


def _check_captions(captions: object, where: str) -> dict[str, list[str]]:
    if not isinstance(captions, Mapping) or not captions:
        _refuse("json_field", "captions: a non-empty map from language to texts", repr(captions)[:80], where)
    checked: dict[str, list[str]] = {}
    for language, texts in captions.items():
        fine = isinstance(texts, Sequence) and not isinstance(texts, str) and texts
        if not fine or not all(isinstance(text, str) and text.strip() for text in texts):
            _refuse("json_field", f"captions of {language!r}: a list of non-empty texts", repr(texts)[:80], where)
        checked[str(language)] = list(texts)
    return checked


def encode_image_text(record: ImageTextRecord, where: str = "") -> list[tuple[str, bytes]]:
    """Return the members of a record as (extension, bytes): the image, unchanged, then the canonical JSON.
    DataError: reasons key_bad, image_empty, image_format, json_field, text_encoding."""
    where = where or f"record {record.key!r}"
    check_key(record.key, where)
    if record.image_format not in schema.IMAGE_FORMATS:
        _refuse("image_format", f"one of {', '.join(schema.IMAGE_FORMATS)}", repr(record.image_format), where)
    if not record.image:
        _refuse("image_empty", f"a {record.image_format} image", "0 bytes", where)
    document = {
        "captions": _check_captions(record.captions, where),
        "source": record.source,
        "licence": record.licence,
        "identity": record.identity,
        "ids": dict(record.ids),
        "regions": [_region_document(region, where) for region in record.regions],
    }
    try:
        return [(record.image_format, record.image), (schema.JSON_EXTENSION, canonical_json(document))]
    except UnicodeEncodeError as error:
        _refuse("text_encoding", "texts of whole Unicode characters", f"half a character ({error.reason})", where)
    except (TypeError, ValueError) as error:
        _refuse("json_field", "ids of text and boxes of finite numbers", str(error), where)


def _region_document(region: Region, where: str) -> dict[str, Any]:
    """Return a region as JSON; attributes only where there are some, so that older sets keep their bytes."""
    document: dict[str, Any] = {
        "box": list(region.box),
        "captions": _check_captions(region.captions, where),
    }
    if region.attributes:
        document["attributes"] = _check_captions(region.attributes, where)
    return document


def decode_image_text(key: str, image_format: str, image: bytes, document: bytes, where: str = "") -> ImageTextRecord:
    """Return the record of a sample's two members. Unknown JSON fields are ignored (a later version may add some).
    DataError: reasons image_missing (no image member), image_empty, json_broken, json_field."""
    where = where or f"record {key!r}"
    if not image_format:
        _refuse("image_missing", f"an image member ({', '.join(schema.IMAGE_FORMATS)})", "none", where)
    if not image:
        _refuse("image_empty", f"a {image_format} image", "0 bytes", where)
    fields = _parse_document(document, where)
    return ImageTextRecord(
        key=key,
        image=image,
        image_format=image_format,
        captions=_check_captions(fields.get("captions"), where),
        source=_text_field(fields, "source", where),
        licence=_text_field(fields, "licence", where),
        identity=_text_field(fields, "identity", where, default=""),
        ids=_check_ids(fields.get("ids", {}), where),
        regions=tuple(_parse_region(region, where) for region in fields.get("regions", ())),
    )


def _parse_document(document: bytes, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(document.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        _refuse("json_broken", "JSON in UTF-8", f"{len(document)} bytes that do not parse ({error})", where)
    if not isinstance(fields, dict):
        _refuse("json_broken", "a JSON object", type(fields).__name__, where)
    if not isinstance(fields.get("regions", []), list):
        _refuse("json_field", "regions: a list", repr(fields["regions"])[:80], where)
    return fields


def _text_field(fields: Mapping[str, Any], name: str, where: str, default: str | None = None) -> str:
    value = fields.get(name, default)
    if not isinstance(value, str):
        _refuse("json_field", f"{name}: a text", repr(value)[:80], where)
    return value


def _check_ids(ids: object, where: str) -> dict[str, str]:
    if not isinstance(ids, dict) or not all(isinstance(value, str) for value in ids.values()):
        _refuse("json_field", "ids: a map from text to text", repr(ids)[:80], where)
    return ids


def _parse_region(region: Any, where: str) -> Region:
    box = region.get("box") if isinstance(region, dict) else None
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(side, (int, float)) for side in box):
        _refuse("json_field", "a region with a box of four numbers", repr(region)[:80], where)
    x, y, width, height = map(float, box)
    attributes = region.get("attributes")
    return Region(
        box=(x, y, width, height),
        captions=_check_captions(region.get("captions"), where),
        attributes=_check_captions(attributes, where) if attributes else {},
    )


def check_group(pairs: Sequence[TextPair], where: str = "") -> None:
    """Refuse pairs that are not one group (reasons group_empty, group_mixed, text_empty, text_encoding)."""
    if not pairs:
        _refuse("group_empty", "at least one pair", "none", where)
    first = pairs[0]
    where = where or f"group {first.group!r}"
    for pair in pairs:
        if (pair.group, pair.text_a, pair.lang_a) != (first.group, first.text_a, first.lang_a):
            got = f"{pair.group!r}: {pair.text_a!r}"
            _refuse("group_mixed", "pairs that share group, text_a and lang_a", got, where)
        if not pair.text_a.strip() or not pair.text_b.strip():
            _refuse("text_empty", "two texts", f"{pair.text_a!r} and {pair.text_b!r} ({pair.lang_b})", where)
        try:
            (pair.text_a + pair.text_b).encode("utf-8")
        except UnicodeEncodeError as error:
            _refuse("text_encoding", "texts of whole Unicode characters", f"half a character ({error.reason})", where)


def encode_block(table: Any) -> bytes:
    """Return a table of pairs (the columns of PAIR_SCHEMA) as one Arrow IPC file: one record batch, zstd."""
    sink = pa.BufferOutputStream()
    # One thread: the order of compressed buffers, and so the bytes, must not depend on the machine.
    options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
    # A slice would be written with a few bytes of its neighbours as padding: `take` copies the rows alone.
    rows = table.take(pa.array(np.arange(table.num_rows))).cast(schema.PAIR_SCHEMA)
    with pa.ipc.new_file(sink, schema.PAIR_SCHEMA, options=options) as writer:
        writer.write_table(rows.combine_chunks())
    return bytes(sink.getvalue())


def decode_block(block: bytes, where: str = "") -> Any:
    """Return the pyarrow Table of a block (reasons block_broken: not readable, block_schema: other columns)."""
    try:
        table = pa.ipc.open_file(pa.BufferReader(block)).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        _refuse("block_broken", "an Arrow IPC file", f"{len(block)} bytes that do not parse ({error})", where)
    if not table.schema.equals(schema.PAIR_SCHEMA):
        _refuse("block_schema", f"columns {schema.PAIR_SCHEMA.names}", f"{table.schema.names}", where)
    return table


def pairs_of(table: Any) -> list[TextPair]:
    """Return the rows of a (slice of a) block as records.

    Languages and sources are shared objects, and a record is filled without its `__init__`: on a frozen dataclass that
    takes five times as long as everything else here.
    """
    columns: list[list[Any]] = [table[name].to_pylist() for name in _PAIR_FIELDS]
    for index in _REPEATED:
        columns[index] = list(map(sys.intern, columns[index]))
    pairs = []
    for row in zip(*columns, strict=True):
        pair = object.__new__(TextPair)
        own = pair.__dict__
        own["text_a"], own["lang_a"], own["text_b"], own["lang_b"], own["source"], own["group"], own["score"] = row
        pairs.append(pair)
    return pairs


_PAIR_FIELDS = tuple(field.name for field in fields(TextPair))
_REPEATED = [_PAIR_FIELDS.index(name) for name in ("lang_a", "lang_b", "source")]
