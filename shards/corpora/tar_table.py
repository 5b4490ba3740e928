"""A tar of pictures and the table beside it: what img2dataset writes, and `python -m shards download`.

00000.tar       000000000.jpg, 000000000.json, 000000000.txt, …
00000.parquet   one row a URL: key, url, status, error_message, caption, …; failures have a row and no picture
"""

from __future__ import annotations

import tarfile
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from shards.corpora.picture import LoadImage, load_span
from shards.corpora.refusal import refuse
from shards.corpora.rows import BadRow, read_rows

SUCCESS: Final = "success"
_EXTENSIONS: Final = frozenset({"jpg", "jpeg", "png", "webp"})


def tar_spans(path: Path) -> tuple[dict[str, tuple[int, int]], str]:
    """Return key -> (offset, bytes) of the pictures in a tar, and what is wrong with it; only headers are read."""
    spans: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                key, _, extension = member.name.rsplit("/", 1)[-1].partition(".")
                if extension.lower() in _EXTENSIONS:
                    spans[key] = (member.offset_data, member.size)
    except (OSError, tarfile.TarError, EOFError) as error:
        return spans, f"{path.name}: {error}"
    return spans, ""


def table_rows(table: Path, needed: Collection[str]) -> Iterator[tuple[int, dict[str, Any] | BadRow, LoadImage | None]]:
    """Yield (number, row, picture) for each row of a table and the tar beside it; None: its status is not success."""
    tar = table.with_suffix(".tar")
    spans, fault = tar_spans(tar)
    for number, row in read_rows(table, needed={"key", "status", *needed}):
        if isinstance(row, BadRow) or row["status"] != SUCCESS:
            yield number, row, None
            continue
        span = spans.get(str(row["key"]))
        if span is None:
            place, got = f"{tar.name} {row['key']}", fault or "no member of this key"
            yield number, row, partial(refuse, "image_missing", "the picture of a row with success", got, place)
        else:
            yield number, row, partial(load_span, tar, *span)
