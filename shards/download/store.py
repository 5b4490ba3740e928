"""The folder of downloads: img2dataset's layout, so that its readers read it, too.

00000.tar, 00000.parquet, 00001.tar, …    `shard_rows` entries of the list each, in its order; failures have a row only
list.json                                 which list this is; written first
complete.json                             written when every entry was tried

A tar is renamed into place before its table, each whole or not there. A download that is stopped (Ctrl-C) writes what
it has of the tar in work; one that is killed loses that. The next run fetches what is not there, and again what failed
for a reason that may have passed; the bytes are then those of a download that was never stopped.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import itertools
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet

from cclm.errors import MissingDependencyError
from cclm.files.atomic import publish, replace_bytes, temporary_path
from cclm.rows.guard import mistaken, whole
from cclm.shardfile.codec import canonical_json, format_of
from shards.corpora.image_corpus import load_span
from shards.corpora.url_list import COMPLETE_NAME, Downloadable, UrlRow
from shards.corpora.webdataset import SUCCESS, tar_spans
from shards.download.options import NOT_TRIED, TRANSIENT, DownloadOptions, Fetched
from shards.workers import only_builder

if TYPE_CHECKING:
    from shards.download.fetcher import Fetcher

LIST_NAME: Final = "list.json"
SHARD_ROWS: Final = 1000
"""Entries of the list in a tar: what a killed download loses at most."""
LINE_BROKEN: Final = "line_broken"
"""Status of entries of the list that cannot be read."""
TABLE_SCHEMA: Final = pa.schema(
    dict.fromkeys(("key", "url", "status", "message", "captions", "ids", "licence", "identity"), pa.string())
    | {"width": pa.int32(), "height": pa.int32(), "sha256": pa.string()}
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

    `again`: also try again what failed for good (404, opt-outs, robots.txt, broken images). A folder keeps the entries
    a tar (`shard_rows`) that it began with. `on_shard` is called with the statuses so far when a tar is finished.

    Raises:
        ConfigError: the folder holds another list's images, or another download is running there.
        KeyboardInterrupt: it was stopped; everything that was fetched is in the folder.
        MissingDependencyError: without the packages that fetch.
    """
    try:
        from shards.download.fetcher import Fetcher
    except ImportError as error:
        raise MissingDependencyError(
            expected="the packages aiohttp (it fetches) and protego (it reads robots.txt)",
            got=str(error),
            do='pip install "cclm-pretraining[corpora]"',
        ) from error
    folder = corpus.downloads
    if folder is None:
        mistaken("a folder for images", "none", "Set `downloads` in the recipe.")
    totals: Counter[str] = Counter()

    async def run() -> None:
        async with Fetcher(options) as fetcher:
            url_rows = corpus.url_rows()
            for number, rows in enumerate(iter(lambda: list(itertools.islice(url_rows, size)), [])):
                totals.update(await _shard(folder / f"{number:05d}.tar", rows, fetcher, again))
                if on_shard is not None:
                    on_shard(totals)

    with only_builder(folder):
        size = _begin(folder, corpus, shard_rows)
        asyncio.run(run())
        document = {**corpus.list_record(), "entries": totals.total(), "shards": -(-totals.total() // size)}
        replace_bytes(folder / COMPLETE_NAME, canonical_json(document), durable=True)
    return totals


def _begin(folder: Path, corpus: Downloadable, shard_rows: int) -> int:
    """Mark a new folder as this list's; return how many entries its tars hold."""
    path = folder / LIST_NAME
    if path.exists():
        begun = json.loads(path.read_bytes())
        if not corpus.is_list(begun):
            got = "those of another list, or of one that has changed"
            mistaken("an empty folder, or the downloads of this list", got, "Choose another `downloads`.", folder)
        shard_rows = int(begun["shard_rows"])
    replace_bytes(path, canonical_json({**corpus.list_record(), "shard_rows": shard_rows}), durable=True)
    return shard_rows


async def _shard(tar: Path, rows: Sequence[UrlRow], fetcher: Fetcher, again: bool) -> Counter[str]:
    """Fetch one tar's images, as far as they are wanted and not there. Stopped on the way, it keeps what it has."""
    table = tar.with_suffix(".parquet")
    known = pa.parquet.read_table(table).to_pylist() if table.exists() else []
    entries = known or [_entry(tar, position, row) for position, row in enumerate(rows)]
    images: dict[int, Fetched] = {}

    async def fetch(position: int) -> None:
        fetched = await fetcher.fetch(entries[position]["url"])
        entries[position] |= _facts_of(fetched)
        if fetched.image:
            images[position] = fetched

    before = [entry["status"] for entry in entries]
    wanted = [
        position
        for position, status in enumerate(before)
        if status in TRANSIENT or (again and status not in (SUCCESS, LINE_BROKEN))
    ]
    try:
        await asyncio.gather(*map(fetch, wanted))
    except asyncio.CancelledError:
        if before != [entry["status"] for entry in entries]:
            _write(tar, table, entries, images)
        raise
    if wanted or not known:
        _write(tar, table, entries, images)
    return Counter(entry["status"] for entry in entries)


def _entry(tar: Path, position: int, row: UrlRow) -> dict[str, Any]:
    bad, captions, ids = row.bad, "{}", "{}"
    try:
        row.url.encode()
        captions, ids = canonical_json(row.captions).decode(), canonical_json(row.ids).decode()
    except ValueError as error:  # half a character, a number that is none
        bad = bad or f"{whole(row.url)}: {type(error).__name__} in its URL, captions or ids"
    return {
        "key": f"{tar.stem}{position:06d}",
        "url": whole(row.url),
        "captions": captions,
        "ids": ids,
        "licence": whole(row.licence),
        "identity": whole(row.identity),
        **_facts_of(Fetched(status=LINE_BROKEN if bad else NOT_TRIED, message=bad)),
    }


def _facts_of(fetched: Fetched) -> dict[str, Any]:
    return {
        "status": fetched.status,
        "message": whole(fetched.message),
        "width": fetched.width,
        "height": fetched.height,
        "sha256": hashlib.sha256(fetched.image).hexdigest() if fetched.image else "",
    }


def _write(tar: Path, table: Path, entries: Sequence[dict[str, Any]], images: dict[int, Fetched]) -> None:
    spans = tar_spans(tar)[0] if tar.exists() else {}
    with temporary_path(tar).open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for position, entry in enumerate(entries):
                if entry["status"] != SUCCESS:
                    continue
                fetched = images.get(position)
                image = fetched.image if fetched else load_span(tar, *spans[entry["key"]])
                image_format = fetched.image_format if fetched else format_of(image)
                member = tarfile.TarInfo(f"{entry['key']}.{image_format}")
                member.size = len(image)
                archive.addfile(member, io.BytesIO(image))
        file.flush()
        os.fsync(file.fileno())
    publish(temporary_path(tar), tar)
    sink = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(list(entries), TABLE_SCHEMA), sink, compression="zstd")
    replace_bytes(table, sink.getvalue(), durable=True)
