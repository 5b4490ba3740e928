"""First step of a build: a stretch of a corpus is read, its records are made, filtered, sketched, and written as
sorted chunks.

    part --read--> lazy records --make, store anew, filter, sketch--> CHUNKS/PART-CHUNK.arrow (+ .images, codes)
                                                                end --> CHUNKS/PART.end (number of chunks, skipped rows)

Which process reads which chunk changes nothing in the chunks, and whoever reads a part to its end has seen all that
it skips. A chunk that is there is not read again, so a build that was killed goes on at the next chunk.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from cclm.errors import DataError
from cclm.files.atomic import replace_bytes
from cclm.rows.guard import data_error, data_errors, mistaken, whole, without_addresses
from cclm.shardfile.codec import canonical_json, check_group, check_image, encode_image_text
from cclm.types import ImageTextRecord, Region, TextPair, View
from shards.chunks import (
    IMAGE_CHUNK_SCHEMA,
    RECORD,
    REFUSED,
    TEXT,
    TEXT_CHUNK_SCHEMA,
    ChunkName,
    ChunkWriter,
    order_of,
    position_of,
)
from shards.filters import Refusal, refusal_of_image, refusal_of_pair, refusal_of_text
from shards.parts import LazyRecord, Part, UnwantedError, refused
from shards.recipe import SetRecipe
from shards.sketch import (
    SourceImage,
    exact_sketch,
    exact_sketch_of_pair,
    near_sketch_of_image,
    near_sketch_of_pair,
    written_anew,
)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Task `number` of `of`, counted from 0 as Slurm does with `--array=0-N`."""

    number: int
    of: int


WHOLE: Final = Share(number=0, of=1)


@dataclass(frozen=True, kw_only=True)
class ScanJob:
    """Some chunks of one part: those whose number is `lane` modulo `lanes`."""

    chunks: Path
    """Folder of the chunks."""
    seed: bytes
    """Of the order of the set's records."""
    recipe: SetRecipe
    part: Part
    number: int
    """Of the part, in its corpus."""
    lane: int
    lanes: int


def scan(job: ScanJob) -> int:
    """Write a job's chunks; return how many there were to write.
    ConfigError: the part cannot be read at all. MissingDependencyError: a filter needs an optional package."""
    if is_read(job.chunks, job.number, job.lane, job.lanes):
        return 0
    skipped: dict[str, Counter[str]] = {}
    records, chunk, written = _records_of(job.part, skipped), 0, 0
    while stretch := list(itertools.islice(records, job.recipe.chunk_records)):
        name = ChunkName(part=job.number, chunk=chunk)
        if chunk % job.lanes == job.lane and not name.path(job.chunks).exists():
            _Chunk(job, name).write(stretch)
            written += 1
        chunk += 1
    end = canonical_json({"chunks": chunk, "skipped": skipped})
    replace_bytes(_end_path(job.chunks, job.number), end, durable=True)
    return written


def _records_of(part: Part, skipped: dict[str, Counter[str]]) -> Iterator[LazyRecord]:
    """Yield the lazy records; add the others to the counts by source and language.

    Whatever a reader raises that is not the recipe's or the machine's fault ends its part with one refusal.
    """
    try:
        with data_errors(part.name):
            for item in part.read():
                if isinstance(item, LazyRecord):
                    yield item
                elif item.rows:
                    rows = {whole(language): number for language, number in item.rows.items()}
                    skipped.setdefault(item.source, Counter()).update(rows)
    except DataError as error:
        yield refused(error, f"{part.name}-end", part.name)


def _end_path(folder: Path, part: int) -> Path:
    return folder / f"{part:06d}.end"


def chunks_of(folder: Path, part: int) -> int | None:
    """Return the number of a part's chunks, or None if nobody has read it to its end."""
    try:
        return int(json.loads(_end_path(folder, part).read_bytes())["chunks"])
    except FileNotFoundError:
        return None


