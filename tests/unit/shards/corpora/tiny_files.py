"""Pictures of a few pixels, and what becomes of a corpus's entries."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

from cclm.errors import DataError
from shards.corpora.table import corpus_of
from shards.parts import LazyRecord, Skipped


def picture(width: int = 8, height: int = 6, colour: int = 0, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (colour % 256, 100, 200)).save(buffer, kind)
    return buffer.getvalue()


def late_iccp() -> bytes:
    """Return a PNG with a colour profile of two bytes behind its pixels, at which Pillow stumbles."""
    plain = picture(kind="PNG")
    chunk = b"iCCPa\0"
    broken = struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk))
    end = plain.index(b"IEND") - 4
    return plain[:end] + broken + plain[end:]


def write_pictures(folder: Path, names: list[str], width: int = 8, height: int = 6) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(width, height, number))
    return folder


def made_and_refused(corpus: Any) -> Any:
    """Make every lazy of a corpus, in parts that went through pickle as they do on their way to a worker."""
    made, refused, keys = [], [], Counter()
    for part in corpus.parts():
        for lazy in pickle.loads(pickle.dumps(part)).read():
            if not isinstance(lazy, LazyRecord):
                continue
            keys[lazy.key] += 1
            try:
                made.append(pickle.loads(pickle.dumps(lazy)).make())
            except DataError as error:
                refused.append(error)
    return made, refused


def build(name: str, **options: Any) -> Any:
    """Make a corpus as a recipe does: from plain YAML values."""
    made, refused = made_and_refused(corpus_of(name, options))
    return made, dict(Counter(error.reason for error in refused))


def rows_skipped(name: str, **options: Any) -> Any:
    """Return the rows that a corpus skips, by source and language."""
    skipped = Counter()
    for part in corpus_of(name, options).parts():
        for item in part.read():
            if isinstance(item, Skipped):
                skipped.update({(item.source, language): number for language, number in item.rows.items()})
    return dict(skipped)


def pairs_of(made: Any) -> Any:
    return [(p.lang_a, p.text_a, p.lang_b, p.text_b) for group in made for p in group]
