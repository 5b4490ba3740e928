"""A tar of images and the table beside it: what img2dataset writes, and `python -m shards download`.

00000.tar       000000000.jpg, 000000000.json, 000000000.txt, …
00000.parquet   one row a URL: key, url, status, error_message, caption, …; failures have a row and no image
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from cclm.errors import DataError
from shards.corpora.cells import text
from shards.corpora.files import named_files, note_read
from shards.corpora.image_bytes import LoadImage, load_span
from shards.corpora.refusal import refuse
from shards.corpora.rows import Row, read_rows
from shards.corpora.tar_samples import Span, tar_samples

SUCCESS: Final = "success"
_EXTENSIONS: Final = frozenset({"jpg", "jpeg", "png", "webp"})
_IMAGE: Final = "\0image"
"""Where `table_rows` puts what reads a row's image; no column has this name."""


def found_tables(paths: Path | Sequence[Path]) -> dict[str, Path]:
    """Return the tables below some paths by name; the tars beside them are read, too."""
    tables = named_files(paths, (".parquet",))
    note_read(table.with_suffix(".tar") for table in tables.values())
    return tables


def tar_spans(path: Path) -> tuple[dict[str, Span], str]:
    """Return key -> place of the images in a tar, and what is wrong with it; only headers are read."""
    spans: dict[str, Span] = {}
    try:
        for sample in tar_samples(path):
            images = [span for suffix, span in sample.members.items() if suffix in _EXTENSIONS]
            spans |= {sample.key.rsplit("/", 1)[-1]: span for span in images}
    except DataError as error:
        return spans, f"{path.name}: {error.got}"
    return spans, ""


def table_rows(name: str, table: Path, needed: Collection[str]) -> Iterator[tuple[str, Row | DataError]]:
    """Yield (place, row) for each row of a table, with what `image_of` wants to know about the tar beside it."""
    tar = table.with_suffix(".tar")
    spans, fault = tar_spans(tar)
    for place, row in read_rows(name, table, needed=dict.fromkeys(("key", "status", *needed))):
        if isinstance(row, dict) and row["status"] == SUCCESS:
            span = spans.get(str(row["key"]))
            missing = partial(
                refuse, "image_missing", "the image of a row with success", fault or "no member of this key",
                f"{tar.name} {row['key']}",
            )  # fmt: skip
            row[_IMAGE] = partial(load_span, tar, *span) if span else missing
        yield place, row


def image_of(row: Row, message: str, do: str) -> LoadImage:
    """Return what reads the image of a row of `table_rows`; one without success is refused with its own status."""
    if _IMAGE not in row:
        refuse(text(row["status"], "a status") or "unexpected", "a downloaded image", message or "no message", do=do)
    image: LoadImage = row[_IMAGE]
    return image