def skipped_rows(folder: Path, num_parts: int) -> dict[str, dict[str, int]]:
    """Return the rows that parts, all of them read, have skipped: source -> language -> rows."""
    total: dict[str, Counter[str]] = {}
    for part in range(num_parts):
        for source, rows in json.loads(_end_path(folder, part).read_bytes())["skipped"].items():
            total.setdefault(source, Counter()).update(rows)
    return {source: dict(rows) for source, rows in total.items()}


def is_read(folder: Path, part: int, lane: int = 0, lanes: int = 1) -> bool:
    """Tell whether the chunks of a lane of a part are there, and its end."""
    chunks = chunks_of(folder, part)
    return chunks is not None and all(
        ChunkName(part=part, chunk=chunk).path(folder).exists() for chunk in range(lane, chunks, lanes)
    )


class _Chunk:
    def __init__(self, job: ScanJob, name: ChunkName) -> None:
        self._recipe, self._seed, self._name = job.recipe, job.seed, name
        self._is_image = job.recipe.view is View.IMAGE_TEXT
        self._writer = ChunkWriter(job.chunks, name, IMAGE_CHUNK_SCHEMA if self._is_image else TEXT_CHUNK_SCHEMA)
        self._facts: Counter[str] = Counter(records=0, units=0, bad=0)
        self._rows = 0

    def write(self, records: Sequence[LazyRecord]) -> None:
        """Make the records and write the chunk."""
        wanted = self._recipe.duplicates
        sketches = [name for name, on in (("exact", wanted.exact), ("near", wanted.near)) if on]
        try:
            for record in records:
                self._add(record)
            self._facts["records"] = len(records)
            self._writer.finish(sketches, self._facts)
        except BaseException:
            self._writer.abandon()
            raise

    def _add(self, lazy: LazyRecord) -> None:
        """Add what a record is made to, or its refusal: `data_error` raises again what is not the data's fault."""
        try:
            made = lazy.make()
            if isinstance(made, ImageTextRecord) != self._is_image:
                do = "Correct `view` and `corpus` in the recipe."
                mistaken(f"a corpus of view {self._recipe.view.value}", "records of the other view", do)
            if isinstance(made, ImageTextRecord):
                self._add_image(lazy, made)
                return
            if not made:
                check_group(made)
        except Exception as error:  # noqa: BLE001
            self._refuse_broken(lazy.key, lazy.source, data_error(error, lazy.key))
            return
        for pair in made:
            try:
                self._add_pair(pair)
            except Exception as error:  # noqa: BLE001
                self._refuse_broken(pair.group, pair.source, data_error(error, pair.group))

    def _add_image(self, lazy: LazyRecord, record: ImageTextRecord) -> None:
        where = f"record {record.key!r}"
        check_image(record.image, record.image_format, where)
        source = SourceImage(record.image, where)
        refusal = refusal_of_image(source, self._recipe.filters)
        stored = self._stored(source, record)
        _, (_, document) = encode_image_text(stored, where)
        captions: dict[str, list[str]] = {}
        refused_texts: list[tuple[str, str, Refusal]] = []
        for language, text in ((language, text) for language, texts in stored.captions.items() for text in texts):
            if why := refusal_of_text(text, language, self._recipe.filters, record.key):
                refused_texts.append((language, text, why))
            else:
                captions.setdefault(language, []).append(text)
        if not captions and refusal is None:
            refusal = refused_texts[0][2]
        if refusal is not None:
            self._refuse(lazy.key, lazy.source, refusal)
            return
        if refused_texts:
            _, (_, document) = encode_image_text(replace(stored, captions=captions), where)
        row = {
            "kind": RECORD,
            "label": "+".join(sorted(captions)),
            "image_format": stored.image_format,
            "image_size": len(stored.image),
            "document": document,
        }
        codes: dict[str, Sequence[int]] = {}
        if self._recipe.duplicates.exact:
            row["exact"], codes["exact"] = exact_sketch(record.image)
        if self._recipe.duplicates.near:
            row["near"], codes["near"] = near_sketch_of_image(source, self._recipe.duplicates)
        row["image_offset"] = self._writer.add_image(stored.image)
        self._add_row(record.key, row, codes)
        key, origin = record.key, record.source
        for language, text, why in refused_texts:
            line = {"message": why.message(key), "language": language, "caption": text}
            self._add_line(TEXT, key=key, source=origin, stage="filter", reason=why.reason, **line)

    def _stored(self, source: SourceImage, record: ImageTextRecord) -> ImageTextRecord:
        image, image_format, factor = written_anew(source, record.image_format, self._recipe.images)
        regions = record.regions
        if factor != 1.0:
            regions = tuple(replace(region, box=_scaled(region, factor)) for region in regions)
        return replace(record, image=image, image_format=image_format, regions=regions)

    def _add_pair(self, pair: TextPair) -> None:
        check_group([pair])
        (pair.group + pair.source + pair.lang_a + pair.lang_b).encode("utf-8")
        refusal = refusal_of_pair(pair, self._recipe.filters)
        if refusal is not None:
            self._refuse(pair.group, pair.source, refusal)
            return
        row = vars(pair) | {"kind": RECORD, "label": "-".join(sorted((pair.lang_a, pair.lang_b)))}
        codes: dict[str, Sequence[int]] = {}
        if self._recipe.duplicates.exact:
            row["exact"], codes["exact"] = exact_sketch_of_pair(pair)
        if self._recipe.duplicates.near:
            row["near"], codes["near"] = near_sketch_of_pair(pair)
        self._add_row(pair.group, row, codes)

    def _refuse_broken(self, key: str, source: str, error: DataError) -> None:
        stage = "filter" if isinstance(error, UnwantedError) else "make"
        self._facts["bad"] += stage == "make"
        message = without_addresses(str(error))
        self._add_line(REFUSED, key=key, source=source, stage=stage, reason=error.reason, message=message)

    def _refuse(self, key: str, source: str, why: Refusal) -> None:
        message = without_addresses(why.message(key))
        self._add_line(REFUSED, key=key, source=source, stage="filter", reason=why.reason, message=message)

    def _add_line(self, kind: int, **line: str) -> None:
        self._add_row(line["key"], {"kind": kind, "line": quarantine_line(line)}, {})

    def _add_row(self, key: str, row: dict[str, Any], codes: Mapping[str, Sequence[int]]) -> None:
        self._facts["units"] += row["kind"] != TEXT
        place = {
            "key": whole(key),
            "order": order_of(key, self._seed),
            "position": position_of(self._name.part, self._name.chunk, self._rows),
        }
        self._rows += 1
        self._writer.add_row(place | row, codes)


