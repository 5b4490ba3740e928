"""The folder of downloads: img2dataset's layout, so that its readers read it, too.

00000.tar, 00000.parquet, 00001.tar, …    `shard_rows` entries of the list each, in its order; failures have a row only
list.json                                 which list this is; written first
complete.json                             written when every entry was tried

A tar is renamed into place before its table, each whole or not there: a killed download loses the tar in work.
The next run fetches what is not there, and again what failed for a reason that may have passed.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet

from cclm.errors import ConfigError
from cclm.files.atomic import publish, replace_bytes, temporary_path
from cclm.shardfile.codec import canonical_json
from shards.corpora.picture import load_span
from shards.corpora.tar_table import SUCCESS, tar_spans
from shards.corpora.url_rows import COMPLETE_NAME, Downloadable, UrlRow
from shards.download.fetcher import TRANSIENT, Fetched, Fetcher
from shards.download.options import DownloadOptions
from shards.download.turns import fetch_in_turns
from shards.workers import only_builder

LIST_NAME: Final = "list.json"
SHARD_ROWS: Final = 1000
"""Entries of the list in a tar: what a killed download loses at most, times one."""
LINE_BROKEN: Final = "line_broken"
"""Status of entries of the list that cannot be read."""
TABLE_SCHEMA: Final = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("key", "url", "status", "message", "captions", "ids", "licence")),
        pa.field("identity", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("sha256", pa.string()),
    ]
)


def download(
    corpus: Downloadable,
    options: DownloadOptions,
    *,
    again: bool = False,
    shard_rows: int = SHARD_ROWS,
    on_shard: Callable[[Counter[str]], None] | None = None,
) -> Counter[str]:
    """Fetch what is not there yet; return how many entries of the list have which status.

    Args:
        corpus: the list.
        options: limits and manners.
        again: also try again what failed for good: 404, opt-outs, robots.txt, broken pictures.
        shard_rows: entries in a tar; a folder keeps the number it began with.
        on_shard: called with the statuses of each finished tar.

    Raises:
        ConfigError: the folder holds another list's pictures, or another download is running there.
    """
    folder = corpus.downloads
    if folder is None:
        raise ConfigError(expected="a folder for pictures", got="none", do="Set `downloads` in the recipe.")
    totals: Counter[str] = Counter()
    with only_builder(folder):
        shard_rows = _begin(folder, corpus.list_stamp(), shard_rows)
        (folder / COMPLETE_NAME).unlink(missing_ok=True)
        fetcher, num_shards = Fetcher(options), 0
        with ThreadPoolExecutor(options.threads) as pool:
            for num_shards, rows in enumerate(_chunks(corpus.url_rows(), shard_rows), 1):
                counts = _shard(folder / f"{num_shards - 1:05d}.tar", rows, fetcher, pool, options, again)
                totals += counts
                if on_shard is not None:
                    on_shard(counts)
        document = {"stamp": corpus.list_stamp(), "entries": sum(totals.values()), "shards": num_shards}
        replace_bytes(folder / COMPLETE_NAME, canonical_json(document), durable=True)
    return totals


def _begin(folder: Path, stamp: str, shard_rows: int) -> int:
    """Mark a new folder as this list's; return how many entries its tars hold."""
    path = folder / LIST_NAME
    if path.exists():
        begun = json.loads(path.read_bytes())
        if begun["stamp"] != stamp:
            raise ConfigError(
                expected="an empty folder, or the downloads of this list",
                got="those of another list, or of one that has changed",
                do="Choose another `downloads`.",
                where=str(folder),
            )
        return int(begun["shard_rows"])
    replace_bytes(path, canonical_json({"stamp": stamp, "shard_rows": shard_rows}), durable=True)
    return shard_rows


def _chunks(rows: Iterator[UrlRow], size: int) -> Iterator[list[UrlRow]]:
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def _shard(
    tar: Path, rows: Sequence[UrlRow], fetcher: Fetcher, pool: ThreadPoolExecutor, options: DownloadOptions, again: bool
) -> Counter[str]:
    """Fetch one tar's pictures, as far as they are wanted and not there."""
    table = tar.with_suffix(".parquet")
    known = pa.parquet.read_table(table).to_pylist() if table.exists() else []
    entries = known or [_entry(tar, position, row) for position, row in enumerate(rows)]
    wanted = [
        position
        for position, entry in enumerate(entries)
        if entry["status"] in TRANSIENT
        or (again and entry["status"] not in (SUCCESS, LINE_BROKEN))
        or not entry["status"]
    ]
    if wanted or not known:
        urls = [entries[position]["url"] for position in wanted]
        turns = fetch_in_turns(
            urls, fetcher.fetch, fetcher.delay_s, pool=pool, threads=options.threads, per_host=options.per_host
        )
        images: dict[int, Fetched] = {}
        for turn, fetched in turns:
            entries[wanted[turn]] |= _outcome(fetched)
            if fetched.status == SUCCESS:
                images[wanted[turn]] = fetched
        _write(tar, table, entries, images)
    return Counter(entry["status"] for entry in entries)


def _entry(tar: Path, position: int, row: UrlRow) -> dict[str, Any]:
    return {
        "key": f"{tar.stem}{position:06d}",
        "url": row.url,
        "status": LINE_BROKEN if row.bad else "",
        "message": row.bad,
        "captions": canonical_json(row.captions).decode(),
        "ids": canonical_json(row.ids).decode(),
        "licence": row.licence,
        "identity": row.identity,
        "width": 0,
        "height": 0,
        "sha256": "",
    }


def _outcome(fetched: Fetched) -> dict[str, Any]:
    digest = hashlib.sha256(fetched.image).hexdigest() if fetched.image else ""
    return {
        "status": fetched.status,
        "message": fetched.message,
        "width": fetched.width,
        "height": fetched.height,
        "sha256": digest,
    }


def _write(tar: Path, table: Path, entries: Sequence[dict[str, Any]], images: dict[int, Fetched]) -> None:
    """Write the tar with the old pictures and the new ones, then the table."""
    spans = tar_spans(tar)[0] if tar.exists() else {}
    with temporary_path(tar).open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for position, entry in enumerate(entries):
                if entry["status"] != SUCCESS:
                    continue
                fetched = images.get(position)
                image = fetched.image if fetched else load_span(tar, *spans[entry["key"]])
                image_format = fetched.image_format if fetched else _format_of(image)
                member = tarfile.TarInfo(f"{entry['key']}.{image_format}")
                member.size = len(image)
                archive.addfile(member, io.BytesIO(image))
        file.flush()
        os.fsync(file.fileno())
    publish(temporary_path(tar), tar)
    sink = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(list(entries), TABLE_SCHEMA), sink, compression="zstd")
    replace_bytes(table, sink.getvalue(), durable=True)


def _format_of(image: bytes) -> str:
    return "png" if image.startswith(b"\x89PNG") else "webp" if image.startswith(b"RIFF") else "jpg"
