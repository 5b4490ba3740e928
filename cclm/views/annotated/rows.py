"""Annotation files as sets of samples, and the images that their rows name. No torch.

annotation file ─ reader of its format (`cclm.annotations`) ─▶ rows ─▶ RowSet      (read once)
folder | image-text shard set                               ─▶ bytes by name
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, TypeAlias

from cclm.annotations.images import Listing, find_image, key_of
from cclm.annotations.layouts import Reader
from cclm.annotations.questions import read_cvqa, read_gqa, read_vqa
from cclm.annotations.reading import KEY, Dropped, Problems, entries_of, name_at, read_entries, text_at
from cclm.annotations.refcoco import read_refcoco
from cclm.annotations.retrieval import read_pairs
from cclm.annotations.rows import NO_LABEL, AnnotationFile, BoxRow, CaptionRow, ClassifyRow, QuestionRow
from cclm.annotations.statements import read_statements, read_xvnli
from cclm.errors import ConfigError, DataError
from cclm.rows.cells import language as language_cell
from cclm.rows.cells import listed, mapping, number, text, whole_number, with_area
from cclm.rows.guard import refuse
from cclm.shardfile.reader import Place, ShardSet
from cclm.shardfile.schema import MANIFEST_NAME
from cclm.types import Language
from cclm.views.annotated.options import Format, language_of

Row: TypeAlias = ClassifyRow | QuestionRow | BoxRow | CaptionRow


def read_own(path: Path, language: str, problems: Problems | None = None) -> AnnotationFile[Any]:
    """Read our own format: {"id", "images", "text", "label", "answers" or "box", "language"}, the last if rows differ.

    Questions may have "choices".
    """
    return read_entries(path, language, entries_of(path), partial(_own, path), problems)


def _own(path: Path, language: Language, entry: Mapping[str, Any]) -> Row | Dropped:
    images = tuple(text(name, "an image's name") for name in listed(entry.get("images"), "a list of images"))
    if not all(images) or not images:
        refuse("line_broken", "names of images", "none, or an empty one")
    if "language" in entry:
        language = language_cell(entry["language"])
    # Rows of one id in several languages are translations of each other; the seventh of each file are not.
    identity = name_at(entry, "id") if "id" in entry else f"{language}:{path.name}:{entry[KEY]}"
    if "answers" in entry:
        answers = mapping(entry["answers"], "an object of answers with their scores")
        scored = tuple((answer, number(score, "a score")) for answer, score in answers.items())
        choices = tuple(text(choice, "a choice") for choice in listed(entry.get("choices", []), "a list of choices"))
        return QuestionRow(
            id=identity, image=images[0], question=text_at(entry, "text"), answers=scored, language=language,
            choices=choices,
        )  # fmt: skip
    if "box" in entry:
        found = with_area(entry["box"], "a box [x, y, width, height] in pixels")
        return BoxRow(id=identity, image=images[0], text=text_at(entry, "text"), box=found, language=language)
    if entry.get("label") is None:
        return Dropped(NO_LABEL)
    label = whole_number(entry["label"], "a class")
    if label < 0 or isinstance(entry["label"], bool):
        refuse("line_broken", "a class from 0", str(entry["label"]))
    return ClassifyRow(id=identity, images=images, text=text_at(entry, "text"), label=label, language=language)


READERS: Mapping[Format, Reader] = {
    "rows": read_own,
    "xvnli": read_xvnli,
    "statements": read_statements,
    "gqa": read_gqa,
    "vqa": read_vqa,
    "cvqa": read_cvqa,
    "cvqa_english": partial(read_cvqa, translated=True),
    "refcoco": read_refcoco,
    "captions": read_pairs,
}


@lru_cache(maxsize=32)
def read_rows(path: Path, file_format: Format, name: str) -> AnnotationFile[Any]:
    """Read an annotation file; a second time costs nothing. `name`: its language, or as `language_of` has it.

    Raises:
        ConfigError: it has no rows.
        DataError: an entry that is not as the format says, with file and line.
    """
    found = READERS[file_format](path, language_of(name), None)
    if not found.rows:
        raise ConfigError(
            where=str(path), expected="an annotation file with rows",
            got=f"{found.num_entries} entries, none with a right answer",
            do="Give the file with answers.",
        )  # fmt: skip
    return found


def text_of(row: Row) -> str:
    """Return what a row states, asks or means, or the one caption that it has."""
    if isinstance(row, CaptionRow):
        (caption,) = row.captions
        return caption
    return row.question if isinstance(row, QuestionRow) else row.text


class RowSet:
    """The rows of one annotation file as samples, all of one shard (`SampleSet`)."""

    def __init__(self, path: Path, file_format: Format, name: str) -> None:
        self.path, self.read = path, read_rows(path, file_format, name)
        self.rows: tuple[Row, ...] = self.read.rows

    @property
    def samples_per_shard(self) -> list[int]:
        """The number of rows."""
        return [len(self.rows)]

    @cached_property
    def languages(self) -> list[str]:
        """Languages of the rows' texts, sorted."""
        return sorted({row.language for row in self.rows})

    def locate(self, shard: int, sample: int) -> Place:
        """Return the file of a row, its number in it, and its key."""
        return Place(self.path.name, sample, self.rows[sample].id)

    def forget(self, shard: int) -> None:
        """Do nothing: the file is in memory."""


class Images:
    """The image files that rows name: in one of some folders, or in an image-text shard set by key."""

    def __init__(self, *folders: Path) -> None:
        self.folders = folders
        packed = next((folder for folder in folders if (folder / MANIFEST_NAME).is_file()), None)
        self._set = None if packed is None else ShardSet(packed)
        self._is_there = Listing()

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        assert self._set is not None
        counts = self._set.samples_per_shard
        return {
            self._set.open_shard(shard).index.image(sample).key: (shard, sample)
            for shard, count in enumerate(counts)
            for sample in range(count)
        }

    def look_for(self, names: Iterable[str]) -> None:
        """Find all images, and open none (DataError: `image_missing`, of the first that is not there)."""
        for name in names:
            self._place(name) if self._set else find_image(self.folders, name, self._is_there)

    def _place(self, name: str) -> tuple[int, int]:
        assert self._set is not None
        for key in (name, key_of(name), Path(name).stem):
            if key in self._places:
                return self._places[key]
        return refuse("image_missing", f"an image {name} in {self._set.folder}", "no such key", name)

    def read(self, name: str) -> bytes:
        """Return an image file, as it is stored.

        Raises:
            DataError: `image_missing`, or the shard's errors.
        """
        if self._set is not None:
            return self._set.image_text(*self._place(name)).image
        path = find_image(self.folders, name)
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(
                reason="image_unreadable", expected="an image that rows name", got=str(error.strerror),
                do="Check its permissions and the disk.", where=str(path),
            ) from error  # fmt: skip