def quarantine_line(fields: Mapping[str, Any]) -> bytes:
    """Return a line of quarantine.jsonl."""
    return canonical_json({name: whole(value) if isinstance(value, str) else value for name, value in fields.items()})


def _scaled(region: Region, factor: float) -> tuple[float, float, float, float]:
    x, y, width, height = (round(side * factor, 2) for side in region.box)
    return x, y, width, height


def scan_jobs(
    parts: Sequence[Part], chunks: Path, seed: bytes, recipe: SetRecipe, share: Share, workers: int
) -> Iterator[ScanJob]:
    """Yield a task's jobs, cut fine enough for its workers; the tasks together read everything.

    With fewer parts than readers, several read the same part and each makes the records of its own chunks.
    """
    lanes = max(1, -(-share.of // max(len(parts), 1)))
    lanes_of_parts = [(number, lane) for number in range(len(parts)) for lane in range(lanes)]
    mine = lanes_of_parts[share.number :: share.of]
    split = max(1, -(-workers // max(len(mine), 1)))
    for number, lane in mine:
        for piece in range(split):
            yield ScanJob(
                chunks=chunks,
                seed=seed,
                recipe=recipe,
                part=parts[number],
                number=number,
                lane=lane + lanes * piece,
                lanes=lanes * split,
            )
