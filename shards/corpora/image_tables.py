"""Tables with a row an image: which columns hold its captions, ids and licence; a folder of images with such a table.

train-00000-of-00002.parquet         image: struct<bytes, path> (or bytes); further columns hold captions and ids
FOLDER/dataset_info.json, state.json, data-00000-of-00002.arrow       what Dataset.save_to_disk writes
FOLDER/dataset_dict.json, train/…, test/…                             what DatasetDict.save_to_disk writes

HF data sets are read by pyarrow; the `datasets` package is not needed. An image is read when its record is made: from a
mapped Arrow file directly, from Parquet a few rows at a time, so a row group may be larger than memory.

ImageFolder, how to bring your own image-text corpus:

captions.jsonl           {"image": "a/b.jpg", "captions": {"en": ["…"], "de": "…"}, "licence": "CC-BY-4.0"}
captions.csv (or .tsv)   image,language,caption[,licence,source,identity]; one line a caption, with a header
captions.parquet         the same columns
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from cclm.annotations.images import key_of
from cclm.errors import DataError
from cclm.rows.cells import (
    Captions,
    box,
    captions,
    gathered,
    identifier,
    identifiers,
    language,
    listed,
    mapping,
    optional,
    text,
    texts,
)
from cclm.rows.guard import data_errors, mistaken, refuse, shown
from cclm.rows.lines import COMPRESSIONS, plain_suffix
from cclm.rows.tables import ARROW_SUFFIXES, Row, arrow_table, check_columns, column_names, open_parquet, read_rows
from cclm.types import Region
from shards.corpora.files import (
    HIDDEN,
    NO_LANGUAGE,
    LanguageTag,
    by_tag,
    named_files,
    note_left_out,
    note_read,
    path_list,
)
from shards.corpora.image_corpus import ImageCorpus, ImageRow, ImageRows, load_first
from shards.parts import Part, each, joined

_ROWS_AT_ONCE: Final = 16
"""Images that are decoded from Parquet at once: a few hundred MB at the very most."""


@dataclass(frozen=True, kw_only=True)
class CaptionColumns:
    """One of three ways: a column by language; a text and a language column; a column with a map by language."""

    by_language: Mapping[str, str] = field(default_factory=dict)
    """Language -> column, for example {en: caption, de: caption_de}; a cell is a text or a list of texts."""
    text: str = ""
    """Column of a text (with `language` or `language_column`), or of a map from language to text."""
    language: LanguageTag = NO_LANGUAGE
    """Language of `text`."""
    language_column: str = ""
    """Column of the language of `text`."""

    @cached_property
    def _columns_by_tag(self) -> dict[str, str]:
        return by_tag(self.by_language, "captions.by_language")

    def columns(self) -> list[str]:
        """Return the columns to read (ConfigError: none is named, or a language is none)."""
        names = [*self._columns_by_tag.values(), self.text, self.language_column]
        if not any(names[:-1]):
            do = "Set `captions: {by_language: {en: caption}}`, or `captions: {text: caption, language: en}`."
            mistaken("columns of captions", "none", do)
        return names

    def captions_of(self, row: Mapping[str, Any]) -> Captions:
        """Return a row's captions, without languages that have none (DataError: a cell holds something else)."""
        cells = ((tag, row.get(column)) for tag, column in self._columns_by_tag.items())
        found = gathered((tag, texts(cell)) for tag, cell in cells if cell is not None)
        if self.text:
            found |= captions(row.get(self.text), self.language or row.get(self.language_column))
        return found


@dataclass(frozen=True, kw_only=True)
class ColumnImages(ImageCorpus):
    """A corpus of images whose texts stand in columns."""

    captions: CaptionColumns
    """The columns of captions."""
    ids: Sequence[str] = ()
    """Columns to keep as ids, beside those that the corpus has by itself."""
    licence_column: str = ""
    """Column of the licence, where images differ."""

    def check(self) -> None:
        """Raise a ConfigError where the columns of captions are wrong."""
        self.captions.columns()

    def wanted(self, *more: str) -> list[str]:
        """Return the columns to read, each once: some more, and those of the options (errors: see `CaptionColumns`)."""
        names = dict.fromkeys((*more, *self.captions.columns(), *self.ids, self.licence_column))
        return [name for name in names if name]

    def of_row(self, row: Mapping[str, Any], /, **ids: str) -> dict[str, Any]:
        """Return an image's captions, licence and ids: those of the options, and some more."""
        return {
            "captions": self.captions.captions_of(row),
            "licence": optional(row.get(self.licence_column), "a licence"),
            "ids": ids | identifiers(row, self.ids),
        }


