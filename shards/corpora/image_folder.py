"""A folder of images with a table of captions beside them: how to bring your own image-text corpus.

captions.jsonl           {"image": "a/b.jpg", "captions": {"en": ["…"], "de": "…"}, "licence": "CC-BY-4.0"}
captions.csv (or .tsv)   image,language,caption[,licence,source,identity]; one line a caption, with a header
captions.parquet         the same columns
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from cclm.annotations.images import key_of
from cclm.rows.cells import box, captions, gathered, language, listed, mapping, optional, text
from cclm.rows.guard import mistaken, refuse, shown
from cclm.rows.lines import COMPRESSIONS, plain_suffix
from cclm.rows.tables import ARROW_SUFFIXES, Row, read_rows
from cclm.types import Region
from shards.corpora.entries import each, joined
from shards.corpora.files import note_left_out, note_read
from shards.corpora.image_bytes import load_first
from shards.corpora.image_corpus import ImageCorpus, ImageRow, ImageRows
from shards.parts import Part

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
        """Yield the image of all of its lines."""
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
