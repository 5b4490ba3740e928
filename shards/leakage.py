"""What a shard set holds of benchmarks' test sets: equal sentences, images that look the same.

    annotation files ─▶ sentences (without case, punctuation, spacing), perceptual hashes of their images
    shard sets       ─▶ looked up, record by record ─▶ counts by test file

`filters.benchmark_*` keeps such records out when a set is built; this says what is in one that exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np

from cclm.annotations.images import find_image
from cclm.annotations.layouts import FoundFile, find_files
from cclm.annotations.retrieval import ALL_SPLITS, list_of_split, rows_of_split
from cclm.annotations.rows import AnyRow, CaptionRow, QuestionRow, images_of
from cclm.annotations.tasks import TASKS
from cclm.errors import DataError
from cclm.files.atomic import file_sha256
from cclm.files.text import did_you_mean
from cclm.rows.guard import mistaken
from cclm.shardfile.reader import ShardSet
from cclm.shardfile.remote import manifest_bytes, open_set
from cclm.types import View
from shards.filters import normal_text
from shards.sketch import SourceImage, differing_bits, perceptual_hash

NUM_EXAMPLES: Final = 5
"""Of each file, told with the counts."""
TEST: Final = "test"
_TRAINED_ON: Final = ("train", "ext")
"""Beginnings of the names of splits that nothing is measured on."""


@dataclass(kw_only=True)
class HeldOut:
    """A file that models are measured on, and what was found of it."""

    file: FoundFile
    texts: frozenset[str]
    """Normal forms."""
    images: Mapping[str, bytes]
    """Name → perceptual hash, of those that were found."""
    missing_images: int
    found_texts: dict[str, str] = field(default_factory=dict)
    """Normal form → where it stands in a set."""
    found_images: dict[str, str] = field(default_factory=dict)
    """Name → where an image like it stands."""


def leakage(
    task: str, folder: Path, images: Sequence[Path], sets: Sequence[str], distance: int,
    advance: Callable[[int], None] = lambda number: None,
) -> dict[str, Any]:  # fmt: skip
    """Return counts by test file, and what they were counted in, as JSON has it.

    The task's annotation files lie in `folder`, its images in `images` (none: only sentences are compared), whose
    perceptual hashes may differ in `distance` bits of 64. `advance` is told how many samples were looked at.
    ConfigError: no such task, or no test file in the folder. DataError: a file or a set that cannot be read.
    """
    files = [_read(file, images) for file in _test_files(task, folder)]
    for where in sets:
        opened = open_set(where)
        look = _look_at_pairs if opened.view is View.TEXT_PAIR else partial(_look_at_images, distance=distance)
        look(files, opened, str(where), advance)
        opened.close()
    return {
        "task": task,
        "sets": {str(where): sha256(manifest_bytes(where)).hexdigest() for where in sets},
        "distance": distance,
        "files": [_counts(one, folder) for one in files],
    }


def _test_files(task: str, folder: Path) -> list[FoundFile]:
    if task not in TASKS:
        do = f"Choose one of {', '.join(TASKS)}."
        mistaken("a task", task + did_you_mean(task, TASKS), do)
    files = [one for one in find_files(TASKS[task], folder) if _is_measured_on(one)]
    if not files:
        do = f"`python -m finetune data check {task} {folder}` says what it looks for."
        mistaken(f"files that {task} is measured on", "none", do, folder)
    return files


def _is_measured_on(file: FoundFile) -> bool:
    """Return whether a file holds a test or dev set; one of all splits does if it can be told which rows are."""
    if file.split == ALL_SPLITS:
        return list_of_split(file.path, TEST).is_file()
    return not file.split.startswith(_TRAINED_ON)


def _read(file: FoundFile, folders: Sequence[Path]) -> HeldOut:
    rows = file.read().rows
    if file.split == ALL_SPLITS:  # COCO-CN's
        file, rows = replace(file, split=TEST), rows_of_split(rows, file.path, TEST)
    hashes, missing = dict[str, bytes](), 0
    for name in dict.fromkeys(chain.from_iterable(map(images_of, rows))) if folders else ():
        try:
            hashes[name] = perceptual_hash(SourceImage(find_image(folders, name).read_bytes(), name))
        except DataError:
            missing += 1
    texts = frozenset(normal_text(text) for row in rows for text in _texts_of(row)) - {""}
    return HeldOut(file=file, texts=texts, images=hashes, missing_images=missing)


def _texts_of(row: AnyRow) -> Sequence[str]:
    if isinstance(row, CaptionRow):
        return row.captions
    return (row.question if isinstance(row, QuestionRow) else row.text,)


def _look_at_pairs(files: Sequence[HeldOut], opened: ShardSet, where: str, advance: Callable[[int], None]) -> None:
    for shard, samples in enumerate(opened.samples_per_shard):
        for pair in chain.from_iterable(opened.read_groups(shard)):
            _find_texts(files, (pair.text_a, pair.text_b), f"{where}: {pair.group}")
        advance(samples)


def _look_at_images(
    files: Sequence[HeldOut], opened: ShardSet, where: str, advance: Callable[[int], None], *, distance: int
) -> None:
    known = [(one, name, value) for one in files for name, value in one.images.items()]
    signatures = np.frombuffer(b"".join(value for _, _, value in known), np.uint8).reshape(-1, 8)
    for record in _records(opened, advance):
        place = f"{where}: {record.key}"
        captions = (record.captions, *(region.captions for region in record.regions))
        _find_texts(files, (text for one in captions for texts in one.values() for text in texts), place)
        if not known:
            continue
        try:
            near = differing_bits(signatures, perceptual_hash(SourceImage(record.image, record.key))) <= distance
        except DataError:  # nobody trains on an image that does not decode
            continue
        for number in np.flatnonzero(near):
            one, name, _ = known[number]
            one.found_images.setdefault(name, place)


def _records(opened: ShardSet, advance: Callable[[int], None]) -> Iterator[Any]:
    for shard, samples in enumerate(opened.samples_per_shard):
        for sample in range(samples):
            yield opened.image_text(shard, sample)
        advance(samples)


def _find_texts(files: Sequence[HeldOut], texts: Iterable[str], place: str) -> None:
    for normal in map(normal_text, texts):
        for one in files:
            if normal in one.texts:
                one.found_texts.setdefault(normal, place)


def _counts(one: HeldOut, folder: Path) -> dict[str, Any]:
    file = one.file
    return {
        "file": str(file.path.relative_to(folder)),
        "sha256": file_sha256(file.path),
        "split": file.split,
        "language": file.language,
        "texts": len(one.texts),
        "found_texts": len(one.found_texts),
        "images": len(one.images),
        "found_images": len(one.found_images),
        "missing_images": one.missing_images,
        "examples": [
            *({"text": text, "in": place} for text, place in list(one.found_texts.items())[:NUM_EXAMPLES]),
            *({"image": name, "in": place} for name, place in list(one.found_images.items())[:NUM_EXAMPLES]),
        ],
    }


def in_words(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each test file, and how many hold nothing of the sets."""
    clean = 0
    for one in result["files"]:
        if not one["found_texts"] and not one["found_images"]:
            clean += 1
            continue
        found = f"{one['found_texts']:,} of {one['texts']:,} sentences"
        if one["images"]:
            found += f", {one['found_images']:,} of {one['images']:,} images"
        yield f"{one['file']}: {found} found"
    yield f"{clean} of {len(result['files'])} files: nothing found"
    if not any(one["images"] for one in result["files"]):
        yield "images were not compared: none of the test files' was found (--images)"
