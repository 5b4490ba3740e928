"""Third step of a build: one shard is gathered from the sorted chunks and written, with what its range of keys lost.

chunks, drops, rates --range of (order, key)--> records in order --> NAME-000007.tar + index
                                          --> the others       --> WRITTEN/000007.quarantine
                                          --> counts           --> WRITTEN/000007.json, written last
"""

from __future__ import annotations

import json
import os
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
from shards.decide import Bucket
from shards.drops import Drop
from shards.scan import quarantine_line


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

    @property
    def written(self) -> int:
        """Units written."""
        return self.units - sum(self.refused.values())

    def to_json(self) -> bytes:
        """Return the state file's bytes."""
        return canonical_json({**asdict(self), "info": None if self.info is None else asdict(self.info)})

    @classmethod
    def from_json(cls, data: bytes) -> ShardResult:
        """Read a state file's bytes."""
        fields = json.loads(data)
        info = None if fields["info"] is None else ShardInfo.from_json(fields["info"])
        return cls(**{**fields, "info": info})


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """One shard to write, in any process."""

    folder: Path
    """The set's."""
    name: str
    """The set's."""
    number: int
    written: Path
    """Folder of the state files."""
    start: tuple[int, str]
    """(order, key) of its first sample; (0, "") for the first shard, so that no refused unit is before it."""
    stop: tuple[int, str] | None
    """That of the next shard; None for the last one."""
    bucket: Bucket
    """Where the chunks and drops are, with the rates; its range encloses this shard's."""


def shard_job(
    *, folder: Path, name: str, written: Path, starts: Sequence[tuple[int, str]], number: int, **more: Any
) -> ShardJob:
    """Return the job of a set's shard (more: the fields of `Bucket` but its name and range)."""
    start = starts[number] if number else (0, "")
    stop = starts[number + 1] if number + 1 < len(starts) else None
    bucket = Bucket(name=f"shard-{number:06d}", first=start[0], last=stop[0] if stop else LAST_ORDER, **more)
    return ShardJob(folder=folder, name=name, written=written, number=number, start=start, stop=stop, bucket=bucket)


def write_shard(job: ShardJob) -> ShardResult:
    """Write a shard, its quarantine and, last, its state file."""
    rows = _in_range(job, job.bucket.rows(job.bucket.schema.names))
    drops = job.bucket.rules().drops_of(rows, job.bucket.first, job.bucket.last)
    is_record = pc.equal(rows["kind"], RECORD).to_numpy(zero_copy_only=False)
    dropped = np.isin(rows["position"].to_numpy(), np.fromiter(drops, dtype=np.uint64))
    stays = is_record & ~dropped
    info = _write(job, rows.filter(pa.array(stays)))
    refused, texts = _quarantine(job, rows.filter(pa.array(~stays)), drops)
    units = int((~pc.equal(rows["kind"], TEXT).to_numpy(zero_copy_only=False)).sum())
    result = ShardResult(number=job.number, info=info, units=units, refused=dict(refused), texts_refused=dict(texts))
    written = 0 if info is None else (info.rows if job.bucket.recipe.view is View.TEXT_PAIR else info.samples)
    assert written == result.written, f"{written} units written, {result.written} expected"
    replace_bytes(state_path(job.written, job.number), result.to_json(), durable=True)
    return result


def state_path(written: Path, number: int) -> Path:
    """Where a shard's state file lies."""
    return written / f"{number:06d}.json"


def quarantine_path(written: Path, number: int) -> Path:
    """Where a shard's part of the quarantine lies."""
    return written / f"{number:06d}.quarantine"


def _in_range(job: ShardJob, rows: Any) -> Any:
    """Return the rows from `start` up to, but not with, `stop`: the bucket's range knows orders, not keys."""
    inside = np.ones(rows.num_rows, dtype=bool)
    orders = rows["order"].to_numpy()
    for edge, sign in ((job.start, 1), (job.stop, -1)):
        if edge is None:
            continue
        for place in np.flatnonzero(orders == np.uint64(edge[0])):
            is_before = rows["key"][place].as_py() < edge[1]
            inside[place] &= not is_before if sign == 1 else is_before
    return rows.filter(pa.array(inside))


def _write(job: ShardJob, rows: Any) -> ShardInfo | None:
    recipe = job.bucket.recipe
    if recipe.view is View.IMAGE_TEXT:
        with ImageTextShardWriter(job.folder, job.name, job.number) as images:
            _write_images(job, rows, images)
        return images.info
    block, licences = recipe.pairs_per_block, recipe.licences
    with TextPairShardWriter(job.folder, job.name, job.number, pairs_per_block=block, licences=licences) as texts:
        columns = ["key" if name == "group" else name for name in schema.PAIR_SCHEMA.names]
        texts.add_groups(rows.select(columns).rename_columns(schema.PAIR_SCHEMA.names))
    return texts.info


def _write_images(job: ShardJob, rows: Any, writer: ImageTextShardWriter) -> None:
    columns = ["key", "position", "image_format", "image_offset", "image_size", "document"]
    with _Images(job.bucket.chunks) as images:
        for batch in rows.select(columns).to_batches(max_chunksize=1024):
            for row in batch.to_pylist():
                image = images.read(row["position"], row["image_offset"], row["image_size"])
                writer.add(decode_image_text(row["key"], row["image_format"], image, row["document"]))


class _Images:
    """The files of images beside the chunks, some of them open."""

    _MOST_OPEN = 128

    def __init__(self, chunks: Path) -> None:
        self._chunks, self._open = chunks, OrderedDict[Path, int]()

    def __enter__(self) -> _Images:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def read(self, position: int, offset: int, size: int) -> bytes:
        """Return an image's bytes."""
        path = chunk_of(position).images(self._chunks)
        if path not in self._open:
            if len(self._open) == self._MOST_OPEN:
                os.close(self._open.popitem(last=False)[1])
            self._open[path] = os.open(path, os.O_RDONLY)
        self._open.move_to_end(path)
        data = os.pread(self._open[path], size, offset)
        assert len(data) == size, f"{path} is cut"
        return data


def _quarantine(job: ShardJob, rows: Any, drops: Mapping[int, Drop]) -> tuple[Counter[str], Counter[str]]:
    """Write the lines of the units that do not stand in the set; return their counts, and those of captions."""
    refused: Counter[str] = Counter()
    texts: Counter[str] = Counter()
    lines: list[bytes] = []
    is_image = job.bucket.recipe.view is View.IMAGE_TEXT
    for row in rows.to_pylist():
        if row["kind"] == RECORD:
            source = json.loads(row["document"])[schema.FIELD_SOURCE] if is_image else row["source"]
            fields = drops[row["position"]].line(row["key"], source, row["label"])
            if not is_image:
                fields |= {name: row[name] for name in ("lang_a", "text_b", "lang_b")}
        else:
            fields = json.loads(row["line"])
        (texts if row["kind"] == TEXT else refused)[fields["reason"]] += 1
        lines.append(quarantine_line({**fields, "shard": job.number}) + b"\n")
    replace_bytes(quarantine_path(job.written, job.number), b"".join(lines), durable=True)
    return Counter(dict(sorted(refused.items()))), Counter(dict(sorted(texts.items())))
