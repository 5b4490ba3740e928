"""Which file of a data folder is which: published layouts as patterns of paths.

    folder ─ find_files ─▶ FoundFile(data set, split, language, translated) ─ .read() ─▶ AnnotationFile

A pattern is matched against a path below the folder: behind the data set's own folder, wherever that lies, or from the
beginning, where the folder is the data set's own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cclm.annotations.captions import XTD10_LANGUAGES
from cclm.annotations.reading import Problems
from cclm.annotations.rows import AnnotationFile
from cclm.languages import language_tag
from cclm.types import Language

SUFFIXES = (".json", ".jsonl", ".txt", ".token", ".csv", ".parquet", ".gz", ".en", ".de", ".fr", ".cs")
"""Of annotations (the last ones: Multi30K's, unpacked); images beside them cost no more than a list of their names."""
EVERY = ""
"""In place of a language: a file of several, or a split that has as many rows in each."""
Reader = Callable[[Path, str, Problems | None], AnnotationFile[Any]]
"""What reads a file in a language: `read_xvnli` and its like (DataError: unless problems are collected)."""


@dataclass(frozen=True)
class FileKind:
    """Files of one form, by their paths."""

    pattern: str
    """Below the data set's folder; groups `split` and `language` say what a file is, `translated` that it is machine-
    translated to English."""
    read: Reader
    _: KW_ONLY
    split: str = "test"
    """Where the pattern has no such group."""
    languages: Sequence[Language] = ("en",)
    """Where the pattern has no such group; several are read out of one file, one after another."""
    also_splits: Sequence[str] = ()
    """Other splits of these languages that can be read out of it, with the lists that belong to it."""


@dataclass(frozen=True)
class Split:
    """A split as it is published."""

    name: str
    _: KW_ONLY
    languages: Sequence[Language] = ("en",)
    rows: int | Mapping[Language, int] | None = None
    """Entries of each language's file, where a source says so."""
    is_needed: bool = True
    """Whether the zero-shot protocol needs it."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set: its files, and what is published of it."""

    name: str
    folders: Sequence[str]
    """Names that its own folder has in published layouts."""
    kinds: Sequence[FileKind]
    splits: Sequence[Split]
    source: str
    """Where a user gets the annotations: the project's own page."""
    images: str = ""
    """Which images it needs, and where they come from."""
    split_names: Mapping[str, str] = field(default_factory=dict)
    """What files call a split → its name here."""

    vocabulary: str = ""
    """Pattern of the files of answers, which `cclm.annotations.questions.read_answers` reads; "": it has none."""
    vocabulary_name: str = "trainval_ans2label.json"
    """What such a file is called where it is missing."""

    companions: str = ""
    """Pattern of the files that are read beside others: lists of images, answers to questions."""

    @cached_property
    def _above(self) -> str:
        return f"(?:(?:.*/)?(?:{'|'.join(map(re.escape, self.folders))})/)?"

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], FileKind]]:
        return [(re.compile(self._above + kind.pattern), kind) for kind in self.kinds]

    def fits(self, pattern: str, root: Path, path: Path) -> bool:
        """Return whether a file is one of this set's `vocabulary`, or `companions`."""
        return bool(pattern and re.fullmatch(self._above + pattern, path.relative_to(root).as_posix()))

    def found(self, root: Path, path: Path) -> list[FoundFile]:
        """Return what a file is, once for each language in it; nothing if it is none of this set."""
        name = path.relative_to(root).as_posix()
        for pattern, kind in self._patterns:
            if match := pattern.fullmatch(name):
                groups = match.groupdict()
                split = groups.get("split") or kind.split
                languages = [groups["language"]] if groups.get("language") else kind.languages
                return [
                    FoundFile(
                        data_set=self,
                        kind=kind,
                        path=path,
                        split=self.split_names.get(split, split),
                        language_name=language,
                        is_translated=bool(groups.get("translated")),
                    )
                    for language in languages
                ]
        return []


@dataclass(frozen=True, kw_only=True)
class FoundFile:
    """A file that is recognised."""

    data_set: DataSet
    kind: FileKind
    path: Path
    split: str
    language_name: str
    """As the file calls it."""
    is_translated: bool
    """Whether its texts are machine translations to English."""

    @property
    def language(self) -> Language:
        """Return the tag of the language; "" for a file of several."""
        name = XTD10_LANGUAGES.get(self.language_name, self.language_name)
        return (language_tag(name) or name) if name else EVERY

    @property
    def is_needed(self) -> bool:
        """Return whether the zero-shot protocol reads it."""
        return not self.is_translated and any(one.is_needed for one in self.data_set.splits if one.name == self.split)

    def read(self, problems: Problems | None = None) -> AnnotationFile[Any]:
        """Read the file (DataError: unless `problems` are given)."""
        return self.kind.read(self.path, self.language_name, problems)

    def published_rows(self) -> int | None:
        """Return how many entries are published for this split and language, where that is known."""
        for split in self.data_set.splits:
            if split.name == self.split and self.language in split.languages:
                return split.rows.get(self.language) if isinstance(split.rows, Mapping) else split.rows
        return None


def find_files(data_sets: Sequence[DataSet], folder: Path) -> Iterator[FoundFile]:
    """Yield the files below a folder that are of one of these sets, sorted by path."""
    for path in annotation_paths(folder):
        yield from recognised(data_sets, folder, path)


def recognised(data_sets: Iterable[DataSet], folder: Path, path: Path) -> list[FoundFile]:
    """Return what a file below a folder is of the first of these sets that has it, once for each language in it."""
    return next(filter(None, (data_set.found(folder, path) for data_set in data_sets)), [])


def annotation_paths(folder: Path) -> list[Path]:
    """Return the files below a folder that may hold annotations; linked folders are followed, each one once."""
    found, seen = [], set[str]()
    for base, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(base)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(base, name) for name in names if name.endswith(SUFFIXES) and not name.startswith(".")]
    return sorted(found)
