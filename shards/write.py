"""Third step of a build: one shard is gathered from the sorted chunks and written, with what its range of keys lost.

chunks, drops, rates --range of (order, key)--> records in order --> NAME-000007.tar + index
                                          --> the others       --> WRITTEN/000007.quarantine
                                          --> counts           --> WRITTEN/000007.json, written last
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cclm.files.atomic import replace_bytes
from cclm.shardfile import schema
from cclm.shardfile.codec import canonical_json, decode_image_text
from cclm.shardfile.manifest import ShardInfo
from cclm.shardfile.writer import ImageTextShardWriter, TextPairShardWriter
from cclm.types import View
from shards.chunks import LAST_ORDER, RECORD, TEXT, chunk_of
from shards.decide import Bucket, Drop
from shards.scan import quarantine_line

MOST_OPEN: Final = 128
"""Files of images that a shard keeps open: to open one for each image is slow on a network file system."""


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What became of the units of one shard's range."""

    number: int
    info: ShardInfo | None
    """None when none of them stands in the set: then there is no file."""
    units: int
    """Units in."""
    refused: Mapping[str, int]
    """Of them, by reason."""
    texts_refused: Mapping[str, int]
    """Captions that were taken from images that stay, by reason."""


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """One shard to write, in any process."""

    folder: Path
    """The set's; it has the set's name."""
    number: int
    start: tuple[int, str]
    """(order, key) of its first sample; (0, "") for the first shard, so that no refused unit is before it."""
    stop: tuple[int, str] | None
    """That of the next shard; None for the last one."""
    bucket: Bucket
    """Where the chunks and drops are, with the rates; its range encloses this shard's."""

    def written(self, suffix: str) -> Path:
        """Where it keeps "quarantine", its part of it, and "json", its result, which is there when the shard is."""
        return self.bucket.chunks.with_name("written") / f"{self.number:06d}.{suffix}"


def shard_jobs(folder: Path, starts: Sequence[tuple[int, str]], whole: Bucket) -> list[ShardJob]:
    """Return the jobs of a set's shards; without any sample, one job still writes the quarantine."""
    begins = [(0, ""), *starts[1:]]
    return [
        ShardJob(
            folder=folder,
            number=number,
            start=start,
            stop=stop,
            bucket=replace(whole, first=start[0], last=stop[0] if stop else LAST_ORDER),
        )
        for number, (start, stop) in enumerate(zip(begins, [*begins[1:], None], strict=True))
    ]


def write_shard(job: ShardJob) -> ShardResult:
    """Write a shard, its quarantine and, last, its state file."""
    rows = job.bucket.rows()
    start, stop = _rows_before(job.start, rows), _rows_before(job.stop, rows) if job.stop else rows.num_rows
    rows = rows.slice(start, stop - start)
    stays, drops = job.bucket.judged(rows)
    info = _write(job, rows.filter(pa.array(stays)))
    refused, texts = _quarantine(job, rows.filter(pa.array(~stays)), drops)
    units = int((~pc.equal(rows["kind"], TEXT).to_numpy(zero_copy_only=False)).sum())
    result = ShardResult(number=job.number, info=info, units=units, refused=refused, texts_refused=texts)
    written = 0 if info is None else (info.rows if job.bucket.recipe.view is View.TEXT_PAIR else info.samples)
    expected = units - sum(refused.values())
    assert written == expected, f"{written} units written, {expected} expected"
    replace_bytes(job.written("json"), canonical_json(asdict(result)), durable=True)
    return result


def result_of(job: ShardJob) -> ShardResult | None:
    """Return what became of a shard, or None if it is not there, whole."""
    try:
        fields = json.loads(job.written("json").read_bytes())
    except FileNotFoundError:
        return None
    if fields["info"] is not None:
        info = fields["info"] = ShardInfo.from_json(fields["info"])
        tar = job.folder / info.name
        if not ((job.folder / info.index_name).exists() and tar.exists() and tar.stat().st_size == info.size_bytes):
            return None
    return ShardResult(**fields)


def _rows_before(edge: tuple[int, str], rows: Any) -> int:
    """Return how many of the sorted rows stand before (order, key): the bucket's range knows orders, not keys."""
    orders = rows["order"].to_numpy()
    first, last = (int(np.searchsorted(orders, np.uint64(edge[0]), side)) for side in ("left", "right"))
    before = sum(key < edge[1] for key in rows["key"][first:last].to_pylist())
    return first + int(before)


def _write(job: ShardJob, rows: Any) -> ShardInfo | None:
    recipe = job.bucket.recipe
    if recipe.view is View.IMAGE_TEXT:
        with ImageTextShardWriter(job.folder, job.folder.name, job.number) as images:
            _write_images(job, rows, images)
        return images.info
    block, licences = recipe.pairs_per_block, recipe.licences
    name, number = job.folder.name, job.number
    with TextPairShardWriter(job.folder, name, number, pairs_per_block=block, licences=licences) as texts:
        columns = ["key" if name == "group" else name for name in schema.PAIR_SCHEMA.names]
        texts.add_groups(rows.select(columns).rename_columns(schema.PAIR_SCHEMA.names))
    return texts.info


def _write_images(job: ShardJob, rows: Any, writer: ImageTextShardWriter) -> None:
    columns = ["key", "position", "image_format", "image_offset", "image_size", "document"]
    files: dict[Path, BinaryIO] = {}
    try:
        for batch in rows.select(columns).to_batches(max_chunksize=1024):
            for row in batch.to_pylist():
                path = chunk_of(row["position"]).path(job.bucket.chunks, "images")
                if path not in files:
                    if len(files) == MOST_OPEN:
                        files.pop(next(iter(files))).close()
                    files[path] = path.open("rb", buffering=0)
                files[path].seek(row["image_offset"])
                image = files[path].read(row["image_size"])
                assert len(image) == row["image_size"], f"{path} is cut"
                writer.add(decode_image_text(row["key"], row["image_format"], image, row["document"]))
    finally:
        for file in files.values():
            file.close()


def _quarantine(job: ShardJob, rows: Any, drops: Mapping[int, Drop]) -> tuple[dict[str, int], dict[str, int]]:
    """Write the lines of the units that do not stand in the set; return their counts, and those of captions."""
    refused: Counter[str] = Counter()
    texts: Counter[str] = Counter()
    lines: list[bytes] = []
    is_image = job.bucket.recipe.view is View.IMAGE_TEXT
    for row in rows.to_pylist():
        if row["kind"] == RECORD:
            source = json.loads(row["document"])["source"] if is_image else row["source"]
            fields = drops[row["position"]].line(row["key"], source, row["label"])
            if not is_image:
                fields |= {name: row[name] for name in ("lang_a", "text_b", "lang_b")}
        else:
            fields = json.loads(row["line"])
        (texts if row["kind"] == TEXT else refused)[fields["reason"]] += 1
        lines.append(quarantine_line({**fields, "shard": job.number}) + b"\n")
    replace_bytes(job.written("quarantine"), b"".join(lines), durable=True)
    return dict(sorted(refused.items())), dict(sorted(texts.items()))
