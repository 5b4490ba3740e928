"""Parquet with the pictures inside (HF data sets, img2dataset's parquet output) and HF data sets saved to disk.

train-00000-of-00002.parquet         image: struct<bytes, path> (or bytes); further columns hold captions and ids
FOLDER/dataset_info.json, state.json, data-00000-of-00002.arrow       what Dataset.save_to_disk writes
FOLDER/dataset_dict.json, train/…, test/…                             what DatasetDict.save_to_disk writes

Read by pyarrow; the `datasets` package is not needed. A picture is read when its record is made: from a mapped Arrow
file directly, from Parquet with its row group, of which the last ones are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet

from cclm.errors import ConfigError
from shards.corpora.caption_columns import CaptionColumns
from shards.corpora.files import BROKEN_STREAM, named_files
from shards.corpora.image_row import ImageRow, key_of, lazy_images
from shards.corpora.picture import load_file
from shards.corpora.refusal import broken_row, broken_tail, first, refuse
from shards.corpora.rows import BadRow, check_columns
from shards.corpora.translations import Translations, with_translations
from shards.parts import LazyRecord, Part, file_stamp

_SUFFIXES: Final = (".parquet", ".arrow")


@dataclass(frozen=True, kw_only=True)
class ParquetImages:
    """Files of pictures, one part each."""

    path: Path | Sequence[Path]
    """Files (.parquet, .arrow), folders or patterns; a folder of `save_to_disk` may hold several splits: name one."""
    captions: CaptionColumns
    """The columns of captions."""
    source: str
    """The corpus's name."""
    image: str = "image"
    """Column of the picture: bytes, a struct of bytes and path, or a path."""
    image_folder: Path | None = None
    """Where paths begin."""
    ids: Sequence[str] = ()
    """Columns to keep as ids."""
    identity: str = ""
    """Column that says what the picture shows, where several rows show the same."""
    licence: str = "unknown"
    """SPDX tag of the pictures."""
    licence_column: str = ""
    """Column of the licence, where rows differ."""
    translations: Sequence[Translations] = ()
    """Further captions, joined on one of `ids`; with them all files are one part."""

    def parts(self) -> Sequence[Part]:
        """Find the files and check their columns."""
        files = self._files()
        needed = [self.image, *self._columns()]
        for path in files.values():
            check_columns(needed, _schema(path).names, path)
        if self.translations:
            tables = [path for one in self.translations for path in one.files().values()]
            stamp = "-".join(map(file_stamp, [*files.values(), *tables]))
            return [Part(name="joined", read=partial(self.read_joined, files), stamp=stamp)]
        return [
            Part(name=name, read=partial(self.read, name, path), stamp=file_stamp(path)) for name, path in files.items()
        ]

    def _files(self) -> dict[str, Path]:
        for folder in [self.path] if isinstance(self.path, Path) else self.path:
            if (folder / "dataset_dict.json").exists():
                splits = sorted(item.parent.name for item in folder.glob("*/state.json"))
                raise ConfigError(
                    expected="one split of a saved DatasetDict",
                    got=f"all of them ({', '.join(splits)})",
                    do="Name its folder in `path`.",
                    where=str(folder),
                )
        files = named_files(self.path, _SUFFIXES)
        # Beside the data, `datasets` keeps results of its map() and filter().
        return {name: path for name, path in files.items() if not path.name.startswith("cache-")}

    def _columns(self) -> list[str]:
        wanted = [*self.captions.columns(), *self.ids, self.identity, self.licence_column]
        return [name for name in dict.fromkeys(wanted) if name]

    def read(self, name: str, path: Path) -> Iterator[LazyRecord]:
        """Yield one draft a row."""
        return lazy_images(self._rows(name, path))

    def read_joined(self, files: Mapping[str, Path]) -> Iterator[LazyRecord]:
        """Yield one draft a row of all files, with its translations."""
        rows = (row for name, path in files.items() for row in self._rows(name, path))
        return lazy_images(with_translations(rows, self.translations, self.source))

    def _rows(self, name: str, path: Path) -> Iterator[ImageRow | LazyRecord]:
        number = 0
        try:
            for piece in range(_num_pieces(path)):
                cells = _piece(path, piece, tuple(self._columns())).to_pylist()
                for place, row in enumerate(cells):
                    number += 1
                    yield self._row(
                        name, number, row, partial(load_cell, path, piece, place, self.image, self.image_folder)
                    )
        except BROKEN_STREAM as error:
            yield broken_tail(name, number + 1, self.source, str(error))

    def _row(self, name: str, number: int, row: Mapping[str, Any], image: partial[bytes]) -> ImageRow | LazyRecord:
        captions, where = self.captions.captions_of(row), f"{name}:{number}"
        if isinstance(captions, BadRow):
            return broken_row(name, number, self.source, captions.why, captions.expected)
        licence = row.get(self.licence_column) if self.licence_column else None
        return ImageRow(
            key=key_of(where),
            image=image,
            captions=captions,
            source=self.source,
            licence=str(licence or self.licence),
            identity=str(row[self.identity]) if self.identity and row[self.identity] is not None else "",
            ids={"row": where} | {column: str(row[column]) for column in self.ids if row[column] is not None},
            where=where,
        )


def load_cell(path: Path, piece: int, place: int, column: str, folder: Path | None) -> bytes:
    """Read one picture (reasons image_missing, file_broken)."""
    where = f"{path}, piece {piece}, row {place}"
    try:
        value = _pictures(path, piece, column).column(0)[place].as_py()
    except BROKEN_STREAM as error:
        refuse("file_broken", "a whole file", str(error), where)
    name: Any = value
    if isinstance(value, dict):
        name = value.get("path")
        value = value.get("bytes")
    if isinstance(value, bytes):
        return value
    if isinstance(name, str) and folder is not None:
        return load_file(folder / name)
    return refuse("image_missing", "bytes, or a path and `image_folder` in the recipe", first(value or name), where)


@lru_cache(maxsize=2)
def _pictures(path: Path, piece: int, column: str) -> pa.Table:
    return _piece(path, piece, (column,))


def _schema(path: Path) -> pa.Schema:
    return _arrow_batches(path)[0] if path.suffix == ".arrow" else pa.parquet.read_schema(path)


def _num_pieces(path: Path) -> int:
    return len(_arrow_batches(path)[1]) if path.suffix == ".arrow" else int(_parquet(path).num_row_groups)


def _piece(path: Path, piece: int, columns: tuple[str, ...]) -> pa.Table:
    if path.suffix == ".arrow":
        return pa.Table.from_batches([_arrow_batches(path)[1][piece]]).select(list(columns))
    return _parquet(path).read_row_group(piece, columns=list(columns))


@lru_cache(maxsize=4)
def _parquet(path: Path) -> pa.parquet.ParquetFile:
    return pa.parquet.ParquetFile(path)


@lru_cache(maxsize=4)
def _arrow_batches(path: Path) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    """Return the batches of an Arrow stream or file, mapped: they cost address space, not memory."""
    source = pa.memory_map(str(path))
    try:
        reader = pa.ipc.open_stream(source)
        return reader.schema, list(reader)
    except pa.ArrowInvalid:
        source.seek(0)
        file = pa.ipc.open_file(source)
        return file.schema, [file.get_batch(number) for number in range(file.num_record_batches)]
