"""What a retrieval benchmark asks in each language, from a folder with its published files; and what it trains on.

    folder ─ find_files ─▶ files of the split ─ reader ─▶ Asked(language, split, rows, the files' hash)
    file   ─ its form by its path ─ reader ─▶ rows of one caption each                          (`read_pairs`)

Multi30K and COCO are put together of several files: five descriptions or a translation; the list of a split's images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

from cclm.annotations.captions import multi30k_paths, read_aligned, read_flickr30k, read_karpathy
from cclm.annotations.images import image_identity
from cclm.annotations.layouts import FoundFile, find_files
from cclm.annotations.reading import Problems
from cclm.annotations.rows import AnnotationFile, CaptionRow
from cclm.annotations.tasks import TASKS
from cclm.errors import ConfigError
from cclm.files.atomic import file_sha256
from cclm.rows.guard import refuse
from cclm.rows.lines import sound_lines
from cclm.types import Language

Part = Literal["dev", "test"]
PARTS: Final[tuple[Part, ...]] = ("dev", "test")
SPLITS: Final[Mapping[str, Mapping[Part, str]]] = {
    "xflickrco": {"dev": "val", "test": "test"},
    "wit": {"dev": "val", "test": "test"},
    "multi30k": {"dev": "val", "test": "test_2016_flickr"},
    "mscoco": {"dev": "val", "test": "test"},
    "xtd10": {"test": "test"},
    "xm3600": {"test": "test"},
}
"""Benchmark → what its files call the split that chooses an epoch (in English), and the one that is published."""
ALL_SPLITS: Final = "all"
"""In place of a split: a file that holds them all."""
COCO_TEST_IMAGES: Final = 1000
"""The published numbers are of the first thousand of Karpathy's 5,000 test images."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The captions of one language, with where they stand."""

    language: Language
    split: str
    """As the data set calls it."""
    paths: tuple[Path, ...]
    rows: tuple[CaptionRow, ...]

    @cached_property
    def hashes(self) -> tuple[str, ...]:
        """The SHA-256 of each file."""
        return tuple(file_sha256(path) for path in self.paths)

    @property
    def sha256(self) -> str:
        """Return the hash of the file; of several, that of their hashes."""
        return self.hashes[0] if len(self.hashes) == 1 else hashlib.sha256("".join(self.hashes).encode()).hexdigest()


def asked_in(task: str, folder: Path, part: Part, *, translated: bool = False) -> dict[Language, Asked]:
    """Return what a benchmark asks, by language.

    Args:
        task: of `SPLITS`.
        folder: holds the published files, anywhere below.
        part: which split.
        translated: whether the machine translations to English are read in place of the texts.

    Raises:
        ConfigError: there is no file of it, or there are two different ones of a language.
        DataError: an entry that is not as the format says, with file and line.
    """
    split = SPLITS[task].get(part, "")
    data_set = TASKS[task][0 if part == "dev" else -1]
    files = [one for one in find_files([data_set], folder) if one.is_translated == translated]
    found: dict[Language, Asked] = {}
    for asked in _OF_SEVERAL.get(task, _single)(files, split):
        if asked.rows and (other := found.setdefault(asked.language, asked)).sha256 != asked.sha256:
            both = " and ".join(str(one.paths[0]) for one in (other, asked))
            do = "Move one of them out of the folder."
            raise ConfigError(where=str(folder), expected=f"one {asked.language} {split} of {task}", got=both, do=do)
    if not found:
        expected = f"files of {data_set.name}, {split}" if split else f"a benchmark with a {part} set"
        do = f"`python -m finetune data check {task} {folder}` says what is missing and where it is published."
        raise ConfigError(where=str(folder), expected=expected, got="none", do=do)
    return found


def _single(files: Sequence[FoundFile], split: str) -> Iterator[Asked]:
    """Yield files of one language and split each, and splits of Karpathy's."""
    for one in files:
        if one.kind.read is read_karpathy:
            rows = read_karpathy(one.path, one.language, split=split).rows
        elif one.split == split:
            rows = one.read().rows
        else:
            continue
        yield Asked(language=one.language, split=split, paths=(one.path,), rows=rows)