@dataclass(frozen=True, kw_only=True)
class ParquetImages(ColumnImages):
    """Files of images, one part each. Ids: `row` (file and number), and those named."""

    path: Path | Sequence[Path]
    """Files (.parquet, .arrow), folders or patterns; a folder of `save_to_disk` may hold several splits: name one."""
    image: str = "image"
    """Column of the image: bytes, a struct of bytes and path, or a path."""
    image_folder: Path | None = None
    """Where paths begin."""
    identity: str = ""
    """Column that says what the image shows, where several rows show the same."""

    def parts(self) -> Sequence[Part]:
        """Find the files and check their columns."""
        files = self._files()
        for path in files.values():
            try:
                check_columns(self.wanted(self.image, self.identity), column_names(path), path)
            except DataError:
                continue  # reading it says so, and the other files are read
        return self.parts_of_each(files, self.rows)

    def _files(self) -> dict[str, Path]:
        for folder in path_list(self.path):
            if (folder / "dataset_dict.json").exists():
                splits = ", ".join(sorted(item.parent.name for item in folder.glob("*/state.json")))
                got = f"all of them ({splits})"
                mistaken("one split of a saved DatasetDict", got, "Name its folder in `path`.", folder)
        files = named_files(self.path, ARROW_SUFFIXES)
        cached = [name for name, path in files.items() if path.name.startswith("cache-")]
        for name in cached:  # beside the data, `datasets` keeps results of its map() and filter()
            note_left_out(files.pop(name), HIDDEN, name)
        return files

    def rows(self, name: str, path: Path) -> ImageRows:
        """Yield the images of a file."""
        return each(read_rows(name, path, needed=self.wanted(self.identity)), partial(self._row, path), self.source)

    def _row(self, path: Path, place: str, row: Row) -> Iterator[ImageRow]:
        index = int(place.rpartition(":")[2]) - 1
        yield self.image_row(
            key=key_of(place),
            image=partial(load_cell, path, index, self.image, self.image_folder),
            identity=identifier(row.get(self.identity)),
            where=place,
            **self.of_row(row, row=place),
        )


def load_cell(path: Path, index: int, column: str, folder: Path | None) -> bytes:
    """Read the image of a row, from 0 (reasons image_missing, unexpected)."""
    where = f"{path.name}:{index + 1}"
    with data_errors(where):
        value = _column(path, column)(index)
    name: Any = value
    if isinstance(value, dict):
        name, value = value.get("path"), value.get("bytes")
    if isinstance(value, bytes):
        return value
    if isinstance(name, str) and folder is not None:
        return load_first([folder], name)
    return refuse("image_missing", "bytes, or a path and `image_folder` in the recipe", shown(value or name), where)


def _arrow_cell(cells: pa.ChunkedArray, index: int) -> Any:
    cell = cells.slice(index, 1)
    cell.validate(full=True)  # a damaged offset would end the process, not raise
    return cell[0].as_py()


class _ParquetColumn:
    """One column of a Parquet file, by row; quick where rows follow each other, memory holds _ROWS_AT_ONCE cells."""

    def __init__(self, path: Path, column: str) -> None:
        self._file, self._column = open_parquet(path), column
        sizes = (self._file.metadata.row_group(number).num_rows for number in range(self._file.num_row_groups))
        self._starts = list(itertools.accumulate(sizes, initial=0))
        self._group, self._start, self._cells = -1, 0, ()

    def cell(self, index: int) -> Any:
        group = bisect_right(self._starts, index) - 1
        if group != self._group or index < self._start:
            self._group, self._start, self._cells = group, self._starts[group], ()
            self._batches = self._file.iter_batches(
                batch_size=_ROWS_AT_ONCE, row_groups=[group], columns=[self._column], use_threads=False
            )
        while index >= self._start + len(self._cells):
            self._start += len(self._cells)
            self._cells = next(self._batches).column(0)
        return self._cells[index - self._start].as_py()


@lru_cache(maxsize=2)
def _column(path: Path, column: str) -> Callable[[int], Any]:
    if path.suffix.lower() == ".arrow":
        return partial(_arrow_cell, arrow_table(path).column(column))
    return _ParquetColumn(path, column).cell


TABLES: Final = tuple(f"captions{suffix}" for suffix in (".jsonl", ".csv", ".tsv", *ARROW_SUFFIXES))
_COLUMNS: Final = ("image", "language", "caption")
_OPTIONAL: Final = ("licence", "source", "identity", "key")


@dataclass(frozen=True, kw_only=True)
class ImageFolder(ImageCorpus):
    """One part, with one record per image that the table names."""

    folder: Path
    """Holds the table (one of TABLES, also compressed); the table's paths are relative to it."""
    source: str = ""
    """The corpus's name where a line gives none; empty: the folder's name."""
    table: str = ""
    """Name of the table; empty: the first one of TABLES that is there."""

    def parts(self) -> Sequence[Part]:
        """Find the table. The images are looked at when their records are made."""
        path = self._table()
        return self.part_of_all(path.name, partial(self.rows, path), [path])

    def _table(self) -> Path:
        # By their names: the folder itself may hold ten million images.
        names = [self.table] if self.table else [f"{name}{packed}" for name in TABLES for packed in ("", *COMPRESSIONS)]
        tables = [path for path in map(self.folder.joinpath, names) if path.is_file()]
        if not tables:
            expected = self.table or f"{', '.join(TABLES[:-1])} or {TABLES[-1]}"
            mistaken(expected, "no such file", "Write one; docs/corpora.md says how.", self.folder)
        note_read(tables[:1])
        for other in tables[1:]:
            note_left_out(other, f"a second table beside {tables[0].name}")
        return tables[0]

    def rows(self, path: Path) -> ImageRows:
        """Yield the images that a table names."""
        source = self.source or self.folder.resolve().name
        if plain_suffix(path) == ".jsonl":
            return each(read_rows(path.name, path, needed=()), partial(self._row, source), source)
        lines = each(read_rows(path.name, path, needed=_COLUMNS, optional=_OPTIONAL), _caption, source)
        return joined(lines, partial(self._merged, source), source)

    def _merged(self, source: str, image: str, lines: Sequence[tuple[str, str, list[str], Row]]) -> Iterator[ImageRow]:
        fields: dict[str, Any] = {"image": image, "captions": gathered((tag, texts) for _, tag, texts, _ in lines)}
        for *_, more in lines:
            fields |= more
        return self._row(source, lines[0][0], fields)

    def _row(self, source: str, place: str, row: Row) -> Iterator[ImageRow]:
        """Yield the image of a line of JSON, or of the gathered lines of another table."""
        image = _image(row)
        yield self.image_row(
            key=optional(row.get("key"), "key") or key_of(image),
            image=partial(load_first, [self.folder], image),
            captions=captions(row.get("captions")),
            source=optional(row.get("source"), "source") or source,
            licence=optional(row.get("licence"), "licence"),
            identity=optional(row.get("identity"), "identity"),
            ids={"path": image},
            regions=[_region(region) for region in listed(row.get("regions"), "regions")],
            where=place,
        )


def _image(row: Row) -> str:
    if not isinstance(row.get("image"), str) or not row["image"]:
        refuse("image_missing", 'a path in the field "image"', shown(row.get("image")))
    return text(row["image"])


def _caption(place: str, row: Row) -> Iterator[tuple[str, tuple[str, str, list[str], Row]]]:
    """Yield (image, (place, language, texts, further fields)) of a line with one caption."""
    more = {name: value for name in _OPTIONAL if (value := optional(row.get(name), name))}
    yield _image(row), (place, language(row["language"]), [text(row["caption"], "a caption")], more)


def _region(cell: Any) -> Region:
    region = mapping(cell, "a region")
    if region.get("captions") is None:
        refuse("line_broken", "a region with captions", shown(region))
    corners = box(region.get("box"))
    return Region(box=corners, captions=captions(region["captions"]), attributes=captions(region.get("attributes")))