def _multi30k(files: Sequence[FoundFile], split: str) -> Iterator[Asked]:
    """Yield the published code's lists; of the project's own files five descriptions, or the one translation."""
    yield from _single([one for one in files if one.kind.read is not read_aligned], split)
    own = [one for one in files if one.kind.read is read_aligned]
    for root, language in sorted({(one.path.parents[3], one.language) for one in own}):
        if paths := multi30k_paths(root, language, split):
            rows = read_aligned(paths, language).rows
            yield Asked(language=language, split=split, paths=tuple(paths), rows=rows)


def _coco(files: Sequence[FoundFile], split: str) -> Iterator[Asked]:
    """Yield the published code's lists; where there is none, what the English, STAIR's and COCO-CN's files hold."""
    lists = list(_single([one for one in files if one.kind.pattern.startswith("(?P<language>")], split))
    yield from lists
    known = {asked.language for asked in lists}
    for asked in _single([one for one in files if one.kind.read is read_karpathy], split):
        rows = asked.rows[:COCO_TEST_IMAGES] if split == "test" else asked.rows
        if asked.language not in known:
            yield Asked(language=asked.language, split=split, paths=asked.paths, rows=rows)
        for one in files:
            if one.language == "ja" and one.split == "val" and not known & {"ja"}:
                yield _only(one, split, {row.id for row in rows}, asked.paths)
    for one in files:
        names = list_of_split(one.path, split)
        if one.language == "zh" and one.split == ALL_SPLITS and names.is_file() and not known & {"zh"}:
            rows = rows_of_split(one.read().rows, one.path, split)
            yield Asked(language="zh", split=split, paths=(one.path, names), rows=rows)


def list_of_split(captions: Path, split: str) -> Path:
    """Return where COCO-CN lists the images of a split, beside its captions of all of them."""
    return captions.with_name(f"coco-cn_{split}.txt")


def rows_of_split(rows: Sequence[CaptionRow], captions: Path, split: str) -> tuple[CaptionRow, ...]:
    """Return the rows of a file of all splits that are of one, by the list beside it."""
    listed = {image_identity(name.strip()) for name in sound_lines(list_of_split(captions, split))}
    return tuple(row for row in rows if row.id in listed)


def _only(one: FoundFile, split: str, images: Collection[str], lists: Sequence[Path]) -> Asked:
    rows = tuple(row for row in one.read().rows if row.id in images)
    return Asked(language=one.language, split=split, paths=(one.path, *lists), rows=rows)


_OF_SEVERAL: Final[Mapping[str, Callable[[Sequence[FoundFile], str], Iterator[Asked]]]] = {
    "multi30k": _multi30k,
    "mscoco": _coco,
}


def read_pairs(path: Path, language: str, problems: Problems | None = None) -> AnnotationFile[CaptionRow]:
    """Read captions to be trained on, each with its image in a row of its own, in the order of the file.

    The form is that of the published file of this path; of any other path it is one of Flickr30k's (JSON lines, or a
    list, of images with captions). Of Karpathy's file the training split is read, of COCO-CN's the images that
    `coco-cn_train.txt` lists.

    Raises:
        DataError: an entry that is not as the form says; a file of all splits without such a list (file_missing).
    """
    file, split = _recognised(path), "train"
    if file is None:
        read = read_flickr30k(path, language, problems)
    elif file.kind.read is read_karpathy:
        read = read_karpathy(path, language, problems, split=split)
    else:
        read = file.kind.read(path, language, problems)
    rows = read.rows
    if file is not None and file.split == ALL_SPLITS:
        if not list_of_split(path, split).is_file():
            do = (
                f"Name a file of the training split, or list its images in {list_of_split(path, split).name} beside it."
            )
            refuse("file_missing", "the images to train on", "a file of all splits, test included", str(path), do)
        rows = rows_of_split(rows, path, split)
    pairs = tuple(replace(row, captions=(caption,)) for row in rows for caption in row.captions)
    return replace(read, rows=pairs)


def _recognised(path: Path) -> FoundFile | None:
    """Return what a file is of the data sets of all retrieval benchmarks, wherever their folders begin."""
    sets, path = {one.name: one for task in SPLITS for one in TASKS[task]}.values(), path.absolute()
    return next((found for root in path.parents for one in sets for found in one.found(root, path)), None)
